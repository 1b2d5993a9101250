use std::net::SocketAddr;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The import of an earlier installation's stores (`docs/spec/storage.md` 13). Written in the same transaction as the
/// imported rows, so it exists if and only if they do; there is at most one such record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// [`Import::ID`].
    pub id: String,
    /// When it happened.
    pub at: Timestamp,
    /// The files that were read.
    pub sources: Vec<ImportedFile>,
    /// What was dropped or changed, one sentence each.
    pub warnings: Vec<String>,
    /// The block that its container networks were allocated from; used unless the configuration sets one.
    pub runtime_subnet: Option<Ipv4Net>,
    /// Its DNS servers; used unless the configuration sets any.
    pub dns_upstreams: Vec<SocketAddr>,
}

/// An imported file.
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
