//! Replica sets: a fixed number of pods from one template, with rollout of new templates.

mod controller;
mod plan;
mod replica_sets;

pub use controller::SetController;
pub use replica_sets::{AppliedSet, MAX_REPLICAS, NewSet, ReplicaSets, SetError, SetStatus, set_statuses};
