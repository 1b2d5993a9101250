//! Compares verdicts with the rendered text, evaluated by code that shares nothing with the model.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::model::{NsMode, PolicyChain, PolicySettings, Protocol};
use crate::net::bridges::Uplink;
use crate::net::firewall::{Bridge, PublishedPort, ResolvedPolicy, render};

fn end(n: u8, bridge: u8) -> End {
    End {
        container: format!("c{n}"),
        veth: format!("rd_{n:012}"),
        bridge: if bridge == 0 { "raind0".into() } else { "other".into() },
        address: [10, 166, bridge, n].into(),
    }
}

fn world(mode: NsMode) -> DesiredRules {
    let bridge = |n: u8, name: &str| Bridge {
        name: name.into(),
        subnet: format!("10.166.{n}.0/24").parse().unwrap(),
        gateway: [10, 166, n, 254].into(),
    };
    DesiredRules {
        uplink: Some(Uplink {
            interface: "eth0".into(),
            address: [192, 0, 2, 2].into(),
        }),
        bridges: vec![bridge(0, "raind0"), bridge(1, "other")],
        interfaces: (1..6).map(|n| end(n, n % 2)).collect(),
        policy: PolicySettings {
            ns_mode: mode,
            ..PolicySettings::default()
        },
        ..DesiredRules::default()
    }
}

fn policy(id: usize, chain: PolicyChain) -> ResolvedPolicy {
    ResolvedPolicy {
        policy: format!("p{id}"),
        chain,
        pairs: Vec::new(),
        sources: Vec::new(),
        block: None,
        protocol: None,
        dport: None,
    }
}

/// A small set of addresses, protocols and ports, so that policies often match packets.
struct Dice(StdRng);

impl Dice {
    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.0.random_range(0..all.len())].clone()
    }

    fn protocol(&mut self) -> Option<PolicyProtocol> {
        use PolicyProtocol::{Icmp, Tcp, Udp};
        self.of(&[None, Some(Icmp), Some(Tcp), Some(Tcp), Some(Udp)])
    }

    fn port(&mut self, protocol: Option<PolicyProtocol>) -> Option<u16> {
        match protocol {
            Some(p) if p.has_ports() => self.of(&[None, Some(80), Some(443)]),
            _ => None,
        }
    }

    fn policy(&mut self, id: usize, interfaces: &[End]) -> ResolvedPolicy {
        let protocol = self.protocol();
        let mut policy = ResolvedPolicy {
            protocol,
            dport: self.port(protocol),
            ..policy(id, self.of(&PolicyChain::ALL))
        };
        for _ in 0..self.0.random_range(1..3) {
            let source = self.of(interfaces);
            if policy.chain == PolicyChain::RaindEw {
                policy.pairs.push((source, self.of(interfaces)));
            } else {
                policy.sources.push(source);
                policy.block = Some(self.of(&["9.9.9.9/32", "9.9.9.0/24", "0.0.0.0/0"]).parse().unwrap());
            }
        }
        policy.pairs.retain(|(a, b)| a.veth != b.veth);
        policy
    }

    fn packet(&mut self, interfaces: &[End]) -> Packet {
        let destination = if self.0.random_bool(0.5) {
            Destination::End(self.of(interfaces))
        } else {
            let addresses: [Ipv4Addr; 4] = [
                [9, 9, 9, 9].into(),
                [9, 9, 9, 1].into(),
                [8, 8, 8, 8].into(),
                [10, 166, 0, 77].into(),
            ];
            Destination::Address(self.of(&addresses))
        };
        let protocol = self.protocol();
        Packet {
            source: self.of(interfaces),
            destination,
            protocol,
            port: self.port(protocol),
        }
    }
}

/// The verdict of the text: whether the packet passes, and the log prefix that was hit last.
fn read(rules: &str, packet: &Packet) -> Option<(bool, String)> {
    let mut chains: HashMap<&str, Vec<Vec<&str>>> = HashMap::new();
    let filter = rules.split("COMMIT").next().unwrap();
    for line in filter.lines().filter_map(|l| l.strip_prefix("-A ")) {
        let (chain, rule) = line.split_once(' ').unwrap();
        chains.entry(chain).or_default().push(rule.split(' ').collect());
    }
    let mut told = String::new();
    let passes = follow(&chains, "RAIND-ROOT", packet, &mut told)?;
    Some((passes, told))
}

fn follow(chains: &HashMap<&str, Vec<Vec<&str>>>, name: &str, packet: &Packet, told: &mut String) -> Option<bool> {
    for rule in chains.get(name)? {
        let target = rule.iter().position(|w| *w == "-j").unwrap();
        if !fits(&rule[..target], packet) {
            continue;
        }
        match rule[target + 1] {
            "ACCEPT" => return Some(true),
            "DROP" => return Some(false),
            "RETURN" => return None,
            "NFLOG" => *told = rule[target + 3].trim_matches('"').to_owned(),
            chain => {
                if let Some(end) = follow(chains, chain, packet, told) {
                    return Some(end);
                }
            }
        }
    }
    None
}

fn fits(words: &[&str], packet: &Packet) -> bool {
    let (to, out, port) = match &packet.destination {
        Destination::End(end) => (end.address, end.bridge.as_str(), end.veth.as_str()),
        Destination::Address(a) if a.octets()[..3] == [10, 166, 0] => (*a, "raind0", "?"),
        Destination::Address(a) => (*a, "eth0", "?"),
    };
    let bridged = out == packet.source.bridge;
    let within = |block: &str, address: Ipv4Addr| block.parse::<ipnet::Ipv4Net>().unwrap().contains(&address);
    let named = |pattern: &str, name: &str| match pattern.strip_suffix('+') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    let mut words = words.iter().peekable();
    let mut wanted = true;
    while let Some(word) = words.next() {
        let holds = match *word {
            "!" => {
                wanted = false;
                continue;
            }
            "-m" => {
                words.next();
                continue;
            }
            "--physdev-is-bridged" => bridged,
            "--tcp-flags" => {
                words.next();
                words.next();
                packet.protocol == Some(PolicyProtocol::Tcp)
            }
            option => {
                let value = *words.next().unwrap();
                match option {
                    "-s" => within(value, packet.source.address),
                    "-d" => within(value, to),
                    "-i" => named(value, &packet.source.bridge),
                    "-o" => named(value, out),
                    "-p" => packet.protocol.is_some_and(|p| p.to_string() == value),
                    "--ctstate" => value == "NEW",
                    "--physdev-in" => value == packet.source.veth,
                    "--physdev-out" => bridged && value == port,
                    "--dport" => packet.port.is_some_and(|p| p.to_string() == value),
                    other => panic!("an option that this reader does not know: {other}"),
                }
            }
        };
        if holds != wanted {
            return false;
        }
        wanted = true;
    }
    true
}

#[test]
fn answers_are_what_the_rendered_rules_say() {
    let mut dice = Dice(StdRng::seed_from_u64(20_260_207));
    let (mut allowed, mut by_policy) = (0, 0);
    for round in 0..300 {
        let mut state = world(dice.of(&[NsMode::Observe, NsMode::Enforce]));
        let interfaces = state.interfaces.clone();
        state.policies = (0..round % 12).map(|id| dice.policy(id, &interfaces)).collect();
        let rules = render(&state).v4;
        let explainer = Explainer::new(&state);
        for _ in 0..40 {
            let packet = dice.packet(&interfaces);
            if matches!(&packet.destination, Destination::End(to) if to.veth == packet.source.veth) {
                continue;
            }
            let verdict = explainer.verdict(&packet);
            let (passes, told) = read(&rules, &packet).expect("a rule that decides");
            assert_eq!(verdict.allowed, passes, "{packet:?}\n{verdict:?}\n{rules}");
            let id = told.split_once("id=").map(|(_, id)| id);
            assert_eq!(
                verdict.policy.as_deref().unwrap_or("predefined"),
                id.unwrap(),
                "{packet:?}\n{rules}"
            );
            let line = format!("-A {} {}", verdict.chain.unwrap(), verdict.rule.unwrap());
            assert!(rules.lines().any(|l| l == line), "{line}");
            allowed += usize::from(passes);
            by_policy += usize::from(verdict.policy.is_some());
        }
    }
    assert!(
        allowed > 1000 && by_policy > 500,
        "{allowed} allowed, {by_policy} by a policy"
    );
}

fn ask(state: &DesiredRules, destination: Destination, port: u16) -> Verdict {
    let packet = Packet {
        source: end(2, 0),
        destination,
        protocol: Some(PolicyProtocol::Tcp),
        port: Some(port),
    };
    Explainer::new(state).verdict(&packet)
}

#[test]
fn what_policies_do_not_govern_is_said_so() {
    let mut state = world(NsMode::Enforce);
    state.ports = vec![PublishedPort {
        bridge: "raind0".into(),
        address: [10, 166, 0, 4].into(),
        host_address: [0; 4].into(),
        host_port: 8080,
        container_port: 80,
        protocol: Protocol::Tcp,
    }];
    let rules = render(&state).v4;
    let names = ask(&state, Destination::Address([8, 8, 8, 8].into()), 53);
    let published = ask(&state, Destination::Address([192, 0, 2, 2].into()), 8080);
    for verdict in [&names, &published] {
        assert!(verdict.allowed);
        let line = format!(
            "-A {} {}",
            verdict.chain.as_ref().unwrap(),
            verdict.rule.as_ref().unwrap()
        );
        assert!(rules.lines().any(|l| l == line), "{line}");
    }
    let host = ask(&state, Destination::Address([10, 166, 0, 254].into()), 22);
    let itself = ask(&state, Destination::End(end(2, 0)), 80);
    for verdict in [host, itself] {
        assert_eq!((verdict.allowed, verdict.rule), (true, None), "{}", verdict.reason);
    }
}
