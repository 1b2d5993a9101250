//! The chains that translate addresses: DNS, published ports and services inbound, masquerading outbound.

use super::balance;
use super::host::LOOPBACK;
use super::host_port::to_host_port;
use super::rule::{Chain, Match, Rule, Target};
use super::state::{DesiredRules, PublishedPort};
use crate::model::PolicyProtocol;

/// Inbound packets.
pub(super) const PREROUTING: &str = "RAIND-PREROUTING";
const PORTS: &str = "RAIND-PORTS";
const POSTROUTING: &str = "RAIND-POSTROUTING";
/// Where DNS servers listen.
pub(super) const DOMAIN: u16 = 53;

/// All of them.
pub(super) fn chains(state: &DesiredRules) -> Vec<Chain> {
    let mut chains = vec![prerouting(state), ports(state), postrouting(state)];
    chains.extend(balance::chains(state));
    chains
}

/// Redirects DNS queries of containers to our forwarder, whatever server they address (`docs/spec/network.md` 5.3).
/// Containers reach the published ports of their own network only (8.2), all others reach those of every network. We do
/// not copy the original's rule for the uplink, which also caught packets that the host only forwards: the last rule
/// covers the uplink too.
fn prerouting(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(PREROUTING);
    for b in &state.bridges {
        for protocol in [PolicyProtocol::Udp, PolicyProtocol::Tcp] {
            chain.rules.push(dns_redirect(state, &b.name, protocol));
        }
    }
    for p in &state.ports {
        // Only the host itself can reach its loopback.
        if !p.host_address.is_loopback() {
            chain.add(to_published(p, Some(&p.bridge)), to_container(p));
        }
    }
    chain.rules.extend(balance::jumps_from_bridges(state));
    for b in &state.bridges {
        chain.add(Match::from(&b.name), Target::Return);
    }
    // A packet for a loopback address that arrives from outside was forged by a neighbour: translated, it would pass
    // the kernel's own check. The host's own packets to its loopback are in OUTPUT.
    let to_loopback = Match {
        destination: Some(LOOPBACK),
        ..Match::default()
    };
    chain.add(to_loopback, Target::Return);
    chain.add(Match::default(), Target::jump(PORTS));
    chain
}

/// The rule that redirects queries from a bridge to our forwarder.
pub(super) fn dns_redirect(state: &DesiredRules, bridge: &str, protocol: PolicyProtocol) -> Rule {
    let queries = Match {
        input: Some(bridge.to_owned()),
        ..Match::to_port(protocol, DOMAIN)
    };
    Rule::new(queries, Target::SendTo(state.settings.dns))
}

/// Published ports and services for processes of the host and for all other interfaces.
fn ports(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(PORTS);
    for p in &state.ports {
        chain.add(to_published(p, None), to_container(p));
    }
    chain.rules.extend(balance::jumps(state));
    chain
}

fn to_published(p: &PublishedPort, from: Option<&str>) -> Match {
    to_host_port(p.host_address, from, p.protocol, p.host_port)
}

fn to_container(p: &PublishedPort) -> Target {
    Target::send_to(p.address, p.container_port)
}

/// The reply path of published ports and services (N-15), then masquerading.
fn postrouting(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(POSTROUTING);
    for p in &state.destinations() {
        let to_container = Match {
            destination: Some(p.address.into()),
            ..Match::to_port(p.protocol, p.container_port)
        };
        // Replies to a client on 127.0.0.1, or to the container itself, would bypass the translation.
        let from_host = Match {
            output: Some(p.bridge.clone()),
            from_host: true,
            ..to_container.clone()
        };
        chain.add(from_host, Target::Masquerade);
        let from_itself = Match {
            source: Some(p.address.into()),
            ..to_container
        };
        chain.add(from_itself, Target::Masquerade);
    }
    let runtime = state.settings.runtime_subnet;
    let from_containers = |matches| Match {
        source: Some(runtime),
        ..matches
    };
    if let Some(h) = state.uplink.as_ref().map(|u| &u.interface) {
        chain.add(from_containers(Match::to(h)), Target::Masquerade);
    }
    // Bridged broadcasts pass here too, although they do not leave the host.
    for b in &state.bridges {
        chain.add(Match::to(&b.name), Target::Return);
    }
    let elsewhere = Match {
        not_destination: Some(runtime),
        ..Match::default()
    };
    chain.add(from_containers(elsewhere), Target::Masquerade);
    chain
}
