//! `ipam.json`: networks, addresses, published ports (`docs/spec/storage.md` 3.2). Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::json::{Time, nullable, version_0_1};
use crate::model::{Attachment, Forward, Network, Protocol};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    #[serde(deserialize_with = "version_0_1")]
    version: String,
    #[serde(default)]
    runtime_subnet: Option<Ipv4Net>,
    #[serde(default)]
    dns_proxy: DnsProxy,
    #[serde(default)]
    host_interface: String,
    #[serde(default)]
    host_interface_address: String,
    #[serde(default, deserialize_with = "nullable")]
    pools: Vec<Pool>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DnsProxy {
    dns_proxy_interface: String,
    dns_proxy_addr: String,
    #[serde(deserialize_with = "nullable")]
    upstreams: Vec<IpAddr>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Pool {
    interface: String,
    subnet: Ipv4Net,
    /// Address of the bridge, with the prefix length.
    address: Ipv4Net,
    #[serde(default, deserialize_with = "nullable")]
    allocations: BTreeMap<Ipv4Addr, Allocation>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allocation {
    container_id: String,
    #[serde(default)]
    interface: String,
    #[serde(default, deserialize_with = "nullable")]
    forwards: Vec<OldForward>,
    #[serde(default)]
    assigned_at: Time,
}

#[derive(Debug, Serialize, Deserialize)]
struct OldForward {
    source: u16,
    destination: u16,
    #[serde(default)]
    protocol: String,
}

impl Stored {
    /// The block that container networks are allocated from.
    pub(super) fn subnet(&self) -> Option<Ipv4Net> {
        self.runtime_subnet.map(|subnet| subnet.trunc())
    }

    /// DNS servers.
    pub(super) fn upstreams(&self) -> Vec<SocketAddr> {
        let upstreams = self.dns_proxy.upstreams.iter();
        upstreams.map(|ip| SocketAddr::new(*ip, 53)).collect()
    }

    /// The networks; their creation times preserve the order of the pools.
    pub(super) fn networks(&self, now: Timestamp) -> Vec<Network> {
        let network = |(n, pool): (usize, &Pool)| Network {
            name: pool.interface.clone(),
            subnet: pool.subnet.trunc(),
            gateway: pool.address.addr(),
            created_at: now.checked_add(SignedDuration::from_micros(n as i64)).unwrap_or(now),
        };
        self.pools.iter().enumerate().map(network).collect()
    }

    /// Network address and published ports of a container.
    pub(super) fn place(&self, id: &str, warnings: &mut Vec<String>) -> (Option<Attachment>, Vec<Forward>) {
        let all = self
            .pools
            .iter()
            .flat_map(|pool| pool.allocations.iter().map(move |(at, a)| (pool, at, a)));
        let Some((pool, address, allocation)) = all.into_iter().find(|(.., a)| a.container_id == id) else {
            return (None, Vec::new());
        };
        let place = Attachment {
            network: pool.interface.clone(),
            address: *address,
        };
        let forward = |old: &OldForward| {
            let Some(protocol) = protocol(&old.protocol) else {
                let (port, word) = (old.source, &old.protocol);
                warnings.push(format!(
                    "container {id}: port {port}: unknown protocol {word:?}, not published"
                ));
                return None;
            };
            Some(Forward {
                host_address: None,
                host_port: old.source,
                container_port: old.destination,
                protocol,
            })
        };
        let forwards = allocation.forwards.iter().filter_map(forward).collect();
        (Some(place), forwards)
    }

    /// Warns about dropped entries and other facts an operator should know. `keeps` says whether a container becomes a
    /// row.
    pub(super) fn check(&self, keeps: impl Fn(&str) -> bool, warnings: &mut Vec<String>) {
        for (n, pool) in self.pools.iter().enumerate() {
            for (address, allocation) in &pool.allocations {
                if !keeps(&allocation.container_id) {
                    let id = &allocation.container_id;
                    warnings.push(format!(
                        "address {address}: its container {id} has no record, the address is free"
                    ));
                }
            }
            let overlaps = |other: &&Pool| other.subnet.contains(&pool.subnet) || pool.subnet.contains(&other.subnet);
            if let Some(other) = self.pools[..n].iter().find(overlaps) {
                let (a, b) = (&other.interface, &pool.interface);
                warnings.push(format!(
                    "networks {a} and {b} overlap: {} and {}",
                    other.subnet, pool.subnet
                ));
            }
        }
    }
}

/// A protocol as users of the original wrote it; empty is TCP.
pub(super) fn protocol(word: &str) -> Option<Protocol> {
    match &*word.to_ascii_lowercase() {
        "" | "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}
