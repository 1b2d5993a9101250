//! What the runtime needs in the image and makes there, whatever the image has. All of it happens on the mounted overlay,
//! before the root is read-only and before anything of the container runs; the image itself stays as it is.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::rootfs::resolve;

/// Where others are going to be mounted: what links lead there is not the image's.
const MOUNTED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Where a file can be bound that is to appear at `path`: where links of the image lead, so that they stay as they are.
/// Where that is impossible (a directory, links in a circle, a place in `/proc`) an empty file takes the place of what
/// stands at `path`, as in containers of Docker.
pub fn file(root: &Path, path: &Path) -> io::Result<PathBuf> {
    if let Some(resolved) = resolve(root, path).ok().filter(|resolved| !is_mounted(resolved))
        && make_file(&inside(root, &resolved)).is_ok()
    {
        return Ok(resolved);
    }
    let directory = resolve(root, path.parent().unwrap_or(Path::new("/")))?;
    let place = directory.join(path.file_name().unwrap_or_default());
    let on_host = inside(root, &place);
    match on_host.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs_err::remove_dir_all(&on_host)?,
        Ok(_) => fs_err::remove_file(&on_host)?,
        Err(_) => {}
    }
    make_file(&on_host)?;
    Ok(place)
}

/// An empty file with its parents, unless there is something already that a file can be bound to.
fn make_file(on_host: &Path) -> io::Result<()> {
    if let Ok(metadata) = on_host.symlink_metadata() {
        return match metadata.is_dir() {
            true => Err(io::ErrorKind::IsADirectory.into()),
            false => Ok(()),
        };
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder.create(on_host.parent().unwrap_or(on_host))?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o644).open(on_host).map(drop)
}

/// Makes `/etc/mtab`, which old programs read, where the image has an `/etc` without it.
pub fn mtab(root: &Path) -> io::Result<()> {
    let Ok(etc) = resolve(root, Path::new("/etc")) else {
        return Ok(());
    };
    let etc = inside(root, &etc);
    let mtab = etc.join("mtab");
    if etc.is_dir() && mtab.symlink_metadata().is_err() {
        symlink("/proc/mounts", mtab)?;
    }
    Ok(())
}

/// Makes the directory `path`, if it has to be made and `make` allows it. Whether a process that begins as root can go
/// there. `mounted` has destinations in the container and what is going to be there.
pub fn directory(root: &Path, path: &Path, mounted: &[(&Path, &Path)], make: bool) -> bool {
    let Ok(resolved) = resolve(root, path) else {
        return false;
    };
    if is_mounted(&resolved) {
        return false;
    }
    let over = mounted.iter().filter_map(|(destination, source)| {
        let destination = resolve(root, destination).ok()?;
        let rest = resolved.strip_prefix(&destination).ok()?.to_owned();
        Some((destination, *source, rest))
    });
    if let Some((_, source, rest)) = over.max_by_key(|(destination, ..)| destination.components().count()) {
        return has_directory(source, &rest);
    }
    let on_host = inside(root, &resolved);
    if make {
        // An error shows when the process tries.
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&on_host);
    }
    on_host.is_dir()
}

/// Whether there is a directory, without a link on the way: what a link means is not known here.
fn has_directory(source: &Path, rest: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(source) = rustix::fs::open(source, flags, Mode::empty()) else {
        return false;
    };
    let rest = if rest.as_os_str().is_empty() {
        Path::new(".")
    } else {
        rest
    };
    rustix::fs::openat2(source, rest, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).is_ok()
}

fn is_mounted(path: &Path) -> bool {
    MOUNTED.iter().any(|place| path.starts_with(place))
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_place_whatever_the_image_has_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let place = |name: &str| file(root, &Path::new("/etc").join(name)).unwrap();
        assert_eq!(place("hosts"), Path::new("/etc/hosts"));
        assert!(root.join("etc/hosts").is_file(), "made with its parents");
        std::fs::create_dir_all(root.join("etc/dir/sub")).unwrap();
        assert_eq!(place("dir"), Path::new("/etc/dir"));
        assert!(root.join("etc/dir").is_file());
        for (name, target) in [
            ("lost", "../run/systemd/resolv.conf"),
            ("loop", "loop"),
            ("mounts", "/proc/mounts"),
            ("beneath", "hosts/x"),
            ("to-dir", "/run"),
        ] {
            symlink(target, root.join("etc").join(name)).unwrap();
        }
        assert_eq!(place("lost"), Path::new("/run/systemd/resolv.conf"));
        assert!(root.join("etc/lost").is_symlink() && root.join("run/systemd/resolv.conf").is_file());
        for name in ["loop", "mounts", "beneath", "to-dir"] {
            assert_eq!(place(name), Path::new("/etc").join(name));
            assert!(
                root.join("etc").join(name).symlink_metadata().unwrap().is_file(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_directory_is_made_in_the_image_and_looked_for_in_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
        std::fs::create_dir_all(volume.join("there")).unwrap();
        std::fs::create_dir_all(root.join("real")).unwrap();
        symlink("/", volume.join("link")).unwrap();
        symlink("real", root.join("link")).unwrap();
        let mounted = [(Path::new("/v"), &*volume)];
        let can = |path: &str, make| directory(&root, Path::new(path), &mounted, make);
        assert!(can("/link/new/er", true) && root.join("real/new/er").is_dir());
        assert!(can("/", false) && !can("/missing", false));
        assert!(can("/v", true) && can("/v/there", true));
        assert!(!can("/v/missing", true) && !can("/v/link", true) && !can("/proc/self/fd/4", true));
        assert!(!root.join("v").exists() && !volume.join("missing").exists());
    }
}
