//! Pods of a manifest.

use std::sync::Arc;

use super::error::Failed;
use super::undo::Undo;
use super::{AppliedResource, Applier, by_name, template};
use crate::model::{Pod, PodGoal, PodTemplate, pod_status};
use crate::workload::manifest::{PodManifest, ResourceKind};
use crate::workload::pod::{NewPod, PodError};

const CONTAINERS: &str = "container create failed: ";
const POD: &str = "pod create failed: ";

impl Applier {
    /// A pod of a set is the set's. Before a pod is replaced the images of the new one must be there: that is what
    /// fails most, and then the old one stays.
    pub(super) async fn check_pod(&self, wish: &PodManifest) -> Result<(), Failed> {
        let old = match self.existing(wish) {
            Some(old) if old.goal != PodGoal::Removed => old,
            _ => return Ok(()),
        };
        if old.owner.is_some() {
            return Err(PodError::Owned { pod: old.name.clone() }.into());
        }
        if is_same(&old.template, wish) {
            return Ok(());
        }
        let obtained = self.pods.obtain_images(&wish.spec).await;
        obtained.map_err(Failed::at(CONTAINERS))
    }

    /// A pod that is as it shall be is left alone, also when a user stopped it; one that differs is replaced.
    pub(super) async fn apply_pod(&self, wish: &PodManifest, undo: &mut Vec<Undo>) -> Result<AppliedResource, Failed> {
        let pod = match self.existing(wish) {
            None => self.make(wish, undo).await?,
            Some(old) if old.goal != PodGoal::Removed && old.owner.is_some() => {
                return Err(PodError::Owned { pod: old.name.clone() }.into());
            }
            Some(old) if old.goal != PodGoal::Removed && is_same(&old.template, wish) => old,
            Some(old) => {
                if old.goal != PodGoal::Removed {
                    undo.push(Undo::RestorePod(old.clone()));
                }
                match self.pods.remove(&old.id).await {
                    Ok(()) | Err(PodError::NotFound(_)) => self.make(wish, undo).await?,
                    Err(error) => return Err(Failed::at(POD)(error)),
                }
            }
        };
        let containers = match pod.goal {
            // New, or left so by a crash between its making and its start.
            PodGoal::Created => {
                let containers = self.pods.prepare(&pod.id).await.map_err(Failed::at(CONTAINERS))?;
                self.pods
                    .start(&pod.id)
                    .await
                    .map_err(Failed::at("pod start failed: "))?;
                containers
            }
            _ => self.members(&pod),
        };
        Ok(AppliedResource {
            kind: ResourceKind::Pod,
            id: pod.id.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            containers,
        })
    }

    async fn make(&self, wish: &PodManifest, undo: &mut Vec<Undo>) -> Result<Arc<Pod>, Failed> {
        let pod = self.pods.create(NewPod {
            name: wish.name.clone(),
            namespace: wish.namespace.clone(),
            uid: None,
            owner: None,
            template: template(wish),
            goal: PodGoal::Created,
        });
        let pod = pod.await.map_err(Failed::at(POD))?;
        undo.push(Undo::RemovePod(pod.clone()));
        Ok(pod)
    }

    fn existing(&self, wish: &PodManifest) -> Option<Arc<Pod>> {
        by_name(&self.store.snapshot(), &wish.namespace, &wish.name)
    }

    fn members(&self, pod: &Pod) -> Vec<String> {
        let status = pod_status(&self.store.snapshot(), pod);
        let entries = pod.template.spec.containers.iter();
        let members = entries.filter_map(|entry| status.member(pod, entry));
        members.map(|member| member.id.clone()).collect()
    }
}

fn is_same(template: &PodTemplate, wish: &PodManifest) -> bool {
    (&template.labels, &template.annotations, &template.spec) == (&wish.labels, &wish.annotations, &wish.spec)
}
