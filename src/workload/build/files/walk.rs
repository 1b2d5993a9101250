//! Goes through what is copied, in a fixed order.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::super::context;
use super::super::file::Ignore;
use super::find::Pick;
use super::{BuildError, Placement, Sources};
use crate::image::tree::{self, open_directory, split};

/// The kernel's limit for the names of attributes of one object, and for one value.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Names and values.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// What something is copied as.
pub(super) struct Info {
    pub uid: u32,
    pub gid: u32,
    /// Permissions with setuid, setgid and sticky bits.
    pub mode: u32,
    pub times: Timestamps,
    /// Extended attributes that belong to a file, sorted.
    pub attributes: Attributes,
    /// Device and inode, if it has several names.
    pub links: Option<(u64, u64)>,
}

/// Who takes what is walked. Paths are relative to the destination; an empty one is the destination itself.
pub(super) trait Sink {
    /// A directory, before what is in it. `is_top`: the copied source itself, whose content is merged into the
    /// destination.
    fn directory(&mut self, path: &[u8], info: Info, is_top: bool) -> Result<(), BuildError>;
    /// A file with its content. `is_top`: the copied source itself, which may be renamed by the destination.
    fn file(&mut self, path: &[u8], info: Info, content: File, is_top: bool) -> Result<(), BuildError>;
    fn symlink(&mut self, path: &[u8], info: Info, target: &[u8]) -> Result<(), BuildError>;
    /// A fifo or a device.
    fn node(&mut self, path: &[u8], info: Info, kind: FileType, device: u64) -> Result<(), BuildError>;
    /// Directories that a copy keeps, and that are made for it.
    fn parents(&mut self, path: &[u8]) -> Result<(), BuildError>;
}

struct Walk<'a, S> {
    placement: &'a Placement,
    keeps_owners: bool,
    exclude: &'a Ignore,
    cancelled: &'a CancellationToken,
    sink: &'a mut S,
}

/// Walks one source. A link that is named itself is followed within its root; links below are taken as links.
pub(super) fn walk(
    source: &Sources<'_>,
    pick: &Pick,
    placement: &Placement,
    sink: &mut impl Sink,
) -> Result<(), BuildError> {
    let fail = |e| BuildError::from(tree::error(e, &pick.path));
    let opened = context::open(source.root, &pick.path).map_err(fail)?;
    let stat = rustix::fs::fstat(&opened).map_err(fail)?;
    let mut walk = Walk {
        placement,
        keeps_owners: source.keeps_owners,
        exclude: &source.selection.exclude,
        cancelled: source.cancelled,
        sink,
    };
    if !pick.below.is_empty() {
        walk.sink.parents(&pick.below)?;
    }
    let (_, name) = split(&pick.path);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            // With `--parents` a directory keeps its own name, too.
            let to = match source.selection.parents {
                true => join(&pick.below, name),
                false => Vec::new(),
            };
            let info = walk.info(&stat, Some(&opened)).map_err(fail)?;
            walk.sink.directory(&to, info, true)?;
            // Exclusions are relative to what is copied.
            walk.children(&opened, b"", &to)
        }
        FileType::RegularFile => {
            let info = walk.info(&stat, Some(&opened)).map_err(fail)?;
            let to = join(&pick.below, name);
            walk.sink.file(&to, info, File::from(opened), pick.below.is_empty())
        }
        _ => Err(BuildError::Refused(format!(
            "{}: it is no file and no directory",
            pick.name()
        ))),
    }
}

impl<S: Sink> Walk<'_, S> {
    fn children(&mut self, directory: &OwnedFd, from: &[u8], to: &[u8]) -> Result<(), BuildError> {
        let fail = |e| BuildError::from(tree::error(e, from));
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name().to_bytes().to_vec();
            if !matches!(&name[..], b"." | b"..") {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            self.child(directory, &name, &join(from, &name), &join(to, &name))?;
        }
        Ok(())
    }

    fn child(&mut self, directory: &OwnedFd, name: &[u8], from: &[u8], to: &[u8]) -> Result<(), BuildError> {
        let fail = |e| BuildError::from(tree::error(e, from));
        if self.cancelled.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_left_out = !self.exclude.is_empty() && self.exclude.is_ignored(from);
        if is_left_out && (kind != FileType::Directory || self.exclude.skips(from)) {
            return Ok(());
        }
        match kind {
            FileType::Directory => {
                let opened = open_directory(directory, name).map_err(fail)?;
                // An excluded directory is made only for what is in it and not excluded.
                if !is_left_out {
                    let info = self.info(&stat, Some(&opened)).map_err(fail)?;
                    self.sink.directory(to, info, false)?;
                }
                self.children(&opened, from, to)
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(fail)?;
                let info = self.info(&stat, Some(&opened)).map_err(fail)?;
                self.sink.file(to, info, File::from(opened), false)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new()).map_err(fail)?;
                let info = self.info(&stat, None).map_err(fail)?;
                self.sink.symlink(to, info, target.as_bytes())
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                let info = self.info(&stat, None).map_err(fail)?;
                self.sink.node(to, info, kind, stat.st_rdev)
            }
            // A socket is useless without the process that listened on it.
            _ => Ok(()),
        }
    }

    /// `opened`: a file or directory, whose attributes count.
    fn info(&self, stat: &Stat, opened: Option<&OwnedFd>) -> Result<Info, Errno> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let owner = self.placement.owner.filter(|_| !self.keeps_owners);
        let (uid, gid) = owner.unwrap_or((stat.st_uid, stat.st_gid));
        let mode = stat.st_mode & 0o7777;
        let time = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        };
        let change = self.placement.mode.as_ref().filter(|_| kind != FileType::Symlink);
        Ok(Info {
            uid,
            gid,
            mode: change.map_or(mode, |change| change.apply(mode, kind == FileType::Directory)),
            times: Timestamps {
                last_access: time,
                last_modification: time,
            },
            attributes: opened.map(attributes).transpose()?.unwrap_or_default(),
            links: (stat.st_nlink > 1 && kind != FileType::Directory).then_some((stat.st_dev, stat.st_ino)),
        })
    }
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        (b"", name) => name.to_vec(),
        (directory, b"") => directory.to_vec(),
        (directory, name) => [directory, b"/", name].concat(),
    }
}

/// The attributes that layers keep.
fn attributes(file: &OwnedFd) -> Result<Attributes, Errno> {
    // Most files have none.
    let length = match rustix::fs::flistxattr_query(file.as_fd()) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut names = vec![0; length.max(MAX_ATTRIBUTE)];
    let length = rustix::fs::flistxattr(file.as_fd(), &mut names[..])?;
    let mut kept = Vec::new();
    for name in names[..length].split(|b| *b == 0) {
        let is_users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !is_users && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0; MAX_ATTRIBUTE];
        match rustix::fs::fgetxattr(file.as_fd(), name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                kept.push((name.to_vec(), value));
            }
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    kept.sort();
    Ok(kept)
}
