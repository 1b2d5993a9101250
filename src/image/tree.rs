//! A directory tree that is filled from an untrusted archive.
//!
//! Every directory is opened beneath the root with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: symbolic
//! links, including absolute ones, and `..` resolve as they would inside a container. Within an open directory, names
//! are single components and the last link is never followed. So no name can reach anything outside the root.
//!
//! Directory handles are cached, because an archive names the same parent many times in a row. The cache is dropped
//! whenever a directory or a link is removed, because both can change what a path resolves to.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::printable::printable;

/// Marks a directory that hides the same directory of lower layers (overlayfs).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// Marks a directory of a layer that entries name only as a parent, and the root of a layer that has such directories.
pub(crate) const IMPLIED: &str = "trusted.condenser.implied";
/// Carries the diff id of a layer.
pub(super) const DIFF_ID: &str = "trusted.condenser.diff_id";
/// Deepest nesting of directories, and most components of a name. Keeps walks over the tree, ours and others', bounded.
pub(crate) const MAX_DEPTH: usize = 256;
/// Maximum number of cached handles per tree; several trees are filled at once.
const MAX_CACHED: usize = 64;
/// The kernel's limit.
const MAX_LINKS: u32 = 40;
/// Maximum number of components that one name may expand to through links. No legitimate name needs more.
const MAX_STEPS: u32 = 4096;

/// Why an entry cannot be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// The archive is invalid or malicious.
    #[error("{0}")]
    Refused(String),
    /// The file system failed.
    #[error("{0}")]
    System(String),
}

/// The existing object at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Directory,
    Symlink,
    /// A character device 0:0: the name is hidden from lower layers.
    Whiteout,
    Other,
}

impl Existing {
    pub(crate) fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice if stat.st_rdev == 0 => Self::Whiteout,
            _ => Self::Other,
        }
    }
}

/// Called before a regular file loses a name, with the directory, the name and the number of its inode.
pub(crate) type BeforeRemoval = Box<dyn FnMut(&OwnedFd, &[u8], u64) -> Result<(), Errno>>;

/// A directory of the tree and its path relative to the root, without links.
#[derive(Clone)]
pub(crate) struct Place {
    pub directory: Rc<OwnedFd>,
    pub path: Rc<[u8]>,
}

/// The tree.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    /// Path of the root, without links.
    root_path: PathBuf,
    cache: HashMap<Vec<u8>, Place>,
    /// Number of directories that were created without an entry of their own.
    pub implied: u64,
    /// Whether those are marked.
    pub marks_implied: bool,
    /// Sees every regular file that is replaced or removed.
    pub before_removal: Option<BeforeRemoval>,
}

impl Tree {
    pub(crate) fn new(root_path: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fail = |e| error(e, root_path.as_os_str().as_bytes());
        let root = rustix::fs::open(root_path, flags, Mode::empty()).map_err(fail)?;
        Ok(Self {
            root_path: real_path(&root).map_err(fail)?,
            root: Rc::new(root),
            cache: HashMap::new(),
            implied: 0,
            marks_implied: false,
            before_removal: None,
        })
    }

    /// The directory at a clean path (no `.`, no `..`, no slash at either end), created with its parents if it does
    /// not exist. The empty path is the root.
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, TreeError> {
        self.place(path).map(|place| place.directory)
    }

    /// The same, with the path that it has without links.
    pub(crate) fn place(&mut self, path: &[u8]) -> Result<Place, TreeError> {
        if path.is_empty() {
            let (directory, path) = (self.root.clone(), Rc::from([]));
            return Ok(Place { directory, path });
        }
        if let Some(place) = self.cache.get(path) {
            return Ok(place.clone());
        }
        let fd = match self.open(path) {
            // ENOTDIR: one of the components may be a whiteout of this layer.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make(path)?,
            result => Rc::new(result.map_err(|e| error(e, path))?),
        };
        let place = Place {
            path: self.path_of(&fd, path)?,
            directory: fd,
        };
        if self.cache.len() == MAX_CACHED {
            self.cache.clear();
        }
        self.cache.insert(path.to_owned(), place.clone());
        Ok(place)
    }

    /// The directory at a clean path, if it exists.
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
            // EAGAIN: a rename elsewhere on this machine raced with the resolution of a `..`.
            match rustix::fs::openat2(&*self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Walks `path` as the kernel does with `RESOLVE_IN_ROOT` and creates missing directories on the way: where
    /// nothing exists, in place of a whiteout, or where a link dangles. Iterative rather than recursive, because
    /// links may lead through any number of names.
    fn make(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, TreeError> {
        let fail = |e| error(e, path);
        let (mut links, mut steps) = (0, 0);
        let mut here = self.root.clone();
        // The real path of `here`, and the components still to walk, the next one last.
        let mut trail: Vec<Vec<u8>> = Vec::new();
        let mut ahead: Vec<Vec<u8>> = components(path).map(<[u8]>::to_owned).rev().collect();
        while let Some(name) = ahead.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(fail(Errno::NAMETOOLONG));
            }
            if trail.len() > MAX_DEPTH {
                return Err(too_deep(path));
            }
            if name == b".." {
                trail.pop();
                here = self.existing_directory(&trail.join(&b'/')).map_err(fail)?;
                continue;
            }
            let existing = look(&here, &name).map_err(fail)?;
            match existing {
                Some(Existing::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(fail(Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&*here, &name[..], Vec::new()).map_err(fail)?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        trail.clear();
                        here = self.root.clone();
                    }
                    ahead.extend(components(target).map(<[u8]>::to_owned).rev());
                    continue;
                }
                Some(Existing::Directory) => {}
                Some(Existing::Other) => return Err(fail(Errno::NOTDIR)),
                None | Some(Existing::Whiteout) => {
                    self.implied += 1;
                    self.make_directory(&here, &name).map_err(fail)?;
                    set_mode(&here, &name, 0o755).map_err(fail)?;
                    if self.marks_implied {
                        open_directory(&*here, &name)
                            .and_then(|made| set_attribute(&made, IMPLIED.as_bytes(), b"y"))
                            .map_err(fail)?;
                    }
                }
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            here = Rc::new(rustix::fs::openat(&*here, &name[..], flags, Mode::empty()).map_err(fail)?);
            trail.push(name);
        }
        Ok(here)
    }

    /// Creates a directory with mode 0700 or keeps an existing one; any other object is replaced. A directory that
    /// replaces a whiteout is opaque.
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

    /// Runs `make`; if the name is taken, removes the object there and runs it again.
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

    /// Removes the object at a name of the root, recursively.
    pub(crate) fn discard(&mut self, name: &[u8]) -> Result<(), TreeError> {
        let root = self.root.clone();
        self.remove(&root, name).map_err(|e| error(e, name))
    }

    /// Removes the object at a name, recursively.
    fn remove(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let existing = look(parent, name)?;
        if matches!(existing, Some(Existing::Directory | Existing::Symlink)) {
            self.cache.clear();
        }
        if let Some(before) = &mut self.before_removal {
            announce(before, parent, name)?;
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

    /// Path of a directory relative to the root. Links can make it much deeper than its name.
    fn path_of(&self, fd: &OwnedFd, path: &[u8]) -> Result<Rc<[u8]>, TreeError> {
        let real = real_path(fd).map_err(|e| error(e, path))?;
        let beneath = real.strip_prefix(&self.root_path);
        match beneath {
            Ok(beneath) if beneath.components().count() <= MAX_DEPTH => Ok(beneath.as_os_str().as_bytes().into()),
            Ok(_) => Err(too_deep(path)),
            Err(_) => Err(TreeError::Refused(format!("{} is outside the root", printable(path)))),
        }
    }
}

/// Tells of each regular file at or beneath a name. The depth of the tree is bounded.
fn announce(before: &mut BeforeRemoval, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => before(parent, name, stat.st_ino),
        FileType::Directory => {
            let directory = open_directory(parent, name)?;
            for entry in rustix::fs::Dir::read_from(&directory)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if !matches!(&name[..], b"." | b"..") {
                    announce(before, &directory, &name)?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The parent's path and the last component of a clean path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn too_deep(path: &[u8]) -> TreeError {
    TreeError::Refused(format!(
        "directories are nested more than {MAX_DEPTH} deep at {}",
        printable(path)
    ))
}

/// Names and `..`, without `.` and empty components.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

/// Path of an open directory.
fn real_path(directory: &OwnedFd) -> Result<PathBuf, Errno> {
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", directory.as_raw_fd()), Vec::new())?;
    Ok(std::ffi::OsString::from_vec(path.into_bytes()).into())
}

/// The object at a name of a directory.
pub(crate) fn look(parent: &OwnedFd, name: &[u8]) -> Result<Option<Existing>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Existing::of(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A readable handle of a directory by its name; a link is not followed.
pub(crate) fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Makes a directory opaque: it hides the same directory of lower layers.
pub(crate) fn set_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    set_attribute(directory, OPAQUE.as_bytes(), b"y")
}

/// Sets an extended attribute. `TOOBIG` if the file system has no room for the attributes of the object.
pub(crate) fn set_attribute(fd: &OwnedFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
        // Some file systems report this with the error for a full disk.
        Err(Errno::NOSPC) => {
            let file_system = rustix::fs::fstatvfs(fd)?;
            let full = file_system.f_bavail == 0 || file_system.f_favail == 0;
            Err(if full { Errno::NOSPC } else { Errno::TOOBIG })
        }
        result => result,
    }
}

/// Whether a directory is opaque.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0; 1];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]).is_ok() && value == *b"y"
}

/// Sets the mode of an object that is not a link.
pub(crate) fn set_mode(parent: &OwnedFd, name: &[u8], mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Separates errors of the archive from errors of the file system.
pub(crate) fn error(errno: Errno, path: &[u8]) -> TreeError {
    let reason = io::Error::from(errno).to_string();
    // Without the error number.
    let reason = reason.split(" (os error").next().unwrap_or_default();
    let message = format!("{}: {reason}", printable(path));
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS | Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
            TreeError::System(message)
        }
        _ => TreeError::Refused(message),
    }
}
