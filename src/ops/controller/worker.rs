//! The controller loop: store changes and a periodic resync add keys, workers reconcile them.

use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Outcome, Queue};
use crate::model::{Change, Kind, Snapshot};
use crate::ops::conditions::{ConditionType, Conditions};
use crate::store::Store;

/// Resync period, for changes without an event (`docs/spec/observability.md`: 5 s).
pub const RESYNC: Duration = Duration::from_secs(5);

/// A controller.
pub trait Reconcile: Send + Sync + 'static {
    /// Identifies one object to reconcile.
    type Key: Clone + Ord + Hash + Display + Send + 'static;

    /// The keys that a store change may affect.
    fn concerned(&self, change: &Change, now: &Snapshot) -> Vec<Self::Key>;

    /// All keys.
    fn all(&self, now: &Snapshot) -> Vec<Self::Key>;

    /// The object of a key, whose condition records the result of the last attempt; `None` for objects that clients do
    /// not see.
    fn subject(&self, key: &Self::Key) -> Option<(Kind, String)>;

    /// Compares actual and desired state, and acts. Errors are logged here and returned as [`Outcome::Failed`].
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Outcome> + Send;
}

/// Runs a controller until `stop`; finishes the reconciliation in progress.
pub async fn run<R: Reconcile>(
    controller: Arc<R>,
    queue: Arc<Queue<R::Key>>,
    workers: usize,
    store: Store,
    conditions: Conditions,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    for _ in 0..workers {
        let (controller, queue, stop) = (controller.clone(), queue.clone(), stop.clone());
        let conditions = conditions.clone();
        tasks.spawn(async move {
            while let Some(key) = stop.run_until_cancelled(queue.next()).await {
                let outcome = controller.reconcile(&key).await;
                let subject = controller.subject(&key);
                let wait = queue.finish(key, &outcome);
                if let Some((kind, id)) = subject {
                    note(&conditions, (kind, &id), outcome, wait);
                }
            }
        });
    }
    feed(&*controller, &queue, &store, &stop).await;
    tasks.close();
    tasks.wait().await;
}

/// Records the result of an attempt for clients. An attempt that was blocked by others, or that only waits, changes
/// nothing.
fn note(conditions: &Conditions, subject: (Kind, &str), outcome: Outcome, wait: Option<Duration>) {
    match outcome {
        Outcome::Done => conditions.succeed(subject, ConditionType::Reconciled),
        Outcome::Again(_) => {}
        Outcome::Failed(failure) => {
            let next = wait.and_then(|wait| Timestamp::now().checked_add(wait).ok());
            conditions.fail(subject, ConditionType::Reconciled, &failure, next);
        }
    }
}

async fn feed<R: Reconcile>(controller: &R, queue: &Queue<R::Key>, store: &Store, stop: &CancellationToken) {
    // Subscribe before the first resync, so that no change is missed.
    let mut commits = store.subscribe();
    let mut resync = tokio::time::interval(RESYNC);
    let everything = || {
        controller
            .all(&store.snapshot())
            .into_iter()
            .for_each(|key| queue.add(key))
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = resync.tick() => everything(),
            commit = commits.recv() => match commit {
                Ok(commit) => {
                    let now = store.snapshot();
                    for change in &commit.changes {
                        controller.concerned(change, &now).into_iter().for_each(|key| queue.add(key));
                    }
                }
                Err(RecvError::Lagged(_)) => everything(),
                Err(RecvError::Closed) => return,
            }
        }
    }
}
