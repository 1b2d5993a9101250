//! The root file system, put together in a mount namespace of the monitor (`docs/spec/runtime.md` 9.2, 16.5).
//!
//! The overlay is mounted with the host's privileges, which it needs to mark directories opaque (R2). Bind mounts are
//! attached to a private directory from descriptors that were checked, with their final flags, so that nothing an
//! unprivileged user of the host does meanwhile can change what is mounted. Afterwards the monitor goes back to the
//! host's mount namespace: only the container's own keeps the mounts alive.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use condenser::runtime::mounts::{Mount, MountError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::bundle::Bind;
use crate::config::ImageConfig;
use crate::failure::{Blame, refused_if};
use crate::plan::Plan;

/// A mount option string must fit one page.
const MAX_OPTIONS: usize = 4095;
/// As the kernel has it.
const MAX_SYMLINKS: usize = 40;
/// More of a passwd file is not read.
const MAX_PASSWD: u64 = 1 << 20;

/// Why the root file system could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A system call failed.
    #[error("{action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// With what.
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
    /// A bind mount that does not fit its place.
    #[error("{0}")]
    Place(String),
    /// Anything but an overlay.
    #[error("rootfsType {0:?} is not supported, only overlay is")]
    Type(String),
    /// No layer at all, or more than fit a mount option.
    #[error("cannot mount {0} layers")]
    Layers(usize),
}

impl Blame for RootfsError {
    fn status(&self) -> i32 {
        refused_if(matches!(self, Self::Mount(_) | Self::Place(_)))
    }
}

/// A mount namespace of this process alone. Mounts of the host still arrive in it, its own do not get out.
#[derive(Debug)]
pub struct Stage {
    host: OwnedFd,
}

impl Stage {
    /// Leaves the host's mount namespace.
    pub fn enter() -> Result<Self, RootfsError> {
        let path = Path::new("/proc/self/ns/mnt");
        let host = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| system("open", path, e))?;
        // SAFETY: the monitor has one thread, and mount namespaces do not affect memory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(|e| system("unshare", path, e))?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", slave).map_err(|e| system("make slave", Path::new("/"), e))?;
        Ok(Self { host })
    }

    /// Goes back; what was mounted here lives on in the children that have a copy of this namespace.
    ///
    /// From inside a foreign user namespace (14.4) there is no way back: then at least `root` is unmounted, so that it
    /// ends with the container and not with this process.
    pub fn leave(self, root: &Path) -> Result<(), RootfsError> {
        match move_into_link_name_space(self.host.as_fd(), Some(LinkNameSpaceType::Mount)) {
            Err(rustix::io::Errno::PERM) => {
                // Nothing is mounted there when it came as a ready root file system.
                let _ = rustix::mount::unmount(root, UnmountFlags::DETACH);
                Ok(())
            }
            other => other.map_err(|e| system("return to", Path::new("/proc/self/ns/mnt"), e)),
        }
    }
}

/// Mounts the overlay of an image on `target`. `user_xattr`: this process is in a user namespace (14.4).
pub fn mount_overlay(image: &ImageConfig, target: &Path, user_xattr: bool) -> Result<(), RootfsError> {
    if image.rootfs_type != "overlay" {
        return Err(RootfsError::Type(image.rootfs_type.clone()));
    }
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(|e| system("open layer", path, e))
    };
    let layers = image
        .image_layer
        .iter()
        .map(|layer| open(layer))
        .collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(&image.upper_dir)?, open(&image.work_dir)?);
    // Descriptors instead of paths: short enough for 127 layers in one option string, and nothing to escape (R11).
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.iter().map(path).collect::<Vec<_>>().join(":");
    let mut options = format!("lowerdir={lower},upperdir={},workdir={}", path(&upper), path(&work));
    options.push_str(match user_xattr {
        true => ",userxattr",
        // As `userxattr` implies: what a container changes shall be whole in its upper directory, because a build makes
        // a layer of that.
        false => ",redirect_dir=off,metacopy=off",
    });
    if layers.is_empty() || options.len() > MAX_OPTIONS {
        return Err(RootfsError::Layers(layers.len()));
    }
    // The string has no NUL: numbers and constants.
    let options = std::ffi::CString::new(options).map_err(std::io::Error::other)?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .map_err(|e| system("mount overlay on", target, e))
}

/// Makes the directories that every program counts on, where the image has none: earlier versions mounted something
/// there in every container.
pub fn make_shared_directories(root: &Path) -> Result<(), RootfsError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let image = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| system("open", root, e))?;
    for (name, mode) in [("tmp", 0o1777), ("run", 0o755)] {
        let mode = Mode::from_raw_mode(mode);
        let made = rustix::fs::mkdirat(&image, name, mode);
        match made.and_then(|()| rustix::fs::chmodat(&image, name, mode, AtFlags::empty())) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(system("make a directory in", root, e)),
        }
    }
    Ok(())
}

/// Attaches the user's bind mounts below `directory`, and says where they belong in the root file system.
pub fn stage_mounts(plan: &Plan, directory: &Path) -> Result<Vec<Bind>, RootfsError> {
    let mut binds = Vec::with_capacity(plan.mounts.len());
    for (n, mount) in plan.mounts.iter().enumerate() {
        let resolved = resolve(&plan.config.root.path, &mount.destination)?;
        let mount = mount.clone().with_destination(resolved)?;
        // Opened in this mount namespace: a mount of another one cannot be copied.
        let source = mount.open_source(&plan.policy)?;
        let place = directory.join(n.to_string());
        if source.directory {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&place)?;
        } else {
            fs_err::create_dir_all(directory)?;
            fs_err::write(&place, "")?;
        }
        attach(&source.fd, attributes(&mount), &place).map_err(|e| system("bind", &mount.source, e))?;
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

/// Binds what a descriptor refers to, with everything mounted below it, as nosuid, nodev and private, and with `flags`
/// (`MOUNT_ATTR_*`, `mount_setattr(2)`).
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
    // SAFETY: the path is a NUL-terminated constant, the structure lives through the call and its size is passed.
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
        return Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO));
    }
    rustix::mount::move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Where a path of the container leads inside `root`, with every symbolic link on the way followed as the container
/// would. What does not exist stays as it is: a mount makes it (M3).
///
/// Nothing else may be changing `root` meanwhile; the container is not running yet.
pub fn resolve(root: &Path, path: &Path) -> std::io::Result<PathBuf> {
    let names = |path: &Path| -> Vec<OsString> { path.components().map(|c| c.as_os_str().to_owned()).collect() };
    let mut pending: VecDeque<OsString> = names(path).into();
    let mut resolved = PathBuf::from("/");
    let mut followed = 0;
    while let Some(name) = pending.pop_front() {
        match Path::new(&name).components().next() {
            Some(Component::RootDir) => resolved = PathBuf::from("/"),
            Some(Component::ParentDir) => {
                resolved.pop();
            }
            Some(Component::Normal(_)) => {
                let candidate = resolved.join(&name);
                let on_host = root.join(candidate.strip_prefix("/").unwrap_or(&candidate));
                let Ok(target) = std::fs::read_link(&on_host) else {
                    resolved = candidate;
                    continue;
                };
                followed += 1;
                if followed > MAX_SYMLINKS {
                    let reason = format!("{}: too many levels of symbolic links", path.display());
                    return Err(std::io::Error::other(reason));
                }
                for name in names(&target).into_iter().rev() {
                    pending.push_front(name);
                }
            }
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    Ok(resolved)
}

/// Home directory of a user according to the image's `/etc/passwd`; `/` when that does not say (9.9).
pub fn home(root: &Path, uid: u32) -> String {
    read_inside(root, "etc/passwd")
        .ok()
        .and_then(|passwd| home_in(&passwd, uid))
        .unwrap_or_else(|| "/".to_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (number, home) = (fields.get(2)?, fields.get(5)?);
        (number.parse() == Ok(uid) && home.starts_with('/')).then(|| (*home).to_owned())
    })
}

/// Reads a regular file of the image, wherever its symbolic links lead, without ever leaving `root`.
fn read_inside(root: &Path, path: &str) -> std::io::Result<String> {
    let directory = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Not blocking: the image may have a FIFO there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = std::fs::File::from(rustix::fs::openat2(&directory, path, flags, Mode::empty(), inside)?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An error that says what was tried.
pub fn system(action: &'static str, path: &Path, errno: rustix::io::Errno) -> RootfsError {
    RootfsError::System {
        action,
        path: path.to_owned(),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn destinations_are_resolved_as_the_container_sees_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("data")).unwrap();
        symlink("/run", root.join("var")).unwrap();
        symlink("../../../run/systemd/resolv.conf", root.join("etc/resolv.conf")).unwrap();
        symlink("data", root.join("link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let resolved = |path: &str| resolve(root, Path::new(path)).unwrap();
        assert_eq!(resolved("/etc/hosts"), Path::new("/etc/hosts"));
        assert_eq!(resolved("/etc/resolv.conf"), Path::new("/run/systemd/resolv.conf"));
        assert_eq!(resolved("/var/lock/x"), Path::new("/run/lock/x"));
        assert_eq!(resolved("/link/new/dir"), Path::new("/data/new/dir"));
        assert_eq!(resolved("/../.."), Path::new("/"));
        assert!(resolve(root, Path::new("/loop/x")).is_err());
    }

    #[test]
    fn home_is_what_the_image_says() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = dir.path().join("etc/passwd");
        assert_eq!(home(dir.path(), 0), "/");
        std::fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv/www:\nodd:x:7:7::rel:\nbroken\n",
        )
        .unwrap();
        assert_eq!(home(dir.path(), 0), "/root");
        assert_eq!(home(dir.path(), 33), "/srv/www");
        assert_eq!(home(dir.path(), 7), "/");
        assert_eq!(home(dir.path(), 9), "/");
        std::fs::remove_file(&passwd).unwrap();
        symlink("/etc/passwd", &passwd).unwrap();
        assert_eq!(
            home(dir.path(), 0),
            "/",
            "a link to itself inside the image, not the host's file"
        );
        std::fs::remove_file(&passwd).unwrap();
        rustix::fs::mkfifoat(CWD, &passwd, Mode::RWXU).unwrap();
        assert_eq!(home(dir.path(), 0), "/");
    }
}
