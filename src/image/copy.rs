//! Copies a directory of an image to the host: the initial content of a new volume.
//!
//! The source is read through an overlay mount of the image, in which links resolve as they do in a container, and
//! the layer unpacker writes the copy. So no image can make the copy read a file of the host.

use std::io::{self, BufReader, BufWriter};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::capture::capture;
use super::draft::in_overlay;
use super::tree::{Tree, TreeError};
use super::unpack::unpack;
use super::{ImageError, ImageService, blocking, document_digests, stack};
use crate::base::cause::Cause;
use crate::model::Image;

/// Content of the copied directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The image has no such directory.
    Nothing,
    /// The directory is empty: only its owner and mode were copied.
    Empty,
    /// The directory was copied with its content.
    Files,
}

impl ImageService {
    /// Copies the directory at an absolute path of an image, with owners, modes, times, links and attributes, to
    /// `target`, an empty directory of the host. After an error, part of the copy may exist. [`ImageError::NotFound`]
    /// if the image was removed or replaced since it was looked up.
    pub async fn copy_directory(&self, image: &Image, path: &str, target: PathBuf) -> Result<Copied, ImageError> {
        let diff_ids = image.diff_ids();
        let ids = stack::digests(&diff_ids).into_iter();
        let pins = self.0.layers.pin(ids.chain(document_digests(image)).collect());
        // Pin first, then check: a layer that exists now cannot be swept afterwards.
        if self.get_by_id(&image.id).is_none_or(|row| row.layers != image.layers) {
            return Err(ImageError::NotFound(image.id.clone()));
        }
        let copied = self.copy_from_layers(&diff_ids, path, target).await;
        drop(pins);
        copied
    }

    /// The same, from layers that a row of the caller keeps.
    pub async fn copy_from_layers(
        &self,
        diff_ids: &[String],
        path: &str,
        target: PathBuf,
    ) -> Result<Copied, ImageError> {
        let inner = self.0.clone();
        // The work goes on when the caller is dropped.
        let pins = inner.layers.pin(stack::digests(diff_ids).into_iter().collect());
        let (lower, path) = (self.lower_dirs(diff_ids), clean(path));
        if lower.is_empty() {
            return Ok(Copied::Nothing);
        }
        let copied = blocking(move || {
            let _pins = pins;
            let staged = inner.layers.stage()?;
            let [upper, work, merged] = ["upper", "work", "merged"].map(|name| staged.path().join(name));
            for path in [&upper, &work, &merged] {
                fs_err::create_dir(path)?;
            }
            let most = inner.settings.max_layer_entries;
            in_overlay(&lower, &upper, &work, &merged, |root| {
                copy_within(root, &path, &target, most)
            })
        });
        copied.await?
    }
}

/// The path without `.` and redundant slashes, relative to the root of the image.
fn clean(path: &str) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// `root` is the mount point of the image, `path` a clean path without a leading slash.
fn copy_within(root: &Path, path: &Path, target: &Path, max_entries: u64) -> Result<Copied, ImageError> {
    let tree = Tree::new(root).map_err(failed)?;
    let source: &OwnedFd = &*match tree.existing_directory(path.as_os_str().as_encoded_bytes()) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Copied::Nothing),
        Err(errno) => return Err(io::Error::from(errno).into()),
    };
    // The descriptor keeps referring to this directory, even if its name is reused.
    let source = PathBuf::from(format!("/proc/self/fd/{}/.", source.as_raw_fd()));
    let (reader, writer) = io::pipe()?;
    let (unpacked, captured) = std::thread::scope(|scope| {
        let capturing = scope.spawn(|| capture(&source, BufWriter::with_capacity(128 << 10, writer)));
        let mut archive = BufReader::with_capacity(128 << 10, reader);
        let unpacked = unpack(&mut archive, target, max_entries);
        let drained = unpacked.and_then(|()| {
            let drained = io::copy(&mut archive, &mut io::sink());
            drained.map(drop).map_err(|e| TreeError::System(e.to_string()))
        });
        // Without its reader, the other thread ends.
        drop(archive);
        let captured = capturing.join();
        let captured = captured.unwrap_or_else(|_| Err(io::Error::other("the copy of a directory panicked")));
        (drained, captured)
    });
    unpacked.map_err(failed)?;
    captured.map_err(|error| ImageError::NoLayer(error.to_string()))?;
    let is_empty = fs_err::read_dir(target)?.next().is_none();
    Ok(if is_empty { Copied::Empty } else { Copied::Files })
}

fn failed(error: TreeError) -> ImageError {
    match error {
        TreeError::Refused(message) => ImageError::NoLayer(message),
        TreeError::System(message) => ImageError::Io(Cause::new(message)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::testing::{Tar, with_overlay};
    use super::*;

    /// Copies the directory at `path` of an image with these layers, topmost first. Returns its kind of content, and
    /// the names, owners and modes of the result.
    fn copied(layers: Vec<Tar>, path: &str) -> (Copied, Vec<String>) {
        let scratch = tempfile::tempdir().unwrap();
        let unpack = |(n, tar): (usize, Tar)| {
            let path = scratch.path().join(format!("layer{n}"));
            tar.unpack_to(&path).unwrap();
            path
        };
        let lower: Vec<PathBuf> = layers.into_iter().enumerate().map(unpack).collect();
        let target = scratch.path().join("target");
        std::fs::create_dir(&target).unwrap();
        std::fs::set_permissions(&target, PermissionsExt::from_mode(0o755)).unwrap();
        let mut outcome = None;
        with_overlay(&lower, |merged| {
            outcome = Some(copy_within(merged, &clean(path), &target, 1000).unwrap())
        });
        let mut lines = Vec::new();
        let mut pending = vec![target.clone()];
        while let Some(path) = pending.pop() {
            let m = std::fs::symlink_metadata(&path).unwrap();
            if m.is_dir() {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
            let name = path.strip_prefix(&target).unwrap().display().to_string();
            lines.push(format!(
                "{name} {:o} {}:{} {}",
                m.mode() & 0o7777,
                m.uid(),
                m.gid(),
                m.nlink()
            ));
        }
        lines.sort();
        (outcome.unwrap(), lines)
    }

    fn base() -> Tar {
        Tar::new()
            .file("etc/passwd", "root")
            .symlink("var/run", "/run")
            .dir("run", 0o755)
    }

    #[test]
    fn all_of_a_directory_with_owners_modes_and_links() {
        let data = Tar::new()
            .owner(33, 44)
            .dir("var/lib/db", 0o750)
            .file("var/lib/db/table", "rows")
            .symlink("var/lib/db/link", "/etc/passwd")
            .hard_link("var/lib/db/again", "var/lib/db/table");
        let (outcome, lines) = copied(vec![data, base()], "/var/lib//./db");
        assert_eq!(outcome, Copied::Files);
        assert_eq!(
            lines,
            [
                " 750 33:44 2",
                "again 644 33:44 2",
                "link 777 33:44 1",
                "table 644 33:44 2"
            ]
        );
    }

    #[test]
    fn of_several_layers_what_a_container_sees() {
        let top = Tar::new().file("data/.wh.old", "").file("data/new", "2");
        let bottom = Tar::new().file("data/old", "1").file("data/kept", "1");
        let (outcome, lines) = copied(vec![top, bottom], "data");
        assert_eq!((outcome, lines.len()), (Copied::Files, 3), "{lines:?}");
        assert!(
            lines[1].starts_with("kept ") && lines[2].starts_with("new "),
            "{lines:?}"
        );
    }

    #[test]
    fn an_empty_directory_gives_owner_and_mode() {
        let data = Tar::new().owner(999, 998).dir("data", 0o1777);
        assert_eq!(
            copied(vec![data, base()], "/data"),
            (Copied::Empty, vec![" 1777 999:998 2".to_owned()])
        );
    }

    #[test]
    fn no_link_of_the_image_leads_out_of_it() {
        // Each of these would be a directory of this host.
        let links = Tar::new()
            .symlink("abs", "/proc")
            .symlink("up", "../../../../../../../etc")
            .symlink("loop", "loop")
            .symlink("magic", "/proc/self/root");
        for path in [
            "abs",
            "abs/self",
            "loop",
            "magic",
            "magic/etc",
            "/abs/../../../proc",
            "/no/such",
            "/etc/passwd",
        ] {
            let (outcome, lines) = copied(vec![links.clone(), base()], path);
            assert_eq!((outcome, lines.len()), (Copied::Nothing, 1), "{path}: {lines:?}");
        }
        // In the image it leads to the image's own directory, as in a container.
        let (outcome, lines) = copied(vec![links.clone(), base()], "up");
        assert_eq!((outcome, lines.len()), (Copied::Files, 2), "{lines:?}");
        assert_eq!(copied(vec![links, base()], "/var/run").0, Copied::Empty);
    }
}
