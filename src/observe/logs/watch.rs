//! Notifies when files in a directory are written to, without polling.
//!
//! One inotify instance serves all watches, because a host has few of them. A watch fires once: the woken reader arms
//! it again before it reads. So a busy log costs only as much as it is read.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How long a change may go unnoticed if the kernel accepts no more watches.
const WITHOUT_WATCH: Duration = Duration::from_millis(250);
/// Buffer for the events of one read.
const BUFFER: usize = 16 << 10;

/// Watches directories while [`Watcher::run`] runs. Clones share everything.
#[derive(Debug, Clone)]
pub struct Watcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` if the host has no inotify instance left.
    inotify: Option<AsyncFd<OwnedFd>>,
    /// The tasks that wait for each watch.
    waiting: Mutex<HashMap<i32, Vec<oneshot::Sender<()>>>>,
}

/// An armed watch, which fires once.
#[derive(Debug)]
pub struct Armed(Option<oneshot::Receiver<()>>);

impl Armed {
    /// Returns when a file was written to, or the directory was removed, since the watch was armed.
    pub async fn changed(self) {
        match self.0 {
            // The sender is never used, only dropped.
            Some(fired) => drop(fired.await),
            None => tokio::time::sleep(WITHOUT_WATCH).await,
        }
    }
}

impl Watcher {
    /// Must be called within an async runtime.
    pub fn open() -> Self {
        let inotify = new_inotify().inspect_err(|error| {
            tracing::warn!(%error, "no inotify instance (fs.inotify.max_user_instances): logs are polled instead");
        });
        Self(Arc::new(Shared {
            inotify: inotify.ok(),
            waiting: Mutex::default(),
        }))
    }

    /// Starts watching the directory. Call this before reading, so that no change in between is missed.
    pub fn arm(&self, directory: &Path) -> Armed {
        let Some(inotify) = &self.0.inotify else {
            return Armed(None);
        };
        let flags = WatchFlags::MODIFY | WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR | WatchFlags::ONESHOT;
        // Under the lock: a watch that fires at once must find its waiter.
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match inotify::add_watch(inotify, directory, flags) {
            Ok(watch) => {
                let (sender, receiver) = oneshot::channel();
                let all = waiting.entry(watch).or_default();
                all.retain(|other| !other.is_closed());
                all.push(sender);
                Armed(Some(receiver))
            }
            Err(error) => {
                tracing::debug!(directory = %directory.display(), %error, "cannot watch a directory; polling it");
                Armed(None)
            }
        }
    }

    /// Wakes the waiters of watches that fire, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Some(inotify) = &self.0.inotify else { return };
        tokio::select! {
            () = stop.cancelled() => {}
            error = self.dispatch(inotify) => tracing::error!(%error, "cannot watch logs any more"),
        }
    }

    async fn dispatch(&self, inotify: &AsyncFd<OwnedFd>) -> io::Error {
        loop {
            let mut guard = match inotify.readable().await {
                Ok(guard) => guard,
                Err(error) => return error,
            };
            match self.wake(inotify) {
                Ok(()) => guard.clear_ready(),
                Err(error) => return error,
            }
        }
    }

    /// Handles all pending events.
    fn wake(&self, inotify: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                waiting.clear();
            } else {
                waiting.remove(&event.wd());
            }
        }
    }
}

fn new_inotify() -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // SAFETY: an `OwnedFd` names one open file description for as long as it lives, and the `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
    registered.map_err(|failed| failed.into_parts().1)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), future).await.unwrap()
    }

    fn running() -> Watcher {
        let watcher = Watcher::open();
        tokio::spawn(watcher.clone().run(CancellationToken::new()));
        watcher
    }

    #[tokio::test]
    async fn all_who_wait_are_woken() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = running();
        for n in 0..3 {
            let armed: Vec<_> = (0..3).map(|_| watcher.arm(dir.path())).collect();
            std::fs::write(dir.path().join("log"), n.to_string()).unwrap();
            for armed in armed {
                in_time(armed.changed()).await;
            }
        }
        assert!(watcher.0.waiting.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_change_before_the_wait_counts_and_one_elsewhere_does_not() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let watcher = running();
        let (here, there) = (watcher.arm(dir.path()), watcher.arm(other.path()));
        std::fs::write(dir.path().join("log"), "text").unwrap();
        in_time(async {
            while watcher.0.waiting.lock().unwrap().len() == 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        in_time(here.changed()).await;
        let mut there = there.0.unwrap();
        assert!(
            there
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
        );
    }

    #[tokio::test]
    async fn the_end_of_the_directory_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = running();
        let armed = watcher.arm(dir.path());
        drop(dir);
        in_time(armed.changed()).await;
    }

    #[tokio::test]
    async fn those_who_gave_up_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = running();
        for _ in 0..100 {
            drop(watcher.arm(dir.path()));
        }
        let _last = watcher.arm(dir.path());
        assert_eq!(
            watcher.0.waiting.lock().unwrap().values().map(Vec::len).sum::<usize>(),
            1
        );
    }

    #[tokio::test]
    async fn what_cannot_be_watched_is_looked_at_again() {
        let armed = running().arm(Path::new("/nonexistent"));
        in_time(armed.changed()).await;
    }
}
