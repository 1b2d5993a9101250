//! Preconditions of a start: the user is root, and the directories exist and are closed to others.
//!
//! Root in a container is root for files on the host: setuid programs in a writable layer and secrets in a
//! `config.json` must not be accessible to others. One closed directory at the top would protect everything below it,
//! but a top directory may be shared with others (`log_dir = "/var/log"`). So the directories that are ours alone are
//! closed, and so is each directory of the second level. Earlier versions left them open.
//! alone are closed, and each of the second level too. Earlier versions left them open.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::DaemonError;
use crate::daemon::config::Config;

/// Only root.
const ROOT_ONLY: u32 = 0o700;
/// An administrator may give the directory to a group that reads logs.
const LOGS: u32 = 0o750;
/// Cannot be listed, but a container with shifted ids, which only `droplet` on its own can create, must pass through it to
/// its mounts. Everything in it is closed itself.
const PASSAGE: u32 = 0o711;
/// Permissions that our directories never grant: write for the group, anything for others.
const FORBIDDEN: u32 = 0o027;
/// Directories of the host. If one is configured as ours, it is used without changes.
const SHARED: [&str; 19] = [
    "/",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/tmp",
];
/// Files of a container with its environment variables.
const SECRET: [&str; 2] = ["config.json", "state.json"];

/// Checks everything that can fail before anything but directories is changed.
pub(super) fn prepare(config: &Config) -> Result<(), DaemonError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    // Modes of files are explicit in the code; an inherited umask must not reduce them.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let directories = [
        (config.root_dir.clone(), ROOT_ONLY),
        (config.container_root(), ROOT_ONLY),
        (config.image_root(), ROOT_ONLY),
        (config.pod_root(), ROOT_ONLY),
        (config.volume_root(), ROOT_ONLY),
        (config.root_dir.join("store"), ROOT_ONLY),
        (config.root_dir.join("log"), ROOT_ONLY),
        (config.cert_dir(), ROOT_ONLY),
        (config.log_dir.clone(), LOGS),
        (config.run_dir.clone(), PASSAGE),
    ];
    for (path, mode) in directories {
        make(&path, mode).map_err(|source| failed(&path, source))?;
    }
    let root = config.container_root();
    close_containers(&root).map_err(|source| failed(&root, source))
}

fn failed(path: &Path, source: io::Error) -> DaemonError {
    DaemonError::Directory {
        path: path.display().to_string(),
        source,
    }
}

/// Creates a directory. An existing one loses the permissions of others; one that nobody can enter, as an earlier
/// installation created them, gets `mode`.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    let builder = |mode| {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(mode);
        builder
    };
    if let Some(parent) = path.parent() {
        builder(0o755).create(parent)?;
    }
    builder(mode).create(path)?;
    let metadata = fs_err::metadata(path)?;
    let now = metadata.permissions().mode();
    let (is_open, is_unusable) = (now & FORBIDDEN & !mode != 0, now & 0o100 == 0);
    if (is_open || is_unusable) && !SHARED.iter().any(|shared| path == Path::new(shared)) {
        fs_err::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Closes the directories of containers that an earlier version created, and their secrets. Links are skipped.
fn close_containers(root: &Path) -> io::Result<()> {
    for entry in fs_err::read_dir(root)? {
        let directory = entry?.path();
        if !directory.symlink_metadata()?.is_dir() {
            continue;
        }
        close(&directory, ROOT_ONLY)?;
        for name in SECRET {
            match close(&directory.join(name), 0o600) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
    }
    Ok(())
}

fn close(path: &Path, mode: u32) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_symlink() && metadata.permissions().mode() & 0o077 != 0 {
        fs_err::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_an_earlier_version_left_open_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make(&path, ROOT_ONLY).unwrap();
        assert_eq!((mode(&path), mode(&dir.path().join("a"))), (0o700, 0o755));
        for (before, wanted, after) in [
            (0o755, ROOT_ONLY, 0o700),
            (0o644, ROOT_ONLY, 0o700),
            (0o750, LOGS, 0o750),
            (0o755, LOGS, 0o750),
            (0o770, LOGS, 0o750),
            (0o700, LOGS, 0o700),
            (0o755, PASSAGE, 0o711),
            (0o711, PASSAGE, 0o711),
        ] {
            std::fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            make(&path, wanted).unwrap();
            assert_eq!(mode(&path), after, "{before:o} for {wanted:o}");
        }
    }

    #[test]
    fn containers_of_an_earlier_version_are_closed() {
        let root = tempfile::tempdir().unwrap();
        let container = root.path().join("01abcdefghjk");
        std::fs::create_dir_all(container.join("diff")).unwrap();
        std::fs::write(container.join("config.json"), "{}").unwrap();
        std::fs::write(root.path().join("outside"), "").unwrap();
        std::os::unix::fs::symlink(root.path().join("outside"), container.join("state.json")).unwrap();
        std::fs::set_permissions(&container, Permissions::from_mode(0o755)).unwrap();
        close_containers(root.path()).unwrap();
        assert_eq!(mode(&container), 0o700);
        assert_eq!(mode(&container.join("config.json")), 0o600);
        assert_eq!(
            mode(&container.join("diff")),
            0o755,
            "the root directory that the container sees"
        );
        assert_eq!(mode(&root.path().join("outside")), 0o644);
    }
}
