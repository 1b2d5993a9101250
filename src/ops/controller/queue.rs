//! The work queue of the controllers: keys, not events.
//!
//! A key is in the queue once, however often it is added, and is handed to one worker at a time. A key that is added
//! while a worker has it is queued again afterwards. A failed key is retried with back-off: the delay doubles from
//! [`Backoff::first`] to [`Backoff::most`] and is reset by a success.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ops::conditions::Failure;

/// How the delay after failures grows.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// The maximum.
    pub most: Duration,
}

impl Backoff {
    /// The delay after that many consecutive failures, at least one.
    pub fn delay(&self, failures: u32) -> Duration {
        let factor = 2u32.saturating_pow(failures.saturating_sub(1));
        self.first.saturating_mul(factor).min(self.most)
    }
}

/// A queue of keys.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    backoff: Backoff,
}

struct State<K> {
    /// When each key is due. Both views always hold the same keys.
    due: BTreeMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
    working: BTreeSet<K>,
    failures: HashMap<K, u32>,
}

/// The result of working on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done until it is added again.
    Done,
    /// Look again after that time; not a failure.
    Again(Duration),
    /// Failed, for this reason; retry with back-off.
    Failed(Failure),
}

impl<K: Clone + Ord + Hash> Queue<K> {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        let state = State {
            due: BTreeMap::new(),
            order: BTreeSet::new(),
            working: BTreeSet::new(),
            failures: HashMap::new(),
        };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            backoff,
        }
    }

    /// Adds a key that is due now. A key in back-off stays there.
    pub fn add(&self, key: K) {
        self.locked(|state| {
            if state.failures.contains_key(&key) && state.due.contains_key(&key) {
                return;
            }
            state.schedule(key, Instant::now());
        });
        self.changed.notify_waiters();
    }

    /// Waits for a key that is due and that no worker has. The worker must call [`Queue::finish`].
    pub async fn next(&self) -> K {
        loop {
            // Created before reading the state, so that a key added in between wakes it.
            let changed = self.changed.notified();
            let now = Instant::now();
            let wait = match self.locked(|state| state.take(now)) {
                Next::Key(key) => return key,
                Next::At(time) => Some(time),
                Next::Nothing => None,
            };
            match wait {
                Some(time) => tokio::select! {
                    () = tokio::time::sleep_until(time) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// Returns a key. If it failed, returns the delay before the retry.
    pub fn finish(&self, key: K, outcome: &Outcome) -> Option<Duration> {
        let backoff = self.backoff;
        let wait = self.locked(|state| {
            state.working.remove(&key);
            match outcome {
                Outcome::Done => {
                    state.failures.remove(&key);
                    None
                }
                Outcome::Again(delay) => {
                    state.failures.remove(&key);
                    state.schedule(key, Instant::now() + *delay);
                    None
                }
                Outcome::Failed(_) => {
                    let failures = state.failures.entry(key.clone()).or_default();
                    *failures += 1;
                    let delay = backoff.delay(*failures);
                    // A key that was added meanwhile must not shorten the delay.
                    state.unschedule(&key);
                    state.schedule(key, Instant::now() + delay);
                    Some(delay)
                }
            }
        });
        self.changed.notify_waiters();
        wait
    }

    fn locked<T>(&self, change: impl FnOnce(&mut State<K>) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

enum Next<K> {
    Key(K),
    At(Instant),
    Nothing,
}

impl<K: Clone + Ord + Hash> State<K> {
    /// The earlier time wins.
    fn schedule(&mut self, key: K, time: Instant) {
        if self.due.get(&key).is_some_and(|known| *known <= time) {
            return;
        }
        self.unschedule(&key);
        self.due.insert(key.clone(), time);
        self.order.insert((time, key));
    }

    fn unschedule(&mut self, key: &K) {
        if let Some(time) = self.due.remove(key) {
            self.order.remove(&(time, key.clone()));
        }
    }

    fn take(&mut self, now: Instant) -> Next<K> {
        let free = self.order.iter().find(|(_, key)| !self.working.contains(key)).cloned();
        match free {
            Some((time, key)) if time <= now => {
                self.unschedule(&key);
                self.working.insert(key.clone());
                Next::Key(key)
            }
            Some((time, _)) => Next::At(time),
            None => Next::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        most: Duration::from_secs(5),
    };

    fn nothing_is_due<K: Clone + Ord + Hash>(queue: &Queue<K>) -> bool {
        !matches!(queue.locked(|state| state.take(Instant::now())), Next::Key(_))
    }

    #[test]
    fn delays_double_up_to_a_limit() {
        let delays: Vec<u64> = (1..6).map(|n| BACKOFF.delay(n).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5]);
        assert_eq!(BACKOFF.delay(u32::MAX), BACKOFF.most);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_there_once_and_with_one_worker() {
        let queue = Queue::new(BACKOFF);
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        assert!(nothing_is_due(&queue));
        queue.add("a");
        assert!(nothing_is_due(&queue), "its worker has not finished");
        queue.finish("a", &Outcome::Done);
        assert_eq!(queue.next().await, "a", "what was added meanwhile comes again");
        queue.finish("a", &Outcome::Done);
        assert!(nothing_is_due(&queue));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time() {
        let queue = Queue::new(BACKOFF);
        queue.add("a");
        let failed = Outcome::Failed(Failure::new("Failed", &"it did not work"));
        let (mut waited, mut told) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let begun = Instant::now();
            assert_eq!(queue.next().await, "a");
            waited.push(begun.elapsed().as_secs());
            queue.add("a");
            told.push(queue.finish("a", &failed).map(|wait| wait.as_secs()));
            queue.add("a");
        }
        assert_eq!(waited, [0, 1, 2, 4], "adding it again does not shorten the wait");
        assert_eq!(told, [1, 2, 4, 5].map(Some));
        assert_eq!(queue.next().await, "a");
        queue.finish("a", &Outcome::Done);
        queue.add("a");
        let begun = Instant::now();
        queue.next().await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "a success forgets the failures");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_worker_hears_of_new_keys() {
        let queue = Arc::new(Queue::new(BACKOFF));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add("a");
        assert_eq!(waiting.await.unwrap(), "a");
        queue.finish("a", &Outcome::Again(Duration::from_secs(3)));
        let begun = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(begun.elapsed().as_secs(), 3);
    }
}
