//! Undoes the changes of a request.

use std::sync::Arc;

use super::Applier;
use super::error::{Failed, ResourceError};
use crate::model::{Pod, PodTemplate, ReplicaSet, Service};
use crate::workload::balancer::{NewService, ServiceError};
use crate::workload::pod::{NewPod, PodError};
use crate::workload::replica_set::SetError;

/// How to undo one change.
pub(super) enum Undo {
    RemovePod(Arc<Pod>),
    /// Its name and uid are restored, its id is not. Its replacement is removed.
    RestorePod(Arc<Pod>),
    RemoveService(Arc<Service>),
    RestoreService(Arc<Service>),
    RemoveSet(Arc<ReplicaSet>),
    RestoreSet(Arc<ReplicaSet>),
}

impl Applier {
    /// Undoes changes, the last one first, and continues after failures. Returns the result for the message.
    pub(super) async fn undo_all(&self, changes: Vec<Undo>) -> String {
        let (mut undone, mut left) = (Vec::new(), Vec::new());
        for change in changes.into_iter().rev() {
            match self.undo(&change).await {
                Ok(()) => undone.push(change.to_string()),
                Err(error) => {
                    tracing::error!(%change, %error, "a change of a failed request cannot be taken back");
                    left.push(format!("{change} ({error})"));
                }
            }
        }
        let part = |word: &str, changes: Vec<String>| match &changes[..] {
            [] => String::new(),
            changes => format!("; {word}: {}", changes.join(", ")),
        };
        part("undone", undone) + &part("could not be undone", left)
    }

    async fn undo(&self, change: &Undo) -> Result<(), Failed> {
        let done: Result<(), ResourceError> = match change {
            Undo::RemovePod(pod) => match self.pods.remove(&pod.id).await {
                Ok(()) | Err(PodError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Undo::RestorePod(pod) => self.pods.create(again(pod)).await.map(drop).map_err(Into::into),
            Undo::RemoveService(service) => match self.services.remove(&service.id).await {
                Ok(_) | Err(ServiceError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Undo::RestoreService(service) => {
                let restored = self.services.replace(&service.id, NewService::from(&**service)).await;
                restored.map(drop).map_err(Into::into)
            }
            Undo::RemoveSet(set) => match self.sets.remove(&set.id).await {
                Ok(()) | Err(SetError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Undo::RestoreSet(set) => self.sets.restore(set.clone()).await.map_err(Into::into),
        };
        done.map_err(Failed::at(""))
    }
}

/// A pod with the properties of one that was removed.
fn again(pod: &Pod) -> NewPod {
    NewPod {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: Some(pod.uid.clone()),
        owner: pod.owner.clone(),
        template: PodTemplate::clone(&pod.template),
        goal: pod.goal,
    }
}

impl std::fmt::Display for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RemovePod(pod) => write!(f, "pod {}/{} removed", pod.namespace, pod.name),
            Self::RestorePod(pod) => write!(f, "pod {}/{} made again", pod.namespace, pod.name),
            Self::RemoveService(service) => write!(f, "service {}/{} removed", service.namespace, service.name),
            Self::RestoreService(service) => write!(f, "service {}/{} put back", service.namespace, service.name),
            Self::RemoveSet(set) => write!(f, "replica set {}/{} removed", set.namespace, set.manifest_name),
            Self::RestoreSet(set) => write!(f, "replica set {}/{} put back", set.namespace, set.manifest_name),
        }
    }
}
