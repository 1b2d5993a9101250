//! The rules as text, in the form in which iptables-save prints them, so that what is read back can be compared. Pure.
//!
//! `H` is the uplink, `B` a bridge. Rules that name `H` are the contract's (`docs/spec/network.md` 13,
//! `docs/spec/policy.md` 2). After them stand rules for every other interface that is not a bridge of ours (N-28,
//! P-21): traffic between our bridges has been dropped before, so what is left is traffic with the outside.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv4Addr;

use super::explain::Packet;
use super::state::{DesiredRules, PublishedPort};
use super::{balance, forward, rule};
use crate::model::{PolicyProtocol, Protocol};

/// `iptables-restore --noflush` input of all our chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// For iptables.
    pub v4: String,
    /// For ip6tables.
    pub v6: String,
}

const EW_ALLOW: &str = "RAIND-EW-ALLOW,id=predefined";
const GROUP_EW: u8 = 10;
/// Where servers of names listen.
const DOMAIN: u16 = 53;

/// The rules of a state.
pub fn render(state: &DesiredRules) -> Ruleset {
    let mut chains = vec![input(state), local(state), hairpin(state)];
    chains.extend(forward::chains(state).iter().map(Chain::from));
    chains.push(forwarded(state));
    let filter = Table { name: "filter", chains };
    let nat = Table {
        name: "nat",
        chains: [prerouting(state), ports(state), postrouting(state)]
            .into_iter()
            .chain(balance::chains(state))
            .collect(),
    };
    let filter6 = Table {
        name: "filter",
        chains: forward::chains6(state).iter().map(Chain::from).collect(),
    };
    Ruleset {
        v4: format!("{filter}{nat}"),
        v6: filter6.to_string(),
    }
}

struct Table {
    name: &'static str,
    chains: Vec<Chain>,
}

pub(super) struct Chain {
    pub name: Cow<'static, str>,
    pub rules: Vec<String>,
}

impl Chain {
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            rules: Vec::new(),
        }
    }

    pub fn add(&mut self, rule: impl Into<String>) {
        self.rules.push(rule.into());
    }

    fn add_if(&mut self, condition: bool, rule: impl Into<String>) {
        if condition {
            self.add(rule);
        }
    }
}

impl From<&rule::Chain> for Chain {
    fn from(chain: &rule::Chain) -> Self {
        Self {
            name: chain.name.into(),
            rules: chain.rules.iter().map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        for chain in &self.chains {
            writeln!(f, ":{} - [0:0]", chain.name)?;
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                writeln!(f, "-A {} {rule}", chain.name)?;
            }
        }
        writeln!(f, "COMMIT")
    }
}

fn nflog(prefix: &str, group: u8) -> String {
    format!("-j NFLOG --nflog-prefix \"{prefix}\" --nflog-group {group}")
}

/// N-29: the hook listener answers containers and the host only.
fn input(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new("RAIND-INPUT");
    for b in &state.bridges {
        chain.add(format!("-i {} -j RAIND-LOCAL", b.name));
    }
    chain.add(format!(
        "! -i lo -p tcp -m tcp --dport {} -j DROP",
        state.settings.hook_port
    ));
    chain
}

/// What containers may reach on the host. What is not named is up to the host's own rules (`docs/spec/policy.md` 1).
fn local(state: &DesiredRules) -> Chain {
    let s = &state.settings;
    let (runtime, dns) = (s.runtime_subnet, s.dns);
    let mut chain = Chain::new("RAIND-LOCAL");
    // With route_localnet the kernel no longer refuses these itself (N-15). Replies of published ports are established.
    chain.add("-s 127.0.0.0/8 -j DROP");
    chain.add("-d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP");
    for p in ["udp", "tcp"] {
        chain.add(format!(
            "-s {runtime} -d {}/32 -p {p} -m {p} --dport {} -j ACCEPT",
            dns.ip(),
            dns.port()
        ));
    }
    chain.add(format!("-s {runtime} -p tcp -m tcp --dport {} -j ACCEPT", s.hook_port));
    for port in [s.management_port, s.ca_port] {
        chain.add(format!("-p tcp -m tcp --dport {port} -j DROP"));
    }
    chain
}

/// Published ports and services between containers of one network, above the default deny (`docs/spec/network.md` 5.5),
/// logged (P-24).
fn hairpin(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new("RAIND-HAIRPIN");
    for p in state.destinations().iter().rev() {
        // The states of one match are alternatives, so that both together take two matches.
        let new = " -m conntrack --ctstate NEW";
        chain.add_if(
            state.policy.ew_logging,
            format!("{} {}", hairpin_match(p, new), nflog(EW_ALLOW, GROUP_EW)),
        );
        chain.add(hairpin_accept(p));
    }
    chain
}

fn hairpin_match(p: &PublishedPort, state: &str) -> String {
    let PublishedPort {
        bridge: b,
        address: a,
        container_port,
        protocol,
        ..
    } = p;
    format!(
        "-d {a}/32 -i {b} -o {b} -p {protocol} -m conntrack --ctstate DNAT{state} -m {protocol} --dport {container_port}"
    )
}

pub(super) fn hairpin_accept(p: &PublishedPort) -> String {
    format!("{} -j ACCEPT", hairpin_match(p, ""))
}

/// Published ports and services from outside, for hosts whose FORWARD policy is DROP (`docs/spec/network.md` 13, N-13).
fn forwarded(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new("RAIND-FWD");
    for p in &state.destinations() {
        let PublishedPort {
            bridge: b,
            address: a,
            container_port,
            protocol,
            host_address,
            ..
        } = p;
        if let Some(h) = state.uplink.as_ref().map(|u| &u.interface) {
            let (to, from) = (format!("--dport {container_port}"), format!("--sport {container_port}"));
            // Who is to come by one address of the host only is not let in past it.
            if host_address.is_unspecified() {
                chain.add(format!(
                    "-d {a}/32 -i {h} -o {b} -p {protocol} -m {protocol} {to} -j ACCEPT"
                ));
            }
            chain.add(format!(
                "-s {a}/32 -i {b} -o {h} -p {protocol} -m {protocol} {from} -j ACCEPT"
            ));
        }
        chain.add(format!(
            "-d {a}/32 -o {b} -p {protocol} -m conntrack --ctstate DNAT -m {protocol} --dport {container_port} -j ACCEPT"
        ));
    }
    chain
}

/// DNS of containers goes to our forwarder, whatever server they ask (`docs/spec/network.md` 5.3). Containers reach the
/// published ports of their own network only (8.2), everybody else those of all. The original's rule for the uplink took
/// what the host only passes on, and is not there: the last one is for the uplink too.
fn prerouting(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new("RAIND-PREROUTING");
    for b in &state.bridges {
        for protocol in [PolicyProtocol::Udp, PolicyProtocol::Tcp] {
            chain.add(redirect(&b.name, protocol, state));
        }
    }
    for p in &state.ports {
        let PublishedPort {
            bridge,
            protocol,
            host_port,
            host_address,
            ..
        } = p;
        // Nobody but the host itself has a way to its loopback.
        if !host_address.is_loopback() {
            let to = to_local_port(*host_address, Some(bridge), *protocol, *host_port);
            chain.add(format!("{to} {}", dnat(p)));
        }
    }
    balance::jumps_from_bridges(state).for_each(|jump| chain.add(jump));
    for b in &state.bridges {
        chain.add(format!("-i {} -j RETURN", b.name));
    }
    // What claims to come for the loopback comes from a neighbour: translated, it would pass the kernel's own check. The
    // host's packets to its loopback are in OUTPUT.
    chain.add("-d 127.0.0.0/8 -j RETURN");
    chain.add("-j RAIND-PORTS");
    chain
}

fn redirect(bridge: &str, p: PolicyProtocol, state: &DesiredRules) -> String {
    let dns = state.settings.dns;
    format!("-i {bridge} -p {p} -m {p} --dport {DOMAIN} -j DNAT --to-destination {dns}")
}

/// The rule that sends a packet to our forwarder, if one does.
pub(super) fn dns_redirect(state: &DesiredRules, packet: &Packet) -> Option<String> {
    let protocol = packet.protocol.filter(|p| p.has_ports())?;
    (packet.port == Some(DOMAIN)).then(|| redirect(&packet.source.bridge, protocol, state))
}

/// Published ports and services for processes of the host and for all other interfaces.
fn ports(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new("RAIND-PORTS");
    for p in &state.ports {
        let to = to_local_port(p.host_address, None, p.protocol, p.host_port);
        chain.add(format!("{to} {}", dnat(p)));
    }
    balance::jumps(state).for_each(|jump| chain.add(jump));
    chain
}

/// Matches a port of the host at one of its addresses, or at all of them with 0.0.0.0; what the host passes on to others
/// never. A given address that the host does not have any more is somebody else's too.
pub(super) fn to_local_port(address: Ipv4Addr, from: Option<&str>, p: Protocol, port: u16) -> String {
    let to = match address.is_unspecified() {
        true => String::new(),
        false => format!("-d {address}/32 "),
    };
    let from = from.map_or_else(String::new, |bridge| format!("-i {bridge} "));
    format!("{to}{from}-p {p} -m addrtype --dst-type LOCAL -m {p} --dport {port}")
}

fn dnat(p: &PublishedPort) -> String {
    format!("-j DNAT --to-destination {}:{}", p.address, p.container_port)
}

/// The reply path of published ports and services (N-15), then the way out.
fn postrouting(state: &DesiredRules) -> Chain {
    let mut chain = Chain::new("RAIND-POSTROUTING");
    for p in &state.destinations() {
        let PublishedPort {
            bridge,
            address: a,
            container_port,
            protocol,
            ..
        } = p;
        let port = format!("-m {protocol} --dport {container_port} -j MASQUERADE");
        // A client on 127.0.0.1, and the container itself, would be answered past the translation.
        chain.add(format!(
            "-d {a}/32 -o {bridge} -p {protocol} -m addrtype --src-type LOCAL {port}"
        ));
        chain.add(format!("-s {a}/32 -d {a}/32 -p {protocol} {port}"));
    }
    let runtime = state.settings.runtime_subnet;
    if let Some(h) = state.uplink.as_ref().map(|u| &u.interface) {
        chain.add(format!("-s {runtime} -o {h} -j MASQUERADE"));
    }
    // Bridged broadcasts pass here too and are not on their way out.
    for b in &state.bridges {
        chain.add(format!("-o {} -j RETURN", b.name));
    }
    chain.add(format!("-s {runtime} ! -d {runtime} -j MASQUERADE"));
    chain
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
