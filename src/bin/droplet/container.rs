//! Where things of one container are, and its `state.json`.
//!
//! Two directories: the container's own (`<root>/<id>`, made and removed by the daemon) and the volatile one of this
//! runtime (`/run/raind/droplet/<id>`, gone after a reboot). `state.json` is only ever replaced as a whole.

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use condenser::runtime::dir::{ContainerDir, DEFAULT_ROOT, ROOT_ENV, RUNTIME_RUN_DIR, valid_id};
use condenser::runtime::state::{RuntimeState, Status};
use fs_err::os::unix::fs::OpenOptionsExt;

use crate::config::{Config, ConfigError};
use crate::lock::Lock;

/// Why a container cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The id is not `^[a-z0-9][a-z0-9-]{0,62}$`.
    #[error("invalid container id: {0:?}")]
    InvalidId(String),
    /// There is no `state.json`.
    #[error("container {0} does not exist")]
    Unknown(String),
    /// A file could not be read or written; the error names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The two roots everything is below.
#[derive(Debug, Clone)]
pub struct Site {
    /// Container directories: `RAIND_ROOT_DIR`, by default `/etc/raind/container`.
    pub root: PathBuf,
    /// Volatile data of this runtime.
    pub run: PathBuf,
}

impl Site {
    /// The site that the environment names.
    pub fn from_environment() -> Self {
        let root = std::env::var_os(ROOT_ENV).filter(|root| !root.is_empty());
        let root = root.map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from);
        Self {
            // The monitor works elsewhere. Only an empty path cannot be made absolute.
            root: std::path::absolute(&root).unwrap_or(root),
            run: PathBuf::from(RUNTIME_RUN_DIR),
        }
    }

    /// The container with this id, whether it exists or not.
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
    /// Its id.
    pub id: String,
    /// Its directory, which is also the bundle.
    pub dir: ContainerDir,
    run: PathBuf,
}

impl Container {
    /// Volatile data of the current run: configuration copy, derived bundle, libcontainer's state, sockets.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// File of the [`Lock`]; its directory is made when missing.
    pub fn lock_path(&self) -> std::io::Result<PathBuf> {
        if let Some(parent) = self.run.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        }
        Ok(self.run.with_extension("lock"))
    }

    /// Takes the lock of a container that exists.
    pub fn lock(&self) -> Result<Lock, ContainerError> {
        self.existing(Lock::exclusive(&self.lock_path()?)?)
    }

    /// The same, shared.
    pub fn lock_shared(&self) -> Result<Lock, ContainerError> {
        self.existing(Lock::shared(&self.lock_path()?)?)
    }

    /// Of a container that does not exist, or was deleted while we waited, no lock may stay behind.
    fn existing(&self, lock: Lock) -> Result<Lock, ContainerError> {
        if self.dir.state().exists() {
            return Ok(lock);
        }
        lock.remove()?;
        Err(ContainerError::Unknown(self.id.clone()))
    }

    /// Copy of `config.json` that `create` keeps (X12).
    pub fn config_copy(&self) -> PathBuf {
        self.run.join("config.json")
    }

    /// The configuration of the current run: the private copy, or the file when the copy is gone (reboot).
    pub fn config(&self) -> Result<Config, ConfigError> {
        let copy = self.config_copy();
        match std::fs::read(&copy) {
            Ok(text) => Config::parse(&text, &copy),
            Err(_) => {
                let path = self.dir.config();
                Config::parse(&fs_err::read(&path)?, &path)
            }
        }
    }

    /// `state.json` with the status as it is now: a created or running container whose init is gone is stopped.
    /// The file itself is not touched.
    pub fn state(&self) -> Result<RuntimeState, ContainerError> {
        let recorded = self.recorded_state()?;
        let mut state = recorded.ok_or_else(|| ContainerError::Unknown(self.id.clone()))?;
        let lives = state.process().is_some_and(|process| process.is_alive());
        if matches!(state.status, Status::Created | Status::Running) && !lives {
            state.status = Status::Stopped;
            state.pid = 0;
            state.shim_pid = 0;
        }
        Ok(state)
    }

    /// `state.json` as it was last written; `None` when there is none.
    pub fn recorded_state(&self) -> Result<Option<RuntimeState>, ContainerError> {
        Ok(RuntimeState::read(&self.dir.state())?)
    }

    /// Replaces `state.json`.
    pub fn write_state(&self, state: &RuntimeState) -> std::io::Result<()> {
        replace(&self.dir.state(), render(state)?.as_bytes(), 0o600)
    }
}

/// The text of `state.json`: indented, as the original writes it. Hooks get the same text.
pub fn render(state: &RuntimeState) -> std::io::Result<String> {
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indent);
    serde::Serialize::serialize(state, &mut serializer)?;
    String::from_utf8(text).map_err(std::io::Error::other)
}

/// Writes a file so that readers see the old or the new content, never a part.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    // One name per process is enough: writers of one file hold the container's lock.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = (|| {
        let mut file = fs_err::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        fs_err::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Removes a file that may not exist.
pub fn remove_if_exists(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
