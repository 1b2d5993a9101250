//! Bottles: groups of containers that one file describes and that are created and removed together (`docs/spec/api.md`
//! 12).
//!
//! ```text
//! register: row, names -> policies -> network -> volumes -> containers in start order -> done
//! start:    containers in order, each when what it depends on is as far as it has to be
//! stop:     containers in reverse order
//! delete:   containers in reverse order -> policies -> network -> (volumes) -> row
//! ```
//!
//! The row is inserted first and removed last. [`BottleOperation`](crate::model::BottleOperation) in it records that
//! the bottle is being created or removed. Undo, removal and recovery after a crash are the same procedure: remove
//! every part of the bottle that exists. During creation the row reserves the names of the bottle's containers.
//!
//! Services find each other by name: in `/etc/hosts` of their containers, and in environment entries whose value begins
//! with the name of a dependency.
//!
//! This module never touches a container, network or policy of others, or volumes that it was not asked to remove.

mod bottles;
mod duration;
mod env;
mod error;
mod file;
mod order;
mod plan;
mod ports;
mod process_options;
mod register;
mod remove;
mod service_options;
mod start;
mod volumes;
mod words;

pub use bottles::{BottleParts, Bottles};
pub use error::BottleError;
pub use file::{BottleFile, PolicyFile, ServiceFile, parse};
pub use order::OrderError;
pub use plan::{container, policies_of, policy_kind, status};
pub use register::Registered;
