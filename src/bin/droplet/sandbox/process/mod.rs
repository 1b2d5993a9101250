//! How one process of a container is set up, restricted and executed.

pub mod credentials;
pub mod descriptors;
pub mod fork;
pub mod program;
pub mod rlimits;
pub mod sealed;
pub mod signals;
pub mod supervisor;
