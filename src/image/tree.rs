//! A directory tree that is filled by an archive nobody trusts.
//!
//! Every directory is opened beneath the root with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: symbolic links,
//! absolute ones and `..` included, mean what they would mean inside a container. Within an open directory, names are
//! single components and the last link is never followed. So whatever the names say, nothing outside is touched.
//!
//! Handles of directories are cached, because an archive names the same parent many times in a row. The cache is
//! dropped whenever a directory or a link goes away, since both can change what a path means.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

/// Marks a directory that hides the same directory of lower layers (overlayfs).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// Deepest nesting of directories, and most components of a name. Keeps walks over the tree, ours and others', bounded.
pub(crate) const MAX_DEPTH: usize = 256;
/// Most handles held for one tree; several trees are filled at once.
const MAX_CACHED: usize = 64;
/// As in the kernel.
const MAX_LINKS: u32 = 40;

/// Why an entry cannot be placed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// The archive asks for what cannot be.
    #[error("{0}")]
    Refused(String),
    /// The file system failed.
    #[error("{0}")]
    System(String),
}

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Directory,
    Symlink,
    /// A character device 0:0: the name is hidden from lower layers.
    Whiteout,
    Other,
}

impl Existing {
    fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice if stat.st_rdev == 0 => Self::Whiteout,
            _ => Self::Other,
        }
    }
}

/// The tree.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    /// Where the root is. For the check of depths only.
    root_path: PathBuf,
    cache: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// How many directories were made that no entry described.
    pub implied: u64,
}

impl Tree {
    pub(crate) fn new(root_path: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(root_path, flags, Mode::empty());
        Ok(Self {
            root: Rc::new(root.map_err(|e| error(e, root_path.as_os_str().as_bytes()))?),
            root_path: root_path.to_owned(),
            cache: HashMap::new(),
            implied: 0,
        })
    }

    /// The directory at a clean path (no `.`, no `..`, no slash at either end), made with its parents if it is not
    /// there. The empty path is the root.
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, TreeError> {
        self.directory_through(path, MAX_LINKS)
    }

    fn directory_through(&mut self, path: &[u8], links: u32) -> Result<Rc<OwnedFd>, TreeError> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(fd) = self.cache.get(path) {
            return Ok(fd.clone());
        }
        let fd = match self.open(path) {
            // ENOTDIR: one of the components may be a whiteout of this layer.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.make(path, links)?;
                self.open(path)
            }
            result => result,
        };
        let fd = Rc::new(fd.map_err(|e| error(e, path))?);
        self.check_depth(&fd, path)?;
        if self.cache.len() == MAX_CACHED {
            self.cache.clear();
        }
        self.cache.insert(path.to_owned(), fd.clone());
        Ok(fd)
    }

    /// The directory at a clean path, if it is there.
    pub(crate) fn existing_directory(&self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        match path {
            [] => Ok(self.root.clone()),
            path => self.open(path).map(Rc::new),
        }
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // EAGAIN: something was renamed on this machine while a `..` was resolved.
            match rustix::fs::openat2(&*self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Makes the directory at `path`, whose last component is missing, a whiteout, or a link to nowhere.
    fn make(&mut self, path: &[u8], links: u32) -> Result<(), TreeError> {
        let (parent_path, name) = split(path);
        let parent = self.directory_through(parent_path, links)?;
        self.implied += 1;
        match rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => return set_mode(&parent, name, 0o755).map_err(|e| error(e, path)),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(error(e, path)),
        }
        match look(&parent, name).map_err(|e| error(e, path))? {
            Some(Existing::Directory) | None => Ok(()),
            Some(Existing::Whiteout) => {
                self.make_directory(&parent, name).map_err(|e| error(e, path))?;
                set_mode(&parent, name, 0o755).map_err(|e| error(e, path))
            }
            Some(Existing::Symlink) if links == 0 => Err(error(Errno::LOOP, path)),
            Some(Existing::Symlink) => {
                let target = rustix::fs::readlinkat(&*parent, name, Vec::new()).map_err(|e| error(e, path))?;
                let target = target.as_bytes();
                let target = match target.first() {
                    Some(b'/') => target.to_owned(),
                    _ => [parent_path, b"/", target].concat(),
                };
                self.directory_through(&within_root(&target), links - 1).map(drop)
            }
            Some(Existing::Other) => Err(error(Errno::NOTDIR, path)),
        }
    }

    /// Makes a directory with mode 0700, or keeps the one that is there; anything else gives way. In the place of a
    /// whiteout the new one hides lower layers.
    pub(crate) fn make_directory(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let made = rustix::fs::mkdirat(parent, name, Mode::RWXU);
        if made != Err(Errno::EXIST) {
            return made;
        }
        let existing = look(parent, name)?;
        if existing == Some(Existing::Directory) {
            return Ok(());
        }
        self.remove(parent, name)?;
        rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
        match existing {
            Some(Existing::Whiteout) => set_opaque(&open_directory(parent, name)?),
            _ => Ok(()),
        }
    }

    /// Runs `make`; if the name is taken, removes what is there and runs it again.
    pub(crate) fn replace<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                make()
            }
            result => result,
        }
    }

    /// Removes what stands at a name, with all beneath it.
    fn remove(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let existing = look(parent, name)?;
        if matches!(existing, Some(Existing::Directory | Existing::Symlink)) {
            self.cache.clear();
        }
        match existing {
            Some(Existing::Directory) => {
                // The standard library's removal never follows links, and the depth of the tree is bounded.
                let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
                fs_err::remove_dir_all(Path::new(&path).join(OsStr::from_bytes(name)))
                    .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            }
            Some(_) => rustix::fs::unlinkat(parent, name, AtFlags::empty()),
            None => Ok(()),
        }
    }

    /// Links can make the real place of a directory much deeper than its name.
    fn check_depth(&self, fd: &OwnedFd, path: &[u8]) -> Result<(), TreeError> {
        let real = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
        let real = real.map_err(|e| error(e, path))?;
        let beneath = Path::new(OsStr::from_bytes(real.as_bytes())).strip_prefix(&self.root_path);
        match beneath {
            Ok(beneath) if beneath.components().count() <= MAX_DEPTH => Ok(()),
            Ok(_) => Err(TreeError::Refused(format!(
                "directories are nested more than {MAX_DEPTH} deep at {}",
                lossy(path)
            ))),
            Err(_) => Err(TreeError::Refused(format!("{} is outside the root", lossy(path)))),
        }
    }
}

/// The parent's path and the last component of a clean path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A path as the kernel walks it with `RESOLVE_IN_ROOT`, as far as that can be told without looking: `..` stops at the
/// root.
fn within_root(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// What stands at a name of a directory.
pub(crate) fn look(parent: &OwnedFd, name: &[u8]) -> Result<Option<Existing>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Existing::of(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A readable handle of a directory by its name, which is not followed.
pub(crate) fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Makes a directory hide what lower layers have there.
pub(crate) fn set_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
}

/// Whether a directory hides what lower layers have there.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0; 1];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]).is_ok() && value == *b"y"
}

/// Sets the mode of something that is not a link.
pub(crate) fn set_mode(parent: &OwnedFd, name: &[u8], mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Tells whose fault an error is.
pub(crate) fn error(errno: Errno, path: &[u8]) -> TreeError {
    let message = format!("{}: {}", lossy(path), io::Error::from(errno));
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS | Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
            TreeError::System(message)
        }
        _ => TreeError::Refused(message),
    }
}

pub(crate) fn lossy(path: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(path)
}
