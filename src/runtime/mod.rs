//! The low-level runtime: what the daemon and `bin/droplet` share, and (daemon side) the driver that starts it.
//!
//! The contract between the two is a command line and files (`contract/runtime.md`). The types here are those files;
//! neither side may depend on anything else of the other.

pub mod defaults;
pub mod dir;
pub mod mounts;
pub mod process;
pub mod state;
