//! Operations that could not be finished are taken up again while the daemon runs, not only at its next start.
//!
//! A row says which operation is at work on it, and whoever is at work holds the container's lock. A row that says so
//! while nobody holds the lock was left: an undo or a removal failed in a part (a runtime that was killed, rules that
//! were refused, a full disk). Then the same is done as after a crash, later each time while it goes on failing.
//!
//! A start whose outcome could not be written leaves a row in `created` without an operation. So these are compared with
//! what the runtime says as long as they live; every end is watched anyway.

use std::time::Duration;

use crate::controller::{Backoff, Outcome, Reconcile};
use crate::store::{Change, ContainerState, ProcessId, Snapshot};

use super::{ContainerError, ContainerService};

/// How long what was left waits after it could not be finished once more.
pub const FINISH_DELAYS: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(8),
};

/// The controller of operations that were left.
pub struct Finisher(pub ContainerService);

impl Reconcile for Finisher {
    type Key = String;

    /// None: while the row still changes, somebody is at work.
    fn concerned(&self, _: &Change, _: &Snapshot) -> Vec<String> {
        Vec::new()
    }

    fn all(&self, now: &Snapshot) -> Vec<String> {
        let containers = now.containers().iter();
        let left = containers.filter(|c| c.operation.is_some() || c.state == ContainerState::Created);
        left.map(|c| c.id.clone()).collect()
    }

    async fn reconcile(&self, id: &String) -> Outcome {
        match self.0.take_up(id).await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                tracing::warn!(container.id = %id, %error, "an operation cannot be finished yet");
                Outcome::Failed
            }
        }
    }
}

impl ContainerService {
    async fn take_up(&self, id: &str) -> Result<(), ContainerError> {
        let Some(_lock) = self.0.locks.try_lock(id) else {
            return Ok(());
        };
        let Some(row) = self.snapshot().containers().get(id).cloned() else {
            return Ok(());
        };
        match (row.operation, row.state) {
            (Some(operation), _) => self.finish(&row, operation).await,
            (None, ContainerState::Created) if row.process.as_ref().is_some_and(ProcessId::is_alive) => {
                self.compare(&row).await
            }
            (None, _) => Ok(()),
        }
    }
}
