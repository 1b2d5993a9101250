//! Who is responsible for the end of a container's current run (`docs/spec/runtime.md` 13.2, step 4).
//!
//! `run.json` in the volatile directory. Written by `create` once init exists; changed under the container's lock only.
//! Whoever is its finisher writes the end into state.json, runs the stopContainer hooks once and then marks it
//! completed. When the finisher dies before that, somebody else takes its place. No file means that there is no run, or
//! that the machine was booted since.

use std::path::PathBuf;

use condenser::model::ProcessId;
use serde::{Deserialize, Serialize};

use crate::container::{Container, replace};

/// The current run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The monitor, or who has taken its place.
    pub finisher: ProcessId,
    /// Nothing is left to do for this run.
    pub completed: bool,
}

impl RunRecord {
    /// Reads it; `None` when there is none.
    pub fn read(container: &Container) -> std::io::Result<Option<Self>> {
        match fs_err::read(path(container)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces it.
    pub fn write(&self, container: &Container) -> std::io::Result<()> {
        replace(&path(container), &serde_json::to_vec(self)?, 0o600)
    }
}

fn path(container: &Container) -> PathBuf {
    container.run_dir().join("run.json")
}
