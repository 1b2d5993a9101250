//! Figures: what containers use ([`sampler`]) and what the daemon does ([`activity`]).
//!
//! ```text
//! cgroup files -> cgroup (text -> figures) <- group (finds and opens them) <- sampler -> log (raind_metrics.jsonl)
//!                                                                                |
//!                                  activity (operations, pulls) -> prometheus <--+--> statistics of the API
//! ```
//! Every figure is read at the moment somebody asks; only rates need a memory, of two readings. What this module never
//! does: change a container, or let a container's figures decide anything.

mod activity;
mod cgroup;
mod group;
mod log;
mod prometheus;
mod sample;
mod sampler;

pub use activity::{Activity, Verb};
pub use cgroup::Usage;
pub use group::GroupError;
pub use log::MetricsLog;
pub use prometheus::{CONTENT_TYPE, expose};
pub use sample::Sample;
pub use sampler::Sampler;
