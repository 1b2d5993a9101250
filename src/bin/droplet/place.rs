//! Whether bind mounts fit their places: a directory goes onto a directory, anything else onto what is none, and nothing
//! below a file. What is not there yet, libcontainer makes.
//!
//! Looked at before libcontainer mounts anything, because it would only say which of its steps failed.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::bundle::Bind;

/// Checks mounts in the order in which they are made. The error is a sentence for whoever asked for the mount.
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
    // A later mount covers an earlier one that is at the same place or above.
    let below = earlier.iter().rev().find(|other| place.starts_with(&other.destination));
    let (base, rest) = match below {
        Some(other) => (&*other.source, place.strip_prefix(&other.destination)),
        None => (root, place.strip_prefix("/")),
    };
    let is_directory = bind.source.is_dir();
    match found(base, rest.unwrap_or(Path::new(""))) {
        Found::Nothing { writable: true } => Ok(()),
        Found::Nothing { writable: false } => Err(format!(
            "cannot mount onto {}: it does not exist, and cannot be made in a mount that is read-only",
            place.display()
        )),
        Found::Below(file) => {
            let file = place.ancestors().nth(file).unwrap_or(place);
            Err(format!(
                "cannot mount onto {}: {} is not a directory",
                place.display(),
                file.display()
            ))
        }
        Found::There { directory } if directory == is_directory => Ok(()),
        Found::There { directory: true } => Err(format!(
            "cannot mount a file onto {}, which is a directory",
            place.display()
        )),
        Found::There { directory: false } => Err(format!(
            "cannot mount a directory onto {}, which is not a directory",
            place.display()
        )),
    }
}

/// What is at a place.
enum Found {
    There {
        directory: bool,
    },
    Nothing {
        writable: bool,
    },
    /// Something that is not a directory, that many names above.
    Below(usize),
}

/// Looks without following links: those of the image were followed already, and those of a source are not followed.
fn found(base: &Path, rest: &Path) -> Found {
    let names: Vec<Component<'_>> = rest.components().collect();
    let mut here = PathBuf::from(base);
    for (n, name) in names.iter().enumerate() {
        match here.symlink_metadata() {
            Ok(metadata) if !metadata.is_dir() => return Found::Below(names.len() - n),
            Ok(_) => here.push(name),
            Err(_) => break,
        }
    }
    match here.symlink_metadata() {
        Ok(metadata) => Found::There {
            directory: metadata.is_dir(),
        },
        Err(_) => {
            let flags = statvfs(base).map(|statistics| statistics.f_flag);
            Found::Nothing {
                writable: !flags.is_ok_and(|flags| flags.contains(StatVfsMountFlags::RDONLY)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_fits_its_place() {
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
        for (source, destination, said) in [
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
            assert_eq!(check(&[bind(source, destination)]).unwrap_err(), said);
        }
        // Within another mount, that one counts.
        check(&[bind("source", "/etc/app"), bind("file", "/etc/app/plain")]).unwrap();
        check(&[bind("source", "/etc/app"), bind("source", "/etc/app/sub/new")]).unwrap();
        let said = check(&[bind("source", "/etc/app"), bind("source", "/etc/app/plain")]).unwrap_err();
        assert!(said.contains("a directory onto /etc/app/plain"), "{said}");
        // What is mounted later covers what was below it.
        check(&[bind("source", "/etc/plain"), bind("source", "/etc")]).unwrap();
        let said = check(&[bind("file", "/etc/x"), bind("source", "/etc/x/y")]).unwrap_err();
        assert!(said.contains("/etc/x is not a directory"), "{said}");
    }
}
