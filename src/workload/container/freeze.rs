//! Stops the processes of a container for a moment with the freezer of its cgroup (`cgroup.freeze` in version 2,
//! `freezer.state` in version 1).
//!
//! What a killed daemon leaves frozen is thawed when the next one recovers.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::cgroup;

/// How long processes may take until they stand still: one that waits for a device does not stop.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// The switches of the two versions: the file, what freezes and what thaws, and where and how it says that all is frozen.
const SWITCHES: [(&str, &str, &str, &str, &str); 2] = [
    ("cgroup.freeze", "1", "0", "cgroup.events", "frozen 1"),
    ("freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN"),
];

/// The processes of a container stand still as long as this lives.
pub(super) struct Frozen(Vec<(PathBuf, &'static str)>);

impl Frozen {
    /// Freezes a container and waits until it is. Blocks.
    pub(super) fn freeze(id: &str) -> io::Result<Self> {
        let mut frozen = Self(Vec::new());
        let mut waiting = Vec::new();
        for directory in cgroup::parents().into_iter().map(|parent| parent.join(id)) {
            for (file, freeze, thaw, events, said) in SWITCHES {
                let switch = directory.join(file);
                if switch.exists() {
                    frozen.0.push((switch.clone(), thaw));
                    fs_err::write(&switch, freeze)?;
                    waiting.push((directory.join(events), said));
                }
            }
        }
        if waiting.is_empty() {
            return Err(io::Error::other("the container has no cgroup with a freezer"));
        }
        let until = Instant::now() + LIMIT;
        let is_frozen = |(events, said): &(PathBuf, &str)| {
            Ok::<_, io::Error>(fs_err::read_to_string(events)?.lines().any(|line| line == *said))
        };
        while !waiting
            .iter()
            .map(is_frozen)
            .collect::<io::Result<Vec<_>>>()?
            .into_iter()
            .all(|is| is)
        {
            if Instant::now() > until {
                let seconds = LIMIT.as_secs();
                return Err(io::Error::other(format!(
                    "the processes of the container did not stand still within {seconds} s"
                )));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for (switch, thaw) in &self.0 {
            if let Err(error) = fs_err::write(switch, thaw)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::error!(%error, "a container could not be thawed; the next start tries again");
            }
        }
    }
}

/// Thaws everything that an earlier run has left frozen. Blocks.
pub(super) fn thaw_all() {
    for parent in cgroup::parents() {
        for entry in fs_err::read_dir(parent).into_iter().flatten().flatten() {
            for (file, _, thaw, ..) in SWITCHES {
                let switch = entry.path().join(file);
                // Also one that is about to be.
                let is_frozen = fs_err::read_to_string(&switch).is_ok_and(|text| text.trim() != thaw);
                if is_frozen {
                    tracing::warn!(path = %switch.display(), "thawing what an earlier run left frozen");
                    drop(Frozen(vec![(switch, thaw)]));
                }
            }
        }
    }
}
