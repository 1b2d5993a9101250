use std::net::SocketAddr;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The takeover of an earlier installation's stores (`docs/spec/storage.md` 13). Written in the transaction that took
/// them over, so it is there if and only if all of it is; there is at most one such record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// [`Import::ID`].
    pub id: String,
    /// When it happened.
    pub at: Timestamp,
    /// The files that were read, as they were.
    pub sources: Vec<ImportedFile>,
    /// What was dropped or changed on the way, a sentence each.
    pub warnings: Vec<String>,
    /// The network that its container networks were cut from; holds where the configuration says nothing.
    pub runtime_subnet: Option<Ipv4Net>,
    /// Its DNS servers; hold where the configuration says nothing.
    pub dns_upstreams: Vec<SocketAddr>,
}

/// A file that was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedFile {
    /// Its name in the directory of the stores.
    pub name: String,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

impl Import {
    /// Id of the record.
    pub const ID: &str = "original";
}
