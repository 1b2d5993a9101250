//! The user's tmpfs mounts, flags and filled before the container exists.
//!
//! Each one is mounted at a private place in the monitor's mount namespace, gets a copy of the image's content at its
//! destination, and is then bound into the container like a user's directory. The copy follows no symbolic link, and
//! nobody else changes the image meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use condenser::runtime::tmpfs::{Tmpfs, TmpfsError};
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};
use serde_json::{Value, json};

use super::bind::Bind;
use super::copy_up::{copy_up, open_directory};
use super::resolve::resolve;

/// Mode if the image has no directory there.
const DEFAULT_MODE: u32 = 0o1777;
/// Why a tmpfs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TmpfsSetupError {
    /// Its options are wrong, or the image's symbolic links lead to a forbidden destination.
    #[error(transparent)]
    Refused(#[from] TmpfsError),
    /// The image's content does not fit.
    #[error("tmpfs {}: the content of the image does not fit; raise its size and the memory of the container, or use notmpcopyup", .0.display())]
    Full(PathBuf),
    /// A system call to_error.
    #[error("tmpfs {}: {source}", place.display())]
    System {
        /// Destination of the tmpfs.
        place: PathBuf,
        /// Reason.
        source: io::Error,
    },
}

/// A tmpfs that is ready, with its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedTmpfs {
    /// Where it is mounted now.
    pub source: PathBuf,
    /// Path in the container, without symbolic links.
    pub destination: PathBuf,
    read_only: bool,
    exec: bool,
}

impl StagedTmpfs {
    /// Returns it as a bind mount.
    pub fn to_bind(&self) -> Bind {
        Bind {
            source: self.source.clone(),
            destination: self.destination.clone(),
        }
    }

    /// Returns its entry for the `mounts` of libcontainer.
    pub fn to_mount(&self) -> Value {
        let mut options = vec!["rbind", "rprivate", "nosuid", "nodev"];
        options.extend((!self.exec).then_some("noexec"));
        options.extend(self.read_only.then_some("ro"));
        json!({ "destination": self.destination, "type": "bind", "source": self.source, "options": options })
    }
}

/// Mounts all below `directory`, for a container with its root file system at `root`. Copies at most `limit` bytes from
/// the image, because the container's cgroup does not count this memory.
pub fn mount_all(
    all: &[Tmpfs],
    directory: &Path,
    root: &Path,
    limit: u64,
) -> Result<Vec<StagedTmpfs>, TmpfsSetupError> {
    let mut left = limit;
    let staged = all.iter().enumerate().map(|(n, tmpfs)| {
        let place = directory.join(format!("tmpfs{n}"));
        let to_error = |e: io::Error| match Errno::from_io_error(&e) {
            Some(Errno::NOSPC) => TmpfsSetupError::Full(tmpfs.destination.clone()),
            _ => TmpfsSetupError::System {
                place: tmpfs.destination.clone(),
                source: e,
            },
        };
        let resolved = resolve(root, &tmpfs.destination).map_err(to_error)?;
        let resolved = tmpfs.clone().with_destination(resolved)?;
        make(&resolved, &place, root, &mut left).map_err(to_error)?;
        Ok(StagedTmpfs {
            source: place,
            destination: resolved.destination,
            read_only: tmpfs.read_only,
            exec: tmpfs.exec,
        })
    });
    staged.collect()
}

fn make(tmpfs: &Tmpfs, place: &Path, root: &Path, left: &mut u64) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(place)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::NOEXEC, !tmpfs.exec);
    let mut data = vec![format!("mode={DEFAULT_MODE:o}")];
    data.extend(tmpfs.size.as_ref().map(|size| format!("size={size}")));
    data.extend(tmpfs.inodes.map(|inodes| format!("nr_inodes={inodes}")));
    let data = std::ffi::CString::new(data.join(",")).map_err(io::Error::other)?;
    mount("tmpfs", place, "tmpfs", flags, Some(data.as_c_str()))?;
    let to = open_directory(place)?;
    if tmpfs.copy_up
        && let Some(from) = open_inside(root, &tmpfs.destination)?
    {
        copy_up(&from, &to, left)?;
    }
    // The options override the copied values. A change of the owner may clear mode bits, so set the mode last.
    let mode = tmpfs.mode.unwrap_or(rustix::fs::fstat(&to)?.st_mode & 0o7777);
    rustix::fs::fchown(&to, tmpfs.uid.map(Uid::from_raw), tmpfs.gid.map(Gid::from_raw))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(mode))?;
    drop(to);
    if tmpfs.read_only {
        mount_remount(place, flags | MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

/// Opens the image's directory at that path, if it exists.
fn open_inside(root: &Path, path: &Path) -> io::Result<Option<OwnedFd>> {
    let root = open_directory(root)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, path, flags, Mode::empty(), inside) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
