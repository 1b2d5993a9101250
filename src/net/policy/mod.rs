//! Network policy between containers (East-West) and out of the host (North-South): `docs/spec/policy.md`.
//!
//! Owns the rules that users allow and deny, in two phases: changes are staged, a commit puts them in force, a revert
//! discards them. The store keeps committed and staged state apart ([`PolicyStage`], [`PolicySettings`]), so every
//! other recomputation of the rules (a container starts or stops, the daemon restarts) uses committed state only.
//!
//! ```text
//! add, remove, mode  -> staged in the store
//! commit             -> rules of the outcome into the kernel -> outcome into the store; neither without the other
//! container, pod, replica set come and go -> rules of what is committed, anew
//! ```
//!
//! A policy names objects that may not exist all the time: a container (also as `<bottle>-<service>`), a member of a
//! pod or the pod itself, a replica set. [`Directory`] resolves names to the current interfaces; a committed policy
//! with an end that does not resolve is `unresolved` and has no rules until it does.
//!
//! This module never writes rules. [`crate::net::firewall`] renders them from the same snapshot, and answers queries
//! about packets from the same rules.

mod changes;
mod policies;

use crate::model::{NsMode, UnknownChain, UnknownMode, Unresolved};
pub use changes::{Entry, NewPolicy, Status, entries, shown_mode};
pub use policies::{Difference, Explanation, PolicyService, Question};

use crate::model::Taken;
use crate::net::firewall::FirewallError;
use crate::ops::task::Unfinished;
use crate::store::StoreError;

/// The only mode of the East-West direction.
pub const EAST_WEST_MODE: &str = "deny_by_default";

/// Why a policy operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The chain holds no policies.
    #[error(transparent)]
    UnknownChain(#[from] UnknownChain),
    /// The mode does not exist.
    #[error(transparent)]
    UnknownMode(#[from] UnknownMode),
    /// A field of the request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The same policy exists already.
    #[error("policy {0} says the same; remove it first or change this one")]
    Duplicate(String),
    /// There is no policy of that id.
    #[error("ID: {0} not found")]
    NotFound(String),
    /// The requested mode is in force and no other is pending.
    #[error("NS Mode already set in: {0}")]
    ModeAlreadySet(NsMode),
    /// The query is about a packet from or to something that has no address.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// The packet filter refused the rules; those in force, and all staged changes, are unchanged.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The state store failed; nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another record holds a claim of the policy; cannot happen, since policies claim nothing.
    #[error(transparent)]
    Taken(#[from] Taken),
}

impl From<Unfinished> for PolicyError {
    fn from(_: Unfinished) -> Self {
        StoreError::Panicked.into()
    }
}
