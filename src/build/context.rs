//! The build context: an archive that nobody trusts, as a directory of its own.
//!
//! Directories, regular files, hard links to them and symbolic links are taken, with their modes and times, owned by
//! root. Everything else is passed over. All paths are resolved beneath the directory, links included
//! ([`Tree`](crate::image::tree::Tree)), when it is filled and when it is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::{Buf, Bytes};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::image::archive::{Archive, Entry, Kind};
use crate::image::printable::printable;
use crate::image::tree::{self, Tree, TreeError, split};

/// Longest name of an entry: the kernel's `PATH_MAX` without its final zero.
const MAX_PATH: usize = 4095;

/// How much is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of the archive.
    pub bytes: u64,
    /// Entries, passed over or not.
    pub entries: u64,
}

/// Why a context is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Not an archive, a name that leaves it, or what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Over a limit.
    #[error("{0}")]
    TooLarge(String),
    /// The file system failed.
    #[error("{0}")]
    System(String),
}

impl From<TreeError> for ContextError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Refused(message) => Self::Invalid(message),
            TreeError::System(message) => Self::System(message),
        }
    }
}

/// Fills the empty directory `root`.
pub(super) fn unpack(archive: impl Read, root: &Path, limits: Limits) -> Result<(), ContextError> {
    let read = |e: io::Error| match e.kind() {
        io::ErrorKind::FileTooLarge => ContextError::TooLarge(e.to_string()),
        _ => ContextError::Invalid(e.to_string()),
    };
    let mut archive = Archive::new(Capped {
        reader: archive,
        left: limits.bytes,
        limit: limits.bytes,
    });
    let mut tree = Tree::new(root)?;
    let mut entries = 0;
    while let Some(entry) = archive.next().map_err(read)? {
        entries += 1;
        if entries + tree.implied > limits.entries {
            let message = format!("it has more than {} entries (max_context_entries)", limits.entries);
            return Err(ContextError::TooLarge(message));
        }
        let path = clean(&entry.path).filter(|path| path.len() <= MAX_PATH);
        let path = path.ok_or_else(|| ContextError::Invalid(format!("invalid path: {}", printable(&entry.path))))?;
        if matches!(entry.kind, Kind::File) && !path.is_empty() {
            write_file(&mut tree, &mut archive, &entry, &path, read)?;
        } else {
            place(&mut tree, &entry, &path)?;
        }
    }
    Ok(())
}

fn write_file<R: Read>(
    tree: &mut Tree,
    archive: &mut Archive<Capped<R>>,
    entry: &Entry,
    path: &[u8],
    read: impl Fn(io::Error) -> ContextError,
) -> Result<(), ContextError> {
    let (parent, name) = split(path);
    let parent = tree.directory(parent)?;
    let mut file = new_file(tree, &parent, name).map_err(|e| tree::error(e, path))?;
    io::copy(archive, &mut file).map_err(read)?;
    finish_file(&file, entry.mode, times(entry)).map_err(|e| tree::error(e, path).into())
}

fn place(tree: &mut Tree, entry: &Entry, path: &[u8]) -> Result<(), ContextError> {
    let (parent, name) = split(path);
    if name.is_empty() {
        return Ok(());
    }
    let fail = |e| tree::error(e, path);
    match &entry.kind {
        Kind::Directory => {
            let parent = tree.directory(parent)?;
            tree.make_directory(&parent, name).map_err(fail)?;
            tree::set_mode(&parent, name, entry.mode | 0o700).map_err(fail)?;
        }
        Kind::Symlink(target) => {
            let parent = tree.directory(parent)?;
            let link = || rustix::fs::symlinkat(&target[..], &*parent, name);
            tree.replace(&parent, name, link).map_err(fail)?;
        }
        Kind::HardLink(target) => {
            let clean =
                clean(target).ok_or_else(|| ContextError::Invalid(format!("invalid path: {}", printable(target))))?;
            let (target_parent, target_name) = split(&clean);
            let parent = tree.directory(parent)?;
            let target_parent = tree.existing_directory(target_parent).map_err(fail)?;
            let link = || rustix::fs::linkat(&*target_parent, target_name, &*parent, name, AtFlags::empty());
            tree.replace(&parent, name, link).map_err(fail)?;
        }
        Kind::File | Kind::Character(..) | Kind::Block(..) | Kind::Fifo => {}
    }
    Ok(())
}

/// A new, empty file in the place of whatever is there.
pub(super) fn new_file(tree: &mut Tree, parent: &OwnedFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
    tree.replace(parent, name, open).map(File::from)
}

/// Mode and times of a file that was written.
pub(super) fn finish_file(file: &File, mode: u32, times: Timestamps) -> Result<(), Errno> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777))?;
    rustix::fs::futimens(file, &times)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: entry.mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Opens what a path of the context means. Links, absolute ones too, are resolved within it.
pub(super) fn open(root: &Path, path: &str) -> Result<OwnedFd, Errno> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    let path = if path.is_empty() { "." } else { path };
    // Only files, directories and links are in a context: reading cannot wait for anybody.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A path without `.` and `..`. `None` when it is absolute or climbs out.
pub(super) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!path.starts_with(b"/")).then(|| parts.join(&b'/'))
}

/// Gives an error instead of more than `limit` bytes.
struct Capped<R> {
    reader: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let message = format!("it is larger than {} bytes (max_context_bytes)", self.limit);
            io::Error::new(io::ErrorKind::FileTooLarge, message)
        })?;
        Ok(read)
    }
}

/// What comes through a channel, for blocking threads.
pub(super) struct ChannelReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl ChannelReader {
    pub(super) fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
        }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(piece) = self.pieces.blocking_recv() else {
                return Ok(0);
            };
            self.current = piece?;
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tar::{EntryType, Header};

    use super::*;

    const LIMITS: Limits = Limits {
        bytes: 1 << 20,
        entries: 100,
    };

    fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, name, content) in entries {
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            let (link, data) = if is_link { (*content, "") } else { ("", *content) };
            let mut header = Header::new_ustar();
            let block = header.as_mut_bytes();
            block[..name.len()].copy_from_slice(name.as_bytes());
            block[157..157 + link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o750);
            header.set_uid(7);
            header.set_gid(7);
            header.set_mtime(9);
            header.set_size(data.len() as u64);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(data.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    fn unpacked(entries: &[(EntryType, &str, &str)]) -> Result<tempfile::TempDir, String> {
        let root = tempfile::tempdir().unwrap();
        unpack(&archive(entries)[..], root.path(), LIMITS).map_err(|e| e.to_string())?;
        Ok(root)
    }

    fn read(root: &tempfile::TempDir, path: &str) -> Result<String, Errno> {
        let mut text = String::new();
        File::from(open(root.path(), path)?).read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn files_directories_and_links_are_taken() {
        let root = unpacked(&[
            (EntryType::Directory, "./", ""),
            (EntryType::Regular, "./a/b", "1"),
            (EntryType::Link, "a/c", "./a/b"),
            (EntryType::Symlink, "d", "a/b"),
            (EntryType::Fifo, "fifo", ""),
            (EntryType::Regular, "x/../y", "2"),
        ])
        .unwrap();
        for path in ["a/b", "a/c", "d"] {
            assert_eq!(read(&root, path).unwrap(), "1", "{path}");
        }
        assert_eq!(read(&root, "y").unwrap(), "2");
        assert_eq!(read(&root, "fifo"), Err(Errno::NOENT));
        let metadata = std::fs::metadata(root.path().join("a/b")).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.mode() & 0o7777, metadata.mtime()),
            (0, 0o750, 9)
        );
    }

    #[test]
    fn names_that_leave_are_refused() {
        for name in ["../evil", "/evil", "a/../../evil"] {
            let error = unpacked(&[(EntryType::Regular, name, "x")]).unwrap_err();
            assert_eq!(error, format!("invalid path: {name}"));
        }
        unpacked(&[(EntryType::Link, "a", "../../etc/passwd")]).unwrap_err();
    }

    #[test]
    fn links_lead_nowhere_but_into_the_context() {
        let victim = tempfile::tempdir().unwrap();
        let outside = victim.path().to_str().unwrap();
        let root = unpacked(&[
            (EntryType::Symlink, "out", outside),
            (EntryType::Regular, "out/file", "1"),
            (EntryType::Symlink, "passwd", "/etc/passwd"),
            (EntryType::Symlink, "up", "../../../../../../etc/passwd"),
        ])
        .unwrap();
        assert_eq!(std::fs::read_dir(victim.path()).unwrap().count(), 0);
        assert_eq!(read(&root, "out/file").unwrap(), "1");
        assert_eq!(read(&root, "passwd"), Err(Errno::NOENT));
        assert_eq!(read(&root, "up"), Err(Errno::NOENT));
    }

    #[test]
    fn what_is_no_archive_or_too_much() {
        let refused = |bytes: &[u8], limits| unpack(bytes, tempfile::tempdir().unwrap().path(), limits).unwrap_err();
        assert!(matches!(
            refused(b"this is not a tar", LIMITS),
            ContextError::Invalid(_)
        ));
        assert!(matches!(refused(&[b'x'; 2048], LIMITS), ContextError::Invalid(_)));
        let two = archive(&[(EntryType::Regular, "a", "1"), (EntryType::Regular, "b", "2")]);
        assert!(matches!(
            refused(&two[..1024], Limits { bytes: 1000, ..LIMITS }),
            ContextError::TooLarge(_)
        ));
        assert!(matches!(
            refused(&two, Limits { entries: 1, ..LIMITS }),
            ContextError::TooLarge(_)
        ));
        assert!(matches!(refused(&two[..512], LIMITS), ContextError::Invalid(_)));
    }
}
