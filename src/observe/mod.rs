//! Observability: one audit record per request, events for clients that watch, container logs, metrics.

pub mod audit;
pub mod events;
pub mod logfile;
pub mod logs;
pub mod metrics;
