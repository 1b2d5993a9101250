//! The rules as text, in the form in which iptables-save prints them, so that what is read back can be compared. Pure.
//!
//! `H` is the uplink, `B` a bridge. Rules that name `H` are the contract's (`contract/network.md` 13,
//! `contract/policy.md` 2). After them stand rules for every other interface that is not a bridge of ours (N-28, P-21):
//! traffic between our bridges has been dropped before, so what is left is traffic with the outside.

use std::borrow::Cow;
use std::fmt;

use super::balance;
use super::state::{FirewallState, PublishedPort};
use crate::policy::NsMode;
use crate::store::Protocol;

/// `iptables-restore --noflush` input of all our chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// For iptables.
    pub v4: String,
    /// For ip6tables.
    pub v6: String,
}

const EW_DENY: &str = "RAIND-EW-DENY,id=predefined";
const EW_ALLOW: &str = "RAIND-EW-ALLOW,id=predefined";
const NS_ALLOW: &str = "RAIND-NS-ALLOW,id=predefined";
const NS_DENY: &str = "RAIND-NS-DENY,id=predefined";
const GROUP_EW: u8 = 10;
const GROUP_OBSERVE: u8 = 11;
const GROUP_ENFORCE: u8 = 12;

/// The rules of a state.
pub fn render(state: &FirewallState) -> Ruleset {
    let filter = Table {
        name: "filter",
        chains: vec![
            input(state),
            local(state),
            hairpin(state),
            root(state),
            east_west(state),
            isolate(state, state.settings.policy.ew_logging),
            ns_observe(state),
            ns_enforce(state),
            forwarded(state),
        ],
    };
    let nat = Table {
        name: "nat",
        chains: [prerouting(state), ports(state), postrouting(state)]
            .into_iter()
            .chain(balance::chains(state))
            .collect(),
    };
    let filter6 = Table {
        name: "filter",
        chains: vec![root6(state), isolate(state, false)],
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
fn input(state: &FirewallState) -> Chain {
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

/// What containers may reach on the host. What is not named is up to the host's own rules (`contract/policy.md` 1).
fn local(state: &FirewallState) -> Chain {
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

/// Published ports and services between containers of one network, above the default deny (`contract/network.md` 5.5), logged (P-24).
fn hairpin(state: &FirewallState) -> Chain {
    let mut chain = Chain::new("RAIND-HAIRPIN");
    for p in state.destinations().iter().rev() {
        let PublishedPort {
            bridge: b,
            address: a,
            container_port,
            protocol,
            ..
        } = p;
        let head = format!("-d {a}/32 -i {b} -o {b} -p {protocol} -m conntrack --ctstate DNAT");
        let tail = format!("-m {protocol} --dport {container_port}");
        let log = nflog(EW_ALLOW, GROUP_EW);
        // The states of one match are alternatives, so that both together take two matches.
        chain.add_if(
            state.settings.policy.ew_logging,
            format!("{head} -m conntrack --ctstate NEW {tail} {log}"),
        );
        chain.add(format!("{head} {tail} -j ACCEPT"));
    }
    chain
}

/// `contract/policy.md` 2.2.
fn root(state: &FirewallState) -> Chain {
    let north_south = match state.settings.policy.ns_mode {
        NsMode::Observe => "RAIND-NS-OBS",
        NsMode::Enforce => "RAIND-NS-ENF",
    };
    let mut chain = Chain::new("RAIND-ROOT");
    chain.add("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    chain.add("-j RAIND-EW");
    chain.add(format!("-j {north_south}"));
    chain.add("-j RETURN");
    chain
}

/// `contract/policy.md` 2.3. The drop by name prefix catches bridges that have lost their network; the one by list
/// holds for every name (P-05).
fn east_west(state: &FirewallState) -> Chain {
    let logging = state.settings.policy.ew_logging;
    let log = nflog(EW_DENY, GROUP_EW);
    let mut chain = Chain::new("RAIND-EW");
    for b in state.bridges.iter().map(|b| &b.name) {
        let is_bridged = "-m physdev --physdev-is-bridged";
        chain.add_if(
            logging,
            format!("-i {b} -o {b} -m conntrack --ctstate NEW {is_bridged} {log}"),
        );
    }
    for b in state.bridges.iter().map(|b| &b.name) {
        chain.add(format!("-i {b} -o {b} -j DROP"));
    }
    chain.add_if(logging, format!("-i raind+ -o raind+ -m conntrack --ctstate NEW {log}"));
    chain.add("-i raind+ -o raind+ -j DROP");
    for b in &state.bridges {
        chain.add(format!("-i {} -j RAIND-ISOLATE", b.name));
    }
    chain.add("-j RETURN");
    chain
}

/// Drops what comes from one of our bridges and goes to one of them: as many rules as bridges, not as pairs.
fn isolate(state: &FirewallState, logging: bool) -> Chain {
    let log = nflog(EW_DENY, GROUP_EW);
    let mut chain = Chain::new("RAIND-ISOLATE");
    for b in state.bridges.iter().map(|b| &b.name) {
        chain.add_if(logging, format!("-o {b} -m conntrack --ctstate NEW {log}"));
        chain.add(format!("-o {b} -j DROP"));
    }
    chain
}

/// `contract/policy.md` 2.4. Inbound traffic is only logged here; published ports are accepted further down.
fn ns_observe(state: &FirewallState) -> Chain {
    let mut chain = Chain::new("RAIND-NS-OBS");
    let policy = &state.settings.policy;
    if policy.ns_mode != NsMode::Observe {
        return chain;
    }
    let log = nflog(NS_ALLOW, GROUP_OBSERVE);
    let logs_inbound = |chain: &mut Chain, from: &str, b: &str| {
        let tcp = "-p tcp -m conntrack --ctstate NEW -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";
        chain.add_if(policy.ns_logging, format!("{from}-o {b} {tcp} {log}"));
        chain.add_if(
            policy.ns_logging,
            format!("{from}-o {b} -p udp -m conntrack --ctstate NEW {log}"),
        );
    };
    let uplink = state.uplink.as_ref().map(|u| &u.interface);
    let not_uplink = uplink.map(|h| format!("! -i {h} ")).unwrap_or_default();
    for (h, b) in uplink
        .iter()
        .flat_map(|h| state.bridges.iter().map(move |b| (h, &b.name)))
    {
        logs_inbound(&mut chain, &format!("-i {h} "), b);
        chain.add_if(
            policy.ns_logging,
            format!("-i {b} -o {h} -m conntrack --ctstate NEW {log}"),
        );
        chain.add(format!("-i {b} -o {h} -j ACCEPT"));
    }
    for b in state.bridges.iter().map(|b| &b.name) {
        logs_inbound(&mut chain, &not_uplink, b);
        chain.add_if(policy.ns_logging, format!("-i {b} -m conntrack --ctstate NEW {log}"));
        chain.add(format!("-i {b} -j ACCEPT"));
    }
    chain.add("-j RETURN");
    chain
}

/// `contract/policy.md` 2.5.
fn ns_enforce(state: &FirewallState) -> Chain {
    let mut chain = Chain::new("RAIND-NS-ENF");
    let policy = &state.settings.policy;
    if policy.ns_mode != NsMode::Enforce {
        return chain;
    }
    let log = nflog(NS_DENY, GROUP_ENFORCE);
    let to_uplink = state.uplink.iter().map(|u| format!(" -o {}", u.interface));
    for out in to_uplink.chain([String::new()]) {
        for b in state.bridges.iter().map(|b| &b.name) {
            chain.add_if(
                policy.ns_logging,
                format!("-i {b}{out} -m conntrack --ctstate NEW {log}"),
            );
        }
        for b in state.bridges.iter().map(|b| &b.name) {
            chain.add(format!("-i {b}{out} -j DROP"));
        }
    }
    chain.add("-j RETURN");
    chain
}

/// Published ports and services from outside, for hosts whose FORWARD policy is DROP (`contract/network.md` 13, N-13).
fn forwarded(state: &FirewallState) -> Chain {
    let mut chain = Chain::new("RAIND-FWD");
    for p in &state.destinations() {
        let PublishedPort {
            bridge: b,
            address: a,
            container_port,
            protocol,
            ..
        } = p;
        if let Some(h) = state.uplink.as_ref().map(|u| &u.interface) {
            let (to, from) = (format!("--dport {container_port}"), format!("--sport {container_port}"));
            chain.add(format!(
                "-d {a}/32 -i {h} -o {b} -p {protocol} -m {protocol} {to} -j ACCEPT"
            ));
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

/// DNS of containers goes to our forwarder, whatever server they ask (`contract/network.md` 5.3). Containers reach the
/// published ports of their own network only (8.2), everybody else those of all.
fn prerouting(state: &FirewallState) -> Chain {
    let mut chain = Chain::new("RAIND-PREROUTING");
    for b in &state.bridges {
        for p in ["udp", "tcp"] {
            chain.add(format!(
                "-i {} -p {p} -m {p} --dport 53 -j DNAT --to-destination {}",
                b.name, state.settings.dns
            ));
        }
    }
    for p in &state.ports {
        let PublishedPort {
            bridge,
            protocol,
            host_port,
            ..
        } = p;
        if let Some(h) = state.uplink.as_ref().map(|u| &u.interface) {
            let to = format!("-p {protocol} -m {protocol} --dport {host_port}");
            chain.add(format!("-i {h} {to} {}", dnat(p)));
        }
        let to = to_local_port(*protocol, *host_port);
        chain.add(format!("-i {bridge} {to} {}", dnat(p)));
    }
    balance::jumps_from_bridges(state).for_each(|jump| chain.add(jump));
    for b in &state.bridges {
        chain.add(format!("-i {} -j RETURN", b.name));
    }
    chain.add("-j RAIND-PORTS");
    chain
}

/// Published ports and services for processes of the host and for all other interfaces.
fn ports(state: &FirewallState) -> Chain {
    let mut chain = Chain::new("RAIND-PORTS");
    for p in &state.ports {
        let to = to_local_port(p.protocol, p.host_port);
        chain.add(format!("{to} {}", dnat(p)));
    }
    balance::jumps(state).for_each(|jump| chain.add(jump));
    chain
}

pub(super) fn to_local_port(p: Protocol, port: u16) -> String {
    format!("-p {p} -m addrtype --dst-type LOCAL -m {p} --dport {port}")
}

fn dnat(p: &PublishedPort) -> String {
    format!("-j DNAT --to-destination {}:{}", p.address, p.container_port)
}

/// The reply path of published ports and services (N-15), then the way out.
fn postrouting(state: &FirewallState) -> Chain {
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

/// P-04: networks are IPv4 only; between containers there is no IPv6 at all, link-local included.
fn root6(state: &FirewallState) -> Chain {
    let mut chain = Chain::new("RAIND-ROOT");
    for b in &state.bridges {
        chain.add(format!("-i {} -j RAIND-ISOLATE", b.name));
    }
    chain
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
