//! What a container sees at `/sys/fs/cgroup` on machines with cgroup v1, alone or beside a v2 without controllers.
//!
//! On v2 libcontainer mounts the hierarchy anew from inside the cgroup namespace. The hierarchies of v1 it would mount
//! writable, so this puts them together in the mount namespace of the monitor (`rootfs`): a small file system with a
//! directory for each hierarchy, and on it the container's own cgroup, which is the root of the cgroup namespace. Nothing
//! of it can be written, and nothing of other cgroups is there. Runtimes of languages find their limits in it (JVM, Node, Go).

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::bundle::Bind;
use crate::cgroup::Cgroup;
use crate::rootfs::{RootfsError, attach, system};

const DESTINATION: &str = "/sys/fs/cgroup";

/// Puts the view together at `place`, making the container's cgroups. `None` where there is nothing of v1.
pub fn stage(cgroup: &Cgroup, place: &Path) -> Result<Option<Bind>, RootfsError> {
    let groups = cgroup.make()?;
    if groups.is_empty() {
        return Ok(None);
    }
    fs_err::create_dir_all(place)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", place, "tmpfs", flags, c"mode=755,size=64k").map_err(|e| system("mount tmpfs on", place, e))?;
    for (name, group) in &groups {
        let seen = place.join(name);
        fs_err::create_dir(&seen)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = rustix::fs::openat(CWD, group, flags, Mode::empty()).map_err(|e| system("open", group, e))?;
        attach(&source, libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_RDONLY, &seen)
            .map_err(|e| system("bind", group, e))?;
        for alias in name.split(',').filter(|alias| alias != name) {
            symlink(name, place.join(alias)).map_err(RootfsError::Io)?;
        }
    }
    let read_only = flags | MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(place, read_only, "").map_err(|e| system("remount", place, e))?;
    Ok(Some(Bind {
        source: place.to_owned(),
        destination: DESTINATION.into(),
    }))
}
