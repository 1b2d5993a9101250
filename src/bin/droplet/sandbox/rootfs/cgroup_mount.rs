//! The mount at `/sys/fs/cgroup` of a container on machines with cgroup v1, alone or next to a v2 without controllers.
//!
//! On v2, libcontainer mounts the hierarchy from inside the cgroup namespace. The v1 hierarchies would become writable
//! that way. So this module prepares them in the monitor's mount namespace: a small tmpfs with one directory per
//! hierarchy, each with the container's own cgroup, which is the root of its cgroup namespace. Everything is read-only,
//! and no other cgroup is visible. Language runtimes (JVM, Node, Go) find their limits there.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_remount};

use super::bind::{Bind, attach};
use super::error::{RootfsError, system_error};
use crate::sandbox::cgroup::Cgroup;

const DESTINATION: &str = "/sys/fs/cgroup";

/// Prepares the mount at `place` and makes the container's cgroups. Returns `None` without v1 hierarchies.
pub fn prepare(cgroup: &Cgroup, place: &Path) -> Result<Option<Bind>, RootfsError> {
    let groups = cgroup.make_v1_directories()?;
    if groups.is_empty() {
        return Ok(None);
    }
    fs_err::create_dir_all(place)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", place, "tmpfs", flags, c"mode=755,size=64k")
        .map_err(|e| system_error("mount tmpfs on", place, e))?;
    for (name, group) in &groups {
        let seen = place.join(name);
        fs_err::create_dir(&seen)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source =
            rustix::fs::openat(CWD, group, flags, Mode::empty()).map_err(|e| system_error("open", group, e))?;
        attach(&source, libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_RDONLY, &seen)
            .map_err(|e| system_error("bind", group, e))?;
        for alias in name.split(',').filter(|alias| alias != name) {
            symlink(name, place.join(alias)).map_err(RootfsError::Io)?;
        }
    }
    let read_only = flags | MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(place, read_only, "").map_err(|e| system_error("remount", place, e))?;
    Ok(Some(Bind {
        source: place.to_owned(),
        destination: DESTINATION.into(),
    }))
}
