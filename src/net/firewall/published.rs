//! The chains that accept packets to published ports and services, and the replies.

use super::rule::{Chain, GROUP_EW, Match, Rule, Target};
use super::state::{DesiredRules, PublishedPort};

/// Between containers of one network.
pub(super) const HAIRPIN: &str = "RAIND-HAIRPIN";
const FORWARDED: &str = "RAIND-FWD";
const EW_ALLOW: &str = "RAIND-EW-ALLOW,id=predefined";

/// Published ports and services between containers of one network, above the default deny (`docs/spec/network.md` 5.5),
/// logged (P-24).
pub(super) fn hairpin(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(HAIRPIN);
    for p in state.destinations().iter().rev() {
        let accept = hairpin_accept(p);
        let told = Target::log(EW_ALLOW, GROUP_EW);
        chain.add_if(state.policy.ew_logging, accept.matches.new_only(), told);
        chain.rules.push(accept);
    }
    chain
}

/// The rule that accepts packets from a container to a published port of its own network.
pub(super) fn hairpin_accept(p: &PublishedPort) -> Rule {
    let matches = Match {
        input: Some(p.bridge.clone()),
        ..translated(p)
    };
    Rule::new(matches, Target::Accept)
}

/// Matches packets that were sent to the host port.
fn translated(p: &PublishedPort) -> Match {
    Match {
        destination: Some(p.address.into()),
        output: Some(p.bridge.clone()),
        is_translated: true,
        ..Match::to_port(p.protocol, p.container_port)
    }
}

/// Published ports and services from outside, for hosts whose FORWARD policy is DROP (`docs/spec/network.md` 13, N-13).
pub(super) fn forwarded(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(FORWARDED);
    for p in &state.destinations() {
        if let Some(h) = state.uplink.as_ref().map(|u| &u.interface) {
            // A port published at one host address must not be reachable through another one.
            if p.host_address.is_unspecified() {
                let inward = Match {
                    input: Some(h.clone()),
                    is_translated: false,
                    ..translated(p)
                };
                chain.add(inward, Target::Accept);
            }
            let answers = Match {
                source: Some(p.address.into()),
                protocol: Some(p.protocol.into()),
                sport: Some(p.container_port),
                ..Match::between(&p.bridge, h)
            };
            chain.add(answers, Target::Accept);
        }
        chain.add(translated(p), Target::Accept);
    }
    chain
}
