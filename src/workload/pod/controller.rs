//! The controller of pods: brings every pod to its goal, with a growing delay after failures.

use std::time::Duration;

use super::PodService;
use super::plan::Want;
use crate::model::{Change, Kind, Object, Pod, Snapshot};
use crate::ops::conditions::Failure;
use crate::ops::controller::{Outcome, Reconcile};

/// How soon to reconcile a pod again that another operation held.
const BUSY: Duration = Duration::from_millis(500);

/// Reconciles pods. Keys are ids of pods.
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

    fn subject(&self, id: &String) -> Option<(Kind, String)> {
        Some((Kind::Pod, id.clone()))
    }

    async fn reconcile(&self, id: &String) -> Outcome {
        // The operation that holds the pod brings it to its goal.
        let Some(_lock) = self.0.try_lock(id) else {
            return Outcome::Again(BUSY);
        };
        match self.0.settle(id, Want::Kept).await {
            Ok(None) => Outcome::Done,
            Ok(Some(delay)) => Outcome::Again(delay),
            Err(error) => {
                tracing::warn!(pod.id = %id, %error, "a pod is not as it should be; it will be tried again");
                Outcome::Failed(Failure::new(error.reason(), &error))
            }
        }
    }
}
