//! The chains that decide about packets to the host itself.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::rule::{Chain, Match, State, Target};
use super::state::DesiredRules;
use crate::model::PolicyProtocol::{Tcp, Udp};

const INPUT: &str = "RAIND-INPUT";
const LOCAL: &str = "RAIND-LOCAL";

/// Host addresses that only the host itself may reach.
pub(super) const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// All of them.
pub(super) fn chains(state: &DesiredRules) -> [Chain; 2] {
    [input(state), local(state)]
}

/// N-29: the hook listener accepts containers and the host only.
fn input(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(INPUT);
    for b in &state.bridges {
        chain.add(Match::from(&b.name), Target::jump(LOCAL));
    }
    let from_outside = Match {
        not_input: Some("lo".into()),
        ..Match::to_port(Tcp, state.settings.hook_port)
    };
    chain.add(from_outside, Target::Drop);
    chain
}

/// What containers may reach on the host. Everything else is up to the host's own rules (`docs/spec/policy.md` 1).
fn local(state: &DesiredRules) -> Chain {
    let s = &state.settings;
    let mut chain = Chain::new(LOCAL);
    // With route_localnet the kernel no longer refuses these itself (N-15). Replies of published ports are established.
    let from_loopback = Match {
        source: Some(LOOPBACK),
        ..Match::default()
    };
    chain.add(from_loopback, Target::Drop);
    let to_loopback = Match {
        destination: Some(LOOPBACK),
        state: Some(State::NotKnown),
        ..Match::default()
    };
    chain.add(to_loopback, Target::Drop);
    let from_containers = |matches| Match {
        source: Some(s.runtime_subnet),
        ..matches
    };
    for protocol in [Udp, Tcp] {
        let to_dns = Match {
            destination: Some((*s.dns.ip()).into()),
            ..Match::to_port(protocol, s.dns.port())
        };
        chain.add(from_containers(to_dns), Target::Accept);
    }
    chain.add(from_containers(Match::to_port(Tcp, s.hook_port)), Target::Accept);
    for port in [s.management_port, s.ca_port] {
        chain.add(Match::to_port(Tcp, port), Target::Drop);
    }
    chain
}
