//! Checks whether bind mounts fit their mount points: a directory needs a directory, and a file needs a file.
//! libcontainer makes missing mount points.
//!
//! This runs before libcontainer mounts anything, because libcontainer would not tell which mount is wrong.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::bind::Bind;

/// Checks mounts in the order in which they are mounted. The error is a message for the user.
pub fn check<'a>(root: &Path, binds: impl IntoIterator<Item = &'a Bind>) -> Result<(), String> {
    let mut earlier: Vec<&Bind> = Vec::new();
    for bind in binds {
        check_one(root, &earlier, bind)?;
        earlier.push(bind);
    }
    Ok(())
}

fn check_one(root: &Path, earlier: &[&Bind], bind: &Bind) -> Result<(), String> {
    let place = &bind.destination;
    // The latest earlier mount at this place or above it is visible here.
    let covering = earlier.iter().rev().find(|other| place.starts_with(&other.destination));
    let (base, rest) = match covering {
        Some(other) => (&*other.source, place.strip_prefix(&other.destination)),
        None => (root, place.strip_prefix("/")),
    };
    let source_is_directory = bind.source.is_dir();
    match look_up(base, rest.unwrap_or(Path::new(""))) {
        MountPoint::Missing { writable: true } => Ok(()),
        MountPoint::Missing { writable: false } => Err(format!(
            "cannot mount onto {}: it does not exist, and it cannot be made because the mount is read-only",
            place.display()
        )),
        MountPoint::BelowFile(levels) => {
            let file = place.ancestors().nth(levels).unwrap_or(place);
            Err(format!(
                "cannot mount onto {}: {} is not a directory",
                place.display(),
                file.display()
            ))
        }
        MountPoint::Exists { is_directory } if is_directory == source_is_directory => Ok(()),
        MountPoint::Exists { is_directory: true } => Err(format!(
            "cannot mount a file onto {}, which is a directory",
            place.display()
        )),
        MountPoint::Exists { is_directory: false } => Err(format!(
            "cannot mount a directory onto {}, which is not a directory",
            place.display()
        )),
    }
}

/// What exists at a mount point.
enum MountPoint {
    Exists {
        is_directory: bool,
    },
    Missing {
        writable: bool,
    },
    /// An ancestor, that many levels up, is not a directory.
    BelowFile(usize),
}

/// Does not follow symbolic links: those of the image are resolved already, and those of a source must not be followed.
fn look_up(base: &Path, rest: &Path) -> MountPoint {
    let names: Vec<Component<'_>> = rest.components().collect();
    let mut here = PathBuf::from(base);
    for (n, name) in names.iter().enumerate() {
        match here.symlink_metadata() {
            Ok(metadata) if !metadata.is_dir() => return MountPoint::BelowFile(names.len() - n),
            Ok(_) => here.push(name),
            Err(_) => break,
        }
    }
    match here.symlink_metadata() {
        Ok(metadata) => MountPoint::Exists {
            is_directory: metadata.is_dir(),
        },
        Err(_) => {
            let flags = statvfs(base).map(|statistics| statistics.f_flag);
            MountPoint::Missing {
                writable: !flags.is_ok_and(|flags| flags.contains(StatVfsMountFlags::RDONLY)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_must_fit_its_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for directory in ["root/etc/app", "source/sub"] {
            std::fs::create_dir_all(path(directory)).unwrap();
        }
        for file in ["root/etc/file", "file", "source/plain"] {
            std::fs::write(path(file), "").unwrap();
        }
        let bind = |source: &str, destination: &str| Bind {
            source: path(source),
            destination: destination.into(),
        };
        let check = |binds: &[Bind]| check(&path("root"), binds);
        for (source, destination) in [
            ("source", "/etc/app"),
            ("source", "/new/deep"),
            ("file", "/etc/file"),
            ("file", "/etc/new"),
            ("file", "/tmp/x"),
        ] {
            check(&[bind(source, destination)]).unwrap();
        }
        for (source, destination, message) in [
            (
                "file",
                "/etc/app",
                "cannot mount a file onto /etc/app, which is a directory",
            ),
            (
                "source",
                "/etc/file",
                "cannot mount a directory onto /etc/file, which is not a directory",
            ),
            (
                "source",
                "/etc/file/a/b",
                "cannot mount onto /etc/file/a/b: /etc/file is not a directory",
            ),
        ] {
            assert_eq!(check(&[bind(source, destination)]).unwrap_err(), message);
        }
        // Inside another mount, the content of that mount counts.
        check(&[bind("source", "/etc/app"), bind("file", "/etc/app/plain")]).unwrap();
        check(&[bind("source", "/etc/app"), bind("source", "/etc/app/sub/new")]).unwrap();
        let message = check(&[bind("source", "/etc/app"), bind("source", "/etc/app/plain")]).unwrap_err();
        assert!(message.contains("a directory onto /etc/app/plain"), "{message}");
        // A later mount covers an earlier one.
        check(&[bind("source", "/etc/plain"), bind("source", "/etc")]).unwrap();
        let message = check(&[bind("file", "/etc/x"), bind("source", "/etc/x/y")]).unwrap_err();
        assert!(message.contains("/etc/x is not a directory"), "{message}");
    }
}
