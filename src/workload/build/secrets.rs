//! Secrets of a build: given with the request, seen by the commands that ask for them, kept nowhere.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The secrets of a request, by id. Its debug form has no values.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, Arc<[u8]>>);

impl Secrets {
    /// Adds one; a later one of the same id counts.
    pub fn insert(&mut self, id: String, value: Vec<u8>) {
        self.0.insert(id, value.into());
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<[u8]>> {
        self.0.get(id).cloned()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Files with secrets for one command; they are removed when this is dropped.
pub(super) struct SecretFiles {
    directory: PathBuf,
    count: usize,
}

impl SecretFiles {
    /// Makes a directory of its own below `parent`.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        let directory = parent.join(ulid::Ulid::generate().to_string().to_lowercase());
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", directory.display())))?;
        Ok(Self { directory, count: 0 })
    }

    /// Writes one. Returns its path.
    pub(super) fn add(&mut self, value: &[u8], mode: u32, owner: (u32, u32)) -> io::Result<PathBuf> {
        let path = self.directory.join(self.count.to_string());
        self.count += 1;
        let mut options = fs_err::OpenOptions::new();
        fs_err::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        let mut file = options.open(&path)?;
        file.write_all(value)?;
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1))?;
        fs_err::set_permissions(&path, PermissionsExt::from_mode(mode & 0o7777))?;
        Ok(path)
    }
}

impl Drop for SecretFiles {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Removes what an earlier run left behind.
pub(super) fn clear(parent: &Path) {
    remove(parent);
}

fn remove(directory: &Path) {
    match fs_err::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, "files with secrets of a build cannot be removed; the next start tries again");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_private_and_go() {
        let place = tempfile::tempdir().unwrap();
        let parent = place.path().join("secrets");
        let mut files = SecretFiles::new(&parent).unwrap();
        let path = files.add(b"x", 0o440, (5, 6)).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
            (5, 6, 0o440)
        );
        assert_eq!(std::fs::metadata(&parent).unwrap().mode() & 0o7777, 0o700);
        drop(files);
        assert!(!path.exists());
        let left = SecretFiles::new(&parent).unwrap();
        clear(&parent);
        assert!(!parent.exists());
        drop(left);
    }

    #[test]
    fn nothing_is_shown() {
        let mut secrets = Secrets::default();
        secrets.insert("id".into(), b"hidden".to_vec());
        assert_eq!(format!("{secrets:?}"), "{\"id\"}");
        assert_eq!(&*secrets.get("id").unwrap(), b"hidden");
        assert!(secrets.get("other").is_none());
    }
}
