//! The lock of one container (`docs/spec/runtime.md` 4.13).
//!
//! `create`, `start`, `delete` and the monitor at the end of a run take it exclusively. `exec` takes it shared while it
//! starts the process. `kill` takes it only to read the state and to send the signal. `state` and `list` never take it.
//! Nobody holds the lock while waiting for a process to end, except for a hook.
//!
//! The lock is an `flock(2)` and belongs to an open file description: a child that inherits the descriptor must close
//! it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{FlockOperation, flock};

/// A held lock. Dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the exclusive lock.
    pub fn exclusive(path: &Path) -> std::io::Result<Self> {
        Self::take(path, FlockOperation::LockExclusive, true)?.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Waits for the exclusive lock. Returns `None` if its file does not exist: the container was deleted.
    pub fn exclusive_if_exists(path: &Path) -> std::io::Result<Option<Self>> {
        Self::take(path, FlockOperation::LockExclusive, false)
    }

    /// Waits for the shared lock.
    pub fn shared(path: &Path) -> std::io::Result<Self> {
        Self::take(path, FlockOperation::LockShared, true)?.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn take(path: &Path, operation: FlockOperation, create: bool) -> std::io::Result<Option<Self>> {
        loop {
            let opened = fs_err::OpenOptions::new()
                .write(true)
                .create(create)
                .truncate(false)
                .mode(0o600)
                .open(path);
            let file: File = match opened {
                Err(e) if !create && e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                opened => opened?.into(),
            };
            rustix::io::retry_on_intr(|| flock(&file, operation))?;
            // `remove` unlinks the file while it holds the lock. A process that waited for that lock must start over.
            let held = file.metadata()?;
            let current = fs_err::metadata(path).is_ok_and(|now| now.ino() == held.ino() && now.dev() == held.dev());
            if current {
                let path = path.to_owned();
                return Ok(Some(Self { file, path }));
            }
        }
    }

    /// Closes the inherited descriptor in a forked child. Otherwise the child would hold the lock too.
    ///
    /// # Safety
    /// The child must never use or drop this value; it must end with `_exit`.
    pub unsafe fn close_in_child(&self) {
        // SAFETY: the caller promises that nobody uses the descriptor afterwards.
        unsafe { libc::close(self.file.as_raw_fd()) };
    }

    /// Releases the lock and removes its file.
    pub fn remove(self) -> std::io::Result<()> {
        let removed = fs_err::remove_file(&self.path);
        drop(self.file);
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_waits_for_a_removed_lock_gets_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let first = Lock::exclusive(&path).unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || Lock::exclusive(&path).unwrap()
        });
        first.remove().unwrap();
        let second = waiter.join().unwrap();
        assert!(path.exists());
        drop(second);
        let (a, b) = (Lock::shared(&path).unwrap(), Lock::shared(&path).unwrap());
        drop((a, b));
        Lock::exclusive_if_exists(&path).unwrap().unwrap().remove().unwrap();
        assert!(Lock::exclusive_if_exists(&path).unwrap().is_none() && !path.exists());
    }
}
