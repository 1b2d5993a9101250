//! The controller of replica sets: reconciles a set after each change that may concern it.

use super::ReplicaSets;
use super::replica_sets::is_orphan_of;
use crate::model::{Change, Container, Kind, Object, Pod, Snapshot};
use crate::ops::conditions::Failure;
use crate::ops::controller::{Outcome, Reconcile};

/// Reconciles sets. Keys are ids of sets.
pub struct SetController(ReplicaSets);

impl SetController {
    /// A controller that works through the service.
    pub fn new(sets: ReplicaSets) -> Self {
        Self(sets)
    }
}

impl Reconcile for SetController {
    type Key = String;

    fn concerned(&self, change: &Change, now: &Snapshot) -> Vec<String> {
        let pod_of = |container: &Container| now.pods().get(container.role.pod()?).cloned();
        let set_of = |object: &Object| match object {
            Object::ReplicaSet(set) => vec![set.id.clone()],
            Object::Pod(pod) => interested(now, pod),
            Object::Container(container) => pod_of(container).map(|pod| interested(now, &pod)).unwrap_or_default(),
            _ => Vec::new(),
        };
        [&change.old, &change.new]
            .into_iter()
            .flatten()
            .flat_map(set_of)
            .collect()
    }

    fn all(&self, now: &Snapshot) -> Vec<String> {
        now.replicasets().iter().map(|set| set.id.clone()).collect()
    }

    fn subject(&self, id: &String) -> Option<(Kind, String)> {
        Some((Kind::ReplicaSet, id.clone()))
    }

    async fn reconcile(&self, id: &String) -> Outcome {
        match self.0.reconcile(id).await {
            Ok(None) => Outcome::Done,
            Ok(Some(delay)) => Outcome::Again(delay),
            Err(error) => {
                tracing::warn!(replicaset.id = %id, %error, "a replica set is not as it should be; it will be tried again");
                Outcome::Failed(Failure::new(error.reason(), &error))
            }
        }
    }
}

/// The owner of a pod, or the sets that could adopt it.
fn interested(now: &Snapshot, pod: &Pod) -> Vec<String> {
    match &pod.owner {
        Some(owner) => vec![owner.clone()],
        None => {
            let sets = now.replicasets().iter().filter(|set| is_orphan_of(set, pod));
            sets.map(|set| set.id.clone()).collect()
        }
    }
}
