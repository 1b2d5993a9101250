use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A network: a Linux bridge of the same name with a /24.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Name of network and bridge.
    pub name: String,
    /// Subnet of its containers.
    pub subnet: Ipv4Net,
    /// Address of the bridge.
    pub gateway: Ipv4Addr,
    /// Creation time; networks are listed and rendered in this order.
    pub created_at: Timestamp,
}
