//! File steps: what `COPY`, `ADD`, `WORKDIR` and `RUN --mount` read and write.
//!
//! ```text
//! Selection (patterns, exclusions) -- find --> Picks -- walk --> Sink: Hash (the key of the cache), Write (the image)
//! ```
//! Paths of a source are resolved within it, paths of the image within the image; no link in either can lead to a file
//! of the host. The same walk feeds the key and the copy, so that what was hashed is what is copied.
//!
//! All functions block.

mod find;
mod hash;
mod walk;
mod write;

use std::path::Path;

use tokio_util::sync::CancellationToken;

pub(super) use self::find::Selection;
use self::hash::Hash;
use self::write::Write;
pub(super) use self::write::make_directory;
use super::BuildError;
use super::cache::Key;
use super::mode::ModeChange;

/// Where files are copied to, and what they become. The same for all sources of an instruction.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    /// Path in the image: absolute and clean.
    pub destination: String,
    /// Whether the destination is written as a directory.
    pub into: bool,
    /// Owner of all that is made. `None`: copies keep that of their source, and new parents belong to root.
    pub owner: Option<(u32, u32)>,
    pub mode: Option<ModeChange>,
}

/// One source: a directory with files, and which of them.
#[derive(Debug, Clone)]
pub(super) struct Sources<'a> {
    /// Root of the context, stage or image.
    pub root: &'a Path,
    /// For errors: `the build context, …`.
    pub place: &'a str,
    pub selection: &'a Selection,
    /// Whether copies belong to whom their sources belong to, whatever the placement says.
    pub keeps_owners: bool,
    /// Ends a walk.
    pub cancelled: &'a CancellationToken,
}

/// Adds to a key what a copy reads: names, kinds, modes and owners as they will be, contents, link targets, attributes.
pub(super) fn hash(key: &mut Key, sources: &[Sources<'_>], placement: &Placement) -> Result<(), BuildError> {
    key.add(&placement.destination);
    key.add([u8::from(placement.into)]);
    for source in sources {
        for pick in source.selection.find(source.root, source.place)? {
            let mut sink = Hash::new(key);
            walk::walk(source, &pick, placement, &mut sink)?;
        }
    }
    Ok(())
}

/// Copies the sources into an image whose root is `image`.
pub(super) fn copy(image: &Path, sources: &[Sources<'_>], placement: &Placement) -> Result<(), BuildError> {
    let mut picks = Vec::new();
    for source in sources {
        for pick in source.selection.find(source.root, source.place)? {
            picks.push((source, pick));
        }
    }
    let mut write = Write::new(image, placement)?;
    let (first, several) = match &picks[..] {
        [] => return Err(BuildError::Refused("none of the sources exists".to_owned())),
        [(_, pick), rest @ ..] => (pick.name(), !rest.is_empty()),
    };
    if several && !placement.into && !write.is_directory() {
        let message = format!(
            "several sources need a directory to be copied to; end the destination with /, as in {}/ ({first} is one of \
             them)",
            placement.destination
        );
        return Err(BuildError::Refused(message));
    }
    for (source, pick) in picks {
        walk::walk(source, &pick, placement, &mut write)?;
    }
    write.finish()
}

/// The path in the form that [`Tree`](crate::image::tree::Tree) expects.
fn relative(path: &str) -> &[u8] {
    path.trim_matches('/').as_bytes()
}

#[cfg(test)]
mod tests;
