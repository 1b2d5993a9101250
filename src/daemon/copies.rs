//! Makes a plain copy of the state, taken while the daemon is stopped, as good as the state itself.
//!
//! At shutdown the daemon records the metadata of writable layers and volumes that such a copy loses
//! (`image::record`), and marks the records with an extended attribute. If that mark is missing at the next start,
//! the state is a copy, and its metadata is restored. In both cases the records are deleted: they are valid only from
//! a shutdown to the next start. Image layers have their own records.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use crate::base::absent::absent_is_fine;
use crate::daemon::config::Config;
use crate::image::record;
use crate::image::record::{Allowance, Entry};

/// Attribute that a plain copy does not preserve.
const MARK: &str = "trusted.condenser.notes";
/// Maximum number of entries of a tree. Larger trees are skipped, because they would delay the shutdown.
const MAX_ENTRIES: usize = 200_000;
/// Maximum size of all records together.
const MAX_BYTES: usize = 128 << 20;
/// Time limit for all trees together. Together with the limit for operations in progress (`SHUTDOWN_LIMIT`) it stays
/// below the `TimeoutStopSec` of the unit.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// The record of one tree.
#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    /// Path relative to the root directory.
    tree: PathBuf,
    entries: Vec<Entry>,
}

/// Records everything. Trees that cannot be recorded are logged.
pub(super) fn record_metadata(config: &Config) {
    let mut allowance = Allowance {
        entries: MAX_ENTRIES,
        bytes: MAX_BYTES,
        until: Some(Instant::now() + TIME_LIMIT),
    };
    let mut noted = || -> io::Result<()> {
        let directory = directory(config);
        forget(&directory)?;
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
        // First, so that incomplete records are not mistaken for those of a copy.
        rustix::fs::setxattr(&directory, MARK, b"1", XattrFlags::empty())?;
        let trees = trees(config)?;
        let count = trees.len();
        for (n, tree) in trees.into_iter().enumerate() {
            if allowance.is_over() {
                let trees = count - n;
                tracing::warn!(
                    trees,
                    "no time left to record these trees: copy them with extended attributes and numeric owners"
                );
                break;
            }
            let entries = match record::record_tree(&config.root_dir.join(&tree), &mut allowance) {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::warn!(%error, "cannot record a tree: copy it with extended attributes and numeric owners");
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
        tracing::warn!(%error, "cannot record the metadata that a plain copy of the state loses");
    }
}

/// Restores the metadata of a copy, before anything in it is used.
pub(super) fn restore(config: &Config) {
    let directory = directory(config);
    if !directory.exists() {
        return;
    }
    let is_copy = rustix::fs::getxattr(&directory, MARK, &mut [0; 8][..]).is_err();
    let restore_tree = |file: &Path| -> io::Result<()> {
        let notes: Notes = serde_json::from_slice(&fs_err::read(file)?)?;
        record::restore_tree(&config.root_dir.join(&notes.tree), &notes.entries)
    };
    let all = || -> io::Result<()> {
        tracing::warn!("the state was copied without extended attributes; restoring writable layers and volumes");
        // A tree that cannot be restored must not keep the others from it.
        let mut done = Ok(());
        for file in fs_err::read_dir(&directory)? {
            done = done.and(restore_tree(&file?.path()));
        }
        done
    };
    let done = if is_copy { all() } else { Ok(()) };
    // Whatever the outcome, the records are invalid from now on.
    if let Err(error) = forget(&directory).and(done) {
        tracing::warn!(%error, "cannot restore all metadata that this copy of the state has lost");
    }
}

fn directory(config: &Config) -> PathBuf {
    config.root_dir.join("store/notes")
}

fn forget(directory: &Path) -> io::Result<()> {
    absent_is_fine(fs_err::remove_dir_all(directory))
}

/// Writable layers, and the volumes of bottles and pods.
fn trees(config: &Config) -> io::Result<Vec<PathBuf>> {
    let mut trees = Vec::new();
    for (directory, rest) in [("container", "diff"), ("volumes", ""), ("pod", "")] {
        for entry in fs_err::read_dir(config.root_dir.join(directory))? {
            let entry = Path::new(directory).join(entry?.file_name());
            let tree = if rest.is_empty() { entry } else { entry.join(rest) };
            // A link's target is not part of the copy.
            let metadata = fs_err::symlink_metadata(config.root_dir.join(&tree));
            if metadata.is_ok_and(|metadata| metadata.is_dir()) {
                trees.push(tree);
            }
        }
    }
    Ok(trees)
}
