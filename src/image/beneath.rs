//! Access to a directory tree whose entries containers replace while it is read or written.
//!
//! Every entry is opened with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)` from the root
//! of the tree (a link itself, never its target), and every later operation uses the descriptor. So nothing outside
//! the tree is read or changed, and the object that is changed is the one that was checked, even if its name now
//! leads elsewhere.
//!
//! All functions block.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;

/// The kernel's limit for the attribute names of one object, and for one attribute value.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// The tree.
pub(super) struct Beneath {
    root: OwnedFd,
    path: PathBuf,
}

/// The object that a name referred to when it was opened.
pub(super) struct Object {
    file: File,
    pub(super) metadata: Metadata,
}

impl Beneath {
    /// `path` itself must be a directory and not a link. Only root may be able to replace its parents.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // A trailing slash would follow a link.
        let path: PathBuf = path.components().collect();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| named(e, &path))?;
        Ok(Self { root, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The object at a path relative to the root (empty: the root itself). `None` if there is none: the path does not
    /// exist, leads through a link, or is longer than the kernel accepts.
    pub(super) fn object(&self, path: &Path) -> io::Result<Option<Object>> {
        let name = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = loop {
            match rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => break opened,
            }
        };
        match opened {
            Ok(fd) => Object::of(fd).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => Ok(None),
            Err(e) => Err(named(e, &self.path.join(path))),
        }
    }
}

impl Object {
    /// Of something that is open.
    pub(super) fn of(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        Ok(Self { file, metadata })
    }

    /// The descriptor, for names within a directory.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What the descriptor was opened for cannot be used for more; this name leads to the same object, a link included.
    fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// The entries of a directory.
    pub(super) fn children(&self) -> io::Result<fs_err::ReadDir> {
        fs_err::read_dir(self.proc_path())
    }

    /// Target of a link.
    pub(super) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.file, "", Vec::new())?.into_bytes())
    }

    pub(super) fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(rustix::fs::chownat(
            &self.file,
            "",
            Some(uid),
            Some(gid),
            AtFlags::EMPTY_PATH,
        )?)
    }

    /// Fails for a link, which has no mode of its own.
    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::chmod(self.proc_path(), Mode::from_raw_mode(mode))?)
    }

    pub(super) fn attribute_names(&self) -> io::Result<Vec<String>> {
        let mut buffer = vec![0; MAX_ATTRIBUTE];
        let length = match rustix::fs::listxattr(self.proc_path(), &mut buffer[..]) {
            Err(Errno::OPNOTSUPP) => 0,
            length => length?,
        };
        let names = buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    pub(super) fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; MAX_ATTRIBUTE];
        match rustix::fs::getxattr(self.proc_path(), name, &mut buffer[..]) {
            Ok(length) => Ok(Some(buffer[..length].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn set_attribute(&self, name: &str, value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::setxattr(
            self.proc_path(),
            name,
            value,
            XattrFlags::empty(),
        )?)
    }
}

fn named(errno: Errno, path: &Path) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
