//! Controllers: level-triggered loops that reconcile the actual with the desired state.

mod queue;
mod worker;

pub use queue::{Backoff, Outcome, Queue};
pub use worker::{RESYNC, Reconcile, run};
