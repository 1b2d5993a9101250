//! Pods: containers that live together, and sets of pods that are kept alive.
//!
//! ```text
//!           start             stop
//! Created ---------> Running ------> Stopped      goals, which are stored; what a pod is like is computed (`status`)
//!    \                 |  ^------------/  |
//!     \----------------+------------------+--> Removed --> (gone)
//! ```
//!
//! This module owns the row of every pod and which containers it consists of. An operation writes the goal first and
//! then acts; whatever keeps it from finishing (a crash, a registry that is down), the [controller](PodController) goes
//! on towards the goal. What has to be done is decided by a pure function over one snapshot (`plan`); each step of it
//! can be repeated. One lock per pod puts operations in order, and the controller leaves alone what is in operation.
//!
//! A pod that takes another one's place is in the other's row, as its successor, before anything of the other is taken down.
//! It gets a row and the name in the transaction that forgets the other one (`reserve`), so a crash never leaves neither.
//!
//! The infra container holds the namespaces and the address. When it dies, they are gone: it is started again in place,
//! and every member after it. Id, UID and name of a pod are for life.
//!
//! What it never does: let a member run in other namespaces than those of the living infra container, restart a single
//! member that ended (its restart policy does, see `container`), or touch a pod that nobody started or a user stopped.

mod act;
mod controller;
mod error;
mod new_pod;
mod plan;
mod pods;
mod reserve;
mod template;

pub use controller::PodController;
pub use error::PodError;
pub use new_pod::NewPod;
pub use pods::{HeldPod, PodService, PodSettings};
pub(crate) use reserve::fresh_id;
pub use template::check_template;
