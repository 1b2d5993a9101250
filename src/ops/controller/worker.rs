//! The loop of a controller: what changes in the store and a slow resync give keys, workers make each key true.

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

/// How often everything is looked at, for what no event told of (`docs/spec/observability.md`: 5 s).
pub const RESYNC: Duration = Duration::from_secs(5);

/// What a controller does.
pub trait Reconcile: Send + Sync + 'static {
    /// What it keeps true, one by one.
    type Key: Clone + Ord + Hash + Display + Send + 'static;

    /// Keys that a change in the store may concern.
    fn concerned(&self, change: &Change, now: &Snapshot) -> Vec<Self::Key>;

    /// All keys.
    fn all(&self, now: &Snapshot) -> Vec<Self::Key>;

    /// The object that a key stands for, whose condition says what came of the last try; `None` for what clients do not
    /// see.
    fn subject(&self, key: &Self::Key) -> Option<(Kind, String)>;

    /// Compares what is with what should be, and acts. Errors are logged here, and are an [`Outcome::Failed`].
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Outcome> + Send;
}

/// Runs a controller until `stop`; a reconciliation in progress is finished.
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

/// What clients are told of a try. One that others were in the way of, or that only waits, says nothing new.
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
    // Subscribed before the first look at everything, so that nothing falls in between.
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
