//! The description of a new pod.

use crate::model::{PodGoal, PodTemplate};

/// A pod to create.
#[derive(Debug, Clone)]
pub struct NewPod {
    /// Unique in the namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Identity chosen by the client; `None` for a new one.
    pub uid: Option<String>,
    /// Replica set that creates it.
    pub owner: Option<String>,
    /// Its containers and volumes.
    pub template: PodTemplate,
    /// Its goal. With [`PodGoal::Running`] the controller creates and starts its containers.
    pub goal: PodGoal,
}
