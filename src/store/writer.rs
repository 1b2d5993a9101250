//! The store's handle and its single writer thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, RwLock, mpsc};

use jiff::Timestamp;
use tokio::sync::{broadcast, oneshot};

use super::database::Database;
use super::error::StoreError;
use crate::model::{Change, Commit, Snapshot, Txn};

/// How many commits a subscriber may lag behind before it must read the snapshot again.
const EVENT_BACKLOG: usize = 4096;
/// How many queued transactions share one commit.
const MAX_BATCH: usize = 256;

/// Handle to the state. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    current: RwLock<Arc<Snapshot>>,
    events: broadcast::Sender<Arc<Commit>>,
    jobs: mpsc::Sender<Job>,
}

/// Runs one transaction on the latest state. Returns what to commit, if anything, and how to reply.
type Job = Box<dyn FnOnce(&Snapshot) -> Done + Send>;

struct Done {
    txn: Option<Txn>,
    answer: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

impl Store {
    /// Opens or creates the database at `path` and starts the writer.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (database, snapshot) = Database::open(path)?;
        let initial = snapshot.clone();
        let (jobs, queue) = mpsc::channel();
        let shared = Arc::new(Shared {
            current: RwLock::new(Arc::new(snapshot)),
            events: broadcast::channel(EVENT_BACKLOG).0,
            jobs,
        });
        // A weak handle: when the last `Store` is dropped, the queue closes and the thread ends.
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                Writer {
                    database,
                    publish: Box::new(move |next, commits| publish(&weak, next, commits)),
                }
                .run(initial, queue)
            })
            .map_err(|e| StoreError::Open {
                path: path.to_owned(),
                source: e.into(),
            })?;
        Ok(Self(shared))
    }

    /// The current state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        // The lock is held only to copy a pointer; nothing under it can panic.
        self.0
            .current
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Whether the writer responds and the database accepts a transaction that changes nothing.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.transact(|_| Ok(())).await
    }

    /// Subscribes to all commits from now on. A receiver that lags must compare with [`Store::snapshot`].
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.0.events.subscribe()
    }

    /// Runs `change` on the latest state, exclusively. When it returns `Ok`, all of it is committed to disk before this
    /// returns; when it returns `Err`, none of it takes effect. Dropping the future does not stop the transaction.
    pub async fn transact<T, E>(&self, change: impl FnOnce(&mut Txn) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |state| {
            let mut txn = Txn::new(state.clone());
            match catch_unwind(AssertUnwindSafe(|| change(&mut txn))) {
                Ok(Ok(value)) => Done {
                    txn: (!txn.writes.is_empty()).then_some(txn),
                    answer: Box::new(|committed| drop(sender.send(committed.map(|()| value).map_err(E::from)))),
                },
                Ok(Err(error)) => Done {
                    txn: None,
                    answer: Box::new(|_| drop(sender.send(Err(error)))),
                },
                Err(_) => Done {
                    txn: None,
                    answer: Box::new(|_| drop(sender.send(Err(StoreError::Panicked.into())))),
                },
            }
        });
        self.0.jobs.send(job).map_err(|_| StoreError::Closed)?;
        receiver.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }
}

fn publish(shared: &std::sync::Weak<Shared>, next: Snapshot, commits: Vec<Commit>) {
    let Some(shared) = shared.upgrade() else { return };
    *shared.current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(next);
    for commit in commits {
        let _ = shared.events.send(Arc::new(commit));
    }
}

struct Writer {
    database: Database,
    publish: Box<dyn Fn(Snapshot, Vec<Commit>) + Send>,
}

impl Writer {
    fn run(mut self, mut state: Snapshot, queue: mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut done = Vec::new();
            let mut next = state.clone();
            for job in std::iter::once(first).chain(queue.try_iter()).take(MAX_BATCH) {
                let result = job(&next);
                if let Some(txn) = &result.txn {
                    next = txn.next.clone();
                }
                done.push(result);
            }
            let outcome = self
                .database
                .commit(done.iter().filter_map(|d| d.txn.as_ref()).flat_map(|t| &t.writes));
            if let Err(error) = &outcome {
                tracing::error!(%error, "state change lost");
            } else {
                state = next;
                let commits = done
                    .iter_mut()
                    .filter_map(|d| d.txn.take())
                    .map(commit_of)
                    .collect::<Vec<_>>();
                if !commits.is_empty() {
                    (self.publish)(state.clone(), commits);
                }
            }
            for result in done {
                (result.answer)(outcome.clone());
            }
        }
    }
}

fn commit_of(txn: Txn) -> Commit {
    let changes = txn
        .writes
        .into_iter()
        .filter(|(_, write)| write.old.is_some() || write.new.is_some())
        .map(|((kind, id), write)| Change {
            kind,
            id,
            old: write.old,
            new: write.new,
        })
        .collect();
    Commit {
        revision: txn.next.revision(),
        at: Timestamp::now(),
        changes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;
    use crate::model::{Container, ContainerState, Taken};

    #[derive(Debug, thiserror::Error)]
    enum TestError {
        #[error(transparent)]
        Store(#[from] StoreError),
        #[error(transparent)]
        Taken(#[from] Taken),
        #[error("given up")]
        GivenUp,
    }

    async fn put(store: &Store, c: Container) -> Result<(), TestError> {
        store.transact(move |t| Ok(t.put(c).map(drop)?)).await
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store/condenser.db");
        let store = Store::open(&path).unwrap();
        put(&store, container("a", "web").forward(80)).await.unwrap();
        put(&store, container("b", "db")).await.unwrap();
        store
            .transact(|t| Ok::<_, TestError>(t.remove::<Container>("b").map(drop)))
            .await
            .unwrap();
        drop(store);
        let store = reopen(&path);
        let snapshot = store.snapshot();
        assert_eq!(
            snapshot.containers().iter().map(|c| &c.id[..]).collect::<Vec<_>>(),
            ["a"]
        );
        put(&store, container("c", "web")).await.unwrap_err();
    }

    /// The writer thread ends shortly after the last handle is dropped; until then it holds the exclusive lock.
    fn reopen(path: &Path) -> Store {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            match Store::open(path) {
                Ok(store) => return store,
                Err(e) if std::time::Instant::now() > deadline => panic!("{e}"),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
    }

    #[tokio::test]
    async fn an_error_undoes_the_whole_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let result: Result<(), TestError> = store
            .transact(|t| {
                t.put(container("a", "web"))?;
                Err(TestError::GivenUp)
            })
            .await;
        assert!(matches!(result, Err(TestError::GivenUp)));
        assert!(store.snapshot().containers().is_empty());
        let panicked: Result<(), TestError> = store.transact(|_| panic!("in a closure")).await;
        assert!(matches!(panicked, Err(TestError::Store(StoreError::Panicked))));
        put(&store, container("a", "web")).await.unwrap();
    }

    #[tokio::test]
    async fn racing_claims_have_one_winner() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let tasks = (0..50).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, container(&format!("id{n}"), "web")).await.is_ok() })
        });
        let won = futures_util::future::join_all(tasks)
            .await
            .into_iter()
            .filter(|r| *r.as_ref().unwrap())
            .count();
        assert_eq!(won, 1);
        assert_eq!(store.snapshot().containers().len(), 1);
    }

    #[tokio::test]
    async fn events_tell_old_and_new() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let mut events = store.subscribe();
        put(&store, container("a", "web")).await.unwrap();
        put(&store, container("a", "web").in_state(ContainerState::Running))
            .await
            .unwrap();
        let first = events.recv().await.unwrap();
        assert!(first.changes[0].old.is_none() && first.changes[0].new.is_some());
        let second = events.recv().await.unwrap();
        assert!(second.revision > first.revision);
        assert!(second.changes[0].old.is_some());
    }

    #[tokio::test]
    async fn a_damaged_database_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        std::fs::write(&path, "this is not a database, whatever its name says").unwrap();
        let error = Store::open(&path).err().unwrap().to_string();
        assert!(error.contains("s.db"), "{error}");
    }

    #[tokio::test]
    async fn a_database_of_a_newer_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        rusqlite::Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        let error = Store::open(&path).err().unwrap().to_string();
        assert!(error.contains("schema version 99"), "{error}");
    }
}
