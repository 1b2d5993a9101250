//! The files of one container, above all its `state.json`.
//!
//! A container has two directories: its own (`<root>/<id>`), which the daemon makes and removes, and the run directory
//! (`/run/raind/droplet/<id>`), which is gone after a reboot. `state.json` is always replaced as a whole.

pub mod files;
pub mod lock;
pub mod run_record;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use condenser::runtime::dir::{ContainerDir, DEFAULT_ROOT, ROOT_ENV, RUNTIME_RUN_DIR, valid_id};
use condenser::runtime::state::{RuntimeState, Status};

use crate::config::{Config, ConfigError};
use files::{remove_if_exists, replace};
use lock::Lock;

/// Files that an earlier run of this runtime or of the original may have left in the container's directory.
const LEFTOVERS: [&str; 4] = ["exec.fifo", "config_hash.json", "init.pid", "tty.sock"];

/// Why a container cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The id is not `^[a-z0-9][a-z0-9-]{0,62}$`.
    #[error("invalid container id: {0:?}")]
    InvalidId(String),
    /// There is no `state.json`.
    #[error("container {0} does not exist")]
    Unknown(String),
    /// A file cannot be read or written. The error names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The two directories that contain all others.
#[derive(Debug, Clone)]
pub struct RuntimePaths {
    /// Parent of the container directories: `RAIND_ROOT_DIR`, by default `/etc/raind/container`.
    pub root: PathBuf,
    /// Parent of the run directories.
    pub run: PathBuf,
}

impl RuntimePaths {
    /// Reads the paths from the environment.
    pub fn from_environment() -> Self {
        let root = std::env::var_os(ROOT_ENV).filter(|root| !root.is_empty());
        let root = root.map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from);
        Self {
            // The monitor has another working directory. Only an empty path cannot be made absolute.
            root: std::path::absolute(&root).unwrap_or(root),
            run: PathBuf::from(RUNTIME_RUN_DIR),
        }
    }

    /// Returns the container with this id, whether it exists or not.
    pub fn container(&self, id: &str) -> Result<Container, ContainerError> {
        if !valid_id(id) {
            return Err(ContainerError::InvalidId(id.to_owned()));
        }
        Ok(Container {
            id: id.to_owned(),
            dir: ContainerDir::new(&self.root, id),
            run: self.run.join(id),
        })
    }
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// The container id.
    pub id: String,
    /// The container's directory, which is also its bundle.
    pub dir: ContainerDir,
    run: PathBuf,
}

impl Container {
    /// The run directory: copy of the configuration, derived bundle, state of libcontainer, sockets.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// Path of the [`Lock`] file. Makes its directory if necessary.
    pub fn lock_path(&self) -> std::io::Result<PathBuf> {
        if let Some(parent) = self.run.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        }
        Ok(self.run.with_extension("lock"))
    }

    /// Takes the exclusive lock of a container that exists.
    pub fn lock(&self) -> Result<Lock, ContainerError> {
        self.require_existing(Lock::exclusive(&self.lock_path()?)?)
    }

    /// Takes the shared lock of a container that exists.
    pub fn lock_shared(&self) -> Result<Lock, ContainerError> {
        self.require_existing(Lock::shared(&self.lock_path()?)?)
    }

    /// If the container does not exist, or was deleted while this process waited, removes the lock file.
    fn require_existing(&self, lock: Lock) -> Result<Lock, ContainerError> {
        if self.dir.state().exists() {
            return Ok(lock);
        }
        lock.remove()?;
        Err(ContainerError::Unknown(self.id.clone()))
    }

    /// Path of the copy of `config.json` that `create` makes (X12).
    pub fn config_copy(&self) -> PathBuf {
        self.run.join("config.json")
    }

    /// Reads the configuration of the current run: the copy, or the original file if the copy is gone (after a reboot).
    pub fn config(&self) -> Result<Config, ConfigError> {
        let copy = self.config_copy();
        match fs_err::read(&copy) {
            Ok(text) => Config::parse(&text, &copy),
            Err(_) => {
                let path = self.dir.config();
                Config::parse(&fs_err::read(&path)?, &path)
            }
        }
    }

    /// Reads `state.json` and corrects the status: a created or running container whose init is gone is stopped. The
    /// file itself does not change.
    pub fn state(&self) -> Result<RuntimeState, ContainerError> {
        let recorded = self.recorded_state()?;
        let mut state = recorded.ok_or_else(|| ContainerError::Unknown(self.id.clone()))?;
        let is_alive = state.process().is_some_and(|process| process.is_alive());
        if matches!(state.status, Status::Created | Status::Running) && !is_alive {
            state.status = Status::Stopped;
            state.pid = 0;
            state.shim_pid = 0;
        }
        Ok(state)
    }

    /// Reads `state.json` as it was written. Returns `None` if there is none.
    pub fn recorded_state(&self) -> Result<Option<RuntimeState>, ContainerError> {
        Ok(RuntimeState::read(&self.dir.state())?)
    }

    /// Replaces `state.json`.
    pub fn write_state(&self, state: &RuntimeState) -> std::io::Result<()> {
        replace(&self.dir.state(), render(state)?.as_bytes(), 0o600)
    }

    /// Removes the run directory, and the files of verbs and monitors in the container's directory except state.json.
    pub fn remove_run_files(&self) -> std::io::Result<()> {
        for name in LEFTOVERS {
            remove_if_exists(&self.dir.path().join(name))?;
        }
        match fs_err::remove_dir_all(&self.run) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// Renders `state.json`: indented, as the original writes it. Hooks get the same text.
pub fn render(state: &RuntimeState) -> std::io::Result<String> {
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indent);
    serde::Serialize::serialize(state, &mut serializer)?;
    String::from_utf8(text).map_err(std::io::Error::other)
}

/// Returns the status as state.json spells it.
pub fn status_name(status: Status) -> &'static str {
    match status {
        Status::Creating => "creating",
        Status::Created => "created",
        Status::Running => "running",
        Status::Stopped => "stopped",
    }
}
