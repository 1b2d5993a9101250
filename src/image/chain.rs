//! What a layer is on top of others, where it leaves that to them.
//!
//! An archive may name `tmp/x` without an entry for `tmp`, as Bazel's do. Then the directory is that of the layers below:
//! its owner, mode and attributes, and if there is a link in its place (`bin -> usr/bin`) what the archive has beneath it
//! belongs where the link leads. Unpacked layers are shared between images, so a layer for which this makes a difference
//! is laid out a second time, under the chain id of the stack that it is the top of (OCI image specification,
//! "Layer ChainID"): directories anew, everything else by hard links. Mounts take that in the place of the layer.
//!
//! ```text
//! absent --- settle: laid out in staging, published ---> there, as long as a row names a stack that begins so
//! ```
//! Nothing here follows a link of a layer outside of [`View`], which keeps to the image.
//!
//! All functions block.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::beneath::{Beneath, Object};
use super::layers::LayerStore;
use super::stack::Link;
use super::tree::{IMPLIED, MAX_DEPTH, OPAQUE};
use super::view::{Found, Merged, View};
use super::{tree, view};

/// Most bytes that the names of the directories of one layer may have, each with those above it.
const MAX_NAMES: usize = 128 << 20;

/// Lays out the layers of a stack for which those below make a difference. All its layers must be there, and pinned with
/// their chain ids.
pub(super) fn settle(layers: &LayerStore, stack: &[Link]) -> io::Result<()> {
    for (n, link) in stack.iter().enumerate().skip(1) {
        let layer = layers.layer(&link.diff_id);
        if !has_implied(&layer)? || layers.has_layer(&link.chain_id)? {
            continue;
        }
        let below: Vec<PathBuf> = stack[..n].iter().rev().map(|link| layers.lower_dir(link)).collect();
        let below = View::open(&below)?;
        let source = Beneath::open(&layer)?;
        let Some(directories) = plan(&source, &below)? else {
            continue;
        };
        let staged = layers.stage()?;
        lay_out(&source, &below, &directories, staged.path())?;
        layers.publish_layer(staged, &link.chain_id)?;
    }
    Ok(())
}

/// Whether the layer leaves directories to others.
fn has_implied(layer: &Path) -> io::Result<bool> {
    match rustix::fs::getxattr(layer, IMPLIED, &mut [0; 8][..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA) => Ok(false),
        Err(e) => Err(io::Error::new(
            io::Error::from(e).kind(),
            format!("{}: {}", layer.display(), io::Error::from(e)),
        )),
    }
}

/// What a directory is like.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    times: Timestamps,
    extended: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    /// `whole`: also what acts on lower layers.
    fn of(directory: &Object, whole: bool) -> io::Result<Self> {
        let metadata = &directory.metadata;
        let mut extended = Vec::new();
        for name in directory.attribute_names()? {
            let kept = name.starts_with("user.") || name == "security.capability" || whole && name == OPAQUE;
            if let Some(value) = kept.then(|| directory.attribute(&name)).transpose()?.flatten() {
                extended.push((name, value));
            }
        }
        extended.sort();
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        Ok(Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
            times: Timestamps {
                last_access: time(metadata.atime(), metadata.atime_nsec()),
                last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
            },
            extended,
        })
    }

    /// Of what the layers below show at a place.
    fn of_merged(merged: &Merged) -> io::Result<Option<Self>> {
        let Some(topmost) = merged.first() else { return Ok(None) };
        Self::of(&Object::of(topmost.try_clone()?)?, false).map(Some)
    }

    fn agree_with(&self, other: &Self) -> bool {
        let all = |a: &Self| (a.uid, a.gid, a.mode);
        all(self) == all(other) && self.extended == other.extended
    }

    fn give_to(&self, directory: &OwnedFd) -> Result<(), Errno> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::fchown(directory, Some(uid), Some(gid))?;
        rustix::fs::fchmod(directory, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.extended {
            tree::set_attribute(directory, name.as_bytes(), value)?;
        }
        Ok(())
    }
}

/// A directory of the layer, and what becomes of it.
struct Directory {
    /// Where it is in the layer.
    from: PathBuf,
    /// Where what is in it belongs. Another place only if the layers below have a link on the way.
    to: PathBuf,
    /// Those of the layers below, if they differ from its own.
    inherited: Option<Attributes>,
}

/// A directory that is still to be looked at.
struct Ahead {
    from: PathBuf,
    /// Where its parent belongs.
    parent: PathBuf,
    name: OsString,
    /// What the layers below have at the parent's place, unless this layer hides it.
    below: Option<Merged>,
}

/// Goes through the directories of a layer, parents first. `None` if all of it is where it belongs, as it should be.
fn plan(source: &Beneath, below: &View) -> io::Result<Option<Vec<Directory>>> {
    let too_large = |path: &Path| io::Error::other(format!("{}: directories are nested too deep", path.display()));
    let (mut directories, mut differs, mut names) = (Vec::new(), false, 0);
    let mut pending = vec![Ahead {
        from: PathBuf::new(),
        parent: PathBuf::new(),
        name: OsString::new(),
        below: None,
    }];
    while let Some(ahead) = pending.pop() {
        let from = ahead.from.clone();
        let object = source.object(&from)?.ok_or_else(|| too_large(&from))?;
        let is_root = from.as_os_str().is_empty();
        let (directory, merged) = match is_root {
            true => (at_its_place(&ahead), Some(below.root())),
            false => place(ahead, &object, below)?,
        };
        let merged = merged.filter(|_| !is_opaque(&object));
        names += from.as_os_str().len() + directory.to.as_os_str().len();
        if directory.to.components().count() > MAX_DEPTH || names > MAX_NAMES {
            return Err(too_large(&from));
        }
        differs |= directory.inherited.is_some() || directory.from != directory.to;
        let mut children = Vec::new();
        for child in object.children()? {
            let child = child?;
            if child.file_type()?.is_dir() {
                children.push(child.file_name());
            }
        }
        children.sort();
        pending.extend(children.into_iter().rev().map(|name| Ahead {
            from: from.join(&name),
            parent: directory.to.clone(),
            name,
            below: merged.clone(),
        }));
        directories.push(directory);
    }
    Ok(differs.then_some(directories))
}

fn at_its_place(ahead: &Ahead) -> Directory {
    Directory {
        from: ahead.from.clone(),
        to: ahead.parent.join(&ahead.name),
        inherited: None,
    }
}

/// Where a directory belongs, and what the layers below have there.
fn place(ahead: Ahead, object: &Object, view: &View) -> io::Result<(Directory, Option<Merged>)> {
    let found = match &ahead.below {
        Some(below) => view::find(below, ahead.name.as_bytes())?,
        None => None,
    };
    let implied = object.attribute(IMPLIED)?.is_some() && !is_opaque(object);
    let mut directory = at_its_place(&ahead);
    match found {
        Some(Found::Directory(merged)) => {
            if implied {
                let own = Attributes::of(object, false)?;
                directory.inherited = Attributes::of_merged(&merged)?.filter(|below| !below.agree_with(&own));
            }
            Ok((directory, Some(merged)))
        }
        Some(Found::Link(_)) if implied => match view.directory(&directory.to)? {
            Some((to, merged)) => {
                directory.inherited = Attributes::of_merged(&merged)?;
                directory.to = to;
                Ok((directory, Some(merged)))
            }
            // It leads nowhere, and the directory takes its place.
            None => Ok((directory, None)),
        },
        _ => Ok((directory, None)),
    }
}

fn is_opaque(directory: &Object) -> bool {
    matches!(directory.attribute(OPAQUE), Ok(Some(value)) if value == b"y")
}

/// Fills the empty directory `root`.
fn lay_out(source: &Beneath, below: &View, directories: &[Directory], root: &Path) -> io::Result<()> {
    let target = Target {
        root: Object::of(rustix::fs::open(
            root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?)?,
        below,
    };
    // Times at the end: what is put into a directory changes its own.
    let mut times = Vec::new();
    for directory in directories {
        let object = source.object(&directory.from)?.ok_or(Errno::NOENT)?;
        let own = Attributes::of(&object, true)?;
        let (handle, is_new) = target.directory(&directory.to)?;
        // Where two directories of the layer meet, the one that is at its own place says what it is like.
        match &directory.inherited {
            None => own.give_to(&handle)?,
            Some(inherited) if is_new => inherited.give_to(&handle)?,
            Some(_) => {}
        }
        let inherited = directory.inherited.as_ref().map(|inherited| inherited.times.clone());
        times.push((&directory.to, inherited.unwrap_or(own.times)));
        for child in object.children()? {
            let child = child?;
            if child.file_type()?.is_dir() {
                continue;
            }
            let name = child.file_name();
            match rustix::fs::linkat(object.fd(), &name, &handle, &name, AtFlags::empty()) {
                // Two directories of the layer meet, and the other one had it first.
                Err(Errno::EXIST) => {}
                linked => linked?,
            }
        }
    }
    for (path, times) in times {
        rustix::fs::futimens(target.directory(path)?.0, &times)?;
    }
    Ok(())
}

/// The directory that is being filled.
struct Target<'a> {
    root: Object,
    below: &'a View,
}

impl Target<'_> {
    /// The directory at a path, and whether it is new. What is missing on the way is as the layers below have it; anything
    /// else gives way to a directory.
    fn directory(&self, path: &Path) -> io::Result<(OwnedFd, bool)> {
        match self.open(path) {
            Ok(there) => return Ok((there, false)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(e.into()),
        }
        let (mut here, mut is_new) = (self.open(Path::new(""))?, false);
        let mut walked = PathBuf::new();
        for name in path {
            walked.push(name);
            let name = name.as_bytes();
            is_new = match tree::look(&here, name)? {
                Some(tree::Existing::Directory) => false,
                existing => {
                    if existing.is_some() {
                        rustix::fs::unlinkat(&here, name, AtFlags::empty())?;
                    }
                    rustix::fs::mkdirat(&here, name, Mode::RWXU)?;
                    true
                }
            };
            here = tree::open_directory(&here, name)?;
            if is_new
                && walked != path
                && let Some((_, merged)) = self.below.directory(&walked)?
                && let Some(inherited) = Attributes::of_merged(&merged)?
            {
                inherited.give_to(&here)?;
            }
        }
        Ok((here, is_new))
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        if path.as_os_str().is_empty() {
            return tree::open_directory(self.root.fd(), b".");
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(self.root.fd(), path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }
}

#[cfg(test)]
mod tests;
