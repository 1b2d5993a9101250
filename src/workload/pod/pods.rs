//! The operations on pods.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::plan::Want;
use super::reserve::{Reserved, put, reserve};
use super::{NewPod, PodError, check_template, template};
use crate::image::ImageRef;
use crate::model::names::is_name;
use crate::model::{
    Claim, ContainerRequest, Kind, Pod, PodGoal, PodSpec, PodStatus, PodTemplate, Snapshot, Txn, pod_status,
    pod_statuses,
};
use crate::ops::lock::{KeyGuard, KeyedLocks};
use crate::ops::task::Operations;
use crate::store::Store;
use crate::workload::container::{ContainerError, ContainerService};

/// Longest name of a pod, and of a namespace (the limits of Kubernetes).
const MAX_NAME: usize = 253;
const MAX_NAMESPACE: usize = 63;
/// How often to try for a name that other requests keep taking.
const CREATE_TRIES: usize = 5;
/// How long a request waits for concurrent operations.
const PATIENCE: Duration = Duration::from_secs(10);

/// The service's settings.
#[derive(Debug, Clone)]
pub struct PodSettings {
    /// Directory of the pods' own directories, `<root>/pod`.
    pub root: PathBuf,
    /// Image of infra containers; `None` for the built-in one.
    pub infra_image: Option<String>,
}

/// All operations on pods. Clones share one service.
#[derive(Clone)]
pub struct PodService(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: PodSettings,
    pub(super) store: Store,
    pub(super) containers: ContainerService,
    locks: KeyedLocks,
    operations: Operations,
}

/// A pod locked by its holder: the controller leaves it alone until this is dropped.
pub struct HeldPod {
    pods: PodService,
    pod: Arc<Pod>,
    _lock: KeyGuard,
}

impl HeldPod {
    /// Its row as stored.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Does the same as [`PodService::prepare`].
    pub async fn prepare(&self) -> Result<Vec<String>, PodError> {
        self.pods.prepare_locked(&self.pod.id).await
    }

    /// Does the same as [`PodService::start`].
    pub async fn start(&self) -> Result<(), PodError> {
        self.pods.start_locked(&self.pod.id).await
    }
}

impl PodService {
    /// Creates a service over the containers. It does nothing before [`PodService::recover`].
    pub fn new(settings: PodSettings, store: Store, containers: ContainerService) -> Self {
        Self(Arc::new(Inner {
            settings,
            store,
            containers,
            locks: KeyedLocks::default(),
            operations: Operations::default(),
        }))
    }

    /// All pods with their status, by creation time, then id.
    pub fn list(&self) -> Vec<(Arc<Pod>, PodStatus)> {
        pod_statuses(&self.snapshot())
    }

    /// The pod of that id, else of that name in the namespace.
    pub fn find(&self, parameter: &str, namespace: &str) -> Result<Arc<Pod>, PodError> {
        find_in(&self.snapshot(), parameter, namespace).ok_or_else(|| PodError::NotFound(parameter.to_owned()))
    }

    /// Checks whether pods can be created from a template here: [`check_template`], the host paths that the
    /// configuration allows, and whether programs of the host use its ports.
    pub fn check_template(&self, template: &PodTemplate) -> Result<(), PodError> {
        check_template(template)?;
        let mounts = template::host_mounts(&template.spec);
        let checked = self.0.containers.check_mount_sources(mounts.iter().map(String::as_str));
        checked.map_err(|error| PodError::InvalidTemplate(error.to_string()))?;
        Ok(self.0.containers.check_published(&template::ports(&template.spec))?)
    }

    /// Stores a pod without creating containers (`docs/spec/api.md` 8.3).
    ///
    /// If a pod has the name already: with the same uid it is returned unchanged; with another uid in the request it is
    /// replaced; without one the request fails ([`PodError::NameTaken`]). If a replacement is interrupted, the
    /// controller finishes it.
    pub async fn create(&self, pod: NewPod) -> Result<Arc<Pod>, PodError> {
        Ok(self.put_down(pod, None).await?.0)
    }

    /// [`PodService::create`], which may also replace the pod with that id, and locks the new pod.
    pub async fn hold(&self, pod: NewPod, instead_of: Option<String>) -> Result<HeldPod, PodError> {
        let (pod, lock) = self.put_down(pod, instead_of).await?;
        let lock = match lock {
            Some(lock) => lock,
            None => self.0.locks.lock(&pod.id).await,
        };
        Ok(HeldPod {
            pods: self.clone(),
            pod,
            _lock: lock,
        })
    }

    /// Stores a pod; if it is new, returns its lock as well.
    async fn put_down(
        &self,
        pod: NewPod,
        instead_of: Option<String>,
    ) -> Result<(Arc<Pod>, Option<KeyGuard>), PodError> {
        check_names(&pod)?;
        self.check_template(&pod.template)?;
        for _ in 0..CREATE_TRIES {
            let (service, wish, instead_of) = (self.clone(), pod.clone(), instead_of.clone());
            let reserve = move |t: &mut Txn| reserve(t, wish, instead_of.as_deref(), &service.0.locks);
            let stored = match self.0.store.transact(reserve).await? {
                Reserved::Pod(pod, lock) => Some((pod, lock)),
                Reserved::After { old, next } => {
                    self.finish_removal(&old).await?;
                    // The new pod is missing if the old one was deleted, or replaced by another one.
                    next.and_then(|(id, lock)| Some((self.get(&id).ok()?, Some(lock))))
                }
            };
            if let Some((pod, lock)) = stored {
                tracing::info!(pod.id = %pod.id, pod.name = %pod.name, namespace = %pod.namespace, "pod stored");
                return Ok((pod, lock));
            }
        }
        Err(PodError::NameTaken {
            namespace: pod.namespace,
            name: pod.name,
        })
    }

    /// Obtains all images of a pod, by the pull policies of its containers.
    pub async fn obtain_images(&self, spec: &PodSpec) -> Result<(), PodError> {
        for entry in &spec.containers {
            let image = ImageRef::parse(&entry.request.image).map_err(ContainerError::from)?;
            self.0.containers.obtain_image(&image, entry.request.pull).await?;
        }
        Ok(())
    }

    /// Creates missing containers of the template and starts only infra. Returns the ids of the members in the order of
    /// the template.
    pub async fn prepare(&self, id: &str) -> Result<Vec<String>, PodError> {
        let service = self.clone();
        self.locked(id, async move |id| service.prepare_locked(&id).await).await
    }

    async fn prepare_locked(&self, id: &str) -> Result<Vec<String>, PodError> {
        let pod = self.get(id)?;
        self.complete(id, Want::Made).await?;
        let status = pod_status(&self.snapshot(), &pod);
        let entries = &pod.template.spec.containers;
        let members = entries.iter().filter_map(|entry| status.member(&pod, entry));
        Ok(members.map(|member| member.id.clone()).collect())
    }

    /// Creates missing containers and starts all that do not run. A failure keeps the goal: the controller continues.
    pub async fn start(&self, id: &str) -> Result<(), PodError> {
        let service = self.clone();
        self.locked(id, async move |id| service.start_locked(&id).await).await
    }

    async fn start_locked(&self, id: &str) -> Result<(), PodError> {
        self.set_goal(id, PodGoal::Running, |pod, now| pod.started_at = Some(now))
            .await?;
        self.complete(id, Want::Started).await?;
        tracing::info!(pod.id = %id, "pod started");
        Ok(())
    }

    /// Stops the running members. Infra continues to run and keeps the address.
    pub async fn stop(&self, id: &str) -> Result<(), PodError> {
        let service = self.clone();
        self.locked(id, async move |id| {
            service
                .set_goal(&id, PodGoal::Stopped, |pod, now| pod.stopped_at = Some(now))
                .await?;
            service.complete(&id, Want::Kept).await?;
            tracing::info!(pod.id = %id, "pod stopped");
            Ok(())
        })
        .await
    }

    /// Removes the pod with everything that belongs to it, and cancels its replacement. After a failure or a crash the
    /// controller finishes the removal.
    pub async fn remove(&self, id: &str) -> Result<(), PodError> {
        self.get(id)?;
        let service = self.clone();
        self.locked(id, async move |id| {
            let mark = service.update(&id, |pod| {
                (pod.goal, pod.successor) = (PodGoal::Removed, None);
                Ok(())
            });
            match mark.await {
                // Another removal was faster.
                Err(PodError::NotFound(_)) => return Ok(()),
                result => result?,
            }
            service.complete(&id, Want::Kept).await?;
            tracing::info!(pod.id = %id, "pod removed");
            Ok(())
        })
        .await
    }

    /// Completes the removal of a pod. A missing pod is not an error.
    pub async fn finish_removal(&self, id: &str) -> Result<(), PodError> {
        let service = self.clone();
        self.locked(id, async move |id| service.complete(&id, Want::Kept).await)
            .await
    }

    /// Creates another container in a pod, adds it to the pod's template and returns its id. Does not start it
    /// (`docs/spec/api.md` 5.4, P18).
    pub async fn add(&self, id: &str, name: String, request: ContainerRequest) -> Result<String, PodError> {
        let service = self.clone();
        self.locked(id, async move |id| service.add_locked(&id, name, request).await)
            .await
    }

    /// Waits until no operation is in progress.
    pub async fn finish_operations(&self) {
        self.0.operations.finish().await;
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.0.store.snapshot()
    }

    pub(super) fn get(&self, id: &str) -> Result<Arc<Pod>, PodError> {
        let pod = self.snapshot().pods().get(id).cloned();
        pod.ok_or_else(|| PodError::NotFound(id.to_owned()))
    }

    pub(super) fn try_lock(&self, id: &str) -> Option<KeyGuard> {
        self.0.locks.try_lock(id)
    }

    /// Runs an operation to its end under the pod's lock, even if the caller is dropped.
    async fn locked<T: Send + 'static, F: Future<Output = Result<T, PodError>> + Send>(
        &self,
        id: &str,
        operation: impl FnOnce(String) -> F + Send + 'static,
    ) -> Result<T, PodError> {
        let (service, id) = (self.clone(), id.to_owned());
        let task = async move {
            let _lock = service.0.locks.lock(&id).await;
            operation(id.clone()).await
        };
        self.0.operations.run(task).await
    }

    async fn set_goal(
        &self,
        id: &str,
        goal: PodGoal,
        change: impl FnOnce(&mut Pod, Timestamp) + Send + 'static,
    ) -> Result<(), PodError> {
        self.update(id, move |pod| {
            if pod.goal == PodGoal::Removed && goal != PodGoal::Removed {
                return Err(PodError::BeingRemoved(pod.id.clone()));
            }
            if pod.goal != goal {
                pod.goal = goal;
                change(pod, Timestamp::now());
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut Pod) -> Result<(), PodError> + Send + 'static,
    ) -> Result<(), PodError> {
        let id = id.to_owned();
        let update = self.0.store.transact(move |t| {
            let before = t.get::<Pod>(&id).ok_or(PodError::NotFound(id))?;
            let mut pod = Pod::clone(&before);
            change(&mut pod)?;
            if pod != *before {
                put(t, pod)?;
            }
            Ok(())
        });
        update.await
    }

    /// [`PodService::settle`] for a user who waits.
    async fn complete(&self, id: &str, want: Want) -> Result<(), PodError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Some(delay) = self.settle(id, want).await? {
            if tokio::time::Instant::now() + delay > deadline {
                return Err(PodError::Unsettled(id.to_owned()));
            }
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }
}

fn find_in(snapshot: &Snapshot, parameter: &str, namespace: &str) -> Option<Arc<Pod>> {
    let by_name = || {
        let claim = Claim::Name(Kind::Pod, namespace.to_owned(), parameter.to_owned());
        snapshot.pods().get(&snapshot.holder(&claim)?.id)
    };
    snapshot.pods().get(parameter).or_else(by_name).cloned()
}

fn check_names(pod: &NewPod) -> Result<(), PodError> {
    if pod.name.is_empty() {
        return Err(PodError::NoName);
    }
    for (what, text, most) in [
        ("name", &pod.name, MAX_NAME),
        ("namespace", &pod.namespace, MAX_NAMESPACE),
    ] {
        if !is_name(text, most) {
            let text = text.clone();
            return Err(PodError::InvalidName { what, text, most });
        }
    }
    Ok(())
}
