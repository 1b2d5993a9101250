//! What is fuzzed: the files of the library that read and place archives nobody trusts, compiled here as they stand.
//!
//! They are taken by their paths instead of through the library, so that nothing of it becomes public for this, and a
//! build takes seconds.

#![allow(dead_code, reason = "the library uses more of these files than the targets do")]

mod base;
mod build;
mod image;
mod model;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use build::{fill_context, read_build_file};
pub use image::{Failure, load, unpack_layer};

/// Reads every entry and all data of an archive.
pub fn read_archive(bytes: &[u8]) {
    let mut archive = image::archive::Archive::new(bytes);
    let mut total = 0;
    while let Ok(Some(entry)) = archive.next() {
        assert!(
            entry.path.len() <= 1 << 20,
            "a name is longer than all that may stand before an entry"
        );
        assert!(!image::printable::printable(&entry.path).contains(char::is_control));
        match std::io::copy(&mut archive.by_ref(), &mut std::io::sink()) {
            Ok(read) => total += read,
            Err(_) => break,
        }
    }
    assert!(total <= bytes.len() as u64, "more data than the archive has");
}

/// Gives every block the checksum of a header, so that mutations are not stopped by it. Good headers stay as they are.
pub fn mend(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        if block.iter().all(|b| *b == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

/// A directory to unpack into, and beside it a host that must not change. `scripts/fuzz.sh` gives it a tmpfs of its own
/// and makes everything else read-only, so that whatever leaves the root is an error that the target notices.
pub struct Place {
    top: PathBuf,
    host: Vec<String>,
}

/// Where it is. Seeds have links to it.
pub const TOP: &str = "/dev/shm/condenser-fuzz";

impl Place {
    #[allow(clippy::new_without_default, reason = "it touches the disk")]
    pub fn new() -> Self {
        let top = PathBuf::from(TOP);
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("host/dir/sub")).unwrap();
        fs::write(top.join("host/secret"), "secret").unwrap();
        fs::write(top.join("host/dir/file"), "file").unwrap();
        std::env::set_current_dir(top.join("host")).unwrap();
        let host = listing(&top.join("host"));
        Self { top, host }
    }

    /// Lets `work` fill an empty directory and checks that nothing else changed.
    pub fn with_root(&self, work: impl FnOnce(&Path)) {
        let root = self.top.join("root");
        fs::create_dir(&root).unwrap();
        work(&root);
        fs::remove_dir_all(&root).unwrap();
        let top: Vec<_> = fs::read_dir(&self.top)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(top, ["host"], "something is beside the root");
        assert_eq!(listing(&self.top.join("host")), self.host, "the host was touched");
    }
}

/// All beneath `root`, with what a change would show in.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        if m.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let changed = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        lines.push(format!(
            "{path:?} {:o} {} {} {} {changed:?}",
            m.mode(),
            m.uid(),
            m.nlink(),
            m.len()
        ));
    }
    lines.sort();
    lines
}
