//! Executes the steps of a plan. The caller holds the pod's lock.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::plan::{NextSteps, Step, Want, plan, rebuilds};
use super::reserve::hand_over;
use super::{PodError, PodService, check_template, template};
use crate::model::names::is_ulid;
use crate::model::{
    Container, ContainerRequest, ContainerState, INFRA_PREFIX, Pod, PodContainer, PodGoal, PodTemplate, VolumeSource,
    fresh_ulid, member_name, pod_status,
};
use crate::ops::task;
use crate::workload::container::{ContainerError, PodPart, PodRole, pull_policy_of};

/// More rounds than any pod needs: rests, strays, infra twice, members, and spare rounds for concurrent changes.
const ROUNDS: usize = 12;

impl PodService {
    /// Removes directories of deleted pods, recognized by the form of their id; leaves all other directories alone. The
    /// controller continues unfinished work on existing pods.
    pub async fn recover(&self) -> Result<(), PodError> {
        let snapshot = self.snapshot();
        let root = self.0.settings.root.clone();
        blocking(move || {
            for entry in fs_err::read_dir(&root)? {
                let entry = entry?;
                let name = entry.file_name();
                let is_stray = |id: &str| is_ulid(id) && snapshot.pods().get(id).is_none();
                if name.to_str().is_some_and(is_stray) && entry.file_type()?.is_dir() {
                    tracing::warn!(path = %entry.path().display(), "removing volumes of a pod without a record");
                    remove_directory(&entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Brings a pod to its goal, or as close as possible now; then returns when to continue. A missing pod is at its
    /// goal. Records in the row why the pod could not reach its goal.
    pub(super) async fn settle(&self, id: &str, want: Want) -> Result<Option<Duration>, PodError> {
        let settled = self.settle_once(id, want).await;
        let problem = match &settled {
            Ok(Some(_)) => return settled,
            Ok(None) => None,
            Err(error) => error.problem(),
        };
        let noted = self.update(id, move |pod| {
            pod.problem = problem;
            Ok(())
        });
        match noted.await {
            Ok(()) | Err(PodError::NotFound(_)) => {}
            Err(error) => tracing::error!(pod.id = %id, %error, "why a pod failed could not be recorded"),
        }
        settled
    }

    async fn settle_once(&self, id: &str, mut want: Want) -> Result<Option<Duration>, PodError> {
        for _ in 0..ROUNDS {
            let snapshot = self.snapshot();
            let Some(pod) = snapshot.pods().get(id) else {
                return Ok(None);
            };
            match plan(pod, &pod_status(&snapshot, pod), want, Timestamp::now()) {
                NextSteps::Done => return Ok(None),
                NextSteps::Wait(delay) => return Ok(Some(delay)),
                NextSteps::Steps(steps) => {
                    let starts = steps.iter().any(|step| matches!(step, Step::Start(_)));
                    self.perform(pod, steps).await?;
                    // Start members only once: the restart policy handles one that ends at once.
                    if starts && want == Want::Started {
                        want = Want::Kept;
                    }
                }
            }
        }
        Err(PodError::Unsettled(id.to_owned()))
    }

    /// Runs ends and removals in parallel, since each may take seconds, and the rest in order. Runs every step despite
    /// failures: the steps are independent, and a member that cannot be created or started must not block the others.
    /// Returns the first failure.
    async fn perform(&self, pod: &Arc<Pod>, steps: Vec<Step>) -> Result<(), PodError> {
        let (apart, in_order): (Vec<_>, Vec<_>) = steps
            .into_iter()
            .partition(|step| matches!(step, Step::End(_) | Step::Delete(_)));
        let mut done = futures_util::future::join_all(apart.into_iter().map(|step| self.step(pod, step))).await;
        for step in in_order {
            done.push(self.step(pod, step).await);
        }
        done.into_iter().collect()
    }

    async fn step(&self, pod: &Arc<Pod>, step: Step) -> Result<(), PodError> {
        tracing::debug!(pod.id = %pod.id, ?step, "pod");
        let containers = &self.0.containers;
        match step {
            Step::MakeInfra => self.make_infra(pod).await,
            Step::StartInfra(id) => self.start_infra(&id).await,
            Step::Publish(id) => {
                let ports = template::ports(&pod.template.spec);
                Ok(containers.publish(&id, &ports).await?)
            }
            Step::Make(entry) => match pod.template.spec.containers.get(entry) {
                Some(entry) => self.make_member(pod, entry).await,
                None => Ok(()),
            },
            Step::Start(id) => match containers.start(&id).await {
                // Its restart policy or a client has started it already.
                Ok(_) | Err(ContainerError::AlreadyStarted(_) | ContainerError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Step::End(id) => gone_is_fine(containers.end(&id).await),
            Step::Delete(id) => gone_is_fine(containers.end_and_delete(&id).await),
            Step::Forget => self.forget(&pod.id).await,
        }
    }

    async fn make_infra(&self, pod: &Pod) -> Result<(), PodError> {
        let name = format!("{INFRA_PREFIX}{}", pod.id.get(..12).unwrap_or(&pod.id));
        let request = ContainerRequest {
            image: self.0.settings.infra_image.clone().unwrap_or_default(),
            ports: template::ports(&pod.template.spec),
            network: template::network(&pod.template.spec),
            ..ContainerRequest::default()
        };
        let part = part(pod, PodRole::Infra);
        self.0.containers.create_in_pod(name, request, part).await?;
        Ok(())
    }

    /// Counts consecutive starts, which determine the delay before the next one.
    async fn start_infra(&self, id: &str) -> Result<(), PodError> {
        let id = id.to_owned();
        let row = id.clone();
        let counted = self.0.store.transact(move |t| {
            let again = |c: &mut Container| {
                if c.status.state == ContainerState::Stopped {
                    c.status.restarts = rebuilds(c);
                }
            };
            // The change touches nothing that others can claim.
            let _ = t.update::<Container>(&row, again);
            Ok::<_, PodError>(())
        });
        counted.await?;
        match self.0.containers.start(&id).await {
            Ok(_) | Err(ContainerError::AlreadyStarted(_) | ContainerError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn make_member(&self, pod: &Pod, entry: &PodContainer) -> Result<(), PodError> {
        let volumes = self.make_volumes(pod).await?;
        let request = template::request(pod, entry, &volumes);
        let (name, part) = (member_name(&pod.id, &entry.name), part(pod, PodRole::Member));
        self.0.containers.create_in_pod(name, request, part).await?;
        Ok(())
    }

    /// Creates the pod's own volumes if absent. Every user of its containers can write to them; the directory above
    /// keeps the host's users out.
    async fn make_volumes(&self, pod: &Pod) -> Result<PathBuf, PodError> {
        let own = self.0.settings.root.join(&pod.id);
        let volumes = own.join("volumes");
        let empty = pod
            .template
            .spec
            .volumes
            .iter()
            .filter(|v| v.source == VolumeSource::EmptyDir);
        let paths: Vec<PathBuf> = empty.map(|volume| volumes.join(&volume.name)).collect();
        if paths.is_empty() {
            return Ok(volumes);
        }
        let make = |path: &Path, mode| std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        blocking(move || {
            make(&own, 0o700)?;
            for path in paths {
                make(&path, 0o755)?;
                fs_err::set_permissions(path, PermissionsExt::from_mode(0o777))?;
            }
            Ok(volumes)
        })
        .await
    }

    /// Removes the volumes, then the row; a successor, if any, gets the name.
    async fn forget(&self, id: &str) -> Result<(), PodError> {
        let own = self.0.settings.root.join(id);
        blocking(move || remove_directory(&own)).await?;
        let id = id.to_owned();
        self.0
            .store
            .transact(move |t| hand_over(t, &id, Timestamp::now()))
            .await
    }

    pub(super) async fn add_locked(
        &self,
        id: &str,
        name: String,
        mut request: ContainerRequest,
    ) -> Result<String, PodError> {
        let pod = self.get(id)?;
        if pod.owner.is_some() {
            return Err(PodError::Owned { pod: pod.name.clone() });
        }
        if pod.goal == PodGoal::Removed {
            return Err(PodError::BeingRemoved(pod.id.clone()));
        }
        if name.is_empty() {
            return Err(PodError::NoContainerName);
        }
        request.pull = pull_policy_of(&request.image);
        let entry = PodContainer {
            name,
            request,
            volume_mounts: Vec::new(),
        };
        let grown = with_entry(&pod.template, entry.clone());
        check_template(&grown)?;
        // A pod without a network gets the network of its first container, which this may be.
        let with = Pod {
            template: grown.clone(),
            ..Pod::clone(&pod)
        };
        self.infra_runs(&with).await?;
        self.publish(&with).await?;
        match self.make_added(&with, &entry).await {
            Ok(member) => {
                let recorded = self.update(id, move |pod| {
                    pod.template = grown;
                    Ok(())
                });
                recorded.await?;
                Ok(member)
            }
            Err(error) => {
                if let Err(undo) = self.publish(&pod).await {
                    tracing::error!(pod.id = %id, error = %undo, "ports of a container that was not made stay published");
                }
                Err(error)
            }
        }
    }

    /// Has infra run, and nothing else: the request does not concern other members.
    async fn infra_runs(&self, pod: &Pod) -> Result<(), PodError> {
        let bare = |pod: &Pod| {
            let mut pod = pod.clone();
            pod.template.spec.containers.clear();
            // Even if a user stopped the pod: that stops only its members.
            pod.goal = PodGoal::Created;
            pod
        };
        for _ in 0..ROUNDS {
            let snapshot = self.snapshot();
            let (alone, now) = (bare(pod), Timestamp::now());
            match plan(&alone, &pod_status(&snapshot, pod), Want::Made, now) {
                NextSteps::Steps(steps) if steps.iter().any(|step| !matches!(step, Step::Publish(_))) => {
                    self.perform(&Arc::new(pod.clone()), steps).await?;
                }
                NextSteps::Wait(delay) => tokio::time::sleep(delay).await,
                _ => return Ok(()),
            }
        }
        Err(PodError::Unsettled(pod.id.clone()))
    }

    async fn publish(&self, pod: &Pod) -> Result<(), PodError> {
        let Some(infra) = pod_status(&self.snapshot(), pod).infra else {
            return Ok(());
        };
        let ports = template::ports(&pod.template.spec);
        Ok(self.0.containers.publish(&infra.id, &ports).await?)
    }

    async fn make_added(&self, pod: &Pod, entry: &PodContainer) -> Result<String, PodError> {
        // Without volumes of the pod: no directory is needed.
        let request = template::request(pod, entry, Path::new(""));
        let (name, part) = (member_name(&pod.id, &entry.name), part(pod, PodRole::Added));
        Ok(self.0.containers.create_in_pod(name, request, part).await?)
    }
}

fn part(pod: &Pod, role: PodRole) -> PodPart {
    PodPart {
        pod_id: pod.id.clone(),
        role,
        host_name: template::host_name(pod),
    }
}

/// A new version of a template, with one more entry or another one of that name.
fn with_entry(template: &PodTemplate, entry: PodContainer) -> PodTemplate {
    let mut template = template.clone();
    template.id = fresh_ulid();
    let entries = &mut template.spec.containers;
    match entries.iter_mut().find(|known| known.name == entry.name) {
        Some(known) => *known = entry,
        None => entries.push(entry),
    }
    template
}

fn gone_is_fine(result: Result<(), ContainerError>) -> Result<(), PodError> {
    match result {
        Err(ContainerError::NotFound(_)) => Ok(()),
        other => Ok(other?),
    }
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, PodError> {
    task::blocking(move || work().map_err(PodError::Volumes)).await
}
