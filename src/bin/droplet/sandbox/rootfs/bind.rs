//! Bind mounts.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use condenser::runtime::mounts::{Mount, MountPolicy};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::error::{RootfsError, system_error};
use super::resolve::resolve;

/// A bind mount with a checked source and a destination without symbolic links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
}

/// Attaches the user's bind mounts below `directory`. Returns them with their destinations in the container.
pub fn attach_mounts(
    mounts: &[Mount],
    policy: &MountPolicy,
    root: &Path,
    directory: &Path,
) -> Result<Vec<Bind>, RootfsError> {
    let mut binds = Vec::with_capacity(mounts.len());
    for (n, mount) in mounts.iter().enumerate() {
        let resolved = resolve(root, &mount.destination)?;
        let mount = mount.clone().with_destination(resolved)?;
        // Open the source in this mount namespace: a mount of another namespace cannot be copied.
        let source = mount.open_source(policy)?;
        let place = directory.join(n.to_string());
        if source.directory {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&place)?;
        } else {
            fs_err::create_dir_all(directory)?;
            fs_err::write(&place, "")?;
        }
        attach(&source.fd, attributes(&mount), &place).map_err(|e| system_error("bind", &mount.source, e))?;
        binds.push(Bind {
            source: place,
            destination: mount.destination,
        });
    }
    Ok(binds)
}

fn attributes(mount: &Mount) -> u64 {
    let read_only = if mount.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let no_exec = if mount.no_exec { libc::MOUNT_ATTR_NOEXEC } else { 0 };
    read_only | no_exec
}

/// Binds the file of a descriptor and all mounts below it at `place`. The mounts become nosuid, nodev and private, and
/// get `flags` (`MOUNT_ATTR_*`, `mount_setattr(2)`).
pub fn attach(source: &OwnedFd, flags: u64, place: &Path) -> rustix::io::Result<()> {
    let recursive = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
    let tree = rustix::mount::open_tree(source, "", copy)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | flags,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated constant, the structure outlives the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    rustix::mount::move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
