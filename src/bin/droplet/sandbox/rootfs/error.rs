//! Errors of the root file system.

use std::path::{Path, PathBuf};

use condenser::runtime::mounts::MountError;

use crate::report::failure::{HasExitStatus, refused_or_failed};

/// Why the root file system could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A system call failed.
    #[error("{action} {}: {source}", path.display())]
    System {
        /// The operation that failed.
        action: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// Reason.
        source: std::io::Error,
    },
    /// The error names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A bind mount is refused.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A bind mount does not fit its destination.
    #[error("{0}")]
    MountPoint(String),
    /// The type is not `overlay`.
    #[error("rootfsType {0:?} is not supported, only overlay is")]
    Type(String),
    /// There is no layer, or more than fit the mount options.
    #[error("cannot mount {0} layers")]
    Layers(usize),
}

impl HasExitStatus for RootfsError {
    fn exit_status(&self) -> i32 {
        refused_or_failed(matches!(self, Self::Mount(_) | Self::MountPoint(_)))
    }
}

/// Makes an error that names the operation.
pub fn system_error(action: &'static str, path: &Path, errno: rustix::io::Errno) -> RootfsError {
    RootfsError::System {
        action,
        path: path.to_owned(),
        source: errno.into(),
    }
}
