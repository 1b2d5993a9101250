//! One lock per object: operations on one container are serialised, those on different containers run in parallel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Locks by key. A key that nobody holds or waits for uses no memory.
#[derive(Default)]
pub struct KeyedLocks(Arc<Mutex<HashMap<String, Arc<AsyncMutex<()>>>>>);

/// The lock of one key, held until this is dropped.
pub struct KeyGuard {
    locks: Arc<Mutex<HashMap<String, Arc<AsyncMutex<()>>>>>,
    key: String,
    held: Option<OwnedMutexGuard<()>>,
}

impl KeyedLocks {
    /// Waits until `key` is free and locks it.
    pub async fn lock(&self, key: &str) -> KeyGuard {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.entry(key.to_owned()).or_default().clone()
        };
        let mut guard = KeyGuard {
            locks: self.0.clone(),
            key: key.to_owned(),
            held: None,
        };
        guard.held = Some(lock.lock_owned().await);
        guard
    }

    /// Locks `key` unless it is held.
    pub fn try_lock(&self, key: &str) -> Option<KeyGuard> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.entry(key.to_owned()).or_default().clone()
        };
        let mut guard = KeyGuard {
            locks: self.0.clone(),
            key: key.to_owned(),
            held: None,
        };
        guard.held = Some(lock.try_lock_owned().ok()?);
        Some(guard)
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.held.take());
        // The map holds one reference; any other belongs to a waiter.
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_key_one_holder_and_nothing_left() {
        let locks = KeyedLocks::default();
        let held = locks.lock("a").await;
        let other = locks.lock("b").await;
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(10), locks.lock("a")).await;
        assert!(waiting.is_err(), "the second holder of a key has to wait");
        drop(held);
        drop(locks.lock("a").await);
        drop(other);
        assert!(locks.0.lock().unwrap().is_empty());
    }
}
