//! Delete, and the undo of a create: both dismantle a container, in whatever state it is.

use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::recover::remove_directory;
use super::{ContainerError, ContainerService, blocking, cgroup, refuse_managed, transitions};
use crate::base::cause::Cause;
use crate::model::{Container, ContainerState, Operation};
use crate::observe::metrics::Verb;
use crate::runtime::StopRequest;
use crate::runtime::state::Status;

impl ContainerService {
    /// Removes a container that does not run; returns its id. Can be repeated after a failure.
    pub async fn delete(&self, parameter: &str) -> Result<String, ContainerError> {
        let container = self.find(parameter)?;
        refuse_managed(&container, parameter, "delete operation", "rm")?;
        let (service, parameter) = (self.clone(), parameter.to_owned());
        self.detached(Verb::ContainerDelete, async move {
            let id = container.id.clone();
            let _lock = service.0.locks.lock(&id).await;
            let container = service.find(&id).map_err(|_| ContainerError::NotFound(parameter))?;
            transitions::check_allowed("delete", &container)?;
            service.dismantle(&container).await?;
            tracing::info!(container.id = %id, "container deleted");
            Ok(id)
        })
        .await
    }

    /// Removes everything that belongs to a container. The row goes last, in one transaction with its name, address and
    /// ports. Any step may have been done before. Continues after an error, but then keeps the row for another try, and
    /// returns the first error.
    pub(super) async fn dismantle(&self, container: &Container) -> Result<(), ContainerError> {
        let id = &container.id;
        // Write the journal first: after a crash, recovery completes this removal, even if it undoes another operation.
        self.update(id, |c| {
            c.journal.operation = Some(Operation::Delete);
            Ok(())
        })
        .await?;
        let mut first = None;
        let mut note = |result: Result<(), ContainerError>| {
            if let Err(error) = result {
                tracing::warn!(container.id = %id, %error, "a part of the container could not be removed");
                first.get_or_insert(error);
            }
        };
        let forgotten = self.forget_in_runtime(id, "stop failed").await;
        let is_forgotten = forgotten.is_ok();
        note(forgotten);
        self.unwatch(id);
        note(
            self.0
                .services
                .networks
                .remove_stray_link(&container.veth())
                .await
                .map_err(Into::into),
        );
        note(
            cgroup::remove(id)
                .await
                .map_err(|e| cleanup("delete cgroup subtree failed", e)),
        );
        // The directory holds the runtime's record: without it a second try could not reach a remaining process.
        if is_forgotten {
            let directory = self.dir(id).path().to_owned();
            note(
                blocking(move || {
                    remove_directory(&directory).map_err(|e| cleanup("delete container directory failed", e))
                })
                .await,
            );
        }
        // A row in deletion publishes nothing. Its rules must go before its address is reused.
        note(
            self.follow_ports()
                .await
                .map_err(|e| cleanup("cleanup forward rule failed", e)),
        );
        if let Some(error) = first {
            return Err(error);
        }
        let row = id.clone();
        self.0
            .services
            .store
            .transact(move |t| {
                t.remove::<Container>(&row);
                Ok::<_, ContainerError>(())
            })
            .await?;
        self.sweep_layers(&container.spec.image.layers).await;
        Ok(())
    }

    /// Removes the layers of a removed container if no image needs them. The next start sweeps them as well.
    async fn sweep_layers(&self, layers: &[String]) {
        let snapshot = self.snapshot();
        let mut images = snapshot.images().iter();
        if images.any(|image| image.layers.iter().map(|layer| &layer.diff_id).eq(layers)) {
            return;
        }
        if let Err(error) = self.0.services.images.sweep().await {
            tracing::warn!(%error, "layers that nothing needs could not be removed");
        }
    }

    /// Ends the process and makes the runtime forget the container, if it knows it: a create can fail before that. A
    /// process may run although its row does not say so, or without a row, if the outcome of its start was unknown.
    pub(super) async fn forget_in_runtime(&self, id: &str, step: &'static str) -> Result<(), ContainerError> {
        let recorded = self.runtime_state(id).await.filter(|s| s.status == Status::Running);
        let lives = recorded.and_then(|s| s.process()).is_some_and(|p| p.is_alive());
        let row = self.snapshot().containers().get(id).map(|row| row.status.state);
        if lives || row == Some(ContainerState::Running) {
            let stopped = self.0.services.runtime.stop(id, &StopRequest::default()).await;
            stopped.map_err(|source| ContainerError::Runtime { step, source })?;
        }
        self.delete_in_runtime(id).await
    }

    /// Makes the runtime forget a container. Without a state file the runtime does not know it; its remaining volatile
    /// files are then garbage.
    pub(super) async fn delete_in_runtime(&self, id: &str) -> Result<(), ContainerError> {
        let state = self.dir(id).state();
        if state.exists()
            && let Err(source) = self.0.services.runtime.delete(id).await
            // A create that a crash of the daemon interrupted cleans up concurrently, and may have been faster.
            && state.exists()
        {
            let step = "delete container failed";
            return Err(ContainerError::Runtime { step, source });
        }
        let volatile = self.0.settings.runtime_run_dir.join(id);
        blocking(move || {
            remove_lock(&volatile.with_extension("lock"))?;
            match fs_err::remove_dir_all(volatile) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
                _ => Ok(()),
            }
        })
        .await
    }
}

/// Removes the lock that a killed runtime left for a container. A lock that is held stays.
fn remove_lock(path: &Path) -> std::io::Result<()> {
    let lock = match fs_err::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => fs_err::remove_file(path),
    }
}

fn cleanup(step: &'static str, error: impl Into<Cause>) -> ContainerError {
    ContainerError::Cleanup {
        step,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_removed_unless_somebody_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        remove_lock(&path).unwrap();
        let held = std::fs::File::create(&path).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        remove_lock(&path).unwrap();
        assert!(path.exists());
        drop(held);
        remove_lock(&path).unwrap();
        assert!(!path.exists());
    }
}
