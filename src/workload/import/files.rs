//! The files of the original's stores, and its locks. The only module that reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::ImportError;
use crate::model::ImportedFile;

/// The seven stores.
const STORES: [&str; 7] = [
    "csm.json",
    "psm.json",
    "ssm.json",
    "bsm.json",
    "ilm.json",
    "ipam.json",
    "npm.json",
];
/// Companions of the policies' store: the committed state, and the backup of an interrupted revert. `.tmp` is never
/// read, because its content was never in force.
const COMPANIONS: [&str; 2] = ["npm.json.running", "npm.json.org"];

/// The content of all existing files, by name.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub directory: PathBuf,
    pub contents: BTreeMap<String, Vec<u8>>,
}

/// The original's locks. While this lives, all operations of the original are blocked.
#[derive(Debug)]
pub(super) struct Locks {
    _files: Vec<File>,
}

/// Takes the locks and reads everything; `None` if there is no store.
#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
pub(super) fn open(directory: &Path) -> Result<Option<(Locks, Files)>, ImportError> {
    let locks = lock(directory)?;
    let mut contents = BTreeMap::new();
    for name in STORES.into_iter().chain(COMPANIONS) {
        let path = directory.join(name);
        match std::fs::read(&path) {
            Ok(content) => drop(contents.insert(name.to_owned(), content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(ImportError::Read { path, error }),
        }
    }
    // If the real file exists, this is a leftover of a successful revert.
    if contents.contains_key("npm.json") {
        contents.remove("npm.json.org");
    }
    let is_store = |name: &String| STORES.contains(&&**name) || name == "npm.json.org";
    if !contents.keys().any(is_store) {
        return Ok(None);
    }
    let directory = directory.to_owned();
    Ok(Some((locks, Files { directory, contents })))
}

#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
fn lock(directory: &Path) -> Result<Locks, ImportError> {
    let mut held = Vec::new();
    for name in STORES {
        let path = directory.join(format!("{name}.lock"));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ImportError::Read { path, error }),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => held.push(file),
            Err(Errno::WOULDBLOCK) => return Err(ImportError::Locked(path)),
            Err(e) => {
                let error = e.into();
                return Err(ImportError::Read { path, error });
            }
        }
    }
    Ok(Locks { _files: held })
}

impl Files {
    /// The files that were read, for the record.
    pub fn sources(&self) -> Vec<ImportedFile> {
        let file = |(name, content): (&String, &Vec<u8>)| ImportedFile {
            name: name.clone(),
            sha256: hex::encode(Sha256::digest(content)),
        };
        self.contents.iter().map(file).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stores_make_an_installation() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(dir.path().join(name), "{}").unwrap();
        for name in ["csm.json.tmp", "csm.json.lock", "npm.json.running"] {
            write(name);
        }
        assert!(open(dir.path()).unwrap().is_none());
        write("npm.json.org");
        let names = || -> Vec<_> { open(dir.path()).unwrap().unwrap().1.contents.into_keys().collect() };
        assert_eq!(names(), ["npm.json.org", "npm.json.running"]);
        write("npm.json");
        assert_eq!(names(), ["npm.json", "npm.json.running"]);
    }

    #[test]
    fn a_held_lock_is_respected() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("csm.json"), "{}").unwrap();
        let lock = File::create(dir.path().join("csm.json.lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let refusal = open(dir.path()).unwrap_err().to_string();
        assert!(
            refusal.contains("csm.json.lock is held by another process"),
            "{refusal}"
        );
        drop(lock);
        let opened = open(dir.path()).unwrap().unwrap();
        let other = File::open(dir.path().join("csm.json.lock")).unwrap();
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap_err();
        drop(opened);
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
