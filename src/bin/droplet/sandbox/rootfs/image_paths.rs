//! Makes files and directories in the image that the runtime needs, whatever the image has there. This happens on the
//! mounted overlay, before the root becomes read-only and before the container runs. The image itself does not change.

use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::error::{RootfsError, system_error};
use super::resolve::resolve;

/// File systems are mounted here later, so a path below is not in the image.
const KERNEL_MOUNTS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Returns a path for a bind mount of a file at `path`. Follows the symbolic links of the image, so that they stay as
/// they are. If that is impossible (a directory, a loop of links, a path in `/proc`), replaces whatever is at `path`
/// with an empty file, as Docker does.
pub fn ensure_file(root: &Path, path: &Path) -> io::Result<PathBuf> {
    if let Some(resolved) = resolve(root, path).ok().filter(|resolved| !is_kernel_mount(resolved))
        && make_file(&host_path(root, &resolved)).is_ok()
    {
        return Ok(resolved);
    }
    let directory = resolve(root, path.parent().unwrap_or(Path::new("/")))?;
    let place = directory.join(path.file_name().unwrap_or_default());
    let on_host = host_path(root, &place);
    match on_host.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs_err::remove_dir_all(&on_host)?,
        Ok(_) => fs_err::remove_file(&on_host)?,
        Err(_) => {}
    }
    make_file(&on_host)?;
    Ok(place)
}

/// Makes an empty file and its parents, unless a file can already be mounted there.
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
    let mut options = fs_err::OpenOptions::new();
    options.write(true).create_new(true).mode(0o644).open(on_host).map(drop)
}

/// Makes `/etc/mtab`, which old programs read, if the image has `/etc` without it.
pub fn ensure_mtab(root: &Path) -> io::Result<()> {
    let Ok(etc) = resolve(root, Path::new("/etc")) else {
        return Ok(());
    };
    let etc = host_path(root, &etc);
    let mtab = etc.join("mtab");
    if etc.is_dir() && mtab.symlink_metadata().is_err() {
        symlink("/proc/mounts", mtab)?;
    }
    Ok(())
}

/// Makes the directories that every program expects, if the image has none. Earlier versions mounted something there in
/// every container.
pub fn make_shared_directories(root: &Path) -> Result<(), RootfsError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let image = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| system_error("open", root, e))?;
    for (name, mode) in [("tmp", 0o1777), ("run", 0o755)] {
        let mode = Mode::from_raw_mode(mode);
        let made = rustix::fs::mkdirat(&image, name, mode);
        match made.and_then(|()| rustix::fs::chmodat(&image, name, mode, AtFlags::empty())) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(system_error("make a directory in", root, e)),
        }
    }
    Ok(())
}

/// Makes the directory `path`, if it does not exist and `make` allows it. Returns whether a process can change to it as
/// root. `mounted` lists destinations in the container and their sources.
pub fn ensure_directory(root: &Path, path: &Path, mounted: &[(&Path, &Path)], make: bool) -> bool {
    let Ok(resolved) = resolve(root, path) else {
        return false;
    };
    if is_kernel_mount(&resolved) {
        return false;
    }
    let over = mounted.iter().filter_map(|(destination, source)| {
        let destination = resolve(root, destination).ok()?;
        let rest = resolved.strip_prefix(&destination).ok()?.to_owned();
        Some((destination, *source, rest))
    });
    if let Some((_, source, rest)) = over.max_by_key(|(destination, ..)| destination.components().count()) {
        return source_has_directory(source, &rest);
    }
    let on_host = host_path(root, &resolved);
    if make {
        // An error shows when the process changes to the directory.
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&on_host);
    }
    on_host.is_dir()
}

/// Returns whether the directory exists. Does not follow symbolic links, which have another meaning in the container.
fn source_has_directory(source: &Path, rest: &Path) -> bool {
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

fn is_kernel_mount(path: &Path) -> bool {
    KERNEL_MOUNTS.iter().any(|place| path.starts_with(place))
}

fn host_path(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_can_be_mounted_whatever_the_image_has_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let place = |name: &str| ensure_file(root, &Path::new("/etc").join(name)).unwrap();
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
    fn a_directory_is_made_in_the_image_but_not_in_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
        std::fs::create_dir_all(volume.join("there")).unwrap();
        std::fs::create_dir_all(root.join("real")).unwrap();
        symlink("/", volume.join("link")).unwrap();
        symlink("real", root.join("link")).unwrap();
        let mounted = [(Path::new("/v"), &*volume)];
        let can_enter = |path: &str, make| ensure_directory(&root, Path::new(path), &mounted, make);
        assert!(can_enter("/link/new/er", true) && root.join("real/new/er").is_dir());
        assert!(can_enter("/", false) && !can_enter("/missing", false));
        assert!(can_enter("/v", true) && can_enter("/v/there", true));
        assert!(!can_enter("/v/missing", true) && !can_enter("/v/link", true) && !can_enter("/proc/self/fd/4", true));
        assert!(!root.join("v").exists() && !volume.join("missing").exists());
    }
}
