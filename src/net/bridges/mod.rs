//! Networks of containers: one Linux bridge with a /24 each (`docs/spec/network.md`).
//!
//! Owns the bridges of all stored networks, the link that the DNS forwarder listens on, the kernel parameters that
//! container traffic needs, and the state of the uplink: the interface of the default route. A network is a row first
//! and a bridge second; [`NetworkService::start`] and [`NetworkService::repair`] reconcile the bridges with the rows
//! after a crash.
//!
//! ```text
//! row put -> bridge created, addressed, up -> (in use) -> row removed -> bridge deleted
//! ```
//!
//! Our bridges have an interface alias, which identifies one without a row as ours, so that it can be deleted. A link
//! that is not a bridge is never touched, nor is a host interface with a similar name.
//!
//! This module never writes packet filter rules (see [`crate::net::firewall`], which reads the same rows), never
//! creates or moves veth pairs (the low-level runtime does), and does not decide about policy.

mod bridge;
pub mod ipam;
mod netlink;
mod networks;
mod sysctl;
mod uplink;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::base::cause::Cause;
use crate::model::Taken;
use crate::store::StoreError;

pub use networks::NetworkService;
pub(crate) use networks::in_order;

/// The network that always exists.
pub const DEFAULT_NETWORK: &str = "raind0";
/// The link with the DNS forwarder's address: a bridge without ports.
pub const DNS_LINK: &str = "raindDns";
/// Address of the DNS forwarder; its /24 is never assigned to a network.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 166, 254, 254);
/// Port of the DNS forwarder, UDP and TCP.
pub const DNS_PORT: u16 = 1053;

/// The interface of the default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Name of the device of the first IPv4 default route.
    pub interface: String,
    /// Its first IPv4 address.
    pub address: Ipv4Addr,
}

/// Settings of the network service.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// The block that networks are allocated from, at most a /24.
    pub runtime_subnet: Ipv4Net,
    /// Whether to leave bridge ports connected if their traffic cannot be filtered.
    pub allow_unfiltered_bridges: bool,
}

/// Whether frames between ports of one bridge pass the packet filter. Otherwise default deny between containers of
/// one network would not hold, so their ports are isolated instead (`docs/spec/network.md` N-02).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BridgeFiltering {
    /// They pass the packet filter.
    Enabled,
    /// They do not; the reason.
    Unavailable(String),
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A kernel parameter cannot be set.
    #[error("cannot set the kernel parameter {path} to 1: {source}")]
    Sysctl {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: Cause,
    },
    /// The kernel refused a change of links or addresses.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// The operation.
        action: String,
        /// What the kernel said.
        source: Cause,
    },
    /// One of our interfaces does not exist.
    #[error("interface {0} does not exist")]
    NoLink(String),
    /// Something else on this host uses the name of one of our bridges.
    #[error("interface {0} exists and is not a bridge; rename it or remove it")]
    Foreign(String),
    /// The name does not match `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}`.
    #[error("network name {0:?} is invalid: 1 to 15 letters, digits, '_', '.' and '-', the first a letter or digit")]
    BadName(String),
    /// A network or another interface of this host has the name.
    #[error("interface: {0} is already created")]
    Exists(String),
    /// There is no network with that name.
    #[error("bridge: {0} not found")]
    NotFound(String),
    /// The network has containers.
    #[error("network: {0} contains existing container")]
    InUse(String),
    /// The default network cannot be deleted.
    #[error("network: {0} is the default network and cannot be deleted")]
    Default(String),
    /// The runtime subnet is exhausted.
    #[error("no available /24 subnet in runtime subnet: {0}")]
    NoSubnet(Ipv4Net),
    /// Another record conflicts with the network.
    #[error(transparent)]
    Taken(#[from] Taken),
    /// The state store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
