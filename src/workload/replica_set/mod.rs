//! Replica sets: pods from one template, kept at a number and rolled over to a new template.

mod controller;
mod plan;
mod replica_sets;

pub use controller::SetController;
pub use replica_sets::{AppliedSet, MAX_REPLICAS, NewSet, ReplicaSets, SetError, SetStatus, set_statuses};
