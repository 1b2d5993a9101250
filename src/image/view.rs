//! Reads a file of an image without mounting it: resolves one path as overlayfs would.
//!
//! Paths are walked component by component over all layers at once. A directory is the list of the layer directories
//! that merge there. No link is followed by the kernel: a link's target is walked from the image's own root. So no
//! layer can lead the walk to a file of the host.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::tree;
use super::tree::{Existing, open_directory};

const MAX_LINKS: u32 = 40;

/// The directories that merge at one place, topmost first.
pub(super) type Merged = Rc<Vec<OwnedFd>>;

/// What the topmost layer that knows a name has there.
pub(super) enum Found {
    Directory(Merged),
    Link(Vec<u8>),
    File(OwnedFd),
}

/// Where a path leads.
enum Place {
    /// With the path that has no links in it.
    Directory(PathBuf, Merged),
    File(OwnedFd),
}

/// The merged view of layer directories.
pub(super) struct View {
    root: Merged,
}

impl View {
    /// `layers` are directories, topmost first.
    pub(super) fn open(layers: &[PathBuf]) -> io::Result<Self> {
        let mut root = Vec::with_capacity(layers.len());
        for layer in layers {
            root.push(fs_err::File::open(layer)?.into_parts().0.into());
        }
        Ok(Self { root: Rc::new(root) })
    }

    /// The directories that merge at the root.
    pub(super) fn root(&self) -> Merged {
        self.root.clone()
    }

    /// The directory that a path leads to, and its path without links. `None` if there is none.
    pub(super) fn directory(&self, path: &Path) -> io::Result<Option<(PathBuf, Merged)>> {
        match self.walk(path.as_os_str().as_bytes()) {
            Ok(Some(Place::Directory(path, merged))) => Ok(Some((path, merged))),
            Ok(_) | Err(Errno::LOOP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a path leads to anything.
    pub(super) fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.walk(path.as_os_str().as_bytes()) {
            Ok(place) => Ok(place.is_some()),
            Err(Errno::LOOP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The content of a regular file, at most `limit` bytes. `None` if there is no regular file at `path`.
    pub(super) fn read(&self, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(Place::File(fd)) = self.walk(path.as_bytes())? else {
            return Ok(None);
        };
        let file = File::from(fd);
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{path} is longer than {limit} bytes"),
            ));
        }
        Ok(Some(content))
    }

    fn walk(&self, path: &[u8]) -> Result<Option<Place>, Errno> {
        let mut links = 0;
        // From the root to where the walk is.
        let mut trail = vec![(Vec::new(), self.root.clone())];
        let mut ahead: VecDeque<Vec<u8>> = components(path).collect();
        while let Some(name) = ahead.pop_front() {
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let Some((_, here)) = trail.last() else { return Ok(None) };
            match find(here, &name)? {
                Some(Found::Directory(merged)) => trail.push((name, merged)),
                Some(Found::File(fd)) => return Ok(ahead.is_empty().then_some(Place::File(fd))),
                Some(Found::Link(_)) if links == MAX_LINKS => return Err(Errno::LOOP),
                Some(Found::Link(target)) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    components(&target).rev().for_each(|part| ahead.push_front(part));
                }
                None => return Ok(None),
            }
        }
        let names = trail.iter().skip(1).map(|(name, _)| OsStr::from_bytes(name));
        let path = names.collect();
        Ok(trail.pop().map(|(_, merged)| Place::Directory(path, merged)))
    }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|b| *b == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .map(<[u8]>::to_vec)
}

/// Looks a name up as overlayfs does: from the top, merging directories until something else, a whiteout or an opaque
/// directory ends it.
pub(super) fn find(here: &[OwnedFd], name: &[u8]) -> Result<Option<Found>, Errno> {
    let mut merged = Vec::new();
    for layer in here {
        match tree::look(layer, name)? {
            None => continue,
            Some(Existing::Directory) => {
                let directory = open_directory(layer, name)?;
                let opaque = tree::is_opaque(directory.as_fd());
                merged.push(directory);
                if !opaque {
                    continue;
                }
            }
            Some(Existing::Symlink) if merged.is_empty() => {
                let target = rustix::fs::readlinkat(layer, name, Vec::new())?;
                return Ok(Some(Found::Link(target.into_bytes())));
            }
            Some(Existing::Other) if merged.is_empty() => {
                // Opening a fifo or device must not block or have side effects.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                return match rustix::fs::openat(layer, name, flags, Mode::empty()) {
                    Ok(fd) => Ok(Some(Found::File(fd))),
                    Err(Errno::NXIO | Errno::NODEV) => Ok(None),
                    Err(e) => Err(e),
                };
            }
            Some(_) => {}
        }
        break;
    }
    Ok((!merged.is_empty()).then(|| Found::Directory(Rc::new(merged))))
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::super::testing::{Tar, with_overlay};
    use super::*;

    fn unpacked(scratch: &Path, layers_topmost_first: Vec<Tar>) -> Vec<PathBuf> {
        let unpack = |(n, tar): (usize, Tar)| {
            let path = scratch.join(n.to_string());
            tar.unpack_to(&path).unwrap();
            path
        };
        layers_topmost_first.into_iter().enumerate().map(unpack).collect()
    }

    #[test]
    fn it_shows_what_a_mount_shows() {
        let bottom = Tar::new()
            .file("etc/passwd", "bottom")
            .file("usr/lib/passwd", "lib")
            .file("gone/file", "x")
            .file("opaque/old", "x")
            .file("replaced/file", "x")
            .symlink("bin", "usr/bin")
            .file("usr/bin/tool", "tool")
            .symlink("loop", "loop")
            .symlink("nowhere", "missing/file");
        let middle = Tar::new()
            .file(".wh.gone", "")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/new", "new")
            .file("replaced", "now a file")
            .symlink("etc/link", "../usr/./lib/passwd")
            .symlink("etc/absolute", "/../../usr/lib/passwd")
            .file("usr/lib/passwd", "middle");
        let top = Tar::new()
            .file("usr/share/x", "x")
            .symlink("opaque/up", "..")
            .symlink("var/run", "/etc")
            .file("etc/.wh.shadow", "");
        let scratch = tempfile::tempdir().unwrap();
        let layers = unpacked(scratch.path(), vec![top, middle, bottom]);
        let view = View::open(&layers).unwrap();
        let paths = [
            "etc/passwd",
            "/etc/passwd",
            "usr/lib/passwd",
            "gone/file",
            "gone",
            "opaque/old",
            "opaque/new",
            "replaced",
            "replaced/file",
            "bin/tool",
            "bin/../bin/tool",
            "etc/link",
            "etc/absolute",
            "etc/shadow",
            "var/run/passwd",
            "var/run/../usr/share/x",
            "opaque/up/etc/link",
            "etc",
            "",
            "nowhere",
            "missing",
            "etc/passwd/x",
        ];
        with_overlay(&layers, |merged| {
            for path in paths {
                // Absolute links of the mount would resolve on the host, so they are compared by hand below.
                let absolute = path.starts_with("var/run") || path == "etc/absolute";
                let expected = std::fs::read(merged.join(path.trim_start_matches('/'))).ok();
                if !absolute {
                    assert_eq!(view_read(&layers, path), expected, "{path}");
                }
            }
        });
        let read = |path| {
            view.read(path, 100)
                .unwrap()
                .map(|content| String::from_utf8(content).unwrap())
        };
        assert_eq!(read("etc/absolute").as_deref(), Some("middle"));
        assert_eq!(read("var/run/passwd").as_deref(), Some("bottom"));
        assert_eq!(read("var/run/../usr/share/x").as_deref(), Some("x"));
        view.read("loop", 100).unwrap_err();
    }

    fn view_read(layers: &[PathBuf], path: &str) -> Option<Vec<u8>> {
        View::open(layers).unwrap().read(path, 100).unwrap()
    }

    #[test]
    fn what_is_not_a_small_regular_file_is_not_read() {
        let tar = Tar::new()
            .node(EntryType::Fifo, "fifo", 0o600, (0, 0))
            .node(EntryType::Char, "null", 0o600, (1, 3))
            .node(EntryType::Block, "disk", 0o600, (240, 9))
            .dir("dir", 0o700)
            .file("large", "12345");
        let scratch = tempfile::tempdir().unwrap();
        let view = View::open(&unpacked(scratch.path(), vec![tar])).unwrap();
        for path in ["fifo", "null", "disk", "dir"] {
            assert_eq!(view.read(path, 100).unwrap(), None, "{path}");
        }
        assert!(view.read("large", 5).unwrap().is_some());
        assert!(
            view.read("large", 4)
                .unwrap_err()
                .to_string()
                .contains("longer than 4 bytes")
        );
        assert_eq!(View::open(&[]).unwrap().read("etc/passwd", 5).unwrap(), None);
    }
}
