//! Controllers: level-triggered loops that keep what is and what should be the same.

mod queue;
mod worker;

pub use queue::{Backoff, Outcome, Queue};
pub use worker::{RESYNC, Reconcile, run};
