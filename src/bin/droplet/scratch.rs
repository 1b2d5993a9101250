//! File systems in memory, made and filled before the container exists.
//!
//! Each is mounted at a private place in the monitor's own mount namespace, gets a copy of what the image has at its
//! destination, and is bound into the container like the user's directories are. The copy follows no link, and nothing
//! else changes the image meanwhile.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use condenser::runtime::tmpfs::{Tmpfs, TmpfsError};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};
use serde_json::{Value, json};

use crate::bundle::Bind;
use crate::rootfs;

/// Deepest nesting of directories that is copied: that of an image.
const MAX_DEPTH: usize = 256;
/// Mode where the image has nothing, as of the directory that programs share.
const SHARED: u32 = 0o1777;
/// Attributes that are copied: `user.*` and this one.
const FILE_CAPABILITIES: &[u8] = b"security.capability";
/// What a file in memory takes is counted in these units of bytes.
const PAGE: u64 = 4096;
/// Bytes of an inode with its name, rounded up.
const INODE: u64 = 2048;
/// The kernel's limit of one value, and of all names.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Why there is no such file system.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// Its text is wrong, or links of the image lead it to where nothing may be.
    #[error(transparent)]
    Refused(#[from] TmpfsError),
    /// The image has too much there.
    #[error("tmpfs {}: what the image has there does not fit; raise its size and the memory of the container, or say notmpcopyup", .0.display())]
    Full(PathBuf),
    /// Anything else.
    #[error("tmpfs {}: {source}", place.display())]
    System {
        /// Where it belongs.
        place: PathBuf,
        /// Reason.
        source: io::Error,
    },
}

/// A file system that is ready, and where it belongs in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// Where it is mounted.
    pub source: PathBuf,
    /// In the container, without symbolic links.
    pub destination: PathBuf,
    read_only: bool,
    exec: bool,
}

impl Scratch {
    /// Where it is and where it belongs, as of a bind mount.
    pub fn to_bind(&self) -> Bind {
        Bind {
            source: self.source.clone(),
            destination: self.destination.clone(),
        }
    }

    /// The entry of `mounts` that binds it.
    pub fn to_mount(&self) -> Value {
        let mut options = vec!["rbind", "rprivate", "nosuid", "nodev"];
        options.extend((!self.exec).then_some("noexec"));
        options.extend(self.read_only.then_some("ro"));
        json!({ "destination": self.destination, "type": "bind", "source": self.source, "options": options })
    }
}

/// Mounts them below `directory` for a container whose root file system is at `root`. At most `limit` bytes are copied
/// from the image: they are in memory that no group of the container counts.
pub fn stage(all: &[Tmpfs], directory: &Path, root: &Path, limit: u64) -> Result<Vec<Scratch>, ScratchError> {
    let mut left = limit;
    let staged = all.iter().enumerate().map(|(n, tmpfs)| {
        let place = directory.join(format!("tmpfs{n}"));
        let failed = |e: io::Error| match Errno::from_io_error(&e) {
            Some(Errno::NOSPC) => ScratchError::Full(tmpfs.destination.clone()),
            _ => ScratchError::System {
                place: tmpfs.destination.clone(),
                source: e,
            },
        };
        let resolved = rootfs::resolve(root, &tmpfs.destination).map_err(failed)?;
        let resolved = tmpfs.clone().with_destination(resolved)?;
        make(&resolved, &place, root, &mut left).map_err(failed)?;
        Ok(Scratch {
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
    let mut data = vec![format!("mode={SHARED:o}")];
    data.extend(tmpfs.size.as_ref().map(|size| format!("size={size}")));
    data.extend(tmpfs.inodes.map(|inodes| format!("nr_inodes={inodes}")));
    let data = std::ffi::CString::new(data.join(",")).map_err(io::Error::other)?;
    mount("tmpfs", place, "tmpfs", flags, Some(data.as_c_str()))?;
    let to = open_directory(place)?;
    if tmpfs.copy_up
        && let Some(from) = open_inside(root, &tmpfs.destination)?
    {
        let mut copy = Copy {
            root: &to,
            links: HashMap::new(),
            left,
        };
        copy.directory(&from, &to, Path::new(""), 0)?;
        describe(&from, &to, &rustix::fs::fstat(&from)?)?;
    }
    // What is said overrules what is copied; a change of the owner may take bits of the mode.
    let mode = tmpfs.mode.unwrap_or(rustix::fs::fstat(&to)?.st_mode & 0o7777);
    rustix::fs::fchown(&to, tmpfs.uid.map(Uid::from_raw), tmpfs.gid.map(Gid::from_raw))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(mode))?;
    drop(to);
    if tmpfs.read_only {
        mount_remount(place, flags | MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The image's directory at that path, if it has one.
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

struct Copy<'a> {
    /// Root of the copy.
    root: &'a OwnedFd,
    /// The first copy of every file that has several names, relative to that root.
    links: HashMap<(u64, u64), PathBuf>,
    /// Bytes that may still be copied.
    left: &'a mut u64,
}

impl Copy<'_> {
    /// `path`: of the directory, relative to the root of the copy.
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                self.object(from, to, name, &path.join(OsStr::from_bytes(name)), depth)?;
            }
        }
        Ok(())
    }

    fn object(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], path: &Path, depth: usize) -> io::Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let size = if kind == FileType::RegularFile {
            stat.st_size as u64
        } else {
            0
        };
        self.spend(size)?;
        if kind == FileType::Directory {
            let from = open(from, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let to = open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.directory(&from, &to, path, depth + 1)?;
            return describe(&from, &to, &stat);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(rustix::fs::linkat(self.root, first, to, name, AtFlags::empty())?);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match kind {
            FileType::RegularFile => return self.file(from, to, name, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target, to, name)?;
            }
            // It means nothing without the process that listened.
            FileType::Socket => return Ok(()),
            kind => rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev)?,
        }
        let (uid, gid) = owner(&stat);
        rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(to, name, mode(&stat), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(
            to,
            name,
            &times(&stat),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// Counts what an object takes in memory: whole pages, and what the kernel needs for its name and its inode.
    fn spend(&mut self, size: u64) -> io::Result<()> {
        let needed = size.next_multiple_of(PAGE) + INODE;
        *self.left = self.left.checked_sub(needed).ok_or(Errno::NOSPC)?;
        Ok(())
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
        let mut source = File::from(open(from, name, OFlags::RDONLY)?);
        let made = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut copy = File::from(open(to, name, made)?);
        io::copy(&mut source, &mut copy)?;
        describe(&source.into(), &copy.into(), stat)
    }
}

/// Opens a name without following it.
fn open(directory: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Gives a copy what its original has, in the order in which one does not undo the other.
fn describe(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(to, uid, gid)?;
    rustix::fs::fchmod(to, mode(stat))?;
    for name in attribute_names(from)? {
        if name != FILE_CAPABILITIES && !name.starts_with(b"user.") {
            continue;
        }
        let mut value = vec![0; MAX_ATTRIBUTE];
        let length = rustix::fs::fgetxattr(from, &name[..], &mut value[..])?;
        match rustix::fs::fsetxattr(to, &name[..], &value[..length], XattrFlags::empty()) {
            // Older kernels keep no such attributes in memory.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

fn attribute_names(fd: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = vec![0; MAX_ATTRIBUTE];
    let length = match rustix::fs::flistxattr(fd, &mut buffer[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        result => result?,
    };
    let names = buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;

    fn copied(from: &Path, to: &Path, mut limit: u64) -> io::Result<()> {
        let (from, to) = (open_directory(from)?, open_directory(to)?);
        let mut copy = Copy {
            root: &to,
            links: HashMap::new(),
            left: &mut limit,
        };
        copy.directory(&from, &to, Path::new(""), 0)
    }

    #[test]
    fn a_copy_is_like_its_original() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (from.path(), to.path());
        std::fs::create_dir_all(from.join("mysqld/sub")).unwrap();
        std::fs::set_permissions(from.join("mysqld"), PermissionsExt::from_mode(0o2775)).unwrap();
        chown(from.join("mysqld"), Some(345_018), Some(7)).unwrap();
        std::fs::write(from.join("mysqld/sub/file"), "content").unwrap();
        std::fs::set_permissions(from.join("mysqld/sub/file"), PermissionsExt::from_mode(0o4711)).unwrap();
        std::fs::hard_link(from.join("mysqld/sub/file"), from.join("second")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, from.join("fifo"), Mode::RUSR).unwrap();
        copied(from, to, 1 << 20).unwrap();
        let of = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap();
        let directory = of("mysqld");
        assert_eq!(
            (directory.mode() & 0o7777, directory.uid(), directory.gid()),
            (0o2775, 345_018, 7)
        );
        assert_eq!(std::fs::read_to_string(to.join("second")).unwrap(), "content");
        assert_eq!(
            (of("second").ino(), of("second").mode() & 0o7777),
            (of("mysqld/sub/file").ino(), 0o4711)
        );
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        let original = std::fs::metadata(from.join("mysqld")).unwrap();
        assert_eq!(
            (directory.mtime(), directory.mtime_nsec()),
            (original.mtime(), original.mtime_nsec())
        );
    }

    #[test]
    fn no_more_is_copied_than_fits() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("file"), "12345678").unwrap();
        copied(from.path(), to.path(), PAGE + INODE).unwrap();
        let full = |limit| {
            let to = tempfile::tempdir().unwrap();
            let error = copied(from.path(), to.path(), limit).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC));
        };
        full(PAGE + INODE - 1);
        // What has no content takes memory too.
        for n in 0..8 {
            std::fs::create_dir(from.path().join(format!("directory{n}"))).unwrap();
            symlink("x", from.path().join(format!("link{n}"))).unwrap();
        }
        full(PAGE + 16 * INODE);
    }
}
