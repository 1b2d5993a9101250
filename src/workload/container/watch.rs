//! Unreported exits: watches a descriptor of every living process and handles its end.
//!
//! The runtime's monitor reports exits through the stopContainer hook. This is the fallback for lost reports (the
//! monitor was killed, the daemon was down). It reads the monitor's record in `state.json`, and records
//! [`unseen_exit`](super::transitions::unseen_exit) only if there is none.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::transitions::{stopped, unseen_exit};
use super::{ContainerError, ContainerService, transitions};
use crate::model::{ContainerState, Exit, ProcessId};
use crate::runtime::state::Status;

/// How long to wait for an exit report whose monitor is gone or unknown: it may be under way.
const REPORT_GRACE: Duration = Duration::from_secs(3);
/// How long to wait for a living monitor. It writes the exit within milliseconds, but a machine may be busy.
const MONITOR_LIMIT: Duration = Duration::from_secs(60);
/// Longest pause between checks for the report.
const REPORT_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between tries to record an exit.
const RECORD_PAUSE: Duration = Duration::from_secs(2);

/// The watched process of each container.
#[derive(Default)]
pub(super) struct Watched(Mutex<HashMap<String, (ProcessId, AbortHandle)>>);

impl Drop for Watched {
    fn drop(&mut self) {
        for (_, (_, task)) in self.0.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            task.abort();
        }
    }
}

impl ContainerService {
    /// Watches the process of the row, if it has one. Repeated calls are harmless.
    pub(super) fn watch(&self, id: &str) {
        let Some(process) = self
            .snapshot()
            .containers()
            .get(id)
            .and_then(|c| c.status.process.clone())
        else {
            return;
        };
        let mut watched = self.0.watched.0.lock().unwrap_or_else(PoisonError::into_inner);
        if watched
            .get(id)
            .is_some_and(|(known, task)| *known == process && !task.is_finished())
        {
            return;
        }
        // A weak handle, so that a watch does not keep the service alive.
        let (service, name, identity) = (std::sync::Arc::downgrade(&self.0), id.to_owned(), process.clone());
        let task = tokio::spawn(async move {
            let monitor = identity.parent();
            wait_for_end(&identity).await;
            if let Some(inner) = service.upgrade() {
                ContainerService(inner).ended(&name, &identity, monitor).await;
            }
        });
        if let Some((_, old)) = watched.insert(id.to_owned(), (process, task.abort_handle())) {
            old.abort();
        }
    }

    pub(super) fn unwatch(&self, id: &str) {
        let entry = self
            .0
            .watched
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        if let Some((_, task)) = entry {
            task.abort();
        }
    }

    /// The process is gone: waits for its monitor's report, then records the exit in `state.json`. If no report can
    /// come any more, or none comes in time, the exit status is unknown.
    pub(super) async fn ended(&self, id: &str, process: &ProcessId, monitor: Option<ProcessId>) {
        let since = tokio::time::Instant::now();
        let mut pause = Duration::from_millis(5);
        let mut is_slow = false;
        loop {
            let snapshot = self.snapshot();
            let Some(row) = snapshot.containers().get(id) else {
                return;
            };
            if row.status.process.as_ref() != Some(process) {
                return;
            }
            let known = self.exit_on_file(id).await;
            let waited = since.elapsed();
            let may_report = monitor.as_ref().is_some_and(ProcessId::is_alive) && waited < MONITOR_LIMIT;
            if waited > REPORT_GRACE && may_report && known.is_none() && !std::mem::replace(&mut is_slow, true) {
                tracing::warn!(container.id = %id, "a container ended and its monitor has not recorded the exit yet; waiting");
            }
            let is_late = waited > REPORT_GRACE && !may_report;
            if known.is_none() && is_late {
                tracing::warn!(container.id = %id, "a container ended and its exit status is not known");
            }
            if let Some(exit) = known.or_else(|| is_late.then(unseen_exit))
                && self.record_end(id, process.clone(), exit).await
            {
                return;
            }
            tokio::time::sleep(pause).await;
            // Continues until the row is updated, even if the row cannot be written for a long time.
            pause = (pause * 2).min(if is_late { RECORD_PAUSE } else { REPORT_PAUSE });
        }
    }

    async fn exit_on_file(&self, id: &str) -> Option<Exit> {
        let state = self.runtime_state(id).await;
        state.filter(|s| s.status == Status::Stopped).and_then(|s| s.exit())
    }

    /// Records the exit that the runtime has written. Returns whether there was one.
    pub(super) async fn settle_exit(&self, id: &str) -> bool {
        let Some(exit) = self.exit_on_file(id).await else {
            return false;
        };
        self.record_exit(id, exit).await;
        true
    }

    /// Records the end of a process without a monitor of ours: the original's runtime started it, and its exit status
    /// is unknown.
    pub(super) async fn settle_unseen(&self, id: &str) {
        let row = self.snapshot().containers().get(id).cloned();
        if row
            .and_then(|row| row.status.process.clone())
            .is_some_and(|process| !process.is_alive())
        {
            self.record_exit(id, unseen_exit()).await;
        }
    }

    /// Records the exit of the row's current run. The caller holds the lock of the container.
    async fn record_exit(&self, id: &str, exit: Exit) {
        let recorded = self.update(id, move |c| {
            if c.status.state != ContainerState::Creating {
                stopped(c, exit, Timestamp::now());
            }
            Ok(())
        });
        is_recorded(id, recorded.await);
    }

    /// Records the end of that process without the lock: the container may run anew by now. Returns whether nothing is
    /// left to do.
    async fn record_end(&self, id: &str, process: ProcessId, exit: Exit) -> bool {
        let recorded = self.update(id, move |c| {
            transitions::ended(c, &process, exit, Timestamp::now());
            Ok(())
        });
        is_recorded(id, recorded.await)
    }
}

/// Whether the exit is recorded, or its container is gone.
fn is_recorded(id: &str, recorded: Result<(), ContainerError>) -> bool {
    match recorded {
        Ok(()) | Err(ContainerError::NotFound(_)) => true,
        Err(error) => {
            tracing::error!(container.id = %id, %error, "an exit could not be recorded");
            false
        }
    }
}

/// Returns when the process is gone, at once if it already is.
pub(super) async fn wait_for_end(process: &ProcessId) {
    if let Some(fd) = process.pidfd() {
        // SAFETY: an `OwnedFd` names one open file description for as long as it lives, and the `AsyncFd` owns it.
        match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
            Ok(fd) => return drop(fd.readable().await),
            Err(failed) => {
                let (_, error) = failed.into_parts();
                tracing::warn!(pid = process.pid, %error, "cannot watch a process by descriptor, polling it");
            }
        }
    }
    // The process is gone, or has no descriptor.
    while process.is_alive() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
