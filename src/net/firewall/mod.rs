//! The packet filter: the desired rules of the whole daemon, applied atomically (`docs/spec/network.md` 5, 8, 13, 14;
//! `docs/spec/policy.md` 2).
//!
//! Everything is recomputed each time: a snapshot of the store and the uplink give a [`DesiredRules`], `rules` turns it
//! into chains of rules as data, [`render`] writes them as text for iptables, and one task applies it to the kernel. No
//! single rule is tracked; a rule that is not rendered is removed.
//!
//! ```text
//! snapshot, uplink -> DesiredRules -> rules -> render -> difference to the kernel -> one iptables-restore --noflush
//!                                                              ^-- iptables-save: at start and on verification
//! ```
//!
//! All rules are in our own chains, whose names begin with `RAIND-`. Each built-in chain has one jump to each chain of
//! ours that it needs:
//!
//! ```text
//! filter INPUT        RAIND-INPUT -> RAIND-LOCAL      what containers may reach on the host
//! filter FORWARD      RAIND-HAIRPIN                   published ports between containers of one network
//!                     RAIND-ROOT -> RAIND-GUARD   what containers send has their address
//!                                -> RAIND-EW -> RAIND-ISOLATE, RAIND-NS-OBS or RAIND-NS-ENF
//!                     RAIND-FWD                       published ports from outside
//! nat    PREROUTING   RAIND-PREROUTING -> RAIND-PORTS DNS redirect, published ports
//!        OUTPUT       RAIND-PORTS                     published ports, from the host itself
//!        from both    RAIND-SVC-<service>-<port>      a port of a service
//!        POSTROUTING  RAIND-POSTROUTING               masquerade
//! ip6: filter FORWARD RAIND-ROOT -> RAIND-ISOLATE     no IPv6 between containers
//! ```
//!
//! This module never touches a foreign rule (except at start, when it removes rules that the original daemon left,
//! recognised by their exact shape), changes the policy of a chain, resolves a name, or removes the rules when the
//! daemon exits, because containers keep running.

mod balance;
mod conntrack;
mod explain;
mod filter;
mod forward;
mod host;
mod host_port;
mod legacy;
mod nat;
mod plan;
mod published;
mod render;
mod rule;
mod rules;
mod state;
mod tables;
mod tool;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::base::cause::Cause;
use crate::net::bridges::{DNS_ADDRESS, DNS_PORT};
use crate::net::{DEFAULT_SUBNET, HOOK_PORT};

pub use conntrack::{Flow, sever};
pub use explain::{Destination, Explainer, Packet, Verdict};
pub use filter::{PacketFilter, remove_all};
pub use render::{Ruleset, render};
pub use state::{BalancedPort, Bridge, DesiredRules, Pair, PublishedPort, ResolvedPolicy};
pub use tool::Variant;

/// Settings of the firewall. The defaults are the contract's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallSettings {
    /// The block that networks are allocated from.
    pub runtime_subnet: Ipv4Net,
    /// Where DNS queries of containers are redirected to.
    pub dns: SocketAddrV4,
    /// Port of the hook listener: open to containers and the host, closed to other hosts.
    pub hook_port: u16,
    /// Port of the management API: closed to containers.
    pub management_port: u16,
    /// Port of the certificate listener: closed to containers.
    pub ca_port: u16,
    /// Host address for services and for published ports without one; 0.0.0.0 for all.
    pub publish_address: Ipv4Addr,
    /// Which of the host's packet filter tools to use.
    pub variant: Variant,
    /// How often the kernel's rules are verified.
    pub verify_every: Duration,
}

impl Default for FirewallSettings {
    fn default() -> Self {
        Self {
            runtime_subnet: DEFAULT_SUBNET,
            dns: SocketAddrV4::new(DNS_ADDRESS, DNS_PORT),
            hook_port: HOOK_PORT,
            management_port: 7755,
            ca_port: 7757,
            publish_address: Ipv4Addr::UNSPECIFIED,
            variant: Variant::default(),
            verify_every: Duration::from_secs(60),
        }
    }
}

/// Why the rules could not be applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FirewallError {
    /// The tool is not installed.
    #[error("cannot find {0} on the PATH, in /usr/sbin or in /sbin; install the package iptables")]
    Missing(String),
    /// The tool could not be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The tool.
        program: String,
        /// The system's error.
        source: Cause,
    },
    /// The tool timed out and was killed.
    #[error("{program} did not end within {seconds} s; another program may hold the lock of the packet filter")]
    Timeout {
        /// The tool.
        program: String,
        /// The timeout.
        seconds: u64,
    },
    /// The tool or the kernel refused the rules; those in force stay.
    #[error("{program} failed: {message}")]
    Refused {
        /// The tool.
        program: String,
        /// Its error message, and the line that it refers to.
        message: String,
    },
    /// The kernel's rules differ from those just written.
    #[error("the packet filter does not keep the rules: after writing, {0}; another program may be rewriting them")]
    Unverified(String),
    /// The task that owns the rules has ended, which happens only when the daemon exits.
    #[error("the firewall has ended")]
    Stopped,
}

impl FirewallError {
    /// The error as one stable word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Run { .. } => "ToolMissing",
            Self::Timeout { .. } => "ToolTimeout",
            Self::Refused { .. } => "RulesRefused",
            Self::Unverified(_) => "RulesNotKept",
            Self::Stopped => "FirewallStopped",
        }
    }
}
