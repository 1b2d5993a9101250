//! What everybody has to know of policies. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{PolicySettings, Snapshot};

/// The modes, pending and in force, and what is logged.
pub fn settings(snapshot: &Snapshot) -> PolicySettings {
    let stored = snapshot.policysettings().get(PolicySettings::ID);
    stored.map(|s| PolicySettings::clone(s)).unwrap_or_default()
}

/// An IPv4 address or block as a block without host bits.
pub fn block(text: &str) -> Option<Ipv4Net> {
    let address = text.parse::<Ipv4Addr>().map(Ipv4Net::from);
    address.or_else(|_| text.parse::<Ipv4Net>()).ok().map(|net| net.trunc())
}
