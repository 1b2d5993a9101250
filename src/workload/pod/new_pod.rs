//! What pods are made from.

use crate::model::{PodGoal, PodTemplate};

/// A pod to be made.
#[derive(Debug, Clone)]
pub struct NewPod {
    /// Unique in the namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Identity chosen by the client; `None` for a new one.
    pub uid: Option<String>,
    /// Replica set that makes it.
    pub owner: Option<String>,
    /// What it consists of.
    pub template: PodTemplate,
    /// What it is meant to be. With [`PodGoal::Running`] the controller makes and starts its containers.
    pub goal: PodGoal,
}
