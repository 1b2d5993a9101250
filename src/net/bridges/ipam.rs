//! Allocates addresses of containers and blocks of networks. Pure; the caller reserves the result in the same
//! transaction (`docs/spec/network.md` 6).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::DNS_ADDRESS;
use crate::model::{Claim, Network, Snapshot};

/// Prefix length of every network and of the container's address.
pub const NETWORK_PREFIX: u8 = 24;

/// Host part of every bridge's address.
const GATEWAY_HOST: u8 = 254;

/// The lowest unused address of the network, excluding the network address, the broadcast address and the gateway.
/// `None` if the network is full. One pass over the subnet.
pub fn lowest_free(snapshot: &Snapshot, network: &Network) -> Option<Ipv4Addr> {
    network
        .subnet
        .hosts()
        .find(|&address| address != network.gateway && snapshot.holder(&Claim::Address(address)).is_none())
}

/// The lowest /24 of the runtime subnet that overlaps no network, no `reserved` block and not the block of the DNS
/// forwarder's address. `None` if there is none left.
pub fn next_subnet(snapshot: &Snapshot, runtime: Ipv4Net, reserved: &[Ipv4Net]) -> Option<Ipv4Net> {
    let dns = Ipv4Net::from(DNS_ADDRESS);
    runtime.subnets(NETWORK_PREFIX).ok()?.find(|block| {
        let taken = |other: &Ipv4Net| overlap(*block, *other);
        !taken(&dns) && !reserved.iter().any(taken) && !snapshot.networks().iter().any(|n| taken(&n.subnet))
    })
}

/// The address of the bridge in a block: host part `.254`.
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    let [a, b, c, _] = subnet.network().octets();
    Ipv4Addr::new(a, b, c, GATEWAY_HOST)
}

/// Whether two blocks overlap, in which case one contains the other.
fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::model::fixtures::{container, network};

    fn runtime() -> Ipv4Net {
        "10.166.0.0/16".parse().unwrap()
    }

    fn with_addresses(hosts: &BTreeSet<u8>) -> Snapshot {
        Snapshot::build(|t| {
            t.put(network("raind0", "10.166.0.0/24")).unwrap();
            for host in hosts {
                let id = format!("c{host}");
                t.put(container(&id, &id).address(&format!("10.166.0.{host}"))).unwrap();
            }
        })
    }

    #[test]
    fn a_full_network_has_no_address() {
        let snapshot = with_addresses(&(1..=253).collect());
        assert_eq!(lowest_free(&snapshot, snapshot.networks().get("raind0").unwrap()), None);
    }

    #[test]
    fn the_first_user_network_is_the_second_block() {
        let snapshot = with_addresses(&BTreeSet::new());
        let subnet = next_subnet(&snapshot, runtime(), &[]).unwrap();
        assert_eq!(
            (subnet.to_string(), gateway(subnet).to_string()),
            ("10.166.1.0/24".into(), "10.166.1.254".into())
        );
    }

    #[test]
    fn a_reserved_block_of_any_size_is_avoided() {
        let snapshot = with_addresses(&BTreeSet::new());
        let reserved = ["10.166.1.128/25", "10.166.2.0/23"].map(|n| n.parse().unwrap());
        assert_eq!(
            next_subnet(&snapshot, runtime(), &reserved).unwrap().to_string(),
            "10.166.4.0/24"
        );
        assert_eq!(
            next_subnet(&snapshot, runtime(), &["10.0.0.0/8".parse().unwrap()]),
            None
        );
    }

    #[test]
    fn there_are_255_networks_and_none_is_that_of_the_dns_forwarder() {
        let mut seen = Vec::new();
        let snapshot = Snapshot::build(|t| {
            while let Some(subnet) = next_subnet(t.snapshot(), runtime(), &[]) {
                t.put(network(&format!("n{}", seen.len()), &subnet.to_string()))
                    .unwrap();
                seen.push(subnet);
            }
        });
        assert_eq!(snapshot.networks().len(), 255);
        assert!(!seen.iter().any(|s| s.contains(&DNS_ADDRESS)));
        assert_eq!(seen.last().unwrap().to_string(), "10.166.255.0/24");
    }

    #[test]
    fn the_smallest_runtime_subnet_holds_one_network() {
        let runtime: Ipv4Net = "10.9.8.0/24".parse().unwrap();
        let none = Snapshot::default();
        assert_eq!(next_subnet(&none, runtime, &[]), Some(runtime));
        let one = Snapshot::build(|t| drop(t.put(network("raind0", "10.9.8.0/24")).unwrap()));
        assert_eq!(next_subnet(&one, runtime, &[]), None);
    }

    proptest! {
        #[test]
        fn the_address_is_the_lowest_that_is_free(hosts in prop::collection::btree_set(1u8..=253, 0..253)) {
            let snapshot = with_addresses(&hosts);
            let found = lowest_free(&snapshot, snapshot.networks().get("raind0").unwrap());
            let expected = (1..=253).find(|h| !hosts.contains(h)).map(|h| Ipv4Addr::new(10, 166, 0, h));
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_block_never_overlaps(
            taken in prop::collection::btree_set(0u8..=255, 0..40),
            reserved in prop::collection::vec((0u8..=255, 0u8..=255, 16u8..=32), 0..8),
        ) {
            let snapshot = Snapshot::build(|t| {
                for n in &taken {
                    t.put(network(&format!("n{n}"), &format!("10.166.{n}.0/24"))).unwrap();
                }
            });
            let reserved: Vec<Ipv4Net> = reserved
                .into_iter()
                .map(|(c, d, prefix)| Ipv4Net::new_assert(Ipv4Addr::new(10, 166, c, d), prefix).trunc())
                .collect();
            if let Some(found) = next_subnet(&snapshot, runtime(), &reserved) {
                prop_assert!(runtime().contains(&found) && found.prefix_len() == 24);
                prop_assert!(!found.contains(&DNS_ADDRESS));
                let hosts: Vec<_> = found.hosts().collect();
                prop_assert!(reserved.iter().all(|r| !r.contains(&found) && !hosts.iter().any(|h| r.contains(h))));
                prop_assert!(!taken.contains(&found.network().octets()[2]));
            }
        }
    }
}
