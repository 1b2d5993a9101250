//! Copies a directory of the image into a tmpfs.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Maximum depth of directories, as in an image.
const MAX_DEPTH: usize = 256;
/// Extended attribute that is copied, besides `user.*`.
const FILE_CAPABILITIES: &[u8] = b"security.capability";
/// Unit of memory that a file takes.
const PAGE_SIZE: u64 = 4096;
/// Memory of an inode and its name, rounded up.
const INODE_SIZE: u64 = 2048;
/// The kernel's limit for one value and for the list of names.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Copies the content and the metadata of directory `from` to `to`. `left` is the number of bytes that may still be
/// copied.
pub fn copy_up(from: &OwnedFd, to: &OwnedFd, left: &mut u64) -> io::Result<()> {
    copy_content(from, to, left)?;
    copy_metadata(from, to, &rustix::fs::fstat(from)?)
}

/// Opens a directory.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn copy_content(from: &OwnedFd, to: &OwnedFd, left: &mut u64) -> io::Result<()> {
    let mut copy = CopyUp {
        root: to,
        links: HashMap::new(),
        left,
    };
    copy.directory(from, to, Path::new(""), 0)
}

/// Copies the content of directories.
struct CopyUp<'a> {
    /// Root directory of the copy.
    root: &'a OwnedFd,
    /// The first copy of every file with several hard links, relative to `root`.
    links: HashMap<(u64, u64), PathBuf>,
    /// Number of bytes that may still be copied.
    left: &'a mut u64,
}

impl CopyUp<'_> {
    /// Copies the content of a directory. `path` is relative to `root`.
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
        self.reserve(size)?;
        if kind == FileType::Directory {
            let from = open(from, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let to = open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.directory(&from, &to, path, depth + 1)?;
            return copy_metadata(&from, &to, &stat);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(rustix::fs::linkat(self.root, first, to, name, AtFlags::empty())?);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match kind {
            FileType::RegularFile => self.file(from, to, name, &stat),
            // A socket is useless without the process that listens on it.
            FileType::Socket => Ok(()),
            kind => special_file(from, to, name, kind, &stat),
        }
    }

    /// Counts the memory of an object: whole pages, and the kernel's memory for its name and inode.
    fn reserve(&mut self, size: u64) -> io::Result<()> {
        let needed = size.next_multiple_of(PAGE_SIZE) + INODE_SIZE;
        *self.left = self.left.checked_sub(needed).ok_or(Errno::NOSPC)?;
        Ok(())
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
        let mut source = File::from(open(from, name, OFlags::RDONLY)?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut copy = File::from(open(to, name, flags)?);
        io::copy(&mut source, &mut copy)?;
        copy_metadata(&source.into(), &copy.into(), stat)
    }
}

/// Copies a symbolic link, a FIFO or a device.
fn special_file(from: &OwnedFd, to: &OwnedFd, name: &[u8], kind: FileType, stat: &Stat) -> io::Result<()> {
    match kind {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
        }
        kind => rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev)?,
    }
    let (uid, gid) = owner(stat);
    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(to, name, mode(stat), AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(
        to,
        name,
        &times(stat),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Opens a name without following it.
fn open(directory: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Copies the metadata, in an order in which no step resets another.
fn copy_metadata(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
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
            // Older kernels do not support these attributes on a tmpfs.
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
        copy_content(&from, &to, &mut limit)
    }

    #[test]
    fn a_copy_has_the_content_and_metadata_of_the_original() {
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
        let metadata = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap();
        let directory = metadata("mysqld");
        assert_eq!(
            (directory.mode() & 0o7777, directory.uid(), directory.gid()),
            (0o2775, 345_018, 7)
        );
        assert_eq!(std::fs::read_to_string(to.join("second")).unwrap(), "content");
        assert_eq!(
            (metadata("second").ino(), metadata("second").mode() & 0o7777),
            (metadata("mysqld/sub/file").ino(), 0o4711)
        );
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        let original = std::fs::metadata(from.join("mysqld")).unwrap();
        assert_eq!(
            (directory.mtime(), directory.mtime_nsec()),
            (original.mtime(), original.mtime_nsec())
        );
    }

    #[test]
    fn a_copy_that_exceeds_the_limit_fails() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("file"), "12345678").unwrap();
        copied(from.path(), to.path(), PAGE_SIZE + INODE_SIZE).unwrap();
        let assert_full = |limit| {
            let to = tempfile::tempdir().unwrap();
            let error = copied(from.path(), to.path(), limit).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC));
        };
        assert_full(PAGE_SIZE + INODE_SIZE - 1);
        // Directories and links take memory too.
        for n in 0..8 {
            std::fs::create_dir(from.path().join(format!("directory{n}"))).unwrap();
            symlink("x", from.path().join(format!("link{n}"))).unwrap();
        }
        assert_full(PAGE_SIZE + 16 * INODE_SIZE);
    }
}
