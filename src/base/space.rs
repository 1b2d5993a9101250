//! How much space a directory tree takes on disk: allocated blocks, each inode once.
//!
//! Others may change the tree meanwhile, or be hostile: no link is followed, another file system is not entered, and what
//! vanishes during the walk is not counted.
//!
//! All functions block.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

/// Directories nested deeper are counted, but not what is in them. Each level may hold a descriptor.
const MAX_DEPTH: usize = 256;
/// Size of the buffer for directory entries, in bytes.
const BUFFER: usize = 32 << 10;

/// What to count of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Everything.
    All,
    /// Directories only: the rest are further names of files that are counted elsewhere.
    Directories,
}

/// Adds up the space of one or more trees. An inode that is met twice counts once.
#[derive(Debug, Default)]
pub struct Space {
    bytes: u64,
    seen: HashSet<(u64, u64)>,
}

/// A directory that is still to be read.
struct Ahead {
    parent: Rc<OwnedFd>,
    name: Vec<u8>,
    depth: usize,
}

impl Space {
    /// The bytes on disk so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds what is at `path`. Something that does not exist has no size.
    pub fn add(&mut self, path: &Path, counted: Counted) -> io::Result<()> {
        let named = |e: Errno| {
            let error = io::Error::from(e);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let stat = match rustix::fs::lstat(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            stat => stat.map_err(named)?,
        };
        self.count(&stat, counted);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        match open(rustix::fs::CWD, path) {
            Ok(root) => self.walk(root, stat.st_dev, counted).map_err(named),
            Err(e) if has_changed(e) => Ok(()),
            Err(e) => Err(named(e)),
        }
    }

    fn walk(&mut self, root: OwnedFd, device: u64, counted: Counted) -> Result<(), Errno> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut ahead = Vec::new();
        self.read(Rc::new(root), 0, device, counted, &mut buffer, &mut ahead)?;
        while let Some(Ahead { parent, name, depth }) = ahead.pop() {
            match open(&*parent, &name[..]) {
                // Release the parent first: a chain of directories then needs few descriptors.
                Ok(directory) => {
                    drop(parent);
                    self.read(Rc::new(directory), depth, device, counted, &mut buffer, &mut ahead)?;
                }
                Err(e) if has_changed(e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Counts the entries of one directory.
    fn read(
        &mut self,
        directory: Rc<OwnedFd>,
        depth: usize,
        device: u64,
        counted: Counted,
        buffer: &mut [MaybeUninit<u8>],
        ahead: &mut Vec<Ahead>,
    ) -> Result<(), Errno> {
        let mut entries = RawDir::new(&*directory, buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // It was removed after it had been opened.
                Err(Errno::NOENT) => break,
                entry => entry?,
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_directory = entry.file_type() == FileType::Directory;
            if counted == Counted::Directories && !is_directory && entry.file_type() != FileType::Unknown {
                continue;
            }
            let stat = match rustix::fs::statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            self.count(&stat, counted);
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory && stat.st_dev == device && depth < MAX_DEPTH {
                ahead.push(Ahead {
                    parent: directory.clone(),
                    name: name.to_bytes().to_vec(),
                    depth: depth + 1,
                });
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat, counted: Counted) {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if counted == Counted::Directories && !is_directory {
            return;
        }
        if is_directory || stat.st_nlink == 1 || self.seen.insert((stat.st_dev, stat.st_ino)) {
            self.bytes = self.bytes.saturating_add(stat.st_blocks as u64 * 512);
        }
    }
}

/// The space of one tree in bytes; 0 if it does not exist.
pub fn used(path: &Path) -> io::Result<u64> {
    let mut space = Space::default();
    space.add(path, Counted::All)?;
    Ok(space.bytes())
}

/// What a file system has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Bytes that may still be written.
    pub bytes: u64,
    /// Objects that may still be created. `u64::MAX` where there is no such limit.
    pub objects: u64,
    /// How many objects it can have in all.
    pub objects_total: u64,
    /// Size of the file system in bytes.
    pub total_bytes: u64,
}

/// What the file system of a directory has left for everybody but its administrator.
pub fn free(directory: impl std::os::fd::AsFd) -> io::Result<Free> {
    let stat = rustix::fs::fstatvfs(directory)?;
    Ok(Free {
        bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        // File systems that make inodes as they need them (Btrfs) say that they have none.
        objects: if stat.f_files == 0 { u64::MAX } else { stat.f_favail },
        objects_total: stat.f_files,
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

fn open(parent: impl std::os::fd::AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Whether something else than the directory that was seen is there now, or nothing.
fn has_changed(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn blocks_count_once_and_holes_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(root.join("a/b/file"), root.join("again")).unwrap();
        std::fs::File::create(root.join("hole"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let bytes = used(&root).unwrap();
        assert!((100_000..150_000).contains(&bytes), "{bytes}");
        let mut both = Space::default();
        both.add(&root, Counted::All).unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        std::fs::hard_link(root.join("again"), dir.path().join("other/third")).unwrap();
        both.add(&dir.path().join("other"), Counted::All).unwrap();
        assert!(both.bytes() < bytes + 10_000, "{} and {bytes}", both.bytes());
        let mut directories = Space::default();
        directories.add(&root, Counted::Directories).unwrap();
        assert!(directories.bytes() < 20_000);
        assert_eq!(used(&dir.path().join("nothing")).unwrap(), 0);
    }

    #[test]
    fn no_link_is_followed_and_depth_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), vec![1; 1 << 20]).unwrap();
        let root = dir.path().join("tree");
        std::fs::create_dir(&root).unwrap();
        symlink(dir.path().join("secret"), root.join("file")).unwrap();
        symlink(dir.path(), root.join("directory")).unwrap();
        assert!(used(&root).unwrap() < 20_000);
        symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(used(&dir.path().join("link")).unwrap() < 20_000);
        let mut deep = root.clone();
        for _ in 0..400 {
            deep.push("d");
            std::fs::create_dir(&deep).unwrap();
        }
        used(&root).unwrap();
    }

    #[test]
    fn a_file_system_says_what_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let free = free(std::fs::File::open(dir.path()).unwrap()).unwrap();
        assert!(free.bytes > 0 && free.bytes <= free.total_bytes && free.objects > 0);
    }
}
