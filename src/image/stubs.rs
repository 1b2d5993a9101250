//! Empty files and directories that a runtime makes in a container as places to mount something, and that are no change
//! of the command that ran there.
//!
//! ```text
//! Layers::missing(places), before the run -> the run -> remove(upper, missing)
//! ```

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::draft::Layers;
use super::view::View;
use super::{ImageError, blocking};

/// What the runtime itself mounts in every container, or makes.
const OF_RUNTIME: [&str; 7] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/mtab",
    "/dev",
    "/proc",
    "/sys",
];
/// Target of the link that the runtime makes at `/etc/mtab`.
const MTAB: &[u8] = b"/proc/mounts";

impl Layers {
    /// What does not exist at these places and on the way to them, deepest first, relative to the root and without links.
    /// Also of the places where the runtime mounts something in every container.
    pub async fn missing(&self, places: Vec<PathBuf>) -> Result<Vec<PathBuf>, ImageError> {
        let lower = self.lower_dirs();
        blocking(move || {
            let view = View::open(&lower)?;
            let places = places.into_iter().chain(OF_RUNTIME.map(PathBuf::from));
            let mut missing = Vec::new();
            for place in places {
                missing.extend(missing_at(&view, &place)?);
            }
            missing.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
            missing.dedup();
            Ok(missing)
        })
        .await
    }
}

fn missing_at(view: &View, place: &Path) -> io::Result<Vec<PathBuf>> {
    let names: Vec<&OsStr> = place
        .components()
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    if view.exists(place)? {
        return Ok(Vec::new());
    }
    for there in (0..names.len()).rev() {
        let above: PathBuf = names[..there].iter().collect();
        if let Some((mut path, _)) = view.directory(&above)? {
            let below = names[there..].iter().map(|name| {
                path.push(name);
                path.clone()
            });
            return Ok(below.collect());
        }
    }
    Ok(Vec::new())
}

/// Removes those of `missing` from an upper directory that are there now, and empty. Nothing may be mounted.
pub fn remove_stubs(upper: &Path, missing: &[PathBuf]) -> io::Result<()> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(upper, directory, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for path in missing {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        let parent = match rustix::fs::openat2(&root, parent, directory, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            opened => opened?,
        };
        let Ok(stat) = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let removed = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            FileType::RegularFile if stat.st_size == 0 => rustix::fs::unlinkat(&parent, name, AtFlags::empty()),
            FileType::Symlink if is_mtab(&parent, name) => rustix::fs::unlinkat(&parent, name, AtFlags::empty()),
            _ => Ok(()),
        };
        match removed {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => removed?,
        }
    }
    Ok(())
}

fn is_mtab(parent: impl std::os::fd::AsFd, name: &OsStr) -> bool {
    let target = rustix::fs::readlinkat(parent, name, Vec::new());
    name.as_bytes() == b"mtab" && target.is_ok_and(|target| target.as_bytes() == MTAB)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tar, names};
    use super::*;

    #[test]
    fn only_what_was_missing_and_is_empty_goes() {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().join("base");
        let tar = Tar::new()
            .file("etc/hosts", "")
            .dir("run", 0o755)
            .symlink("var/run", "/run");
        tar.unpack_to(&base).unwrap();
        let view = View::open(&[base]).unwrap();
        let missing = |path: &str| missing_at(&view, Path::new(path)).unwrap();
        assert!(missing("/etc/hosts").is_empty());
        assert_eq!(
            missing("/run/secrets/a"),
            [Path::new("run/secrets"), Path::new("run/secrets/a")]
        );
        assert_eq!(missing("/var/run/x"), [Path::new("run/x")]);

        let upper = place.path().join("upper");
        Tar::new()
            .file("run/secrets/a", "")
            .file("run/secrets/b", "kept")
            .file("etc/hosts", "")
            .dir("empty/dir", 0o755)
            .symlink("link", "/etc")
            .unpack_to(&upper)
            .unwrap();
        let gone: Vec<PathBuf> = [
            "run/secrets/a",
            "run/secrets",
            "empty/dir",
            "empty",
            "link/passwd",
            "none",
        ]
        .map(PathBuf::from)
        .to_vec();
        remove_stubs(&upper, &gone).unwrap();
        assert_eq!(
            names(&upper),
            ["etc/", "etc/hosts", "link", "run/", "run/secrets/", "run/secrets/b"]
        );
    }
}
