//! Packets to a port of the host.

use std::net::Ipv4Addr;

use super::rule::Match;
use crate::model::Protocol;

/// Matches a port of the host at one of its addresses, or at all of them with 0.0.0.0; what the host passes on to others
/// never. A given address that the host does not have any more is somebody else's too.
pub(super) fn to_host_port(address: Ipv4Addr, from: Option<&str>, protocol: Protocol, port: u16) -> Match {
    Match {
        destination: (!address.is_unspecified()).then(|| address.into()),
        input: from.map(str::to_owned),
        to_host: true,
        ..Match::to_port(protocol, port)
    }
}
