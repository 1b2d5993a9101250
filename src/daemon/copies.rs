//! So that a plain copy of the state, made while the daemon does not run, is worth as much as the state.
//!
//! When the daemon ends it notes what such a copy loses (`image::record`) of writable layers and volumes, and marks
//! the notes with an extended attribute. When it starts and the mark is gone, this is a copy, and gets it back. Either way the
//! notes go: they are true from an end to the next start. Layers of images have records of their own.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::image::record::{self, Entry};

/// A plain copy does not have it.
const MARK: &str = "trusted.condenser.notes";
/// A tree with more entries is not noted: nobody wants to wait for that at an end.
const MOST: usize = 200_000;

/// What was noted of one tree.
#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    /// Below the root directory.
    tree: PathBuf,
    entries: Vec<Entry>,
}

/// Notes everything. What cannot be noted is logged.
pub(super) fn note(config: &Config) {
    let noted = || -> io::Result<()> {
        let directory = directory(config);
        forget(&directory)?;
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
        // First: notes that are cut off must not be taken for those of a copy.
        rustix::fs::setxattr(&directory, MARK, b"1", XattrFlags::empty())?;
        for (n, tree) in trees(config)?.into_iter().enumerate() {
            let entries = match record::note(&config.root_dir.join(&tree), MOST) {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::warn!(%error, "not noted: copy it with extended attributes and numeric owners only");
                    continue;
                }
            };
            if !entries.is_empty() {
                let file = fs_err::File::create_new(directory.join(format!("{n}.json")))?;
                serde_json::to_writer(io::BufWriter::new(file), &Notes { tree, entries })?;
            }
        }
        Ok(())
    };
    if let Err(error) = noted() {
        tracing::warn!(%error, "what a plain copy of the state loses is not noted");
    }
}

/// Gives a copy back what it has lost, before anything of it is used.
pub(super) fn give_back(config: &Config) {
    let directory = directory(config);
    if !directory.exists() {
        return;
    }
    let is_copy = rustix::fs::getxattr(&directory, MARK, &mut [0; 8][..]).is_err();
    let given = || -> io::Result<()> {
        if is_copy {
            tracing::warn!(
                "the state is a copy without extended attributes; writable layers and volumes get theirs back"
            );
            for file in fs_err::read_dir(&directory)? {
                let notes: Notes = serde_json::from_slice(&fs_err::read(file?.path())?)?;
                record::give_back(&config.root_dir.join(&notes.tree), &notes.entries)?;
            }
        }
        forget(&directory)
    };
    if let Err(error) = given() {
        tracing::warn!(%error, "not everything that this copy of the state has lost could be given back");
    }
}

fn directory(config: &Config) -> PathBuf {
    config.root_dir.join("store/notes")
}

fn forget(directory: &Path) -> io::Result<()> {
    match fs_err::remove_dir_all(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Writable layers, and the volumes of bottles and pods.
fn trees(config: &Config) -> io::Result<Vec<PathBuf>> {
    let mut trees = Vec::new();
    for (directory, rest) in [("container", "diff"), ("volumes", ""), ("pod", "")] {
        for entry in fs_err::read_dir(config.root_dir.join(directory))? {
            let tree = Path::new(directory).join(entry?.file_name()).join(rest);
            if config.root_dir.join(&tree).is_dir() {
                trees.push(tree);
            }
        }
    }
    Ok(trees)
}
