//! Service ports: one chain each, which spreads new connections evenly over the ready pods (`docs/spec/network.md`
//! 11.3, 13). Pure.
//!
//! A chain without pods is empty: packets fall through to the host itself, which refuses them at once unless it listens
//! there or its own rules say otherwise. Pods are reached from their own network, from the host and from outside, but
//! not from other container networks, as for published ports.

use std::net::Ipv4Addr;

use super::host_port::to_host_port;
use super::rule::{Chain, Client, Match, Rule, Target};
use super::state::{BalancedPort, DesiredRules};
use crate::model::Protocol;

/// The chains of all service ports.
pub(super) fn chains(state: &DesiredRules) -> impl Iterator<Item = Chain> + '_ {
    state.services.iter().map(chain)
}

/// Jumps for processes of the host and for clients outside.
pub(super) fn jumps(state: &DesiredRules) -> impl Iterator<Item = Rule> + '_ {
    let address = state.settings.publish_address;
    state.services.iter().map(move |port| jump(address, None, port))
}

/// Jumps for containers: from the networks that the pods are in.
pub(super) fn jumps_from_bridges(state: &DesiredRules) -> impl Iterator<Item = Rule> + '_ {
    let address = state.settings.publish_address;
    let open = state.services.iter().filter(move |_| !address.is_loopback());
    open.flat_map(move |port| {
        let mut bridges: Vec<_> = port.endpoints.iter().map(|e| &e.network).collect();
        bridges.sort_unstable();
        bridges.dedup();
        bridges.into_iter().map(move |bridge| jump(address, Some(bridge), port))
    })
}

fn jump(address: Ipv4Addr, from: Option<&str>, port: &BalancedPort) -> Rule {
    let to_port = to_host_port(address, from, port.protocol, port.host_port);
    Rule::new(to_port, Target::Jump(chain_name(port).into()))
}

/// N-26. Ids of the same second share a prefix; the names still differ, since no two services share a port and
/// protocol.
fn chain_name(port: &BalancedPort) -> String {
    let id = port.service.get(..8).unwrap_or(&port.service);
    let suffix = match port.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "-u",
    };
    format!("RAIND-SVC-{id}-{}{suffix}", port.host_port)
}

/// With affinity, recent clients are matched first and sent to the same pod; the client lists are per pod, so a client
/// stays with one pod on all ports of the service. The kernel keeps the last 100 clients of each pod (`ip_list_tot` of
/// `xt_recent`) and drops the list when the pod is gone.
fn chain(port: &BalancedPort) -> Chain {
    let mut chain = Chain::new(chain_name(port));
    let all = Match {
        protocol: Some(port.protocol.into()),
        ..Match::default()
    };
    let list = |address: Ipv4Addr| format!("RAIND-{}-{address}", port.service);
    let addresses = port.endpoints.iter().map(|e| e.address);
    if let Some(seconds) = port.affinity_seconds {
        for address in addresses.clone() {
            let list = list(address);
            let again = Match {
                client: Some(Client::Returns { list, seconds }),
                ..all.clone()
            };
            chain.add(again, Target::send_to(address, port.target_port));
        }
    }
    for (n, address) in addresses.enumerate() {
        let list = list(address);
        let share = Match {
            one_of: share(port.endpoints.len() - n),
            client: port.affinity_seconds.map(|_| Client::IsNoted { list }),
            ..all.clone()
        };
        chain.add(share, Target::send_to(address, port.target_port));
    }
    chain
}

/// One in `left` connections (N-24); unconditional for the last one.
fn share(left: usize) -> Option<u32> {
    (left > 1).then(|| u32::try_from(left).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoint;

    fn port(host_port: u16, protocol: Protocol, hosts: &[u8]) -> BalancedPort {
        let endpoint = |n: &u8| Endpoint {
            address: [10, 166, 0, *n].into(),
            network: "raind0".into(),
            pod_id: format!("pod{n}"),
        };
        BalancedPort {
            service: "01m8bbbbxxxxxxxxxxxxxxxxxx".into(),
            host_port,
            target_port: 80,
            protocol,
            affinity_seconds: None,
            endpoints: hosts.iter().map(endpoint).collect(),
        }
    }

    fn rules(port: &BalancedPort) -> String {
        chain(port).to_string()
    }

    #[test]
    fn connections_are_spread_evenly() {
        // The worked example of the contract, section 13, with the digits that iptables prints.
        insta::assert_snapshot!(rules(&port(11240, Protocol::Tcp, &[1, 2, 3])), @r"
        -A RAIND-SVC-01m8bbbb-11240 -p tcp -m statistic --mode random --probability 0.33333333349 -j DNAT --to-destination 10.166.0.1:80
        -A RAIND-SVC-01m8bbbb-11240 -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.166.0.2:80
        -A RAIND-SVC-01m8bbbb-11240 -p tcp -j DNAT --to-destination 10.166.0.3:80
        ");
        assert_eq!(rules(&port(80, Protocol::Tcp, &[])), "", "falls through to the host");
    }

    #[test]
    fn each_pod_gets_the_same_part() {
        for pods in 1..=64_usize {
            let mut rest = 1.0;
            let hosts: Vec<u8> = (1..=pods as u8).collect();
            for (n, rule) in chain(&port(80, Protocol::Tcp, &hosts)).rules.iter().enumerate() {
                let text = rule.to_string();
                let part = text
                    .split_once("--probability ")
                    .map_or(1.0, |(_, rest)| rest.split(' ').next().unwrap().parse::<f64>().unwrap());
                let reached: f64 = rest * part;
                assert!((reached - 1.0 / pods as f64).abs() < 1e-6, "{n} of {pods}: {reached}");
                rest -= reached;
            }
        }
    }

    #[test]
    fn with_affinity_clients_that_were_here_come_first() {
        let mut port = port(53, Protocol::Udp, &[1, 2]);
        port.affinity_seconds = Some(10_800);
        insta::assert_snapshot!(rules(&port), @r"
        -A RAIND-SVC-01m8bbbb-53-u -p udp -m recent --update --seconds 10800 --reap --name RAIND-01m8bbbbxxxxxxxxxxxxxxxxxx-10.166.0.1 --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.166.0.1:80
        -A RAIND-SVC-01m8bbbb-53-u -p udp -m recent --update --seconds 10800 --reap --name RAIND-01m8bbbbxxxxxxxxxxxxxxxxxx-10.166.0.2 --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.166.0.2:80
        -A RAIND-SVC-01m8bbbb-53-u -p udp -m statistic --mode random --probability 0.50000000000 -m recent --set --name RAIND-01m8bbbbxxxxxxxxxxxxxxxxxx-10.166.0.1 --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.166.0.1:80
        -A RAIND-SVC-01m8bbbb-53-u -p udp -m recent --set --name RAIND-01m8bbbbxxxxxxxxxxxxxxxxxx-10.166.0.2 --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.166.0.2:80
        ");
    }

    #[test]
    fn chains_of_services_of_one_second_differ() {
        let twin = BalancedPort {
            service: "01m8bbbbyyyyyyyyyyyyyyyyyy".into(),
            ..port(81, Protocol::Tcp, &[])
        };
        let udp = port(80, Protocol::Udp, &[]);
        let names = [&port(80, Protocol::Tcp, &[]), &udp, &twin].map(chain_name);
        assert_eq!(
            names,
            [
                "RAIND-SVC-01m8bbbb-80",
                "RAIND-SVC-01m8bbbb-80-u",
                "RAIND-SVC-01m8bbbb-81"
            ]
        );
        assert!(
            chain_name(&port(65535, Protocol::Udp, &[])).len() <= 28,
            "the kernel's limit"
        );
    }

    #[test]
    fn containers_jump_from_the_networks_of_the_pods_only() {
        let mut mixed = port(80, Protocol::Tcp, &[1, 2, 3]);
        mixed.endpoints[1].network = "other".into();
        let state = DesiredRules {
            services: vec![mixed, port(81, Protocol::Tcp, &[])],
            ..DesiredRules::default()
        };
        let seen: Vec<_> = jumps_from_bridges(&state).map(|rule| rule.to_string()).collect();
        assert_eq!(
            seen,
            ["other", "raind0"].map(|b| format!(
                "-i {b} -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 80 -j RAIND-SVC-01m8bbbb-80"
            ))
        );
        assert_eq!(jumps(&state).count(), 2);
    }
}
