//! Rotates the logs of running containers to keep them within their limits.
//!
//! One task per container that has run, woken by writes. It then sleeps for the minimum time that a writer needs to
//! reach the limit, so that a container that writes constantly costs only a few checks per second.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ContainerService;
use crate::model::{Container, Kind, Object};
use crate::observe::logs::{LogLimits, Watcher, bound};

/// Assumed maximum rate of writes, in bytes per second.
const FASTEST: u64 = 1 << 30;
/// Bounds of the pause between two checks.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

impl ContainerService {
    /// Runs until `stop`. Logs that grew while this did not run are rotated at the next write.
    pub async fn bound_logs(self, stop: CancellationToken) {
        let mut commits = self.0.services.store.subscribe();
        let mut bounded = Bounded {
            watcher: self.0.services.watcher.clone(),
            limits: self.0.settings.log_limits,
            ids: HashSet::new(),
            tasks: JoinSet::new(),
        };
        let all = |bounded: &mut Bounded| {
            for container in self.snapshot().containers().iter() {
                bounded.add(container, || self.dir(&container.id).logs());
            }
        };
        all(&mut bounded);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(Ok(gone)) = bounded.tasks.join_next() => drop(bounded.ids.remove(&gone)),
                commit = commits.recv() => match commit {
                    Ok(commit) => for change in commit.changes.iter().filter(|change| change.kind == Kind::Container) {
                        if let Some(Object::Container(container)) = &change.new {
                            bounded.add(container, || self.dir(&container.id).logs());
                        }
                    },
                    Err(RecvError::Lagged(_)) => all(&mut bounded),
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }
}

/// The containers whose logs are rotated.
struct Bounded {
    watcher: Watcher,
    limits: LogLimits,
    ids: HashSet<String>,
    tasks: JoinSet<String>,
}

impl Bounded {
    /// Only running containers write.
    fn add(&mut self, container: &Container, logs: impl FnOnce() -> PathBuf) {
        if container.status.process.is_some() && self.ids.insert(container.id.clone()) {
            let (watcher, limits, id, logs) = (self.watcher.clone(), self.limits, container.id.clone(), logs());
            self.tasks.spawn(async move {
                keep_within(logs, watcher, limits).await;
                id
            });
        }
    }
}

/// Returns when the directory is gone.
async fn keep_within(logs: PathBuf, watcher: Watcher, limits: LogLimits) {
    loop {
        let (directory, watcher) = (logs.clone(), watcher.clone());
        let look = move || (watcher.arm(&directory), bound(&directory, &limits));
        let Ok((armed, room)) = tokio::task::spawn_blocking(look).await else {
            return;
        };
        let room = match room {
            Ok(room) => room,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(logs = %logs.display(), %error, "the size of logs cannot be bounded");
                limits.max_bytes
            }
        };
        armed.changed().await;
        tokio::time::sleep(pause(room)).await;
    }
}

fn pause(room: u64) -> Duration {
    Duration::from_nanos(room.saturating_mul(1_000_000_000) / FASTEST).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_the_limit_the_shorter_the_pause() {
        assert_eq!(pause(0), SHORTEST);
        assert_eq!(pause(64 << 20), Duration::from_micros(62_500));
        assert_eq!(pause(u64::MAX), LONGEST);
    }

    #[tokio::test]
    async fn a_log_is_put_aside_as_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Watcher::open();
        tokio::spawn(watcher.clone().run(CancellationToken::new()));
        let limits = LogLimits {
            max_bytes: 1000,
            max_files: 3,
        };
        let work = tokio::spawn(keep_within(dir.path().to_owned(), watcher, limits));
        let log = dir.path().join("init.log");
        for _ in 0..3 {
            for _ in 0..2 {
                use std::io::Write;
                let mut file = std::fs::File::options().append(true).create(true).open(&log).unwrap();
                file.write_all(&[b'x'; 500]).unwrap();
            }
            while log.exists() {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(std::fs::metadata(dir.path().join("init.log.3")).unwrap().len(), 1000);
        drop(dir);
        tokio::time::timeout(Duration::from_secs(10), work)
            .await
            .unwrap()
            .unwrap();
    }
}
