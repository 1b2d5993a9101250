//! Writes copies into the tree of an image.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timestamps, Uid};
use rustix::io::Errno;

use super::super::BuildError;
use super::super::context::new_file;
use super::walk::{Info, Sink, join};
use super::{Placement, relative};
use crate::image::printable::printable;
use crate::image::tree::{self, Existing, Tree, TreeError, open_directory, split};

/// Mode of directories that nobody has said anything about.
const DIRECTORY_MODE: u32 = 0o755;

/// Puts what it is given where it belongs.
pub(super) struct Write<'a> {
    tree: Tree,
    placement: &'a Placement,
    destination: &'a [u8],
    /// Names of what has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Set at the end: what is put into a directory changes its time.
    times: Vec<(Vec<u8>, Timestamps)>,
}

impl<'a> Write<'a> {
    pub(super) fn new(image: &Path, placement: &'a Placement) -> Result<Self, BuildError> {
        Ok(Self {
            tree: Tree::new(image)?,
            placement,
            destination: relative(&placement.destination),
            links: HashMap::new(),
            times: Vec::new(),
        })
    }

    /// Whether the destination is there as a directory.
    pub(super) fn is_directory(&self) -> bool {
        self.tree.existing_directory(self.destination).is_ok()
    }

    pub(super) fn finish(self) -> Result<(), BuildError> {
        for (path, times) in self.times.iter().rev() {
            let directory = self.tree.existing_directory(path);
            let set = directory.and_then(|directory| open_directory(&*directory, b"."));
            set.and_then(|directory| rustix::fs::futimens(&directory, times))
                .map_err(|e| tree::error(e, path))?;
        }
        Ok(())
    }

    fn at(&self, path: &[u8]) -> Vec<u8> {
        join(self.destination, path)
    }

    fn parent_of<'p>(&mut self, path: &'p [u8]) -> Result<(std::rc::Rc<OwnedFd>, &'p [u8]), BuildError> {
        let (parent, name) = split(path);
        let owner = self.placement.owner.unwrap_or_default();
        Ok((make_parents(&mut self.tree, parent, owner)?, name))
    }

    /// Refuses to let a file take the place of a directory with all that is in it.
    fn check_free(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), BuildError> {
        match tree::look(parent, name).map_err(|e| tree::error(e, path))? {
            Some(Existing::Directory) => Err(BuildError::Refused(format!(
                "/{}: a directory is there, and a file cannot take its place",
                printable(path)
            ))),
            _ => Ok(()),
        }
    }

    /// A further name of what was copied before, where possible. Returns whether it was.
    fn link(&mut self, info: &Info, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<bool, BuildError> {
        let Some(inode) = info.links else { return Ok(false) };
        let Some(first) = self.links.get(&inode).cloned() else {
            self.links.insert(inode, path.to_vec());
            return Ok(false);
        };
        let (first_parent, first_name) = split(&first);
        let fail = |e| BuildError::from(tree::error(e, path));
        let first_parent = self.tree.existing_directory(first_parent).map_err(fail)?;
        let link = || rustix::fs::linkat(&*first_parent, first_name, parent, name, AtFlags::empty());
        self.tree.replace(parent, name, link).map_err(fail)?;
        Ok(true)
    }

    /// An object without content, which `make` makes in a directory under a name. `mode`: of what has one.
    fn object(
        &mut self,
        path: &[u8],
        info: &Info,
        mode: Option<u32>,
        make: impl Fn(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), BuildError> {
        let path = self.at(path);
        let (parent, name) = self.parent_of(&path)?;
        let fail = |e| BuildError::from(tree::error(e, &path));
        self.check_free(&parent, name, &path)?;
        if self.link(info, &parent, name, &path)? {
            return Ok(());
        }
        self.tree.replace(&parent, name, || make(&parent, name)).map_err(fail)?;
        let (uid, gid) = (Uid::from_raw(info.uid), Gid::from_raw(info.gid));
        rustix::fs::chownat(&*parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        if let Some(mode) = mode {
            tree::set_mode(&parent, name, mode).map_err(fail)?;
        }
        rustix::fs::utimensat(&*parent, name, &info.times, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }
}

impl Sink for Write<'_> {
    fn directory(&mut self, path: &[u8], info: Info, is_top: bool) -> Result<(), BuildError> {
        // Of a directory that is named only its content is copied: the destination is made as any other directory.
        let is_destination = is_top && path.is_empty();
        let path = self.at(path);
        let fail = |e| BuildError::from(tree::error(e, &path));
        let is_new = match self.tree.existing_directory(&path) {
            Ok(_) => false,
            Err(Errno::NOENT) => true,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(BuildError::Refused(format!(
                    "/{}: what is there is no directory",
                    printable(&path)
                )));
            }
            Err(e) => return Err(fail(e)),
        };
        let owner = self.placement.owner.unwrap_or_default();
        let directory = make_parents(&mut self.tree, &path, owner)?;
        if !is_destination && (is_new || !is_top) {
            let directory = open_directory(&*directory, b".").map_err(fail)?;
            describe(&directory, &info).map_err(fail)?;
            self.times.push((path, info.times));
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], info: Info, mut content: File, is_top: bool) -> Result<(), BuildError> {
        let renamed = is_top && !self.placement.into && !self.is_directory();
        let path = if renamed {
            self.destination.to_vec()
        } else {
            self.at(path)
        };
        let (parent, name) = self.parent_of(&path)?;
        let fail = |e| BuildError::from(tree::error(e, &path));
        self.check_free(&parent, name, &path)?;
        if self.link(&info, &parent, name, &path)? {
            return Ok(());
        }
        let mut copy = new_file(&mut self.tree, &parent, name).map_err(fail)?;
        io::copy(&mut content, &mut copy).map_err(|e| failed(&e, &path))?;
        let copy = OwnedFd::from(copy);
        describe(&copy, &info).map_err(fail)?;
        rustix::fs::futimens(&copy, &info.times).map_err(fail)
    }

    fn symlink(&mut self, path: &[u8], info: Info, target: &[u8]) -> Result<(), BuildError> {
        self.object(path, &info, None, |parent, name| {
            rustix::fs::symlinkat(target, parent, name)
        })
    }

    fn node(&mut self, path: &[u8], info: Info, kind: FileType, device: u64) -> Result<(), BuildError> {
        self.object(path, &info, Some(info.mode), |parent, name| {
            rustix::fs::mknodat(parent, name, kind, Mode::empty(), device)
        })
    }

    fn parents(&mut self, path: &[u8]) -> Result<(), BuildError> {
        let path = self.at(path);
        let owner = self.placement.owner.unwrap_or_default();
        make_parents(&mut self.tree, &path, owner).map(drop)
    }
}

/// Makes a directory of an image and its missing parents, which all belong to `owner`.
pub(in super::super) fn make_directory(image: &Path, path: &str, owner: (u32, u32)) -> Result<(), BuildError> {
    let mut tree = Tree::new(image)?;
    make_parents(&mut tree, relative(path), owner).map(drop)
}

/// The directory at a path. Those that are made on the way belong to `owner`.
fn make_parents(tree: &mut Tree, path: &[u8], owner: (u32, u32)) -> Result<std::rc::Rc<OwnedFd>, BuildError> {
    if owner == (0, 0) {
        return Ok(tree.directory(path)?);
    }
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    let prefixes: Vec<&[u8]> = ends.chain([path.len()]).map(|end| &path[..end]).collect();
    let there = prefixes
        .iter()
        .take_while(|prefix| tree.existing_directory(prefix).is_ok());
    let there = there.count();
    let made = tree.directory(path)?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    for prefix in &prefixes[there..] {
        let fail = |e| BuildError::from(tree::error(e, prefix));
        let directory = tree.existing_directory(prefix).map_err(fail)?;
        let directory = open_directory(&*directory, b".").map_err(fail)?;
        rustix::fs::fchown(&directory, Some(uid), Some(gid)).map_err(fail)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(DIRECTORY_MODE)).map_err(fail)?;
    }
    Ok(made)
}

/// Owner, mode and attributes. The order matters: a change of owner clears setuid bits and capabilities.
fn describe(fd: &OwnedFd, info: &Info) -> Result<(), Errno> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(info.uid)), Some(Gid::from_raw(info.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(info.mode))?;
    for (name, value) in &info.attributes {
        tree::set_attribute(fd, name, value)?;
    }
    Ok(())
}

fn failed(error: &io::Error, path: &[u8]) -> TreeError {
    tree::error(Errno::from_io_error(error).unwrap_or(Errno::IO), path)
}
