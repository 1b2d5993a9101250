//! Writes a directory as the archive of a layer: the reverse of [`unpack`](super::unpack).
//!
//! The directory is the upper directory of an overlay that is no longer mounted. Whiteouts and opaque directories of
//! overlayfs are written in the form of the OCI image specification: `.wh.<name>` and `.wh..wh..opq`. Names are
//! sorted, so the same tree always gives the same archive.
//!
//! Links are never followed. The tree must not change meanwhile; [`capture_live`] takes one that does, but only within a
//! root that nothing leads out of ([`confined`](super::confined)).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::Metadata;
use tar::{EntryType, Header};

use super::tree::{MAX_DEPTH, OPAQUE};

/// Longest name that fits into a header.
const MAX_NAME: usize = 100;
const BLOCK: usize = 512;
const WHITEOUT: &str = ".wh.";
/// Attributes of overlayfs on a file whose content is not completely in this directory.
const ELSEWHERE: [&str; 2] = ["trusted.overlay.redirect", "trusted.overlay.metacopy"];

/// Writes everything beneath `root`. Returns the number of entries: 0 for a directory without changes.
pub(super) fn capture(root: &Path, out: impl Write) -> io::Result<u64> {
    capture_as(root, out, Manner::Layer)
}

/// Writes everything beneath `root`, which running processes change: what disappears is left out, a file that becomes
/// shorter ends in zeros. With `is_layer`, whiteouts have their meaning; else a name is only a name.
pub(super) fn capture_live(root: &Path, out: impl Write, is_layer: bool) -> io::Result<u64> {
    let manner = if is_layer { Manner::LiveLayer } else { Manner::LiveFiles };
    capture_as(root, out, manner)
}

/// What a tree is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Layer,
    LiveLayer,
    LiveFiles,
}

fn capture_as(root: &Path, out: impl Write, manner: Manner) -> io::Result<u64> {
    let mut capture = Capture {
        out,
        manner,
        links: HashMap::new(),
        entries: 0,
    };
    let metadata = fs_err::symlink_metadata(root)?;
    // A root directory with the default owner and mode does not override the image's.
    if (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777) != (0, 0, 0o755) {
        capture.entry(b"./", &metadata, EntryType::Directory, b"", 0, &attributes(root)?)?;
    }
    if is_opaque(root)? {
        capture.mark(b"", ".wh..wh..opq")?;
    }
    capture.directory(root, &mut PathBuf::new(), 0)?;
    capture.out.write_all(&[0; 2 * BLOCK])?;
    capture.out.flush()?;
    Ok(capture.entries)
}

struct Capture<W> {
    out: W,
    manner: Manner,
    /// The first name of every file with several hard links.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
}

impl<W: Write> Capture<W> {
    /// `name` is the directory's path relative to the root.
    fn directory(&mut self, path: &Path, name: &mut PathBuf, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(refused(
                name,
                &format!("directories are nested more than {MAX_DEPTH} deep"),
            ));
        }
        let children = fs_err::read_dir(path).and_then(|children| {
            let names = children.map(|child| child.map(|child| child.file_name()));
            names.collect::<io::Result<Vec<_>>>()
        });
        let Some(mut children) = self.unless_gone(children)? else {
            return Ok(());
        };
        children.sort();
        for child in children {
            name.push(&child);
            let done = self.object(&path.join(&child), name, depth);
            name.pop();
            self.unless_gone(done)?;
        }
        Ok(())
    }

    /// `None` for what a running process has removed or replaced.
    fn unless_gone<T>(&self, found: io::Result<T>) -> io::Result<Option<T>> {
        match found {
            Err(e) if self.manner != Manner::Layer && is_gone(&e) => Ok(None),
            found => found.map(Some),
        }
    }

    fn object(&mut self, path: &Path, name: &mut PathBuf, depth: usize) -> io::Result<()> {
        let file_name = name.file_name().unwrap_or_default().as_bytes().to_vec();
        if self.manner != Manner::LiveFiles && file_name.starts_with(WHITEOUT.as_bytes()) {
            return Err(refused(
                name,
                "names that begin with .wh. have a meaning of their own in layers",
            ));
        }
        let metadata = fs_err::symlink_metadata(path)?;
        let kind = metadata.file_type();
        let bytes = name.as_os_str().as_bytes().to_vec();
        if kind.is_char_device() && metadata.rdev() == 0 {
            let parent = name
                .parent()
                .map(|p| p.as_os_str().as_bytes().to_vec())
                .unwrap_or_default();
            return self.mark(&parent, OsStr::from_bytes(&[WHITEOUT.as_bytes(), &file_name].concat()));
        }
        if kind.is_dir() {
            let directory = [&bytes[..], b"/"].concat();
            self.entry(&directory, &metadata, EntryType::Directory, b"", 0, &attributes(path)?)?;
            if is_opaque(path)? {
                self.mark(&bytes, ".wh..wh..opq")?;
            }
            return self.directory(path, name, depth + 1);
        }
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode).cloned() {
                return self.entry(&bytes, &metadata, EntryType::Link, &first, 0, &[]);
            }
            self.links.insert(inode, bytes.clone());
        }
        if kind.is_file() {
            self.file(path, &bytes, &metadata)
        } else if kind.is_symlink() {
            let target = fs_err::read_link(path)?;
            self.entry(
                &bytes,
                &metadata,
                EntryType::Symlink,
                target.as_os_str().as_bytes(),
                0,
                &[],
            )
        } else if kind.is_fifo() {
            self.entry(&bytes, &metadata, EntryType::Fifo, b"", 0, &[])
        } else if kind.is_char_device() {
            self.entry(&bytes, &metadata, EntryType::Char, b"", 0, &[])
        } else if kind.is_block_device() {
            self.entry(&bytes, &metadata, EntryType::Block, b"", 0, &[])
        } else {
            // A socket is useless without the process that listened on it.
            Ok(())
        }
    }

    fn file(&mut self, path: &Path, name: &[u8], metadata: &Metadata) -> io::Result<()> {
        let file = open(path)?;
        let opened = file.metadata()?;
        // Something else has taken its place.
        if (opened.dev(), opened.ino()) != (metadata.dev(), metadata.ino()) {
            return self
                .unless_gone(Err(io::ErrorKind::NotFound.into()))
                .map(|_: Option<()>| ());
        }
        let size = opened.len();
        self.entry(name, &opened, EntryType::Regular, b"", size, &attributes(path)?)?;
        let copied = io::copy(&mut file.take(size), &mut self.out)?;
        if copied != size {
            if self.manner == Manner::Layer {
                return Err(refused(path, "the file became shorter while it was read"));
            }
            io::copy(&mut io::repeat(0).take(size - copied), &mut self.out)?;
        }
        self.pad(size as usize)
    }

    /// A marker file (whiteout): an empty file whose name carries the meaning.
    fn mark(&mut self, directory: &[u8], name: impl AsRef<OsStr>) -> io::Result<()> {
        let path = Path::new(OsStr::from_bytes(directory)).join(Path::new(name.as_ref()));
        let header = header(path.as_os_str().as_bytes(), EntryType::Regular, b"", 0);
        self.long_names(path.as_os_str().as_bytes(), b"", &mut Vec::new())?;
        self.entries += 1;
        self.put(header)
    }

    fn entry(
        &mut self,
        name: &[u8],
        metadata: &Metadata,
        kind: EntryType,
        link: &[u8],
        size: u64,
        attributes: &[(String, Vec<u8>)],
    ) -> io::Result<()> {
        let mut records = Vec::new();
        if let Some(time) = pax_time(metadata.mtime(), metadata.mtime_nsec()) {
            records.extend(pax_record("mtime", time.as_bytes()));
        }
        for (attribute, value) in attributes {
            records.extend(pax_record(&format!("SCHILY.xattr.{attribute}"), value));
        }
        self.long_names(name, link, &mut records)?;
        let mut header = header(name, kind, link, size);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(metadata.mtime().max(0) as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        }
        self.entries += 1;
        self.put(header)
    }

    /// Writes the PAX records of the next entry, including those for its long names.
    fn long_names(&mut self, name: &[u8], link: &[u8], records: &mut Vec<u8>) -> io::Result<()> {
        for (key, text) in [("path", name), ("linkpath", link)] {
            if text.len() > MAX_NAME {
                records.extend(pax_record(key, text));
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        self.put(header(b"pax", EntryType::XHeader, b"", records.len() as u64))?;
        self.out.write_all(records)?;
        self.pad(records.len())
    }

    fn put(&mut self, mut header: Header) -> io::Result<()> {
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; BLOCK][..length.wrapping_neg() % BLOCK])
    }
}

fn header(name: &[u8], kind: EntryType, link: &[u8], size: u64) -> Header {
    let mut header = Header::new_ustar();
    let block = header.as_mut_bytes();
    let (name, link) = (&name[..name.len().min(MAX_NAME)], &link[..link.len().min(MAX_NAME)]);
    block[..name.len()].copy_from_slice(name);
    block[157..157 + link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// `<length> <key>=<value>
/// `, where the length covers the whole record.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length += 1;
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// The time in PAX notation; `None` if it fits into the header.
fn pax_time(seconds: i64, nanoseconds: i64) -> Option<String> {
    match (seconds, nanoseconds) {
        (0.., 0) => None,
        // -1.25 is stored as -2 seconds plus 750 million nanoseconds.
        (..0, 1..) => Some(format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)),
        (seconds, nanoseconds) => Some(format!("{seconds}.{nanoseconds:09}")),
    }
}

/// The extended attributes that belong to a file: its capabilities and `user.*`.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut kept = Vec::new();
    for name in attribute_names(path)? {
        if ELSEWHERE.contains(&&name[..]) {
            return Err(refused(path, "a part of it is in another layer"));
        }
        if name == "security.capability" || name.starts_with("user.") && !name.starts_with("user.overlay.") {
            let value = attribute(path, &name)?.unwrap_or_default();
            kept.push((name, value));
        }
    }
    kept.sort();
    Ok(kept)
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    Ok(attribute(directory, OPAQUE)?.as_deref() == Some(b"y"))
}

fn attribute_names(path: &Path) -> io::Result<Vec<String>> {
    let mut buffer = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(named(errno, path)),
    };
    let names = buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

fn attribute(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    // The kernel's limit for one value.
    let mut buffer = vec![0; 64 << 10];
    match rustix::fs::lgetxattr(path, name, &mut buffer[..]) {
        Ok(length) => Ok(Some(buffer[..length].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(named(errno, path)),
    }
}

/// A file whose kind may have changed: neither a link is followed, nor a pipe waited for.
fn open(path: &Path) -> io::Result<std::fs::File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        // A link, a socket or a device has taken its place.
        Err(Errno::LOOP | Errno::NXIO | Errno::ACCESS) => Err(named(Errno::NOENT, path)),
        Err(errno) => Err(named(errno, path)),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn named(errno: Errno, path: &Path) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn refused(name: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", name.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::fs::XattrFlags;

    use super::super::testing::{Tar, listing, names, with_overlay};
    use super::super::unpack::unpack;
    use super::*;

    fn captured(root: &Path) -> Vec<u8> {
        let mut archive = Vec::new();
        capture(root, &mut archive).unwrap();
        archive
    }

    /// Without the times of change, which a copy cannot have.
    fn seen(root: &Path) -> Vec<String> {
        let line = |line: String| {
            let (head, times) = line.split_once('(').unwrap();
            let (times, tail) = times.split_once(')').unwrap();
            let modified: Vec<_> = times.split(", ").take(2).collect();
            format!("{head}{modified:?}{tail}")
        };
        listing(root).into_iter().map(line).collect()
    }

    #[test]
    fn what_was_unpacked_is_what_was_captured() {
        let scratch = tempfile::tempdir().unwrap();
        let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
        std::fs::create_dir_all(one.join("d/opaque")).unwrap();
        std::fs::write(one.join("d/file"), vec![b'x'; 1000]).unwrap();
        std::fs::set_permissions(one.join("d/file"), PermissionsExt::from_mode(0o4711)).unwrap();
        std::os::unix::fs::chown(one.join("d/file"), Some(7), Some(4_000_000)).unwrap();
        std::fs::hard_link(one.join("d/file"), one.join("e")).unwrap();
        symlink(format!("/{}", "t".repeat(200)), one.join("link")).unwrap();
        std::fs::write(one.join(format!("{}\n\u{e9}", "n".repeat(200))), "").unwrap();
        std::fs::write(one.join("before"), "").unwrap();
        let early = std::time::UNIX_EPOCH - std::time::Duration::from_millis(1250);
        std::fs::File::open(one.join("before"))
            .unwrap()
            .set_modified(early)
            .unwrap();
        rustix::fs::setxattr(one.join("before"), "user.a", b"=\n\0", XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(one.join("d/opaque"), OPAQUE, b"y", XattrFlags::empty()).unwrap();
        let node = |name: &str, kind, device| {
            rustix::fs::mknodat(rustix::fs::CWD, one.join(name), kind, rustix::fs::Mode::RUSR, device).unwrap();
        };
        node("gone", rustix::fs::FileType::CharacterDevice, 0);
        node("fifo", rustix::fs::FileType::Fifo, 0);
        std::fs::set_permissions(&one, PermissionsExt::from_mode(0o1777)).unwrap();

        let archive = captured(&one);
        std::fs::create_dir(&two).unwrap();
        unpack(&archive[..], &two, 1000).unwrap();
        // The unpacker creates whiteouts without a mode and with the current time.
        let without_marks = |lines: Vec<String>| -> Vec<String> {
            lines.into_iter().filter(|line| !line.starts_with("\"gone\"")).collect()
        };
        assert_eq!(without_marks(seen(&two)), without_marks(seen(&one)));
        assert_eq!(std::fs::symlink_metadata(two.join("gone")).unwrap().rdev(), 0);
        assert_eq!(attribute(&two.join("d/opaque"), OPAQUE).unwrap().unwrap(), b"y");
        assert_eq!(attribute(&two.join("before"), "user.a").unwrap().unwrap(), b"=\n\0");
        assert_eq!(captured(&two), archive, "one tree, one archive");
    }

    #[test]
    fn changes_in_an_overlay_come_back_as_a_layer() {
        let scratch = tempfile::tempdir().unwrap();
        let base = scratch.path().join("base");
        let tar = Tar::new()
            .file("a/kept", "1")
            .file("a/gone", "1")
            .file("b/old", "1")
            .file("c", "1");
        tar.unpack_to(&base).unwrap();
        let layer = scratch.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        with_overlay(std::slice::from_ref(&base), |merged| {
            std::fs::remove_file(merged.join("a/gone")).unwrap();
            std::fs::remove_dir_all(merged.join("b")).unwrap();
            std::fs::create_dir(merged.join("b")).unwrap();
            std::fs::write(merged.join("b/new"), "2").unwrap();
            std::fs::remove_file(merged.join("c")).unwrap();
            let upper = merged.parent().unwrap().join("upper");
            unpack(&captured(&upper)[..], &layer, 1000).unwrap();
        });
        with_overlay(&[layer, base], |merged| {
            assert_eq!(names(merged), ["a/", "a/kept", "b/", "b/new"]);
        });
    }

    #[test]
    fn files_that_are_no_layer_may_have_any_name() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join(".wh.x"), "kept").unwrap();
        std::fs::write(scratch.path().join("y"), "1").unwrap();
        let mut archive = Vec::new();
        assert!(capture_live(scratch.path(), &mut archive, false).unwrap() >= 2);
        assert!(String::from_utf8_lossy(&archive).contains(".wh.x"));
        capture_live(scratch.path(), Vec::new(), true).unwrap_err();
    }

    #[test]
    fn a_tree_that_changes_can_be_captured() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().to_owned();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let path = root.join("a");
                    std::fs::write(&path, vec![1; 100_000]).unwrap();
                    std::fs::write(&path, "short").unwrap();
                    std::fs::remove_file(&path).unwrap();
                    std::fs::create_dir(&path).unwrap();
                    std::fs::remove_dir(&path).unwrap();
                    symlink("/etc/passwd", &path).unwrap();
                    std::fs::remove_file(&path).unwrap();
                    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
                    std::fs::remove_file(&path).unwrap();
                }
            });
            for _ in 0..200 {
                let mut archive = Vec::new();
                capture_live(&root, &mut archive, true).unwrap();
                assert!(!String::from_utf8_lossy(&archive).contains("root:x"));
                let target = tempfile::tempdir().unwrap();
                unpack(&archive[..], target.path(), 10).unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn what_cannot_be_said_in_a_layer_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join(".wh.x"), "").unwrap();
        let error = capture(scratch.path(), Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with(".wh.x: names that begin"), "{error}");
        std::fs::remove_file(scratch.path().join(".wh.x")).unwrap();
        rustix::fs::setxattr(scratch.path(), ELSEWHERE[0], b"/x", XattrFlags::empty()).unwrap();
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o700)).unwrap();
        capture(scratch.path(), Vec::new()).unwrap_err();
    }

    #[test]
    fn a_directory_that_says_nothing_has_no_entries() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(capture(scratch.path(), Vec::new()).unwrap(), 0);
    }
}
