//! The network of containers: bridges, host ports, packet filter rules, policies, the DNS forwarder.
//!
//! Nothing here starts or stops a container. The desired rules depend only on rows of the state ([`enforcement`]).

pub mod bridges;
pub mod dns;
pub mod enforcement;
pub mod firewall;
pub mod policy;
pub mod ports;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The port of the hook listener (`docs/spec/api.md` 2).
pub const HOOK_PORT: u16 = 7756;

/// `10.166.0.0/16` (`docs/spec/network.md` 1).
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 166, 0, 0), 16);
