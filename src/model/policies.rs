//! Helpers for policies that several modules need. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{PolicySettings, Snapshot};

/// The modes, pending and in force, and the logging settings.
pub fn settings(snapshot: &Snapshot) -> PolicySettings {
    let stored = snapshot.policysettings().get(PolicySettings::ID);
    stored.map(|s| PolicySettings::clone(s)).unwrap_or_default()
}

/// Parses an IPv4 address or block into a block without host bits.
pub fn block(text: &str) -> Option<Ipv4Net> {
    let address = text.parse::<Ipv4Addr>().map(Ipv4Net::from);
    address.or_else(|_| text.parse::<Ipv4Net>()).ok().map(|net| net.trunc())
}
