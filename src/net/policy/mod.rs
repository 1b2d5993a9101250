//! Network policy between containers (East-West) and out of the host (North-South): `docs/spec/policy.md`.
//!
//! Owns what users allow and deny, in two phases: changes are staged, a commit puts them in force, a revert forgets
//! them. What is in force and what is staged stand apart in the store ([`PolicyStage`], [`PolicySettings`]), so that
//! everything else that makes rules anew (a container that comes or goes, a restart of the daemon) works from what was
//! committed and from nothing else.
//!
//! ```text
//! add, remove, mode  -> staged in the store
//! commit             -> rules of the outcome into the kernel -> outcome into the store; neither without the other
//! container, pod, replica set come and go -> rules of what is committed, anew
//! ```
//!
//! A policy names things that may come and go: a container (also as `<bottle>-<service>`), a member of a pod or the pod
//! itself, a replica set. [`Directory`] says which interfaces that means at the moment; a committed policy of which an
//! end means nothing is `unresolved` and has no rules until that changes.
//!
//! What this module never does: write rules. [`crate::net::firewall`] renders them from the same snapshot, and answers from
//! the same rules what becomes of a packet.

mod changes;
mod policies;

use crate::model::{NsMode, UnknownChain, UnknownMode, Unresolved};
pub use changes::{Entry, NewPolicy, Status, entries, shown_mode};
pub use policies::{Difference, Explanation, PolicyService, Question};

use crate::model::Taken;
use crate::net::firewall::FirewallError;
use crate::ops::task::Unfinished;
use crate::store::StoreError;

/// The mode of the East-West direction; there is only this one.
pub const EAST_WEST_MODE: &str = "deny_by_default";

/// Why something about policies was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A chain that holds no policies.
    #[error(transparent)]
    UnknownChain(#[from] UnknownChain),
    /// A mode that does not exist.
    #[error(transparent)]
    UnknownMode(#[from] UnknownMode),
    /// A field of a request that cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// The same policy is there already.
    #[error("policy {0} says the same; remove it first or change this one")]
    Duplicate(String),
    /// No policy of that id.
    #[error("ID: {0} not found")]
    NotFound(String),
    /// The mode asked for is in force and no other is pending.
    #[error("NS Mode already set in: {0}")]
    ModeAlreadySet(NsMode),
    /// Somebody asked about a packet from or to something that has no address.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// The packet filter refused the rules; those in force, and everything staged, are as before.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The state store failed; nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another record has what the policy needs, which policies do not do.
    #[error(transparent)]
    Taken(#[from] Taken),
}

impl From<Unfinished> for PolicyError {
    fn from(_: Unfinished) -> Self {
        StoreError::Panicked.into()
    }
}
