//! Bottles: groups of containers that one file describes and that live and go together (`docs/spec/api.md` 12).
//!
//! ```text
//! register: row, names -> policies -> network -> volumes -> containers in start order -> done
//! start:    containers in order, each when what it depends on is as far as it has to be
//! stop:     containers in reverse order
//! delete:   containers in reverse order -> policies -> network -> (volumes) -> row
//! ```
//!
//! The row comes first and goes last. It says in [`BottleOperation`](crate::model::BottleOperation) that the bottle is
//! being made or removed; an undo, a removal and what recovery does after a crash are one and the same: everything of the
//! bottle goes, whatever of it is there. While a bottle is being made its row keeps the names of its containers free.
//!
//! Services find each other by name: in `/etc/hosts` of their containers, and where an environment entry begins with the
//! name of a dependency.
//!
//! What this module never does: touch a container, network or policy that is not the bottle's, or volumes that it was
//! not told to remove.

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

pub use bottles::{BottleParts, BottleService};
pub use error::BottleError;
pub use file::{BottleFile, PolicyFile, ServiceFile, parse};
pub use order::OrderError;
pub use plan::{container, policies_of, policy_kind, status};
pub use register::Registered;
