//! The state as a value, and pure functions over it. No I/O, no clock, no lock.
//!
//! [`Snapshot`] is the whole state; a [`Txn`] produces the next one. Questions that several services ask of the same
//! rows (is this pod ready, what are the endpoints of this service, what does this name resolve to) are answered here,
//! once.

pub mod container_names;
mod created;
mod directory;
mod endpoints;
pub mod names;
mod pod_status;
pub mod policies;
mod records;
pub mod retries;
mod snapshot;

pub use created::by_creation;
pub use directory::{Directory, End, Unresolved};
pub use endpoints::{Endpoint, all_endpoints, endpoints, selects};
pub use names::INFRA_PREFIX;
pub use pod_status::{PodState, PodStatus, member_name, pod_status, pod_statuses};
#[cfg(test)]
pub(crate) use records::fixtures;
pub use records::*;
pub(crate) use snapshot::Write;
pub use snapshot::{BrokenRecord, Change, Claim, Commit, Holder, Kind, Object, Record, Snapshot, Table, Taken, Txn};

/// A new id for a pod, template or set: a ULID in lower case.
pub fn fresh_ulid() -> String {
    ulid::Ulid::generate().to_string().to_lowercase()
}
