//! Condenser: a high-level container runtime for one Linux host.
//!
//! Arrows point down only: `api` calls the domain services; they call `store`, `runtime`, `network` and `firewall`.
//! A domain module never sees an HTTP type, and everything is built once and passed in (`daemon`).

pub mod config;
pub mod dns;
pub mod firewall;
pub mod network;
pub mod policy;
pub mod runtime;
pub mod store;
