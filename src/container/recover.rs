//! Recovery: after any end of the daemon, rows and machine are made to agree again.
//!
//! 1. Every row that an operation was at work on is undone (create), put back (restart) or finished (delete).
//! 2. Every row that has a process is compared with it: alive, it is adopted and watched; gone, its exit is recorded.
//! 3. What belongs to no row (directories, interfaces) is removed. Only things that carry a container id are touched.
//!
//! The hook listener must already serve: the runtime reports while it cleans up.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use jiff::Timestamp;

use crate::runtime::StopRequest;
use crate::runtime::state::Status;
use crate::store::{Container, ContainerState, Operation};

use super::{ContainerError, ContainerService, cgroup, transitions};

/// How many containers are recovered at the same time.
const PARALLEL: usize = 16;
/// Length of a container id.
const ID_LENGTH: usize = 12;

impl ContainerService {
    /// Brings rows and machine together. Trouble with one container is logged and does not stop the others.
    pub async fn recover(&self) -> Result<(), ContainerError> {
        let cgroups = super::blocking(|| Ok(cgroup::prepare()?)).await?;
        tracing::info!("{cgroups}");
        let rows: Vec<_> = self.list();
        futures_util::stream::iter(rows)
            .for_each_concurrent(PARALLEL, |row| async move {
                if let Err(error) = self.recover_one(&row).await {
                    tracing::error!(container.id = %row.id, %error, "recovery of a container is not complete");
                }
            })
            .await;
        self.remove_orphans().await
    }

    async fn recover_one(&self, row: &Arc<Container>) -> Result<(), ContainerError> {
        let id = &row.id;
        let _lock = self.0.locks.lock(id).await;
        match row.operation {
            Some(operation) => self.finish(row, operation).await,
            None if row.is_build() => self.finish(row, Operation::Delete).await,
            None => self.compare(row).await,
        }
    }

    /// Undoes or finishes an operation that nobody is at work on. The caller holds the lock.
    pub(super) async fn finish(&self, row: &Container, operation: Operation) -> Result<(), ContainerError> {
        let id = &row.id;
        if row.is_build() {
            tracing::warn!(container.id = %id, "removing the container of a build that was interrupted");
            return self.remove_build(id).await;
        }
        match operation {
            Operation::Create => {
                tracing::warn!(container.id = %id, "undoing a create that was interrupted");
                self.dismantle(row).await
            }
            Operation::Delete => {
                tracing::warn!(container.id = %id, "finishing a removal that was interrupted");
                self.dismantle(row).await
            }
            Operation::Restart => {
                tracing::warn!(container.id = %id, "undoing a restart that was interrupted");
                self.undo_restart(id).await
            }
        }
    }

    /// A container that was being created again is stopped, as it was before.
    async fn undo_restart(&self, id: &str) -> Result<(), ContainerError> {
        let state = self.runtime_state(id).await;
        let runtime = &self.0.services.runtime;
        let failed = |source| ContainerError::Runtime {
            step: "undo of a restart failed",
            source,
        };
        if state.as_ref().is_some_and(|s| s.status == Status::Running) {
            runtime.stop(id, &StopRequest::default()).await.map_err(failed)?;
        }
        self.delete_in_runtime(id).await?;
        self.update(id, |c| {
            c.state = ContainerState::Stopped;
            c.operation = None;
            c.process = None;
            c.certificate_due = false;
            c.exit.get_or_insert_with(transitions::unseen_exit);
            Ok(())
        })
        .await
    }

    /// A container that nothing was at work on: is it what the row says?
    pub(super) async fn compare(&self, row: &Arc<Container>) -> Result<(), ContainerError> {
        if row.state == ContainerState::Stopped {
            return Ok(());
        }
        let state = self.runtime_state(&row.id).await;
        let process = state.as_ref().and_then(|s| s.process()).or_else(|| row.process.clone());
        if let Some(process) = process.filter(|p| p.is_alive()) {
            let released = state.is_some_and(|s| s.status == Status::Running);
            self.update(&row.id, move |c| {
                if released {
                    transitions::running(c, Some(process.clone()), Timestamp::now());
                }
                // It may have ended a moment ago, and that been reported.
                if matches!(c.state, ContainerState::Created | ContainerState::Running) {
                    c.process = Some(process);
                }
                Ok(())
            })
            .await?;
            self.watch(&row.id);
            return Ok(());
        }
        let exit = state
            .filter(|s| s.status == Status::Stopped)
            .and_then(|s| s.exit())
            .unwrap_or_else(transitions::unseen_exit);
        tracing::info!(container.id = %row.id, exit.code = exit.code, "a container ended while nobody looked");
        self.update(&row.id, move |c| {
            transitions::stopped(c, exit, Timestamp::now());
            Ok(())
        })
        .await
    }

    async fn remove_orphans(&self) -> Result<(), ContainerError> {
        let snapshot = self.snapshot();
        let is_orphan = |id: &String| looks_like_id(id) && snapshot.containers().get(id).is_none();
        let (root, volatile) = (self.0.settings.root.clone(), self.0.settings.runtime_run_dir.clone());
        let mut orphans: BTreeSet<String> =
            super::blocking(move || Ok(names_in(&root)?.into_iter().chain(names_in(&volatile)?).collect())).await?;
        // A runtime that was killed may leave no more than its lock.
        let locks = orphans.iter().filter_map(|name| name.strip_suffix(".lock"));
        let locks: Vec<_> = locks.map(str::to_owned).collect();
        orphans.extend(locks);
        let links = self.0.services.networks.links().await?;
        orphans.extend(
            links
                .iter()
                .filter_map(|link| link.strip_prefix("rd_"))
                .map(str::to_owned),
        );
        for id in orphans.into_iter().filter(is_orphan) {
            tracing::warn!(container.id = %id, "removing what is left of a container without a record");
            if let Err(error) = self.remove_orphan(&id).await {
                tracing::error!(container.id = %id, %error, "leftovers of a container could not be removed");
            }
        }
        Ok(())
    }

    async fn remove_orphan(&self, id: &str) -> Result<(), ContainerError> {
        let runtime = &self.0.services.runtime;
        let failed = |source| ContainerError::Runtime {
            step: "delete container failed",
            source,
        };
        let state = self.runtime_state(id).await;
        if state.as_ref().is_some_and(|s| s.status == Status::Running) {
            runtime.stop(id, &StopRequest::default()).await.map_err(failed)?;
        }
        self.delete_in_runtime(id).await?;
        self.0.services.networks.remove_stray_link(&format!("rd_{id}")).await?;
        cgroup::remove(id).await?;
        let directory = self.dir(id).path().to_owned();
        super::blocking(move || match fs_err::remove_dir_all(directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        })
        .await
    }
}

/// Whether a name is one that only we give: a container id, with or without the mark of a build.
fn looks_like_id(name: &str) -> bool {
    let id = name.strip_prefix("build-").unwrap_or(name);
    id.len() == ID_LENGTH
        && id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b.is_ascii_lowercase() && !b"ilou".contains(&b)))
}

fn names_in(directory: &Path) -> std::io::Result<Vec<String>> {
    match fs_err::read_dir(directory) {
        Ok(entries) => entries
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::looks_like_id;

    #[test]
    fn only_our_ids_are_ours() {
        for ours in ["01kg2cnf0ytv", "build-01kg2cnf0ytv"] {
            assert!(looks_like_id(ours), "{ours}");
        }
        for other in [
            "",
            "lost+found",
            "01kg2cnf0yt",
            "01kg2cnf0yto",
            "01KG2CNF0YTV",
            "my-container",
        ] {
            assert!(!looks_like_id(other), "{other}");
        }
    }
}
