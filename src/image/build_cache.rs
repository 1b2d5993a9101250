//! What builds keep for later ones: results of steps and directories of cache mounts (decision 21).
//!
//! ```text
//! <root>/cachemounts/<ulid>/      a directory of RUN --mount=type=cache; the row of that id says whose it is
//! ```
//! The rows decide. A row is written only when its layer is durable, and as long as it exists the sweep keeps the layer;
//! a directory without a row is removed at the next start. So a crash at any moment leaves at most garbage.
//!
//! This module does not know what a step is: keys come from the builder.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::beneath::Beneath;
use super::cache_changes::CacheChanges;
use super::draft::Change;
use super::{ImageError, ImageService, blocking};
use crate::model::{BuildCacheContent, BuildCacheEntry, Snapshot};

/// Name of the directory of the cache mounts below that of the image store.
const MOUNTS: &str = "cachemounts";

impl ImageService {
    /// All entries of the cache, the least recently used first.
    pub fn cache_entries(&self) -> Vec<BuildCacheEntry> {
        let snapshot = self.0.store.snapshot();
        let mut entries: Vec<BuildCacheEntry> = snapshot.buildcache().iter().map(|e| (**e).clone()).collect();
        entries.sort_by(|a, b| (a.last_used_at, &a.id).cmp(&(b.last_used_at, &b.id)));
        entries
    }

    /// Ids of the entries whose layer an image or a container has, too: removing these frees nothing.
    pub fn shared_cache_entries(&self) -> HashSet<String> {
        let snapshot = self.0.store.snapshot();
        let stacks = super::stacks_of(&snapshot);
        let used: HashSet<&String> = stacks.iter().flatten().collect();
        let entries = snapshot.buildcache().iter();
        let shared = entries.filter(|entry| entry.layer().is_some_and(|layer| used.contains(&layer.diff_id)));
        shared.map(|entry| entry.id.clone()).collect()
    }

    /// The result of the step with that key, protected from sweeps. `None` if it is not known.
    pub async fn cached_step(&self, key: &str) -> Result<Option<Change>, ImageError> {
        let find = || self.0.store.snapshot().get::<BuildCacheEntry>(key).cloned();
        let Some(entry) = find() else { return Ok(None) };
        let Some(layer) = entry.layer().cloned() else {
            return Ok(Some(Change::none()));
        };
        let Ok(digest) = layer.diff_id.parse() else {
            return Ok(None);
        };
        let pins = self.0.layers.pin(vec![digest]);
        // Pin first, then check: as long as the row is there, no sweep removes the layer.
        if find().is_none_or(|now| now.layer() != Some(&layer)) {
            return Ok(None);
        }
        let layers = self.0.layers.clone();
        let is_there = blocking(move || layers.has_layer(&digest)).await?;
        Ok(is_there.then(|| Change::kept(layer, entry.size_bytes, pins)))
    }

    /// Makes the layers of new entries durable and writes the rows. The caller still has their [`Change`]s.
    pub async fn record_cache(&self, changes: CacheChanges) -> Result<(), ImageError> {
        if changes.is_empty() {
            return Ok(());
        }
        if changes.made.iter().any(|entry| entry.layer().is_some()) {
            let layers = self.0.layers.clone();
            blocking(move || layers.sync()).await?;
        }
        self.0.store.transact(move |t| changes.apply(t)).await
    }

    /// Removes entries of these ids and, with the next sweep, what only they needed. Directories of cache mounts go at
    /// once; the caller knows that nobody uses them.
    pub async fn remove_cache_entries(&self, ids: Vec<String>) -> Result<(), ImageError> {
        let removed = self.0.store.transact(move |t| {
            let removed = ids.into_iter().filter_map(|id| t.remove::<BuildCacheEntry>(&id));
            Ok::<_, ImageError>(removed.collect::<Vec<_>>())
        });
        let removed = removed.await?;
        let mounts = removed.iter().filter(|entry| entry.mount_key().is_some());
        let mounts: Vec<PathBuf> = mounts.map(|entry| self.cache_mount(&entry.id)).collect();
        blocking(move || {
            mounts.iter().for_each(|path| remove(path));
            Ok(())
        })
        .await
    }

    /// Where the directory of a cache mount is.
    pub fn cache_mount(&self, id: &str) -> PathBuf {
        self.0.settings.root.join(MOUNTS).join(id)
    }

    /// Makes the directory of a cache mount, empty.
    pub async fn make_cache_mount(&self, id: &str, mode: u32, owner: (u32, u32)) -> Result<PathBuf, ImageError> {
        let path = self.cache_mount(id);
        blocking(move || {
            if let Some(parent) = path.parent() {
                private_directory(parent)?;
            }
            private_directory(&path)?;
            std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1))?;
            fs_err::set_permissions(&path, PermissionsExt::from_mode(mode & 0o7777))?;
            Ok(path)
        })
        .await
    }

    /// Allocated bytes of the directory of a cache mount. Containers may change it meanwhile.
    pub async fn cache_mount_bytes(&self, id: &str) -> Result<u64, ImageError> {
        let path = self.cache_mount(id);
        blocking(move || usage(&path)).await
    }
}

/// Removes directories of cache mounts that no row names.
pub(super) fn remove_strays(root: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let entries = match fs_err::read_dir(root.join(MOUNTS)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let row = name.to_str().and_then(|id| snapshot.get::<BuildCacheEntry>(id));
        if !row.is_some_and(|row| matches!(row.content, BuildCacheContent::Mount { .. })) {
            remove(&entry.path());
        }
    }
    Ok(())
}

fn remove(path: &Path) {
    match fs_err::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "a cache mount cannot be deleted; the next start tries again");
        }
        _ => {}
    }
}

fn private_directory(path: &Path) -> io::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Each inode once, never through a link.
fn usage(directory: &Path) -> io::Result<u64> {
    let tree = Beneath::open(directory)?;
    let mut seen = HashSet::new();
    let mut pending = vec![PathBuf::new()];
    let mut bytes = 0;
    while let Some(path) = pending.pop() {
        // Removed since its name was read.
        let Some(object) = tree.object(&path)? else { continue };
        let metadata = &object.metadata;
        if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            for child in object.children()? {
                pending.push(path.join(child?.file_name()));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn bytes_are_counted_within_the_directory() {
        let place = tempfile::tempdir().unwrap();
        let cache = place.path().join("cache");
        std::fs::create_dir_all(cache.join("d")).unwrap();
        std::fs::create_dir(place.path().join("outside")).unwrap();
        std::fs::write(place.path().join("outside/big"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(place.path().join("outside"), cache.join("link")).unwrap();
        std::fs::write(cache.join("d/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(cache.join("d/file"), cache.join("again")).unwrap();
        let bytes = usage(&cache).unwrap();
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_directory_without_a_row_goes() {
        let place = tempfile::tempdir().unwrap();
        let entry = |id: &str| BuildCacheEntry {
            id: id.into(),
            content: BuildCacheContent::Mount { key: "k".into() },
            description: String::new(),
            size_bytes: 0,
            created_at: Timestamp::UNIX_EPOCH,
            last_used_at: Timestamp::UNIX_EPOCH,
            uses: 0,
        };
        let snapshot = Snapshot::build(|t| drop(t.put(entry("kept")).unwrap()));
        remove_strays(place.path(), &snapshot).unwrap();
        for id in ["kept", "stray"] {
            std::fs::create_dir_all(place.path().join(MOUNTS).join(id).join("d")).unwrap();
        }
        remove_strays(place.path(), &snapshot).unwrap();
        let left = std::fs::read_dir(place.path().join(MOUNTS)).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["kept"]);
    }
}
