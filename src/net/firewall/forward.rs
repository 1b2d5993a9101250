//! The chains for forwarded packets (`docs/spec/policy.md` 2), in the order in which packets traverse them.
//!
//! User policies are at the top of their chain, the last one added first, each preceded by its log rule.

use super::rule::{Chain, GROUP_EW, Match, Rule, State, Target};
use super::state::{DesiredRules, ResolvedPolicy};
use crate::model;
use crate::model::{NsMode, PolicyProtocol};

const EW_DENY: &str = "RAIND-EW-DENY,id=predefined";
const NS_ALLOW: &str = "RAIND-NS-ALLOW,id=predefined";
const NS_DENY: &str = "RAIND-NS-DENY,id=predefined";
const GROUP_OBSERVE: u8 = 11;
const GROUP_ENFORCE: u8 = 12;

/// The entry for forwarded packets.
pub(super) const ROOT: &str = "RAIND-ROOT";
const GUARD: &str = "RAIND-GUARD";
const EAST_WEST: &str = "RAIND-EW";
const ISOLATE: &str = "RAIND-ISOLATE";
const OBSERVE: &str = "RAIND-NS-OBS";
const ENFORCE: &str = "RAIND-NS-ENF";

/// All of them.
pub(super) fn chains(state: &DesiredRules) -> Vec<Chain> {
    vec![
        root(state),
        guard(state),
        east_west(state),
        isolate(state, state.policy.ew_logging),
        ns_observe(state),
        ns_enforce(state),
    ]
}

/// 2.2, and P-16.
fn root(state: &DesiredRules) -> Chain {
    let north_south = match state.policy.ns_mode {
        NsMode::Observe => OBSERVE,
        NsMode::Enforce => ENFORCE,
    };
    let mut chain = Chain::new(ROOT);
    let known = Match {
        state: Some(State::Known),
        ..Match::default()
    };
    chain.add(known, Target::Accept);
    for to in [GUARD, EAST_WEST, north_south] {
        chain.add(Match::default(), Target::jump(to));
    }
    chain.add(Match::default(), Target::Return);
    chain
}

/// P-16: a container must send from its assigned address. This comes after established connections: guessing one of
/// those gains nothing that a policy denies.
fn guard(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(GUARD);
    for interface in &state.interfaces {
        let spoofed = Match {
            not_source: Some(interface.address.into()),
            bridge_in: Some(interface.veth.clone()),
            ..Match::default()
        };
        chain.add(spoofed, Target::Drop);
    }
    chain
}

/// 2.3. The drop by name prefix catches bridges whose network was removed; the one by list works for any name (P-05).
fn east_west(state: &DesiredRules) -> Chain {
    let logging = state.policy.ew_logging;
    let mut chain = Chain::new(EAST_WEST);
    for policy in of_chain(state, model::PolicyChain::RaindEw) {
        let allow = Target::log(format!("RAIND-EW-ALLOW,id={}", policy.policy), GROUP_EW);
        for matches in policy.pairs.iter().map(|pair| east_west_match(pair, policy)) {
            policy_rules(&mut chain, policy, matches, logging.then_some(&allow), Target::Accept);
        }
    }
    for b in state.bridges.iter().map(|b| &b.name) {
        let bridged = Match {
            bridged: true,
            ..Match::between(b, b)
        };
        chain.add_if(logging, bridged.new_only(), Target::log(EW_DENY, GROUP_EW));
    }
    for b in state.bridges.iter().map(|b| &b.name) {
        chain.add(Match::between(b, b), Target::Drop);
    }
    let by_name = Match::between("raind+", "raind+");
    chain.add_if(logging, by_name.new_only(), Target::log(EW_DENY, GROUP_EW));
    chain.add(by_name, Target::Drop);
    for b in &state.bridges {
        chain.add(Match::from(&b.name), Target::jump(ISOLATE));
    }
    chain.add(Match::default(), Target::Return);
    chain
}

/// On one bridge match by bridge port, between two by address: the output port of a routed packet is not known yet
/// (P-06).
fn east_west_match((source, destination): &super::state::Pair, policy: &ResolvedPolicy) -> Match {
    let matches = Match {
        protocol: policy.protocol,
        dport: policy.dport,
        ..Match::default()
    };
    if source.bridge == destination.bridge {
        return Match {
            bridged: true,
            bridge_in: Some(source.veth.clone()),
            bridge_out: Some(destination.veth.clone()),
            ..matches
        };
    }
    Match {
        source: Some(source.address.into()),
        destination: Some(destination.address.into()),
        input: Some(source.bridge.clone()),
        output: Some(destination.bridge.clone()),
        ..matches
    }
}

/// Drops packets from one of our bridges to any of them, with one rule per bridge instead of one per pair.
pub(super) fn isolate(state: &DesiredRules, logging: bool) -> Chain {
    let mut chain = Chain::new(ISOLATE);
    for b in state.bridges.iter().map(|b| &b.name) {
        chain.add_if(logging, Match::to(b).new_only(), Target::log(EW_DENY, GROUP_EW));
        chain.add(Match::to(b), Target::Drop);
    }
    chain
}

/// 2.4. Inbound traffic is only logged here; published ports are accepted further down.
fn ns_observe(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(OBSERVE);
    outbound_policies(&mut chain, state, model::PolicyChain::RaindNsObs);
    if state.policy.ns_mode != NsMode::Observe {
        return chain;
    }
    let logging = state.policy.ns_logging;
    let allow = || Target::log(NS_ALLOW, GROUP_OBSERVE);
    let logs_inbound = |chain: &mut Chain, inbound: Match| {
        let tcp = Match {
            protocol: Some(PolicyProtocol::Tcp),
            syn: true,
            ..inbound.new_only()
        };
        let udp = Match {
            protocol: Some(PolicyProtocol::Udp),
            ..inbound.new_only()
        };
        chain.add_if(logging, tcp, allow());
        chain.add_if(logging, udp, allow());
    };
    let uplink = state.uplink.as_ref().map(|u| &u.interface);
    for b in state.bridges.iter().map(|b| &b.name) {
        if let Some(h) = uplink {
            logs_inbound(&mut chain, Match::between(h, b));
            chain.add_if(logging, Match::between(b, h).new_only(), allow());
            chain.add(Match::between(b, h), Target::Accept);
        }
    }
    for b in state.bridges.iter().map(|b| &b.name) {
        let others = Match {
            not_input: uplink.cloned(),
            ..Match::to(b)
        };
        logs_inbound(&mut chain, others);
        chain.add_if(logging, Match::from(b).new_only(), allow());
        chain.add(Match::from(b), Target::Accept);
    }
    chain.add(Match::default(), Target::Return);
    chain
}

/// 2.5.
fn ns_enforce(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new(ENFORCE);
    outbound_policies(&mut chain, state, model::PolicyChain::RaindNsEnf);
    if state.policy.ns_mode != NsMode::Enforce {
        return chain;
    }
    let logging = state.policy.ns_logging;
    for out in ways_out(state) {
        let leaving = |b: &String| Match {
            output: out.clone(),
            ..Match::from(b)
        };
        for b in state.bridges.iter().map(|b| &b.name) {
            chain.add_if(logging, leaving(b).new_only(), Target::log(NS_DENY, GROUP_ENFORCE));
        }
        for b in state.bridges.iter().map(|b| &b.name) {
            chain.add(leaving(b), Target::Drop);
        }
    }
    chain.add(Match::default(), Target::Return);
    chain
}

/// The uplink, and all other interfaces (N-28, P-21).
fn ways_out(state: &DesiredRules) -> impl Iterator<Item = Option<String>> {
    let uplink = state.uplink.as_ref().map(|u| Some(u.interface.clone()));
    uplink.into_iter().chain([None])
}

/// 2.6. Both chains hold their policies in either mode.
fn outbound_policies(chain: &mut Chain, state: &DesiredRules, of: model::PolicyChain) {
    let (word, group, target) = match of {
        model::PolicyChain::RaindNsEnf => ("RAIND-NS-ALLOW", GROUP_ENFORCE, Target::Accept),
        _ => ("RAIND-NS-DENY", GROUP_OBSERVE, Target::Drop),
    };
    for policy in of_chain(state, of) {
        let told = Target::log(format!("{word},id={}", policy.policy), group);
        for (source, output) in policy
            .sources
            .iter()
            .flat_map(|source| ways_out(state).map(move |out| (source, out)))
        {
            let matches = Match {
                source: Some(source.address.into()),
                destination: policy.block,
                input: Some(source.bridge.clone()),
                output,
                protocol: policy.protocol,
                dport: policy.dport,
                ..Match::default()
            };
            let told = state.policy.ns_logging.then_some(&told);
            policy_rules(chain, policy, matches, told, target.clone());
        }
    }
}

fn of_chain(state: &DesiredRules, chain: model::PolicyChain) -> impl Iterator<Item = &ResolvedPolicy> {
    state.policies.iter().rev().filter(move |p| p.chain == chain)
}

fn policy_rules(chain: &mut Chain, policy: &ResolvedPolicy, matches: Match, log: Option<&Target>, target: Target) {
    let mut add = |matches, target| {
        chain.rules.push(Rule {
            matches,
            target,
            policy: Some(policy.policy.clone()),
        });
    };
    if let Some(log) = log {
        add(matches.new_only(), log.clone());
    }
    add(matches, target);
}

/// P-04: networks are IPv4 only; all IPv6 between containers is dropped, link-local included.
pub(super) fn chains6(state: &DesiredRules) -> Vec<Chain> {
    let mut root = Chain::new(ROOT);
    for b in &state.bridges {
        root.add(Match::from(&b.name), Target::jump(ISOLATE));
    }
    vec![root, isolate(state, false)]
}
