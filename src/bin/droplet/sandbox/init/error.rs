//! Errors of setting up init.

use condenser::runtime::refusal::{FAILED, REFUSED};

use crate::report::failure::HasExitStatus;
use crate::sandbox::cgroup::CgroupError;
use crate::sandbox::process::program::ExecError;
use crate::sandbox::process::rlimits::LimitError;
use crate::sandbox::rootfs::error::RootfsError;
use crate::sandbox::rootfs::tmpfs::TmpfsSetupError;

/// Why init could not be set up. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The root file system could not be set up.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A tmpfs could not be set up.
    #[error(transparent)]
    Tmpfs(#[from] TmpfsSetupError),
    /// A file, pipe or socket could not be made.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The program or its arguments are invalid.
    #[error(transparent)]
    Program(#[from] ExecError),
    /// The cgroup limits could not be set.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The resource limits could not be set.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Init reported a refusal before it ended: the request is at fault.
    #[error("{0}")]
    Refused(String),
    /// libcontainer failed.
    #[error("{0}")]
    Container(String),
}

impl HasExitStatus for InitError {
    fn exit_status(&self) -> i32 {
        match self {
            Self::Rootfs(error) => error.exit_status(),
            Self::Tmpfs(TmpfsSetupError::Refused(_) | TmpfsSetupError::Full(_))
            | Self::Refused(_)
            | Self::Program(_) => REFUSED,
            Self::Tmpfs(_) | Self::Io(_) | Self::Cgroup(_) | Self::Limit(_) | Self::Container(_) => FAILED,
        }
    }
}
