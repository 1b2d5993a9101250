//! So that a plain copy of the state, made while the daemon does not run, is worth as much as the state.
//!
//! When the daemon ends it notes what such a copy loses (`image::record`) of writable layers and volumes, and marks
//! the notes with an extended attribute. When it starts and the mark is gone, this is a copy, and gets it back. Either way the
//! notes go: they are true from an end to the next start. Layers of images have records of their own.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use crate::daemon::config::Config;
use crate::image::record;
use crate::image::record::{Allowance, Entry};

/// A plain copy does not have it.
const MARK: &str = "trusted.condenser.notes";
/// A tree with more entries is not noted: nobody wants to wait for that at an end.
const MOST: usize = 200_000;
/// All notes together are not larger.
const MOST_BYTES: usize = 128 << 20;
/// Time for all trees together. With the time for operations in progress (`SHUTDOWN_LIMIT`) it stays below the
/// `TimeoutStopSec` of the unit.
const NOTING: Duration = Duration::from_secs(15);

/// What was noted of one tree.
#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    /// Below the root directory.
    tree: PathBuf,
    entries: Vec<Entry>,
}

/// Notes everything. What cannot be noted is logged.
pub(super) fn note(config: &Config) {
    let mut allowance = Allowance {
        entries: MOST,
        bytes: MOST_BYTES,
        until: Some(Instant::now() + NOTING),
    };
    let mut noted = || -> io::Result<()> {
        let directory = directory(config);
        forget(&directory)?;
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
        // First: notes that are cut off must not be taken for those of a copy.
        rustix::fs::setxattr(&directory, MARK, b"1", XattrFlags::empty())?;
        let trees = trees(config)?;
        let count = trees.len();
        for (n, tree) in trees.into_iter().enumerate() {
            if allowance.is_over() {
                let trees = count - n;
                tracing::warn!(
                    trees,
                    "no time was left: copy the rest with extended attributes and numeric owners only"
                );
                break;
            }
            let entries = match record::note(&config.root_dir.join(&tree), &mut allowance) {
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
    let given = |file: &Path| -> io::Result<()> {
        let notes: Notes = serde_json::from_slice(&fs_err::read(file)?)?;
        record::give_back(&config.root_dir.join(&notes.tree), &notes.entries)
    };
    let all = || -> io::Result<()> {
        tracing::warn!("the state is a copy without extended attributes; writable layers and volumes get theirs back");
        // A tree that cannot be mended is no reason to leave the others.
        let mut done = Ok(());
        for file in fs_err::read_dir(&directory)? {
            done = done.and(given(&file?.path()));
        }
        done
    };
    let done = if is_copy { all() } else { Ok(()) };
    // Whatever came of it: from now on the notes are no longer true.
    if let Err(error) = forget(&directory).and(done) {
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
            let entry = Path::new(directory).join(entry?.file_name());
            let tree = if rest.is_empty() { entry } else { entry.join(rest) };
            // A copy of a link has nothing of what it leads to.
            let metadata = std::fs::symlink_metadata(config.root_dir.join(&tree));
            if metadata.is_ok_and(|metadata| metadata.is_dir()) {
                trees.push(tree);
            }
        }
    }
    Ok(trees)
}
