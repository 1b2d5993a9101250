//! What is told of all that happens: one audit record per request, events for clients that watch, the logs of containers,
//! figures.

pub mod audit;
pub mod events;
pub mod logfile;
pub mod logs;
pub mod metrics;
