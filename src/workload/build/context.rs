//! The build context: an untrusted archive, unpacked into a directory of its own.
//!
//! Directories, regular files, hard links to them and symbolic links are unpacked, with their modes and times, owned
//! by root. All other entries are skipped. All paths, including links, are resolved beneath the directory
//! ([`Tree`](crate::image::tree::Tree)), both while unpacking and while reading.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::{Buf, Bytes};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::file::Ignore;
use crate::base::cause::Cause;
use crate::image::archive::{Archive, Entry, EntryKind};
use crate::image::printable::printable;
use crate::image::tree;
use crate::image::tree::{Existing, Tree, TreeError, split};

/// Longest name of an entry: the kernel's `PATH_MAX` without its final zero.
const MAX_PATH: usize = 4095;

/// Limits of a context.
#[derive(Debug, Clone, Copy)]
pub(super) struct ContextLimits {
    /// Bytes of the archive.
    pub bytes: u64,
    /// Maximum number of entries, including skipped ones.
    pub entries: u64,
}

/// Why a context is refused.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Not an archive, a name that leaves the context, or an invalid entry.
    #[error("{0}")]
    Invalid(#[source] Cause),
    /// Over a limit.
    #[error("{0}")]
    TooLarge(#[source] Cause),
    /// The file system failed.
    #[error("{0}")]
    System(#[source] Cause),
}

impl From<TreeError> for ContextError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Refused(message) => Self::Invalid(Cause::new(message)),
            TreeError::System(message) => Self::System(Cause::new(message)),
        }
    }
}

/// Fills the empty directory `root`.
pub(super) fn unpack(archive: impl Read, root: &Path, limits: ContextLimits) -> Result<(), ContextError> {
    let read = |e: io::Error| match e.kind() {
        io::ErrorKind::FileTooLarge => ContextError::TooLarge(e.into()),
        _ => ContextError::Invalid(e.into()),
    };
    let mut archive = io::BufReader::new(archive);
    if let Some(packing) = packing(archive.fill_buf().map_err(read)?) {
        let message = format!("it is compressed with {packing}; send the tar as it is, uncompressed");
        return Err(ContextError::Invalid(Cause::new(message)));
    }
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
            return Err(ContextError::TooLarge(Cause::new(message)));
        }
        let path = clean(&entry.path).filter(|path| path.len() <= MAX_PATH);
        let path = path.ok_or_else(|| invalid_path(&entry.path))?;
        if matches!(entry.kind, EntryKind::File) && !path.is_empty() {
            write_file(&mut tree, &mut archive, &entry, &path, read)?;
        } else {
            place(&mut tree, &entry, &path)?;
        }
    }
    Ok(())
}

fn invalid_path(path: &[u8]) -> ContextError {
    ContextError::Invalid(Cause::new(format!("invalid path: {}", printable(path))))
}

/// What an archive is compressed with, by how it begins.
fn packing(beginning: &[u8]) -> Option<&'static str> {
    let magic: [(&[u8], _); 4] = [
        (&[0x1f, 0x8b], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
    ];
    let found = magic.iter().find(|(magic, _)| beginning.starts_with(magic));
    found.map(|(_, packing)| *packing)
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
        EntryKind::Directory => {
            let parent = tree.directory(parent)?;
            tree.make_directory(&parent, name).map_err(fail)?;
            tree::set_mode(&parent, name, entry.mode | 0o700).map_err(fail)?;
        }
        EntryKind::Symlink(target) => {
            let parent = tree.directory(parent)?;
            let link = || rustix::fs::symlinkat(&target[..], &*parent, name);
            tree.replace(&parent, name, link).map_err(fail)?;
        }
        EntryKind::HardLink(target) => {
            let clean = clean(target).ok_or_else(|| invalid_path(target))?;
            let (target_parent, target_name) = split(&clean);
            let parent = tree.directory(parent)?;
            let target_parent = tree.existing_directory(target_parent).map_err(fail)?;
            let link = || rustix::fs::linkat(&*target_parent, target_name, &*parent, name, AtFlags::empty());
            tree.replace(&parent, name, link).map_err(fail)?;
        }
        EntryKind::File | EntryKind::Character(..) | EntryKind::Block(..) | EntryKind::Fifo => {}
    }
    Ok(())
}

/// A new, empty file that replaces any existing object.
pub(super) fn new_file(tree: &mut Tree, parent: &OwnedFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
    tree.replace(parent, name, open).map(File::from)
}

/// Sets mode and times of a written file.
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

/// Opens a path of the context. Links, including absolute ones, are resolved within it.
pub(super) fn open(root: &Path, path: impl AsRef<[u8]>) -> Result<OwnedFd, Errno> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    let path = path.as_ref();
    let path = if path.is_empty() { b"." } else { path };
    // A context contains only files, directories and links, so reading cannot block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A path without `.` and `..`. `None` if it is absolute or leaves the context.
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

/// A path of the context without `.` and `..`; an absolute one begins at the root of the context. `None` if it leaves the
/// context.
pub(super) fn clean_within(path: &str) -> Option<String> {
    clean(path.trim_start_matches('/').as_bytes()).and_then(|path| String::from_utf8(path).ok())
}

/// Removes what is ignored, so that no step sees it.
pub(super) fn leave_out(root: &Path, ignore: &Ignore) -> Result<(), ContextError> {
    if ignore.is_empty() {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| tree::error(e, b"."))?;
    Ok(leave_out_below(&opened, b"", ignore)?)
}

fn leave_out_below(directory: &OwnedFd, path: &[u8], ignore: &Ignore) -> Result<(), TreeError> {
    let fail = |e| tree::error(e, path);
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    for name in names {
        let child = match path {
            b"" => name.clone(),
            path => [path, b"/", &name[..]].concat(),
        };
        let is_ignored = ignore.is_ignored(&child);
        let is_directory = tree::look(directory, &name).map_err(fail)? == Some(Existing::Directory);
        if is_directory && !(is_ignored && ignore.skips(&child)) {
            let opened = tree::open_directory(directory, &name).map_err(fail)?;
            leave_out_below(&opened, &child, ignore)?;
            if is_ignored {
                // Something in it may be kept, and needs it.
                match rustix::fs::unlinkat(directory, &name[..], AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                    removed => removed.map_err(fail)?,
                }
            }
        } else if is_directory {
            // The standard library's removal never follows links.
            let place = format!("/proc/self/fd/{}", directory.as_raw_fd());
            fs_err::remove_dir_all(Path::new(&place).join(OsStr::from_bytes(&name)))
                .map_err(|e| TreeError::System(e.to_string()))?;
        } else if is_ignored {
            rustix::fs::unlinkat(directory, &name[..], AtFlags::empty()).map_err(fail)?;
        }
    }
    Ok(())
}

/// Fails after more than `limit` bytes.
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

/// Reads from a channel, for blocking threads.
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

    use tar::EntryType;

    use super::*;
    use crate::image::testing::{Tar, listing};

    const LIMITS: ContextLimits = ContextLimits {
        bytes: 1 << 20,
        entries: 100,
    };

    fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let tar = Tar::new().owner(7, 7).mtime(9);
        let tar = entries.iter().fold(tar, |tar, (kind, name, content)| match kind {
            EntryType::Symlink | EntryType::Link => tar.entry(*kind, name.as_bytes(), 0o750, content.as_bytes(), b""),
            _ => tar.entry(*kind, name.as_bytes(), 0o750, b"", content.as_bytes()),
        });
        tar.build()
    }

    fn unpacked(entries: &[(EntryType, &str, &str)]) -> Result<tempfile::TempDir, String> {
        let root = tempfile::tempdir().unwrap();
        unpack(&archive(entries)[..], root.path(), LIMITS).map_err(|e| e.to_string())?;
        Ok(root)
    }

    #[rstest::rstest]
    #[case(b"\x1f\x8b\x08\0", "gzip")]
    #[case(b"\x28\xb5\x2f\xfd\0", "zstd")]
    #[case(b"BZh9", "bzip2")]
    fn a_compressed_archive_is_named(#[case] archive: &[u8], #[case] packing: &str) {
        let root = tempfile::tempdir().unwrap();
        let error = unpack(archive, root.path(), LIMITS).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("it is compressed with {packing}; send the tar as it is, uncompressed")
        );
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

    /// Unpacks the archive that `tar` builds for the path of a host directory, which must not change.
    fn attack(tar: impl FnOnce(&str) -> Tar) -> (tempfile::TempDir, Result<(), ContextError>) {
        let scratch = tempfile::tempdir().unwrap();
        let host = scratch.path().join("host");
        std::fs::create_dir_all(host.join("dir")).unwrap();
        std::fs::write(host.join("secret"), "secret").unwrap();
        let before = listing(&host);
        let root = tempfile::tempdir().unwrap();
        let result = unpack(&tar(host.to_str().unwrap()).build()[..], root.path(), LIMITS);
        assert_eq!(listing(&host), before, "the host was touched");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        (root, result)
    }

    #[rstest::rstest]
    #[case::dots(Tar::new().file("../evil", ""), "invalid path: ../evil")]
    #[case::dots_later(Tar::new().file("a/../../evil", ""), "invalid path: a/../../evil")]
    #[case::absolute(Tar::new().file("/evil", ""), "invalid path: /evil")]
    #[case::hard_link_out(Tar::new().hard_link("a", "../../etc/passwd"), "invalid path: ../../etc/passwd")]
    #[case::hard_link_to_the_host(Tar::new().hard_link("a", "/etc/passwd"), "invalid path: /etc/passwd")]
    #[case::hard_link_through_a_link(Tar::new().symlink("e", "/etc").hard_link("a", "e/passwd"), "No such file")]
    #[case::hard_link_to_a_directory(Tar::new().dir("d", 0o755).hard_link("a", "d"), "a: Operation not permitted")]
    #[case::beneath_a_file(Tar::new().file("a", "").file("a/b", ""), "a: Not a directory")]
    #[case::loops(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""), "a: Too many levels")]
    #[case::deep(Tar::new().file("d/".repeat(2000) + "x", ""), "nested more than 256 deep")]
    #[case::far_links(
        (0..40).fold(Tar::new(), |tar, n| tar.symlink(format!("l{n}"), format!("l{}{}", n + 1, "/d".repeat(2000))))
            .file("l0/x", ""),
        "nested more than 256 deep"
    )]
    #[case::long_path(Tar::new().file("n/".repeat(2100), ""), "invalid path: n/n/")]
    #[case::control_characters(Tar::new().file("/a\nb\x1b", ""), "invalid path: /a\\nb\\u{1b}")]
    #[case::zero_byte(Tar::new().pax(&[("path", b"a\0b")]).file("x", ""), "a name holds a zero byte")]
    #[case::sparse(Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("x", ""), "sparse file is not supported")]
    #[case::size(Tar::new().pax(&[("size", b"999999")]).file("x", ""), "unexpected end of file")]
    fn attacks_are_refused(#[case] tar: Tar, #[case] reason: &str) {
        match attack(|_| tar).1 {
            Err(ContextError::Invalid(why)) => assert!(why.to_string().contains(reason), "{why}"),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn endless_entries_and_parents_are_too_much() {
        for name in ["f", "a/b"] {
            let tar = (0..60).fold(Tar::new(), |tar, n| tar.file(format!("{n}{name}{n}"), ""));
            let (_root, result) = attack(|_| tar.clone().dir("x", 0o755));
            match name {
                "f" => result.unwrap(),
                _ => assert!(matches!(result, Err(ContextError::TooLarge(_))), "{result:?}"),
            }
        }
    }

    #[test]
    fn links_lead_nowhere_but_into_the_context() {
        let (root, result) = attack(|host| {
            Tar::new()
                .symlink("out", host)
                .file("out/secret", "mine")
                .dir("out/dir", 0o777)
                .hard_link("out/hard", "out/secret")
                .symlink("secret", format!("{host}/secret"))
                .file("secret", "mine")
                .symlink("passwd", "/etc/passwd")
                .symlink("up", "../../../../../../etc/passwd")
                .symlink("magic", "/proc/self/root/etc")
                .node(EntryType::Char, "device", 0o666, (1, 1))
        });
        result.unwrap();
        for path in ["out/secret", "out/hard", "secret"] {
            assert_eq!(read(&root, path).unwrap(), "mine");
        }
        for path in ["passwd", "up", "magic/passwd", "device"] {
            assert_eq!(read(&root, path), Err(Errno::NOENT), "{path}");
        }
    }

    #[test]
    fn what_is_ignored_is_gone() {
        let root = unpacked(&[
            (EntryType::Regular, "a/b/kept", "1"),
            (EntryType::Regular, "a/b/gone", "1"),
            (EntryType::Regular, "a/other/deep/gone", "1"),
            (EntryType::Regular, "c", "1"),
            (EntryType::Symlink, "link", "/etc"),
        ])
        .unwrap();
        let ignore = Ignore::new(["a", "!a/b/kept", "link"]).unwrap();
        leave_out(root.path(), &ignore).unwrap();
        let names = crate::image::testing::names(root.path());
        assert_eq!(names, ["a/", "a/b/", "a/b/kept", "c"]);
        assert!(Path::new("/etc/passwd").exists());
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
            refused(&two[..1024], ContextLimits { bytes: 1000, ..LIMITS }),
            ContextError::TooLarge(_)
        ));
        assert!(matches!(
            refused(&two, ContextLimits { entries: 1, ..LIMITS }),
            ContextError::TooLarge(_)
        ));
        assert!(matches!(refused(&two[..512], LIMITS), ContextError::Invalid(_)));
    }
}
