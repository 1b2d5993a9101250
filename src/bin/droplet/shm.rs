//! `/dev/shm` goes with the IPC namespace: POSIX shared memory and semaphores are files there (`shm_overview(7)`). Who
//! joins the IPC namespace of a container gets that container's `/dev/shm`, as the containers of a pod do.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, open, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::bundle::Bind;
use crate::config::{Config, NamespaceKind};
use crate::namespaces::{Joined, in_user_namespace, same_file};
use crate::rootfs::{RootfsError, system};

const DESTINATION: &str = "/dev/shm";

/// A copy of the mount of another container, which is nowhere yet.
#[derive(Debug)]
pub struct SharedMemory(OwnedFd);

impl SharedMemory {
    /// That of the process whose IPC namespace is joined by `/proc/<pid>/ns/ipc`. `None` when none is joined, or not in
    /// that way, or the process has none, or from inside a foreign user namespace (14.4), which has no power over other
    /// mount namespaces.
    ///
    /// This process must have one thread, and is in its own mount namespace again afterwards.
    pub fn of_joined(config: &Config, joined: &Joined) -> Result<Option<Self>, RootfsError> {
        let path = config.namespace(NamespaceKind::Ipc).and_then(|ipc| ipc.path.as_deref());
        let (Some(process), Some(ipc), false) = (
            path.and_then(process_of),
            joined.get(NamespaceKind::Ipc),
            in_user_namespace(),
        ) else {
            return Ok(None);
        };
        let failed = |errno| system("share memory with", &process, errno);
        let look = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = open(&process, look, Mode::empty()).map_err(failed)?;
        let namespace = |name| openat(&directory, name, read, Mode::empty()).map_err(failed);
        let (mounts, root) = (
            namespace("ns/mnt")?,
            openat(&directory, "root", look, Mode::empty()).map_err(failed)?,
        );
        if !same_file(&namespace("ns/ipc")?, Some(ipc)) {
            // The number means another process by now.
            return Err(failed(Errno::SRCH));
        }
        let own = open("/proc/self/ns/mnt", read, Mode::empty()).map_err(failed)?;
        let enter = |namespace: &OwnedFd| move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount));
        // A mount can only be copied by who is in its namespace.
        enter(&mounts).map_err(failed)?;
        let copied = copy(&root);
        enter(&own).map_err(failed)?;
        match copied {
            Ok(mount) => Ok(Some(Self(mount))),
            // It has none: a container that somebody else made.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NODEV) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Attaches it at `place`, in the mount namespace of the monitor.
    pub fn stage(&self, place: &Path) -> Result<Bind, RootfsError> {
        fs_err::create_dir_all(place)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.0, "", rustix::fs::CWD, place, flags).map_err(|e| system("attach", place, e))?;
        Ok(Bind {
            source: place.to_owned(),
            destination: DESTINATION.into(),
        })
    }
}

/// `/proc/<pid>` of `/proc/<pid>/ns/ipc`.
fn process_of(path: &Path) -> Option<PathBuf> {
    let process = path.parent().filter(|parent| parent.ends_with("ns"))?.parent()?;
    let pid = process.strip_prefix("/proc").ok()?.to_str()?;
    pid.parse::<i32>().ok().map(|_| process.to_owned())
}

/// The container decides what is at that path: only a tmpfs of its own is taken, and no link is followed.
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
    fn only_the_namespace_file_of_a_process_leads_to_its_memory() {
        let process = |path: &str| process_of(Path::new(path));
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
