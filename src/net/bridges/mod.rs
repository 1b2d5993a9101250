//! Networks of containers: one Linux bridge with a /24 each (`docs/spec/network.md`).
//!
//! Owns the bridges of all stored networks, the link that the DNS forwarder listens on, the kernel parameters that
//! container traffic needs, and the knowledge of the uplink: the interface that the default route leaves through. A
//! network is a row first and a bridge second; whatever a crash leaves, [`NetworkService::start`] and
//! [`NetworkService::repair`] make the bridges follow the rows.
//!
//! ```text
//! row put -> bridge made, addressed, up -> (in use) -> row removed -> bridge deleted
//! ```
//!
//! Our bridges carry an interface alias, so that one without a row is known to be ours and can go. A link that is no
//! bridge is never touched, nor a host interface that merely has a similar name.
//!
//! What this module never does: write packet filter rules (see [`crate::net::firewall`], which reads the same rows), make or
//! move veth pairs (the low-level runtime does), decide about policy.

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
/// The link that the DNS forwarder's address is on: a bridge without ports.
pub const DNS_LINK: &str = "raindDns";
/// Address of the DNS forwarder; its /24 is never given to a network.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 166, 254, 254);
/// Port of the DNS forwarder, UDP and TCP.
pub const DNS_PORT: u16 = 1053;

/// The interface that the default route leaves through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Name of the device of the first IPv4 default route.
    pub interface: String,
    /// Its first IPv4 address.
    pub address: Ipv4Addr,
}

/// What the network service is told.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// The block that networks are cut from, at most a /24.
    pub runtime_subnet: Ipv4Net,
    /// Leave the ports of bridges connected although their traffic cannot be filtered.
    pub allow_unfiltered_bridges: bool,
}

/// Whether frames between ports of one bridge pass the packet filter. Without that, default deny between containers of
/// one network would not hold, so their ports are isolated instead (`docs/spec/network.md` N-02).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BridgeFiltering {
    /// They do.
    Enabled,
    /// They do not, for this reason.
    Unavailable(String),
}

/// Why something about networks failed.
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
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: Cause,
    },
    /// An interface of ours that is not there.
    #[error("interface {0} does not exist")]
    NoLink(String),
    /// The name of one of our bridges is used by something else on this host.
    #[error("interface {0} exists and is not a bridge; rename it or remove it")]
    Foreign(String),
    /// A name outside `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}`.
    #[error("network name {0:?} is invalid: 1 to 15 letters, digits, '_', '.' and '-', the first a letter or digit")]
    BadName(String),
    /// The name is that of a network or of another interface of this host.
    #[error("interface: {0} is already created")]
    Exists(String),
    /// No network of that name.
    #[error("bridge: {0} not found")]
    NotFound(String),
    /// The network has containers.
    #[error("network: {0} contains existing container")]
    InUse(String),
    /// The default network stays.
    #[error("network: {0} is the default network and cannot be deleted")]
    Default(String),
    /// The runtime subnet is used up.
    #[error("no available /24 subnet in runtime subnet: {0}")]
    NoSubnet(Ipv4Net),
    /// Another record has what the network needs.
    #[error(transparent)]
    Taken(#[from] Taken),
    /// The state store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
