//! The verdict on a new connection and the rule behind it: evaluates the rendered rules for one packet. Pure.

use std::net::Ipv4Addr;

use super::forward;
use super::forward::ROOT;
use super::nat::{DOMAIN, PREROUTING, dns_redirect};
use super::published::{HAIRPIN, hairpin_accept};
use super::rule::{Chain, Match, Rule, State, Target};
use super::state::{DesiredRules, PublishedPort};
use crate::model::{End, PolicyProtocol};

/// Destination of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A container or pod.
    End(End),
    /// Any other address.
    Address(Ipv4Addr),
}

/// The first packet of a connection that a container opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Sender.
    pub source: End,
    /// Receiver.
    pub destination: Destination,
    /// `None` for a protocol that no rule mentions.
    pub protocol: Option<PolicyProtocol>,
    /// Destination port; `None` for one that no rule mentions.
    pub port: Option<u16>,
}

/// The verdict on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passes.
    pub allowed: bool,
    /// Chain of the rule that decides; `None` if none of our rules does.
    pub chain: Option<String>,
    /// That rule as iptables-save prints it.
    pub rule: Option<String>,
    /// Id of the policy that the rule comes from.
    pub policy: Option<String>,
    /// Explanation in words.
    pub reason: String,
}

impl Verdict {
    fn without_rule(reason: &str) -> Self {
        Self {
            allowed: true,
            chain: None,
            rule: None,
            policy: None,
            reason: reason.to_owned(),
        }
    }

    fn accepted_by(chain: &str, rule: &Rule, reason: &str) -> Self {
        Self {
            chain: Some(chain.to_owned()),
            rule: Some(rule.to_string()),
            ..Self::without_rule(reason)
        }
    }
}

/// The rules for forwarded packets, prepared for many queries.
pub struct Explainer<'a> {
    state: &'a DesiredRules,
    chains: Vec<Chain>,
    port_mappings: Vec<PublishedPort>,
}

impl<'a> Explainer<'a> {
    /// The rules of a state.
    pub fn new(state: &'a DesiredRules) -> Self {
        Self {
            state,
            chains: forward::chains(state),
            port_mappings: state.port_mappings(),
        }
    }

    /// The verdict on a packet.
    pub fn verdict(&self, packet: &Packet) -> Verdict {
        let by_name = packet.protocol.filter(|p| p.has_ports() && packet.port == Some(DOMAIN));
        if let Some(protocol) = by_name {
            let rule = dns_redirect(self.state, &packet.source.bridge, protocol);
            let reason = "names are resolved by the daemon, whatever server is asked";
            return Verdict::accepted_by(PREROUTING, &rule, reason);
        }
        match &packet.destination {
            Destination::End(end) if end.veth == packet.source.veth => {
                return Verdict::without_rule("it does not leave the container");
            }
            Destination::Address(address) if self.is_host(*address) => return self.to_host(packet),
            _ => {}
        }
        let seen = self.seen(packet);
        let Some((chain, rule)) = self.walk(ROOT, &seen) else {
            return Verdict::without_rule("no rule of ours speaks of it; the host's own rules decide");
        };
        let allowed = rule.target == Target::Accept;
        let reason = match (&rule.policy, allowed) {
            (Some(_), true) => "a policy allows it",
            (Some(_), false) => "a policy denies it",
            (None, true) => "the mode observe allows what no policy denies",
            (None, false) => "it is denied where no policy allows it",
        };
        Verdict {
            allowed,
            chain: Some(chain.name.to_string()),
            rule: Some(rule.to_string()),
            policy: rule.policy.clone(),
            reason: reason.to_owned(),
        }
    }

    fn is_host(&self, address: Ipv4Addr) -> bool {
        let uplink = self.state.uplink.iter().map(|u| u.address);
        let gateways = self.state.bridges.iter().map(|b| b.gateway);
        let mut own = uplink.chain(gateways).chain([*self.state.settings.dns.ip()]);
        own.any(|a| a == address)
    }

    fn to_host(&self, packet: &Packet) -> Verdict {
        let published = self.port_mappings.iter().find(|p| {
            let is_there = matches!(packet.destination, Destination::Address(address) if p.is_at(address));
            is_there
                && !p.host_address.is_loopback()
                && p.bridge == packet.source.bridge
                && Some(p.host_port) == packet.port
                && packet.protocol.is_some_and(|q| q.name() == p.protocol.to_string())
        });
        match published {
            Some(port) => {
                let reason = "a published port is open to the containers of its network";
                Verdict::accepted_by(HAIRPIN, &hairpin_accept(port), reason)
            }
            None => {
                Verdict::without_rule("it goes to this host itself, where policies do not hold but the host's rules")
            }
        }
    }

    fn seen<'p>(&'p self, packet: &'p Packet) -> Seen<'p> {
        let (address, output, port) = match &packet.destination {
            Destination::End(end) => (end.address, Some(&*end.bridge), Some(&*end.veth)),
            Destination::Address(address) => {
                let bridge = self.state.bridges.iter().find(|b| b.subnet.contains(address));
                let uplink = self.state.uplink.as_ref().map(|u| &*u.interface);
                (*address, bridge.map(|b| &*b.name).or(uplink), None)
            }
        };
        let bridged = output == Some(&packet.source.bridge);
        Seen {
            packet,
            address,
            output,
            bridged,
            bridge_out: port.filter(|_| bridged),
        }
    }

    /// The rule that ends the packet's path through a chain; `None` if the packet returns from it.
    fn walk(&self, name: &str, seen: &Seen<'_>) -> Option<(&Chain, &Rule)> {
        let chain = self.chains.iter().find(|c| c.name == name)?;
        for rule in chain.rules.iter().filter(|r| seen.has(&r.matches)) {
            match &rule.target {
                Target::Accept | Target::Drop => return Some((chain, rule)),
                Target::Return => return None,
                Target::Jump(to) => {
                    if let Some(end) = self.walk(to, seen) {
                        return Some(end);
                    }
                }
                Target::Log { .. } | Target::SendTo(_) | Target::Masquerade => {}
            }
        }
        None
    }
}

/// A packet as the rules see it.
struct Seen<'a> {
    packet: &'a Packet,
    address: Ipv4Addr,
    output: Option<&'a str>,
    bridged: bool,
    bridge_out: Option<&'a str>,
}

impl Seen<'_> {
    fn has(&self, m: &Match) -> bool {
        let source = &self.packet.source;
        m.source.is_none_or(|net| net.contains(&source.address))
            && m.not_source.is_none_or(|net| !net.contains(&source.address))
            && m.destination.is_none_or(|net| net.contains(&self.address))
            && m.not_destination.is_none_or(|net| !net.contains(&self.address))
            // Rules that match a translated destination or a source port do not apply to first packets.
            && !m.is_translated
            && m.sport.is_none()
            && m.input.as_deref().is_none_or(|name| is_named(&source.bridge, name))
            && m.not_input
                .as_deref()
                .is_none_or(|name| !is_named(&source.bridge, name))
            && m.output
                .as_deref()
                .is_none_or(|name| self.output.is_some_and(|out| is_named(out, name)))
            && (m.protocol.is_none() || m.protocol == self.packet.protocol)
            && m.state.is_none_or(|state| state != State::Known)
            && (!m.bridged || self.bridged)
            && m.bridge_in.as_deref().is_none_or(|port| port == source.veth)
            && (m.bridge_out.is_none() || m.bridge_out.as_deref() == self.bridge_out)
            && (m.dport.is_none() || m.dport == self.packet.port)
    }
}

fn is_named(interface: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => interface.starts_with(prefix),
        None => interface == pattern,
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
