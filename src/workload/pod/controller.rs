//! The controller of pods: makes the goal of every pod true, with a growing delay after failures.

use std::time::Duration;

use super::PodService;
use super::plan::Want;
use crate::model::{Change, Object, Pod, Snapshot};
use crate::ops::controller::{Outcome, Reconcile};

/// When a pod that was in operation is looked at again.
const BUSY: Duration = Duration::from_millis(500);

/// Keeps pods true. Keys are ids of pods.
pub struct PodController(PodService);

impl PodController {
    /// A controller that works through the service.
    pub fn new(pods: PodService) -> Self {
        Self(pods)
    }
}

impl Reconcile for PodController {
    type Key = String;

    fn concerned(&self, change: &Change, _: &Snapshot) -> Vec<String> {
        [&change.old, &change.new]
            .into_iter()
            .flatten()
            .find_map(|object| match object {
                Object::Pod(pod) => Some(pod.id.clone()),
                Object::Container(container) => container.role.pod().map(str::to_owned),
                _ => None,
            })
            .into_iter()
            .collect()
    }

    fn all(&self, now: &Snapshot) -> Vec<String> {
        now.pods()
            .iter()
            .map(|pod: &std::sync::Arc<Pod>| pod.id.clone())
            .collect()
    }

    async fn reconcile(&self, id: &String) -> Outcome {
        // Whoever is at work on the pod brings it to its goal.
        let Some(_lock) = self.0.try_lock(id) else {
            return Outcome::Again(BUSY);
        };
        match self.0.settle(id, Want::Kept).await {
            Ok(None) => Outcome::Done,
            Ok(Some(delay)) => Outcome::Again(delay),
            Err(error) => {
                tracing::warn!(pod.id = %id, %error, "a pod is not as it should be; it will be tried again");
                Outcome::Failed
            }
        }
    }
}
