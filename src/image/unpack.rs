//! Unpacks one layer into its own directory, as a lower directory of overlayfs.
//!
//! Owners, exact modes (setuid, setgid, sticky), times, file capabilities, `user.*` attributes, devices and hard
//! links are kept. Whiteouts (OCI image specification, layers) become overlayfs whiteouts. They apply to lower layers
//! only: entries of the same layer stay, regardless of their order in the archive.
//!
//! A directory that entries name only as a parent gets root's ownership, mode 0755 and a mark ([`tree::IMPLIED`]): what
//! it is in an image, the layers below decide ([`super::chain`]).
//!
//! This module never follows a link out of the root, nor the last link of any path ([`Tree`]).

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::archive::{Archive, Entry, EntryKind};
use super::printable::printable;
use super::skeleton::Recorder;
use super::tree;
use super::tree::{Existing, MAX_DEPTH, Place, Tree, TreeError, open_directory, split};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are internal to AUFS and are ignored.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// AUFS keeps files with several names here. Old layers refer to such a file by a hard link to this directory, so its
/// files are kept until the end. No other entry can create, change or reach anything with this name.
const AUFS_LINKS: &[u8] = b".wh..wh.plnk";
const BUFFER: usize = 128 << 10;
/// Longest name of an entry: the kernel's `PATH_MAX` without its final zero.
const MAX_PATH: usize = 4095;
/// Maximum total size of the directory names that are remembered to set their times, in bytes.
const MAX_REMEMBERED: usize = 32 << 20;

/// Shortest run of zeros that becomes a hole, in bytes.
const HOLE: usize = 4096;

/// Unpacks the archive into the empty directory `root`. Creates at most `max_entries` objects. Reads to the end, also
/// what follows the archive.
pub(super) fn unpack(archive: impl Read, root: &Path, max_entries: u64) -> Result<(), TreeError> {
    unpack_as(archive, root, max_entries, true, None)
}

/// Unpacks an archive that is no layer: names that begin with `.wh.` have no meaning in it, and are refused.
pub(super) fn unpack_plain(archive: impl Read, root: &Path, max_entries: u64) -> Result<(), TreeError> {
    unpack_as(archive, root, max_entries, false, None)
}

/// The same, and writes the archive's [skeleton](super::skeleton) to an empty file.
pub(super) fn unpack_recorded(
    archive: impl Read,
    root: &Path,
    max_entries: u64,
    skeleton: File,
) -> Result<(), TreeError> {
    let failed = |e: io::Error| TreeError::System(format!("the skeleton of the layer: {e}"));
    let recorder = Rc::new(RefCell::new(Recorder::new(skeleton).map_err(failed)?));
    unpack_as(archive, root, max_entries, true, Some(recorder.clone()))?;
    match Rc::into_inner(recorder) {
        Some(recorder) => recorder.into_inner().finish().map_err(failed),
        None => Err(failed(io::Error::other("it is still in use"))),
    }
}

fn unpack_as(
    archive: impl Read,
    root: &Path,
    max_entries: u64,
    is_layer: bool,
    recorder: Record,
) -> Result<(), TreeError> {
    let mut tree = Tree::new(root)?;
    tree.marks_implied = is_layer;
    if let Some(recorder) = recorder.clone() {
        tree.before_removal = Some(Box::new(move |directory, name, inode| {
            recorder.borrow_mut().before_removal(directory, name, inode);
            Ok(())
        }));
    }
    let reader = Tap {
        reader: archive,
        recorder,
    };
    let mut unpacker = Unpacker {
        tree,
        is_layer,
        archive: Archive::new(reader),
        buffer: vec![0; BUFFER],
        directories: HashMap::new(),
        left_out: HashSet::new(),
        remembered: 0,
    };
    let mut entries = 0;
    let unreadable = |e: io::Error| TreeError::Refused(e.to_string());
    while let Some(entry) = unpacker.archive.next().map_err(unreadable)? {
        entries += 1;
        if entries + unpacker.tree.implied > max_entries {
            return Err(TreeError::Refused(format!(
                "it has more than {max_entries} entries (max_layer_entries)"
            )));
        }
        unpacker.place(&entry)?;
    }
    io::copy(unpacker.archive.source(), &mut io::sink()).map_err(unreadable)?;
    unpacker.tree.discard(AUFS_LINKS)?;
    if is_layer && unpacker.tree.implied > 0 {
        let root = unpacker.tree.directory(b"")?;
        open_directory(&*root, b".")
            .and_then(|root| tree::set_attribute(&root, tree::IMPLIED.as_bytes(), b"y"))
            .map_err(|e| tree::error(e, b"."))?;
    }
    unpacker.set_directory_times()
}

/// Who writes the skeleton, if somebody does.
type Record = Option<Rc<RefCell<Recorder>>>;

/// Shows the recorder what is read.
struct Tap<R> {
    reader: R,
    recorder: Record,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        if let Some(recorder) = &self.recorder {
            recorder.borrow_mut().read(&buffer[..read]);
        }
        Ok(read)
    }
}

struct Unpacker<R> {
    tree: Tree,
    is_layer: bool,
    archive: Archive<Tap<R>>,
    buffer: Vec<u8>,
    /// Times of directories. Set at the end, because adding an entry to a directory changes its time.
    directories: HashMap<Vec<u8>, Timestamps>,
    /// Names of devices that could not be created.
    left_out: HashSet<Vec<u8>>,
    /// Bytes of the names in `directories`.
    remembered: usize,
}

impl<R: Read> Unpacker<R> {
    fn place(&mut self, entry: &Entry) -> Result<(), TreeError> {
        let path = clean(&entry.path)?;
        let (parent_path, name) = split(&path);
        if !self.is_layer && path.split(|b| *b == b'/').any(|part| part.starts_with(WHITEOUT)) {
            let why = "names that begin with .wh. have a meaning of their own in layers";
            return Err(refused(&entry.path, why));
        }
        if parent_path == AUFS_LINKS && entry.kind == EntryKind::File {
            let parent = self.tree.place(parent_path)?;
            return self.file(entry, &parent, name, &path);
        }
        if parent_path
            .split(|b| *b == b'/')
            .any(|part| part.starts_with(AUFS_PREFIX))
        {
            return Ok(());
        }
        if name == OPAQUE_MARKER {
            return self.hide_all(parent_path);
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.hide(parent_path, hidden, &path);
        }
        let place = self.tree.place(parent_path)?;
        let parent = &*place.directory;
        if name.is_empty() {
            return match entry.kind {
                EntryKind::Directory => self.describe(entry, parent, b".", path),
                _ => Err(refused(&entry.path, "the root can only be a directory")),
            };
        }
        let fail = |e| tree::error(e, &path);
        match &entry.kind {
            EntryKind::Directory => {
                self.tree.make_directory(parent, name).map_err(fail)?;
                self.describe(entry, parent, name, path.clone())
            }
            EntryKind::File => self.file(entry, &place, name, &path),
            EntryKind::Symlink(target) => self.symlink(entry, target, parent, name).map_err(fail),
            EntryKind::HardLink(target) => self.hard_link(target, parent, name, &path),
            EntryKind::Character(major, minor) => {
                let made = self.node(entry, FileType::CharacterDevice, (*major, *minor), parent, name);
                self.note_left_out(made.map_err(fail)?, path);
                Ok(())
            }
            EntryKind::Block(major, minor) => {
                let made = self.node(entry, FileType::BlockDevice, (*major, *minor), parent, name);
                self.note_left_out(made.map_err(fail)?, path);
                Ok(())
            }
            EntryKind::Fifo => self
                .node(entry, FileType::Fifo, (0, 0), parent, name)
                .map(drop)
                .map_err(fail),
        }
    }

    /// Hard links to a skipped device are skipped too.
    fn note_left_out(&mut self, made: bool, path: Vec<u8>) {
        if !made && self.remembered < MAX_REMEMBERED {
            self.remembered += path.len();
            self.left_out.insert(path);
        }
    }

    /// Hides a name of lower layers. Entries of this layer with that name stay; a directory becomes opaque.
    fn hide(&mut self, parent_path: &[u8], hidden: &[u8], path: &[u8]) -> Result<(), TreeError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(path, "a whiteout of nothing"));
        }
        let parent = self.tree.directory(parent_path)?;
        match tree::look(&parent, hidden) {
            Ok(Some(Existing::Directory)) => open_directory(&*parent, hidden).and_then(|fd| tree::set_opaque(&fd)),
            Ok(Some(_)) => Ok(()),
            Ok(None) => rustix::fs::mknodat(&*parent, hidden, FileType::CharacterDevice, Mode::empty(), 0),
            Err(e) => Err(e),
        }
        .map_err(|e| tree::error(e, path))
    }

    fn hide_all(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let directory = self.tree.directory(path)?;
        let handle = open_directory(&*directory, b".");
        handle
            .and_then(|fd| tree::set_opaque(&fd))
            .map_err(|e| tree::error(e, path))
    }

    /// Applies the attributes of an entry to a directory.
    fn describe(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8], path: Vec<u8>) -> Result<(), TreeError> {
        let directory = open_directory(parent, name).map_err(|e| tree::error(e, &path))?;
        set_attributes(entry, &directory).map_err(|e| tree::error(e, &path))?;
        if self.tree.implied > 0 {
            match rustix::fs::fremovexattr(&directory, tree::IMPLIED) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(tree::error(e, &path)),
            }
        }
        self.remembered += path.len();
        self.directories.insert(path, times(entry));
        if self.remembered > MAX_REMEMBERED {
            self.set_directory_times()?;
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry, place: &Place, name: &[u8], path: &[u8]) -> Result<(), TreeError> {
        let fail = |e| tree::error(e, path);
        let parent = &*place.directory;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(self.tree.replace(parent, name, open).map_err(fail)?);
        let recorder = self.archive.source().recorder.clone();
        if let Some(recorder) = &recorder {
            recorder.borrow_mut().begin_file();
        }
        let written = self.contents(&mut file, path);
        if let Some(recorder) = &recorder {
            let inode = file
                .metadata()
                .map_err(|e| fail(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
            recorder.borrow_mut().end_file(&place.path, name, inode.ino());
        }
        written?;
        let file = OwnedFd::from(file);
        set_attributes(entry, &file).map_err(fail)?;
        rustix::fs::futimens(&file, &times(entry)).map_err(fail)
    }

    /// Writes the data of the current entry. Long runs of zeros become holes.
    fn contents(&mut self, file: &mut File, path: &[u8]) -> Result<(), TreeError> {
        let fail = |e: io::Error| tree::error(Errno::from_io_error(&e).unwrap_or(Errno::IO), path);
        let mut ends_in_hole = false;
        loop {
            let read = self
                .archive
                .read(&mut self.buffer)
                .map_err(|e| refused(path, &e.to_string()))?;
            let piece = &self.buffer[..read];
            if read == 0 {
                break;
            }
            ends_in_hole = read >= HOLE && piece[0] == 0 && piece.iter().all(|byte| *byte == 0);
            match ends_in_hole {
                true => file.seek(SeekFrom::Current(read as i64)).map(drop).map_err(fail)?,
                false => file.write_all(piece).map_err(fail)?,
            }
        }
        if ends_in_hole {
            let size = file.stream_position().map_err(fail)?;
            file.set_len(size).map_err(fail)?;
        }
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, target: &[u8], parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        self.tree
            .replace(parent, name, || rustix::fs::symlinkat(target, parent, name))?;
        let (uid, gid) = owner(entry)?;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn hard_link(&mut self, target: &[u8], parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), TreeError> {
        let target_path = clean(target)?;
        if self.left_out.contains(&target_path) {
            self.note_left_out(false, path.to_owned());
            return Ok(());
        }
        let (target_parent, target_name) = split(&target_path);
        let missing = || {
            refused(
                path,
                &format!("hard link to {}, which is not in this layer", printable(target)),
            )
        };
        let target_parent = self.tree.existing_directory(target_parent).map_err(|_| missing())?;
        let stat = |fd: &OwnedFd, name| rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = stat(&target_parent, target_name).map_err(|_| missing())?;
        match Existing::of(&found) {
            Existing::Directory => {
                return Err(refused(
                    path,
                    &format!("hard link to the directory {}", printable(target)),
                ));
            }
            // A whiteout stands for a missing file.
            Existing::Whiteout => return Err(missing()),
            Existing::Symlink | Existing::Other => {}
        }
        if stat(parent, name).is_ok_and(|s| (s.st_dev, s.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        let link = || rustix::fs::linkat(&*target_parent, target_name, parent, name, AtFlags::empty());
        self.tree.replace(parent, name, link).map_err(|e| tree::error(e, path))
    }

    /// Returns whether the node could be created.
    fn node(
        &mut self,
        entry: &Entry,
        kind: FileType,
        (major, minor): (u32, u32),
        parent: &OwnedFd,
        name: &[u8],
    ) -> Result<bool, Errno> {
        let device = rustix::fs::makedev(major, minor);
        let make = || rustix::fs::mknodat(parent, name, kind, Mode::empty(), device);
        match self.tree.replace(parent, name, make) {
            Err(Errno::PERM) => {
                tracing::warn!(
                    name = printable(name),
                    "skipping a device of a layer: not permitted here"
                );
                return Ok(false);
            }
            result => result?,
        }
        let (uid, gid) = owner(entry)?;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        tree::set_mode(parent, name, entry.mode)?;
        rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(true)
    }

    fn set_directory_times(&mut self) -> Result<(), TreeError> {
        self.remembered = 0;
        for (path, times) in self.directories.drain() {
            let (parent, name) = split(&path);
            let name = if path.is_empty() { b"." } else { name };
            // A later entry may have replaced the directory or a parent of it.
            let Ok(parent) = self.tree.existing_directory(parent) else {
                continue;
            };
            if tree::look(&parent, name) == Ok(Some(Existing::Directory)) {
                let set = rustix::fs::utimensat(&*parent, name, &times, AtFlags::SYMLINK_NOFOLLOW);
                set.map_err(|e| tree::error(e, &path))?;
            }
        }
        Ok(())
    }
}

/// Sets owner, mode and extended attributes of a file or directory. The order matters: a change of owner clears
/// setuid bits and capabilities.
fn set_attributes(entry: &Entry, fd: &OwnedFd) -> Result<(), Errno> {
    let (uid, gid) = owner(entry)?;
    rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        // Other attributes are dropped: `trusted.overlay.*` would control overlayfs, and security labels belong to
        // this host.
        let kept = name == b"security.capability" || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !kept {
            continue;
        }
        match tree::set_attribute(fd, name, value) {
            Err(Errno::OPNOTSUPP) => {
                tracing::warn!(
                    attribute = printable(name),
                    file = printable(&entry.path),
                    "the file system has no such attributes"
                );
            }
            result => result?,
        }
    }
    Ok(())
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Errno> {
    // The kernel takes the highest number as "no change".
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(Errno::INVAL);
    Ok((Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)))
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanoseconds) = entry.mtime;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The path of an entry relative to the root: no leading slash, no `.`, no `..`. A path that leaves the root is
/// refused.
fn clean(path: &[u8]) -> Result<Vec<u8>, TreeError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.pop().is_none() => return Err(refused(path, "path escapes root")),
            b".." => {}
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH || path.len() > MAX_PATH {
        return Err(refused(path, "the path is too long"));
    }
    Ok(parts.join(&b'/'))
}

fn refused(path: &[u8], why: &str) -> TreeError {
    TreeError::Refused(format!("invalid entry \"{}\": {why}", printable(path)))
}

#[cfg(test)]
mod tests;
