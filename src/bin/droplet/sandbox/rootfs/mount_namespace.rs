//! The mount namespace in which the monitor sets up the root file system.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::error::{RootfsError, system_error};

/// A private mount namespace of this process. It receives mounts of the host, but its own mounts stay inside.
#[derive(Debug)]
pub struct PrivateMounts {
    host: OwnedFd,
}

impl PrivateMounts {
    /// Leaves the host's mount namespace.
    pub fn enter() -> Result<Self, RootfsError> {
        let path = Path::new("/proc/self/ns/mnt");
        let host = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| system_error("open", path, e))?;
        // SAFETY: the monitor has one thread, and mount namespaces do not affect memory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(|e| system_error("unshare", path, e))?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", slave).map_err(|e| system_error("make slave", Path::new("/"), e))?;
        Ok(Self { host })
    }

    /// Returns to the host's mount namespace. Child processes that have a copy of the private namespace keep its
    /// mounts.
    ///
    /// Inside a foreign user namespace (14.4) this process cannot return. Then it unmounts `root` at least, so that the
    /// mount ends with the container and not with this process.
    pub fn leave(self, root: &Path) -> Result<(), RootfsError> {
        match move_into_link_name_space(self.host.as_fd(), Some(LinkNameSpaceType::Mount)) {
            Err(rustix::io::Errno::PERM) => {
                // This fails if `root` came as a complete root file system: then nothing is mounted there.
                let _ = rustix::mount::unmount(root, UnmountFlags::DETACH);
                Ok(())
            }
            other => other.map_err(|e| system_error("return to", Path::new("/proc/self/ns/mnt"), e)),
        }
    }
}
