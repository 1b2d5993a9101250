//! Recovery: makes rows and machine consistent after any end of the daemon, and keeps them so.
//!
//! ```text
//! start ─> compare every row without an operation with its process            (all together, before serving)
//!       ─> undo or finish interrupted operations, remove leftovers            (serving meanwhile if it takes long)
//! later ─> both again for everything that failed or was left over since       ([`Sweeper`])
//! ```
//!
//! 1. [`finding`]: a living container is adopted and watched; the exit of a dead one is recorded.
//! 2. An interrupted operation is undone (create), rolled back (restart) or finished (delete).
//! 3. [`leftovers`]: everything without a row is removed. Only things that carry a container id are touched.
//!
//! The hook listener must already serve: the runtime reports during the cleanup.

mod finding;
mod leftovers;
mod sweeper;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;

use crate::model::{Container, ContainerState, Operation, ProcessId};
use crate::runtime::process::boot_id;
use crate::runtime::state::RuntimeState;

use self::finding::Finding;
use super::{ContainerError, ContainerService, blocking, cgroup, freeze, transitions};

pub(super) use self::leftovers::remove_directory;
pub use self::sweeper::{SWEEPS, Sweeper};

/// How many containers are dismantled in parallel.
const PARALLEL: usize = 16;
/// How long interrupted operations may delay the start. Recovery then continues under the locks of their containers.
const PATIENCE: Duration = Duration::from_secs(2);

impl ContainerService {
    /// Reconciles rows and machine. On return every row is correct, except those with an interrupted operation that
    /// takes longer than two seconds to undo or finish. Failures of single containers are logged and do not stop the
    /// others.
    pub async fn recover(&self) -> Result<(), ContainerError> {
        let begun = Instant::now();
        let cgroups = blocking(|| Ok(cgroup::prepare()?)).await?;
        tracing::info!("{cgroups}");
        blocking(|| {
            freeze::thaw_all();
            Ok(())
        })
        .await?;
        let rows = self.list();
        let (idle, interrupted): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| is_idle(row));
        let (adopted, ended) = self.compare(idle).await?;
        tracing::info!(
            adopted,
            ended,
            interrupted = interrupted.len(),
            elapsed_ms = begun.elapsed().as_millis() as u64,
            "containers are recovered"
        );
        let service = self.clone();
        let rest = self.0.operations.run(async move {
            futures_util::stream::iter(interrupted)
                .for_each_concurrent(PARALLEL, |row| {
                    let service = &service;
                    async move { drop(service.unwind(&row.id).await) }
                })
                .await;
            service.remove_leftovers().await;
            Ok::<_, ContainerError>(())
        });
        if tokio::time::timeout(PATIENCE, rest).await.is_err() {
            tracing::info!("clients are served while what was interrupted is taken apart");
        }
        Ok(())
    }

    /// Compares all rows without an operation with the machine: one scan, one transaction. Returns how many run and how
    /// many have ended.
    async fn compare(&self, rows: Vec<Arc<Container>>) -> Result<(usize, usize), ContainerError> {
        let states = self.runtime_states(&rows).await?;
        let boot = boot_id();
        let mut adopted = Vec::new();
        let mut ended = 0;
        let mut findings = Vec::new();
        for (row, state) in rows.into_iter().zip(states) {
            match finding::of(&row, state.as_ref(), &boot) {
                Finding::Stopped => continue,
                finding @ Finding::Lives { .. } => {
                    adopted.push(row.id.clone());
                    findings.push((row, finding));
                }
                Finding::Ended(exit) => {
                    ended += 1;
                    tracing::info!(
                        container.id = %row.id, exit.code = exit.code, reason = exit.reason, message = exit.message,
                        "a container ended while nobody looked"
                    );
                    findings.push((row, Finding::Ended(exit)));
                }
            }
        }
        self.record(findings).await?;
        adopted.iter().for_each(|id| self.watch(id));
        Ok((adopted.len(), ended))
    }

    /// Skips rows that have changed since the scan: a report of the runtime is more recent.
    async fn record(&self, findings: Vec<(Arc<Container>, Finding)>) -> Result<(), ContainerError> {
        let record = self.0.services.store.transact(move |t| {
            for (seen, finding) in findings {
                let mut row = Container::clone(&seen);
                finding.apply(&mut row, Timestamp::now());
                let is_as_seen = t.get::<Container>(&row.id).is_some_and(|now| now == seen);
                if is_as_seen && row != *seen {
                    t.put(row).map_err(|taken| ContainerError::taken(taken, t.snapshot()))?;
                }
            }
            Ok(())
        });
        record.await
    }

    /// The runtime's record of each row; `None` if there is none or it cannot be read.
    async fn runtime_states(&self, rows: &[Arc<Container>]) -> Result<Vec<Option<RuntimeState>>, ContainerError> {
        let files: Vec<_> = rows.iter().map(|row| self.dir(&row.id).state()).collect();
        let read = blocking(move || Ok(files.iter().map(|file| RuntimeState::read(file)).collect::<Vec<_>>()));
        let mut states = Vec::with_capacity(rows.len());
        for (row, state) in rows.iter().zip(read.await?) {
            states.push(match state {
                Ok(state) => state,
                // A runtime may be replacing the file, and not atomically.
                Err(_) => self.runtime_state(&row.id).await,
            });
        }
        Ok(states)
    }

    /// Undoes or finishes an interrupted operation unless another one is in progress; checks again rows that wait for a
    /// start. Rows that are gone or idle by now need nothing. Errors are logged.
    async fn unwind(&self, id: &str) -> Result<(), ContainerError> {
        let Some(_lock) = self.0.locks.try_lock(id) else {
            return Ok(());
        };
        let Some(row) = self.snapshot().containers().get(id).cloned() else {
            return Ok(());
        };
        let done = match row.journal.operation {
            _ if row.is_build() => {
                tracing::warn!(container.id = %id, "removing what is left of the container of a build");
                self.remove_build(id).await
            }
            Some(Operation::Create) => {
                tracing::warn!(container.id = %id, "undoing a create that was interrupted");
                self.dismantle(&row).await
            }
            Some(Operation::Delete) => {
                tracing::warn!(container.id = %id, "finishing a removal that was interrupted");
                self.dismantle(&row).await
            }
            Some(Operation::Restart) => {
                tracing::warn!(container.id = %id, "undoing a restart that was interrupted");
                self.undo_restart(id).await
            }
            None if may_run(&row) => self.compare(vec![row]).await.map(drop),
            None => Ok(()),
        };
        if let Err(error) = &done {
            tracing::error!(container.id = %id, %error, "recovery of a container is not complete; it is tried again");
        }
        done
    }

    /// Stops a container that was being created again, as it was stopped before.
    async fn undo_restart(&self, id: &str) -> Result<(), ContainerError> {
        self.forget_in_runtime(id, "undo of a restart failed").await?;
        self.update(id, |c| {
            c.status.state = ContainerState::Stopped;
            c.journal.starting = false;
            c.journal.operation = None;
            c.status.process = None;
            c.journal.certificate_due = false;
            c.status.exit.get_or_insert_with(transitions::unseen_exit);
            Ok(())
        })
        .await
    }
}

/// Whether no operation was in progress. The container of a build is always part of one.
fn is_idle(row: &Container) -> bool {
    row.journal.operation.is_none() && !row.is_build()
}

/// Whether its process is alive but not recorded as started.
fn may_run(row: &Container) -> bool {
    row.status.state == ContainerState::Created && row.status.process.as_ref().is_some_and(ProcessId::is_alive)
}
