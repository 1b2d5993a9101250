//! Space of containers on disk, and the removal of those that nobody needs any more.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;

use super::restart_policy::due;
use super::{ContainerError, ContainerService, blocking};
use crate::base::space;
use crate::model::{Container, ContainerState, Role, Snapshot};
use crate::observe::metrics::Verb;
use crate::ops::prune::{PruneFilter, Pruned, PrunedObject};

/// How many containers a prune removes in parallel.
const PARALLEL: usize = 4;
/// How many threads measure. More would only make each other wait for the disk.
const MEASURING: usize = 2;

/// Space of one container.
#[derive(Debug, Clone)]
pub struct ContainerSpace {
    /// The container.
    pub container: Arc<Container>,
    /// Bytes on disk of its writable layer.
    pub bytes: u64,
    /// Of its logs.
    pub log_bytes: u64,
    /// Of its own volumes.
    pub volume_bytes: u64,
    /// What a prune would free: all of that; 0 while the container may not be pruned.
    pub reclaimable_bytes: u64,
}

/// The directories of one container.
struct Directories {
    layer: PathBuf,
    logs: PathBuf,
    volumes: PathBuf,
}

impl ContainerService {
    /// Space of all containers, oldest first.
    pub async fn space(&self) -> Result<Vec<ContainerSpace>, ContainerError> {
        let (snapshot, now) = (self.snapshot(), Timestamp::now());
        let containers = super::list(&snapshot);
        let directories = containers.iter().map(|c| self.directories(&c.id)).collect();
        let measured = blocking(move || measure(directories)).await?;
        let found = containers.into_iter().zip(measured);
        Ok(found
            .map(|(container, [bytes, log_bytes, volume_bytes])| ContainerSpace {
                reclaimable_bytes: match is_unneeded(&container, &snapshot, now) {
                    true => bytes + log_bytes + volume_bytes,
                    false => 0,
                },
                container,
                bytes,
                log_bytes,
                volume_bytes,
            })
            .collect())
    }

    /// Removes the stopped containers that the filter names. Those of pods, bottles and builds, and those that their restart
    /// policy will start again, stay. With `dry_run` it only says what it would remove.
    pub async fn prune(&self, filter: PruneFilter, dry_run: bool) -> Result<Pruned, ContainerError> {
        let snapshot = self.snapshot();
        let mut chosen = super::list(&snapshot);
        chosen.retain(|container| is_prunable(container, &snapshot, &filter));
        let directories = chosen.iter().map(|c| self.directories(&c.id)).collect();
        let measured = blocking(move || measure(directories)).await?;
        let tries = chosen.into_iter().zip(measured).map(|(container, sizes)| {
            let (service, filter) = (self.clone(), filter.clone());
            async move {
                let object = PrunedObject {
                    id: container.id.clone(),
                    name: container.name.clone(),
                    bytes: sizes.iter().sum(),
                };
                match dry_run {
                    true => (object, Ok(true)),
                    false => (object, service.remove_if_prunable(container.id.clone(), filter).await),
                }
            }
        });
        let mut ended = stream::iter(tries).buffered(PARALLEL);
        let mut pruned = Pruned::default();
        while let Some((object, outcome)) = ended.next().await {
            match outcome {
                Ok(true) => {
                    pruned.bytes_freed += object.bytes;
                    pruned.removed.push(object);
                }
                // It has been started or removed meanwhile.
                Ok(false) => {}
                Err(error) => pruned.failed.push((object.name, error.to_string())),
            }
        }
        Ok(pruned)
    }

    /// Removes a container if it may still be pruned once its lock is held. Whether it was.
    async fn remove_if_prunable(&self, id: String, filter: PruneFilter) -> Result<bool, ContainerError> {
        let service = self.clone();
        self.detached(Verb::ContainerDelete, async move {
            let _lock = service.0.locks.lock(&id).await;
            let snapshot = service.snapshot();
            let Some(container) = snapshot.containers().get(&id) else {
                return Ok(false);
            };
            if !is_prunable(container, &snapshot, &filter) {
                return Ok(false);
            }
            service.dismantle(container).await?;
            tracing::info!(container.id = %id, container.name = %container.name, "container pruned");
            Ok(true)
        })
        .await
    }

    fn directories(&self, id: &str) -> Directories {
        let dir = self.dir(id);
        Directories {
            layer: dir.diff(),
            logs: dir.logs(),
            volumes: dir.volumes(),
        }
    }
}

fn is_prunable(container: &Container, snapshot: &Snapshot, filter: &PruneFilter) -> bool {
    let created_at = container.status.created_at.unwrap_or(Timestamp::UNIX_EPOCH);
    filter.admits(created_at, &container.spec.options.labels) && is_unneeded(container, snapshot, Timestamp::now())
}

/// Whether nobody but a user would start the container again. Pods, sets and bottles need theirs.
fn is_unneeded(container: &Container, snapshot: &Snapshot, now: Timestamp) -> bool {
    container.role == Role::Alone
        && container.status.state == ContainerState::Stopped
        && container.journal.operation.is_none()
        && due(container, snapshot, now).is_none()
}

/// The bytes of each: writable layer, logs, volumes.
fn measure(containers: Vec<Directories>) -> Result<Vec<[u64; 3]>, ContainerError> {
    let of_one = |container: &Directories| -> std::io::Result<[u64; 3]> {
        Ok([
            space::used(&container.layer)?,
            space::used(&container.logs)?,
            space::used(&container.volumes)?,
        ])
    };
    let share = containers.len().div_ceil(MEASURING).max(1);
    let measured = std::thread::scope(|scope| {
        let threads: Vec<_> = containers
            .chunks(share)
            .map(|chunk| scope.spawn(move || chunk.iter().map(of_one).collect::<std::io::Result<Vec<_>>>()))
            .collect();
        let joined = threads.into_iter().map(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(std::io::Error::other("measuring a container panicked")))
        });
        joined.collect::<std::io::Result<Vec<_>>>()
    });
    Ok(measured?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;
    use crate::model::{Operation, RestartPolicy};

    fn stopped() -> Container {
        let mut c = container("01kg2cnf0ytv", "web").in_state(ContainerState::Stopped);
        c.status.started_at = Some(Timestamp::UNIX_EPOCH);
        c
    }

    #[test]
    fn only_what_nobody_will_start_is_unneeded() {
        let unneeded = |c: &Container| is_unneeded(c, &Snapshot::default(), Timestamp::now());
        assert!(unneeded(&stopped()));
        for state in [
            ContainerState::Creating,
            ContainerState::Created,
            ContainerState::Running,
        ] {
            assert!(!unneeded(&stopped().in_state(state)), "{state}");
        }
        let mut busy = stopped();
        busy.journal.operation = Some(Operation::Restart);
        assert!(!unneeded(&busy));
        let mut restarting = stopped();
        restarting.spec.options.restart = RestartPolicy::Always;
        assert!(!unneeded(&restarting));
        restarting.journal.stopped_by_user = true;
        assert!(unneeded(&restarting));
        let pod = "01pod".to_owned();
        let bottle = "01bottle".to_owned();
        for role in [
            Role::Infra { pod: pod.clone() },
            Role::Member { pod },
            Role::Service { bottle },
            Role::Build,
        ] {
            let mut owned = stopped();
            owned.role = role;
            assert!(!unneeded(&owned), "{:?}", owned.role);
        }
    }
}
