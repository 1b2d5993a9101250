//! Pods of a manifest.

use std::sync::Arc;

use super::error::Failed;
use super::undo::Undo;
use super::{AppliedResource, Applier, by_name, template};
use crate::model::{Container, Pod, PodGoal, PodTemplate, pod_status};
use crate::workload::manifest::{PodManifest, ResourceKind};
use crate::workload::pod::{NewPod, PodError};

const CONTAINERS: &str = "container create failed: ";
const POD: &str = "pod create failed: ";
const START: &str = "pod start failed: ";

impl Applier {
    /// A pod of a set is left to the set. Before a pod is replaced, the images of the new one must be present: pulls
    /// fail most often, and then the old pod stays.
    pub(super) async fn check_pod(&self, wish: &PodManifest) -> Result<(), Failed> {
        let holder = self.existing(wish);
        let Some(old) = holder.as_ref().and_then(|pod| pod.standing()) else {
            return Ok(());
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

    /// A pod that matches is left alone, even if a user stopped it; one that differs is replaced.
    pub(super) async fn apply_pod(&self, wish: &PodManifest, undo: &mut Vec<Undo>) -> Result<AppliedResource, Failed> {
        let (pod, containers) = match self.existing(wish) {
            None => self.make(wish, None, undo).await?,
            Some(old) if old.goal == PodGoal::Removed => {
                self.pods.finish_removal(&old.id).await.map_err(Failed::at(POD))?;
                // Check the name again: a request that was cut off by a crash may have reserved it for another pod.
                return Err(Failed::at(POD)(PodError::NameTaken {
                    namespace: old.namespace.clone(),
                    name: old.name.clone(),
                }));
            }
            Some(old) if old.owner.is_some() => return Err(PodError::Owned { pod: old.name.clone() }.into()),
            Some(old) if is_same(&old.template, wish) => {
                let containers = self.keep(&old).await?;
                (old, containers)
            }
            Some(old) => self.make(wish, Some(old), undo).await?,
        };
        Ok(AppliedResource {
            kind: ResourceKind::Pod,
            id: pod.id.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            containers,
        })
    }

    /// Creates a pod, replacing another one if given, and starts it. Its row says from the start that it is to run: if
    /// this is interrupted, the controller continues.
    async fn make(
        &self,
        wish: &PodManifest,
        old: Option<Arc<Pod>>,
        undo: &mut Vec<Undo>,
    ) -> Result<(Arc<Pod>, Vec<String>), Failed> {
        let new = NewPod {
            name: wish.name.clone(),
            namespace: wish.namespace.clone(),
            uid: None,
            owner: None,
            template: template(wish),
            goal: PodGoal::Running,
        };
        let held = self.pods.hold(new, old.as_ref().map(|old| old.id.clone())).await;
        let held = held.map_err(Failed::at(POD));
        match (&held, old) {
            (Err(failed), _) if failed.is_overtaken() => {}
            // A failure may leave it half removed.
            (_, Some(old)) => undo.push(Undo::RestorePod(old)),
            (Ok(held), None) => undo.push(Undo::RemovePod(held.pod().clone())),
            (Err(_), None) => {}
        }
        let held = held?;
        let containers = held.prepare().await.map_err(Failed::at(CONTAINERS))?;
        held.start().await.map_err(Failed::at(START))?;
        Ok((held.pod().clone(), containers))
    }

    /// The members of a pod that stays. A pod that is not fully started yet gets started: no user stopped it; at most
    /// another request is starting it too.
    async fn keep(&self, pod: &Pod) -> Result<Vec<String>, Failed> {
        let members = self.members(pod);
        let has_started = |member: &Arc<Container>| member.status.started_at.is_some();
        let is_whole = members.len() == pod.template.spec.containers.len() && members.iter().all(has_started);
        match pod.goal {
            PodGoal::Created => {}
            PodGoal::Running if !is_whole => {}
            _ => return Ok(members.iter().map(|member| member.id.clone()).collect()),
        }
        let containers = self.pods.prepare(&pod.id).await.map_err(Failed::at(CONTAINERS))?;
        self.pods.start(&pod.id).await.map_err(Failed::at(START))?;
        Ok(containers)
    }

    fn existing(&self, wish: &PodManifest) -> Option<Arc<Pod>> {
        by_name(&self.store.snapshot(), &wish.namespace, &wish.name)
    }

    fn members(&self, pod: &Pod) -> Vec<Arc<Container>> {
        let status = pod_status(&self.store.snapshot(), pod);
        let entries = pod.template.spec.containers.iter();
        entries.filter_map(|entry| status.member(pod, entry)).cloned().collect()
    }
}

fn is_same(template: &PodTemplate, wish: &PodManifest) -> bool {
    (&template.labels, &template.annotations, &template.spec) == (&wish.labels, &wish.annotations, &wish.spec)
}
