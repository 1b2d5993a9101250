//! Services: host ports that are balanced over the ready pods that a selector matches (`docs/spec/network.md` 11,
//! `docs/spec/api.md` 10).
//!
//! A [`ServiceRegistry`] owns the rows: it checks requests, reserves host ports together with the row, and finds
//! services by id or name. The endpoints of a service are never stored: [`endpoints`] computes them from the rows of
//! pods and containers. The firewall does that for every snapshot and derives the rules, so creating, changing or
//! removing a service only changes a row.
//!
//! This module never touches a rule, waits for rules, or starts or stops pods.

mod registry;
mod request;

pub use registry::ServiceRegistry;
pub use request::NewService;

use crate::model::{Claim, Protocol, Snapshot, Taken};
use crate::net::ports::PortError;
use crate::store::StoreError;

/// Maximum session affinity in seconds (the same limit as in Kubernetes).
pub const MAX_AFFINITY: u32 = 86_400;

/// Why a service cannot be created, changed or found; nothing is changed. The texts are the contract's
/// (`docs/spec/api.md` 10); the API adds its prefix.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the words of the text above them")]
pub enum ServiceError {
    /// There is no service of that id, nor of that name in the namespace.
    #[error("serviceId={0} not found")]
    NotFound(String),
    /// The name or the namespace is missing.
    #[error("name and namespace are required")]
    NameRequired,
    /// The name or the namespace has invalid syntax.
    #[error("invalid {what}: {word:?}; use up to 128 letters, digits, '_', '.', '-', beginning with a letter or digit")]
    InvalidName { what: &'static str, word: String },
    /// A port is 0.
    #[error("invalid {0}: 0; a port is a number from 1 to 65535")]
    PortZero(&'static str),
    /// The same port and protocol occurs twice in one service.
    #[error("port {port}/{protocol} is there twice; name each port and protocol once")]
    PortTwice { port: u16, protocol: Protocol },
    /// The session affinity is too short or too long.
    #[error("invalid affinity: {0} s; use 1 to {MAX_AFFINITY} seconds")]
    InvalidAffinity(u32),
    /// Another service of the namespace has the name.
    #[error("name already used by other service")]
    NameTaken,
    /// Another object holds a host port.
    #[error("port {port}/{protocol} is already used by {holder}")]
    PortTaken {
        port: u16,
        protocol: Protocol,
        holder: String,
    },
    /// The kernel refuses to bind a port.
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
    /// A service claims only its name and its ports.
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
