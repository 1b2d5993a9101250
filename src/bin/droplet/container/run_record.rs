//! Records which process must finish the current run of a container (`docs/spec/runtime.md` 13.2, step 4).
//!
//! The record is `run.json` in the run directory. `create` writes it when init exists; it changes only under the
//! container's lock. The finisher writes the exit into state.json, runs the stopContainer hooks once and then marks the
//! run completed. If the finisher dies earlier, another process takes its place. Without a file there is no run, or the
//! machine was rebooted since.

use std::path::PathBuf;

use condenser::model::ProcessId;
use serde::{Deserialize, Serialize};

use super::Container;
use super::files::replace;

/// The current run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The monitor, or the process that took its place.
    pub finisher: ProcessId,
    /// Whether the run is finished.
    pub completed: bool,
}

impl RunRecord {
    /// Reads the record. Returns `None` if there is none.
    pub fn read(container: &Container) -> std::io::Result<Option<Self>> {
        match fs_err::read(path(container)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces the record.
    pub fn write(&self, container: &Container) -> std::io::Result<()> {
        replace(&path(container), &serde_json::to_vec(self)?, 0o600)
    }
}

fn path(container: &Container) -> PathBuf {
    container.run_dir().join("run.json")
}
