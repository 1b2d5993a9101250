//! The protocol of a port.

use crate::model::Protocol;

pub(super) fn protocol(written: &str) -> Option<Protocol> {
    match written.to_ascii_lowercase().as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

pub(super) fn not_a_protocol(written: &str) -> String {
    format!("protocol {written:?} is not TCP or UDP")
}
