//! Controllers: level-triggered loops that keep what is and what should be the same.

mod queue;

pub use queue::{Backoff, Outcome, Queue};
