//! Packets to a host port.

use std::net::Ipv4Addr;

use super::rule::Match;
use crate::model::Protocol;

/// Matches a host port at one host address, or at all of them with 0.0.0.0; never packets that the host only forwards.
/// A configured address that the host no longer has may belong to another machine.
pub(super) fn to_host_port(address: Ipv4Addr, from: Option<&str>, protocol: Protocol, port: u16) -> Match {
    Match {
        destination: (!address.is_unspecified()).then(|| address.into()),
        input: from.map(str::to_owned),
        to_host: true,
        ..Match::to_port(protocol, port)
    }
}
