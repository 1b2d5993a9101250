//! Running operations: one lock per object, tasks that outlive their client, and controllers that reconcile the actual
//! with the desired state.

pub mod conditions;
pub mod controller;
pub mod lock;
pub mod progress;
pub mod prune;
pub mod task;
