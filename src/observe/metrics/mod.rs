//! Metrics: the resource usage of containers ([`sampler`]) and the daemon's own operations ([`activity`]).
//!
//! ```text
//! cgroup files -> cgroup (text -> metrics) <- group (finds and opens them) <- sampler -> log (raind_metrics.jsonl)
//!                                                                                |
//!                                  activity (operations, pulls) -> prometheus <--+--> statistics of the API
//! ```
//! Every metric is read on request; only rates need state, namely two readings. This module never changes a container
//! and never bases a decision on its metrics.

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
