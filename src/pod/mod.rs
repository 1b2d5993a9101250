//! Pods: containers that live together, and sets of pods that are kept alive.

mod status;

pub use status::{PodState, PodStatus, member_name, status, statuses};
