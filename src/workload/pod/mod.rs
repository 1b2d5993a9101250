//! Pods: containers that live together, and sets of pods that are kept alive.
//!
//! ```text
//!           start             stop
//! Created ---------> Running ------> Stopped      goals, which are stored; what a pod is like is computed (`status`)
//!    \                 |  ^------------/  |
//!     \----------------+------------------+--> Removed --> (gone)
//! ```
//!
//! This module owns the row of every pod and its list of containers. An operation writes the goal first and then acts;
//! if anything interrupts it (a crash, an unreachable registry), the [controller](PodController) continues towards the
//! goal. A pure function over one snapshot decides the steps (`plan`); each step can be repeated. One lock per pod
//! serializes operations, and the controller skips pods with an operation in progress.
//!
//! A pod that replaces another one is recorded in the other's row, as its successor, before the other is torn down. It
//! gets a row and the name in the transaction that deletes the other (`reserve`), so a crash never leaves neither.
//!
//! The infra container holds the namespaces and the address. They are gone when it dies: it is restarted in place,
//! followed by every member. Id, UID and name of a pod never change.
//!
//! Never lets a member run in namespaces other than those of the living infra container, restarts a single member that
//! ended (its restart policy does, see `container`), or touches a pod that nobody started or a user stopped.

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
