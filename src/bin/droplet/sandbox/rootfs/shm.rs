//! Shares `/dev/shm` between containers with the same IPC namespace: POSIX shared memory and semaphores are files there
//! (`shm_overview(7)`). The containers of a pod use this.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, open, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::bind::Bind;
use super::error::{RootfsError, system_error};
use crate::config::{Config, NamespaceKind};
use crate::sandbox::namespaces::{Joined, in_user_namespace, same_file};

const DESTINATION: &str = "/dev/shm";

/// A detached copy of another container's mount.
#[derive(Debug)]
pub struct SharedMemory(OwnedFd);

impl SharedMemory {
    /// Copies the mount of the process whose IPC namespace is joined by `/proc/<pid>/ns/ipc`. Returns `None` if no IPC
    /// namespace is joined or by another path, or if the process has no such mount. Returns `None` inside a foreign
    /// user namespace too (14.4): there this process may not enter other mount namespaces.
    ///
    /// This process must have one thread. It returns to its own mount namespace.
    pub fn copy_joined(config: &Config, joined: &Joined) -> Result<Option<Self>, RootfsError> {
        let path = config.namespace(NamespaceKind::Ipc).and_then(|ipc| ipc.path.as_deref());
        let (Some(process), Some(ipc), false) = (
            path.and_then(process_directory),
            joined.get(NamespaceKind::Ipc),
            in_user_namespace(),
        ) else {
            return Ok(None);
        };
        let to_error = |errno| system_error("share memory with", &process, errno);
        let look = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = open(&process, look, Mode::empty()).map_err(to_error)?;
        let namespace = |name| openat(&directory, name, read, Mode::empty()).map_err(to_error);
        let (mounts, root) = (
            namespace("ns/mnt")?,
            openat(&directory, "root", look, Mode::empty()).map_err(to_error)?,
        );
        if !same_file(&namespace("ns/ipc")?, Some(ipc)) {
            // The pid now belongs to another process.
            return Err(to_error(Errno::SRCH));
        }
        let own = open("/proc/self/ns/mnt", read, Mode::empty()).map_err(to_error)?;
        let enter = |namespace: &OwnedFd| move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount));
        // To copy a mount, this process must be in its namespace.
        enter(&mounts).map_err(to_error)?;
        let copied = copy(&root);
        enter(&own).map_err(to_error)?;
        match copied {
            Ok(mount) => Ok(Some(Self(mount))),
            // Another runtime made that container, without such a mount.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NODEV) => Ok(None),
            Err(errno) => Err(to_error(errno)),
        }
    }

    /// Attaches the copy at `place`, in the mount namespace of the monitor.
    pub fn attach(&self, place: &Path) -> Result<Bind, RootfsError> {
        fs_err::create_dir_all(place)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.0, "", rustix::fs::CWD, place, flags).map_err(|e| system_error("attach", place, e))?;
        Ok(Bind {
            source: place.to_owned(),
            destination: DESTINATION.into(),
        })
    }
}

/// Returns `/proc/<pid>` for `/proc/<pid>/ns/ipc`.
fn process_directory(path: &Path) -> Option<PathBuf> {
    let process = path.parent().filter(|parent| parent.ends_with("ns"))?.parent()?;
    let pid = process.strip_prefix("/proc").ok()?.to_str()?;
    pid.parse::<i32>().ok().map(|_| process.to_owned())
}

/// Copies `/dev/shm`. The container controls that path, so accept only a tmpfs and follow no symbolic link.
fn copy(root: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let look = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found = openat2(root, "dev/shm", look, Mode::empty(), resolve)?;
    if fstatfs(&found)?.f_type != libc::TMPFS_MAGIC {
        return Err(Errno::NODEV);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(&found, "", flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_namespace_file_of_a_process_is_accepted() {
        let process = |path: &str| process_directory(Path::new(path));
        assert_eq!(process("/proc/17/ns/ipc"), Some("/proc/17".into()));
        for other in [
            "/run/netns/x",
            "/proc/self/ns/ipc",
            "/proc/17/ipc",
            "/proc/17/task/18/ns/ipc",
            "ns/ipc",
        ] {
            assert_eq!(process(other), None, "{other}");
        }
    }
}
