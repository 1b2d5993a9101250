//! Services: ports of the host, balanced over the ready pods that a selector finds (`docs/spec/network.md` 11,
//! `docs/spec/api.md` 10).
//!
//! A [`ServiceRegistry`] owns the rows: it checks what clients ask for, reserves host ports together with the row, and
//! finds services by id or name. Which pods stand behind a service is never stored: [`endpoints`] computes it from the
//! rows of pods and containers. The firewall does that for every snapshot and makes the rules from it, so a change of a
//! row is all there is to creating, changing or removing a service.
//!
//! What this module never does: touch a rule, wait for rules, or start and stop pods.

mod registry;
mod request;

pub use registry::ServiceRegistry;
pub use request::NewService;

use crate::model::{Claim, Protocol, Snapshot, Taken};
use crate::net::ports::PortError;
use crate::store::StoreError;

/// Longest time that a client may stay with one pod, in seconds (Kubernetes has the same limit).
pub const MAX_AFFINITY: u32 = 86_400;

/// Why a service cannot be made, changed or found. Nothing is changed then. The texts are the contract's
/// (`docs/spec/api.md` 10); the API adds its prefix.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the words of the text above them")]
pub enum ServiceError {
    /// No service of that id, nor of that name in the namespace.
    #[error("serviceId={0} not found")]
    NotFound(String),
    /// Without a name or a namespace.
    #[error("name and namespace are required")]
    NameRequired,
    /// A name or namespace outside the grammar.
    #[error("invalid {what}: {word:?}; use up to 128 letters, digits, '_', '.', '-', beginning with a letter or digit")]
    InvalidName { what: &'static str, word: String },
    /// No port has the number 0.
    #[error("invalid {0}: 0; a port is a number from 1 to 65535")]
    PortZero(&'static str),
    /// The same port and protocol twice in one service.
    #[error("port {port}/{protocol} is there twice; name each port and protocol once")]
    PortTwice { port: u16, protocol: Protocol },
    /// An affinity that is too short or too long.
    #[error("invalid affinity: {0} s; use 1 to {MAX_AFFINITY} seconds")]
    InvalidAffinity(u32),
    /// Another service of the namespace has the name.
    #[error("name already used by other service")]
    NameTaken,
    /// Somebody else has a host port.
    #[error("port {port}/{protocol} is already used by {holder}")]
    PortTaken {
        port: u16,
        protocol: Protocol,
        holder: String,
    },
    /// The kernel does not let us hold a port.
    #[error(transparent)]
    Port(PortError),
    /// The state could not be written.
    #[error("store failed: {0}")]
    Store(#[from] StoreError),
}

impl From<PortError> for ServiceError {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Taken { port, protocol, holder } => Self::PortTaken { port, protocol, holder },
            other => Self::Port(other),
        }
    }
}

impl ServiceError {
    /// A service claims its name and its ports, nothing else.
    fn taken(taken: &Taken, snapshot: &Snapshot) -> Self {
        match taken.claim {
            Claim::HostPort(protocol, port, _) => Self::PortTaken {
                port,
                protocol,
                holder: snapshot.describe(&taken.holder),
            },
            _ => Self::NameTaken,
        }
    }
}
