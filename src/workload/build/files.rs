//! Build steps that change files without running anything: `COPY`, `ADD`, `WORKDIR`.
//!
//! Paths of the image are resolved within its root, paths of the context within the context; no link in either can
//! lead to a file of the host. Copies are owned by root and keep mode and times.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::context::{finish_file, new_file};
use super::{BuildError, context};
use crate::image::tree;
use crate::image::tree::{Tree, TreeError, open_directory, split};

/// A file step. Paths of the image are absolute and clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileStep {
    /// Creates a directory and its parents.
    Directory(String),
    /// Copies a file, or the content of a directory.
    Copy {
        /// Path in the context, clean.
        source: String,
        /// Path in the image.
        destination: String,
        /// Whether the destination is written as a directory.
        into: bool,
    },
}

/// Runs steps on an image whose root is `image`.
pub(super) fn apply(context: &Path, image: &Path, steps: &[FileStep]) -> Result<(), BuildError> {
    let mut tree = Tree::new(image)?;
    for step in steps {
        match step {
            FileStep::Directory(path) => drop(tree.directory(relative(path))?),
            FileStep::Copy {
                source,
                destination,
                into,
            } => copy(&mut tree, context, source, relative(destination), *into)?,
        }
    }
    Ok(())
}

fn copy(tree: &mut Tree, context: &Path, source: &str, destination: &[u8], into: bool) -> Result<(), BuildError> {
    let opened = context::open(context, source).map_err(|e| match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => BuildError::NoSource(source.to_owned()),
        e => tree::error(e, source.as_bytes()).into(),
    })?;
    let file = File::from(opened);
    let metadata = file.metadata().map_err(|e| failed(&e, source.as_bytes()))?;
    if metadata.is_dir() {
        tree.directory(destination)?;
        return copy_directory(tree, OwnedFd::from(file), destination);
    }
    let into = into || tree.existing_directory(destination).is_ok();
    let (parent, name) = match into {
        true => (destination, split(source.as_bytes()).1),
        false => split(destination),
    };
    let parent = tree.directory(parent)?;
    Ok(copy_file(tree, file, &parent, name)?)
}

fn copy_directory(tree: &mut Tree, source: OwnedFd, destination: &[u8]) -> Result<(), BuildError> {
    let fail = |e| BuildError::from(tree::error(e, destination));
    for entry in Dir::read_from(&source).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let path = match destination {
            b"" => name.to_vec(),
            directory => [directory, b"/", name].concat(),
        };
        let stat = rustix::fs::statat(&source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        let parent = tree.directory(destination)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                if tree.existing_directory(&path).is_err() {
                    tree.make_directory(&parent, name).map_err(fail)?;
                    tree::set_mode(&parent, name, stat.st_mode & 0o7777).map_err(fail)?;
                }
                copy_directory(tree, open_directory(&source, name).map_err(fail)?, &path)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&source, name, Vec::new()).map_err(fail)?;
                let link = || rustix::fs::symlinkat(&target, &*parent, name);
                tree.replace(&parent, name, link).map_err(fail)?;
            }
            FileType::RegularFile => copy_file(tree, open_file(source.as_fd(), name).map_err(fail)?, &parent, name)?,
            // A context contains nothing else.
            _ => {}
        }
    }
    Ok(())
}

fn open_file(directory: impl AsFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).map(File::from)
}

fn copy_file(tree: &mut Tree, mut source: File, parent: &OwnedFd, name: &[u8]) -> Result<(), TreeError> {
    let metadata = source.metadata().map_err(|e| failed(&e, name))?;
    let mut copy = new_file(tree, parent, name).map_err(|e| tree::error(e, name))?;
    io::copy(&mut source, &mut copy).map_err(|e| failed(&e, name))?;
    let time = Timespec {
        tv_sec: metadata.mtime(),
        tv_nsec: metadata.mtime_nsec(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    finish_file(&copy, metadata.mode(), times).map_err(|e| tree::error(e, name))
}

fn failed(error: &io::Error, path: &[u8]) -> TreeError {
    tree::error(Errno::from_io_error(error).unwrap_or(Errno::IO), path)
}

/// The path in the form that [`Tree`] expects.
fn relative(path: &str) -> &[u8] {
    path.trim_start_matches('/').as_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// A context with files and an image with links that lead out of it.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            for directory in ["context/dir/sub", "image/real", "image/tmp", "outside"] {
                std::fs::create_dir_all(place.path(directory)).unwrap();
            }
            std::fs::write(place.path("context/file"), "1").unwrap();
            std::fs::set_permissions(place.path("context/file"), PermissionsExt::from_mode(0o4755)).unwrap();
            std::fs::write(place.path("context/dir/sub/deep"), "2").unwrap();
            symlink("/nowhere", place.path("context/dir/link")).unwrap();
            symlink("/etc", place.path("context/out")).unwrap();
            symlink("real", place.path("image/link")).unwrap();
            symlink(place.path("outside"), place.path("image/out")).unwrap();
            place
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.0.path().join(path)
        }

        fn copy(&self, source: &str, destination: &str) -> Result<(), String> {
            let step = FileStep::Copy {
                source: source.into(),
                destination: super::super::dripfile::joined("/", destination),
                into: destination.ends_with('/'),
            };
            apply(&self.path("context"), &self.path("image"), &[step]).map_err(|e| e.to_string())
        }

        fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.path(path)).unwrap_or_else(|e| e.to_string())
        }
    }

    #[test]
    fn a_file_goes_where_it_is_said() {
        let place = Place::new();
        for (destination, found) in [
            ("/named", "named"),
            ("/tmp", "tmp/file"),
            ("/new/", "new/file"),
            ("/a/b/c", "a/b/c"),
            ("/link", "real/file"),
            ("/link/x", "real/x"),
        ] {
            place.copy("file", destination).unwrap();
            assert_eq!(place.read(&format!("image/{found}")), "1", "{destination}");
        }
        let metadata = std::fs::metadata(place.path("image/named")).unwrap();
        let original = std::fs::metadata(place.path("context/file")).unwrap();
        assert_eq!((metadata.mode(), metadata.mtime()), (original.mode(), original.mtime()));
    }

    #[test]
    fn the_content_of_a_directory_is_merged() {
        let place = Place::new();
        std::fs::create_dir(place.path("image/tmp/sub")).unwrap();
        std::fs::write(place.path("image/tmp/sub/kept"), "0").unwrap();
        place.copy("dir", "/tmp").unwrap();
        assert_eq!(place.read("image/tmp/sub/deep"), "2");
        assert_eq!(place.read("image/tmp/sub/kept"), "0");
        assert_eq!(
            std::fs::read_link(place.path("image/tmp/link")).unwrap(),
            Path::new("/nowhere")
        );
        place.copy("", "/all").unwrap();
        assert_eq!(place.read("image/all/dir/sub/deep"), "2");
    }

    #[test]
    fn links_of_image_and_context_lead_nowhere_else() {
        let place = Place::new();
        place.copy("file", "/out/file").unwrap();
        assert_eq!(std::fs::read_dir(place.path("outside")).unwrap().count(), 0);
        assert_eq!(
            place.copy("out", "/x").unwrap_err(),
            "out: no such file or directory in the build context"
        );
        assert!(place.copy("out/passwd", "/x").is_err());
        assert!(place.copy("nofile", "/x").is_err());
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let place = Place::new();
        let steps = [
            FileStep::Directory("/".into()),
            FileStep::Directory("/link/deep/er".into()),
        ];
        apply(&place.path("context"), &place.path("image"), &steps).unwrap();
        assert_eq!(
            std::fs::metadata(place.path("image/real/deep/er")).unwrap().mode() & 0o7777,
            0o755
        );
        for n in 0..40 {
            let target = format!("/l{}{}", n + 1, "/d".repeat(2000));
            symlink(target, place.path(&format!("image/l{n}"))).unwrap();
        }
        let error = place.copy("file", "/l0/x").unwrap_err();
        assert!(error.contains("nested more than 256 deep"), "{error}");
        place.copy("file", "/named").unwrap();
        let through = [FileStep::Directory("/named/x".into())];
        apply(&place.path("context"), &place.path("image"), &through).unwrap_err();
    }
}
