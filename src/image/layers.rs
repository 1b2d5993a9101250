//! The content-addressed store on disk: unpacked layers by diff id, documents (configurations, manifests) by digest.
//!
//! ```text
//! <root>/l/<11 characters>     an unpacked layer, ready as a lower directory of overlayfs; its whole diff id (or chain
//!                              id, see `chain`) stands in an attribute of the directory. Or a link to a directory that
//!                              is not ours (`adopt`)
//! <root>/records/<11>.json     what a plain copy of that layer would lose ([`Record`])
//! <root>/records/<11>.skeleton what else its archive had (`skeleton`)
//! <root>/records/<11>.gzip     digest and size of the blob that it becomes when it is packed with gzip (`push`)
//! <root>/blobs/sha256/<hex>    a document
//! <root>/staging/<ulid>/       work in progress: being created or deleted; emptied at every start
//! ```
//! An object is complete if and only if it has its final name, which one rename gives it. It is *durable* after the
//! next [`LayerStore::sync`], which must precede the commit of any row that refers to it. A power failure in between
//! leaves a name without a row, and the sweep at the start removes it.
//!
//! This module does not decide what is needed: a [sweep](LayerStore::sweep) keeps what the caller lists and what is
//! pinned. Pin an object *before* checking whether it exists.
//!
//! All functions block unless they are `async`.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::digest::Digest;
use super::record::Record;
use super::stack::Link;
use super::tree::{self, DIFF_ID};
use crate::base::absent::absent_is_fine;
use crate::base::space;
use crate::base::space::{Counted, Space};

/// Ends of the names of a layer's files in `records`.
const OF_A_LAYER: [&str; 3] = ["json", "skeleton", "gzip"];

/// The store.
pub(super) struct LayerStore {
    layers: PathBuf,
    records: PathBuf,
    blobs: PathBuf,
    staging: PathBuf,
    pins: Mutex<HashMap<Digest, usize>>,
    turns: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Sizes on disk that were measured: a layer never changes.
    sizes: Mutex<HashMap<Digest, u64>>,
    /// Layers that were published and have no record yet.
    unrecorded: Mutex<HashSet<Digest>>,
    /// Whether something was published since the last sync began.
    is_dirty: AtomicBool,
    /// Held while a sync is under way.
    syncing: Mutex<()>,
}

impl LayerStore {
    /// Creates the directories. Only root may enter them: layers contain setuid programs.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let store = Self {
            layers: root.join("l"),
            records: root.join("records"),
            blobs: root.join("blobs/sha256"),
            staging: root.join("staging"),
            pins: Mutex::default(),
            turns: Mutex::default(),
            sizes: Mutex::default(),
            unrecorded: Mutex::default(),
            is_dirty: AtomicBool::new(true),
            syncing: Mutex::default(),
        };
        for directory in [&store.layers, &store.records, &store.blobs, &store.staging] {
            private_directory(directory)?;
        }
        Ok(store)
    }

    /// Path of the layer, whether or not it exists.
    pub(super) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(diff_id.short())
    }

    /// The lower directory for a layer of a stack: as it is on top of those below, if that was laid out.
    pub(super) fn lower_dir(&self, link: &Link) -> PathBuf {
        match self.has_layer(&link.chain_id) {
            Ok(true) => self.layer(&link.chain_id),
            _ => self.layer(&link.diff_id),
        }
    }

    /// What stands for a diff id that is none. No such row was ever written. If one is there all the same, the mount shall
    /// fail, not lack a layer.
    pub(super) fn no_layer(&self) -> PathBuf {
        self.layers.join("not-a-diff-id")
    }

    /// Whether the layer is there, whole. What has lost its mark is not: a copy that did not keep extended attributes has
    /// lost others too ([`LayerStore::mend`]). An error if another layer has its short name.
    pub(super) fn has_layer(&self, diff_id: &Digest) -> io::Result<bool> {
        let path = self.layer(diff_id);
        let mut value = [0; 128];
        match rustix::fs::getxattr(&path, DIFF_ID, &mut value[..]) {
            Ok(length) if value[..length] == *diff_id.to_string().as_bytes() => Ok(true),
            // A link to an adopted directory has no attribute.
            Err(Errno::NODATA) => Ok(path.is_symlink()),
            Ok(_) => {
                let message = format!("{} is not the layer {diff_id} but holds its name", path.display());
                Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
            }
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(named(e, &path)),
        }
    }

    /// Whether the layer hides everything below it.
    pub(super) fn hides_all(&self, diff_id: &Digest) -> io::Result<bool> {
        let root = fs_err::File::open(self.layer(diff_id))?;
        Ok(tree::is_opaque(root.as_fd()))
    }

    /// An empty directory to unpack into. It is deleted when the value is dropped.
    pub(super) fn stage(&self) -> io::Result<Staged> {
        let path = self.staging.join(unique());
        fs_err::create_dir(&path)?;
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(Staged(path))
    }

    /// An empty file in the staging area.
    pub(super) fn stage_file(&self) -> io::Result<(Staged, std::fs::File)> {
        let staged = Staged(self.staging.join(unique()));
        let file = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&staged.0)?;
        Ok((staged, file.into_parts().0))
    }

    /// Where the skeleton of a layer is, if it has one.
    pub(super) fn skeleton_of(&self, diff_id: &Digest) -> PathBuf {
        self.records.join(format!("{}.skeleton", diff_id.short()))
    }

    /// Where digest and size of a layer's blob are, once it was packed.
    pub(super) fn packed_form_of(&self, diff_id: &Digest) -> PathBuf {
        self.records.join(format!("{}.gzip", diff_id.short()))
    }

    /// Gives a complete file of a layer its final name. Call this before the layer gets its own.
    pub(super) fn publish_file(&self, staged: Staged, path: &Path) -> io::Result<()> {
        fs_err::rename(&staged.0, path)
    }

    /// Gives a filled directory its final name. Its record is written by [`LayerStore::record_all`], later: that reads
    /// every entry again.
    pub(super) fn publish_layer(&self, staged: Staged, diff_id: &Digest) -> io::Result<()> {
        let directory = fs_err::File::open(&staged.0)?.into_parts().0.into();
        tree::set_attribute(&directory, DIFF_ID.as_bytes(), diff_id.to_string().as_bytes())
            .map_err(|e| named(e, &staged.0))?;
        let path = self.layer(diff_id);
        if path.exists() && !self.has_layer(diff_id)? {
            // The existing layer is unusable. Exchange the two; dropping the value deletes the old one.
            let here = rustix::fs::CWD;
            self.is_dirty.store(true, Ordering::Release);
            rustix::fs::renameat_with(here, &staged.0, here, &path, RenameFlags::EXCHANGE)
                .map_err(|e| named(e, &path))?;
            // That of the damaged one may be missing or wrong.
            absent_is_fine(fs_err::remove_file(self.record_of(diff_id)))?;
        } else {
            self.rename(&staged.0, &path)?;
        }
        lock(&self.unrecorded).insert(*diff_id);
        Ok(())
    }

    /// The layers that were published since the last call.
    pub(super) fn take_unrecorded(&self) -> HashSet<Digest> {
        std::mem::take(&mut lock(&self.unrecorded))
    }

    /// Records the metadata that a plain copy of a layer would lose.
    fn record(&self, directory: &Path, diff_id: &Digest) -> io::Result<()> {
        let record = Record::of(directory)?;
        let staged = Staged(self.staging.join(unique()));
        serde_json::to_writer(io::BufWriter::new(fs_err::File::create_new(&staged.0)?), &record)?;
        fs_err::rename(&staged.0, self.record_of(diff_id))
    }

    fn record_of(&self, diff_id: &Digest) -> PathBuf {
        self.records.join(format!("{}.json", diff_id.short()))
    }

    /// Restores the layer from its record if it exists without its attribute. `false` if it is unusable or does not
    /// exist. The layer must not be in use.
    pub(super) fn mend(&self, diff_id: &Digest) -> io::Result<bool> {
        let path = self.layer(diff_id);
        if self.has_layer(diff_id)? {
            return Ok(true);
        }
        let Ok(text) = fs_err::read(self.record_of(diff_id)) else {
            return Ok(false);
        };
        let Ok(record) = serde_json::from_slice::<Record>(&text) else {
            return Ok(false);
        };
        if !path.is_dir() || !record.restore(&path)? {
            return Ok(false);
        }
        let directory = fs_err::File::open(&path)?.into_parts().0.into();
        tree::set_attribute(&directory, DIFF_ID.as_bytes(), diff_id.to_string().as_bytes())
            .map_err(|e| named(e, &path))?;
        Ok(true)
    }

    /// Writes the records of layers that have none yet. If a layer is swept meanwhile, its record remains until the
    /// next sweep.
    pub(super) fn record_all(&self, diff_ids: &HashSet<Digest>) {
        for diff_id in diff_ids {
            let path = self.layer(diff_id);
            // A layer that cannot be read is lost, which has been reported already.
            let is_there = || self.has_layer(diff_id).unwrap_or(false);
            if is_there()
                && !path.is_symlink()
                && !self.record_of(diff_id).exists()
                && let Err(error) = self.record(&path, diff_id)
                // It may have been swept.
                && is_there()
            {
                tracing::warn!(%error, layer = %diff_id, "cannot record the layer; a plain copy of it will be unusable");
            }
        }
    }

    /// Adopts a directory that we do not own as a layer. Removing the layer removes only the link.
    pub(super) fn adopt_layer(&self, directory: &Path, name: &Digest) -> io::Result<()> {
        let staged = Staged(self.staging.join(unique()));
        fs_err::os::unix::fs::symlink(directory, &staged.0)?;
        self.rename(&staged.0, &self.layer(name))
    }

    /// Stores a document.
    pub(super) fn publish_blob(&self, digest: &Digest, body: &[u8]) -> io::Result<()> {
        let staged = Staged(self.staging.join(unique()));
        fs_err::File::create_new(&staged.0)?.write_all(body)?;
        self.rename(&staged.0, &self.blobs.join(digest.hex()))
    }

    /// A stored document, if it exists.
    pub(super) fn read_blob(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        match fs_err::read(self.blobs.join(digest.hex())) {
            Ok(body) => Ok(Some(body)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Renames to a name that must be free or have the same content.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let here = rustix::fs::CWD;
        match rustix::fs::renameat_with(here, from, here, to, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.is_dirty.store(true, Ordering::Release);
                Ok(())
            }
            Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(named(e, to)),
        }
    }

    /// Makes everything that has its final name durable, with one `syncfs`, unless that has been done. It also waits for
    /// other writers to the same file system; one `fsync` per file would be many times slower.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _turn = lock(&self.syncing);
        if !self.is_dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let directory = self.directory()?;
        rustix::fs::syncfs(directory).map_err(|e| {
            self.is_dirty.store(true, Ordering::Release);
            named(e, &self.layers)
        })
    }

    /// Protects these digests from sweeps, whether or not they exist yet, for as long as the value lives.
    pub(super) fn pin(self: &Arc<Self>, digests: Vec<Digest>) -> Pins {
        let mut pins = lock(&self.pins);
        for digest in &digests {
            *pins.entry(*digest).or_default() += 1;
        }
        drop(pins);
        Pins {
            store: self.clone(),
            digests,
        }
    }

    /// Waits until nobody else is creating the layer.
    pub(super) async fn lock_layer(&self, diff_id: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(diff_id).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(*diff_id, Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }

    /// Removes every layer and document that is neither pinned nor in `needed`, which is called after the pins are
    /// read and before one can be added. What is returned has lost its name and is deleted when it is dropped, which
    /// takes a while.
    #[must_use = "dropping it deletes files"]
    pub(super) fn sweep(&self, needed: impl FnOnce() -> HashSet<Digest>) -> io::Result<Vec<Staged>> {
        let doomed = {
            // While this lock is held nobody can pin, so nobody relies on an object that is about to be removed.
            let pins = lock(&self.pins);
            let mut keep = needed();
            keep.extend(pins.keys());
            let short: HashSet<String> = keep.iter().map(Digest::short).collect();
            let hex: HashSet<String> = keep.iter().map(Digest::hex).collect();
            let mut doomed = self.retire(&self.layers, &short)?;
            doomed.extend(self.retire(&self.blobs, &hex)?);
            let files = |short: &String| OF_A_LAYER.map(|end| format!("{short}.{end}"));
            let records: HashSet<String> = short.iter().flat_map(files).collect();
            doomed.extend(self.retire(&self.records, &records)?);
            lock(&self.sizes).retain(|digest, _| keep.contains(digest));
            doomed
        };
        Ok(doomed)
    }

    /// Removes what an earlier run left half-created or half-deleted. Nothing may be under construction.
    pub(super) fn clear_staging(&self) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.staging)? {
            drop(Staged(entry?.path()));
        }
        Ok(())
    }

    /// Renames everything in `directory` that is not in `keep` into the staging area.
    fn retire(&self, directory: &Path, keep: &HashSet<String>) -> io::Result<Vec<Staged>> {
        let mut retired = Vec::new();
        for entry in fs_err::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
                continue;
            }
            let staged = self.staging.join(unique());
            fs_err::rename(entry.path(), &staged)?;
            tracing::debug!(path = %entry.path().display(), "no longer needed");
            retired.push(Staged(staged));
        }
        Ok(retired)
    }

    /// Size of a layer on disk, in bytes: allocated blocks, each inode once; 0 if it does not exist.
    pub(super) fn layer_size(&self, diff_id: &Digest) -> io::Result<u64> {
        self.size(diff_id, Counted::All)
    }

    /// The same of a layer that was laid out again (`chain`): its files are those of the layer.
    pub(super) fn laid_out_size(&self, chain_id: &Digest) -> io::Result<u64> {
        self.size(chain_id, Counted::Directories)
    }

    fn size(&self, digest: &Digest, counted: Counted) -> io::Result<u64> {
        if let Some(known) = lock(&self.sizes).get(digest) {
            return Ok(*known);
        }
        let mut path = self.layer(digest);
        if path.is_symlink() {
            // Adopted. It leads to where only root may write.
            path = fs_err::canonicalize(path)?;
        }
        let mut size = Space::default();
        size.add(&path, counted)?;
        size.add(&self.skeleton_of(digest), Counted::All)?;
        // Not of what is missing: it may come.
        if size.bytes() > 0 {
            lock(&self.sizes).insert(*digest, size.bytes());
        }
        Ok(size.bytes())
    }

    /// Size of a document on disk, in bytes; 0 if it does not exist.
    pub(super) fn blob_size(&self, digest: &Digest) -> io::Result<u64> {
        space::used(&self.blobs.join(digest.hex()))
    }

    /// The directory of the layers.
    pub(super) fn directory(&self) -> io::Result<fs_err::File> {
        fs_err::File::open(&self.layers)
    }
}

/// A directory or file in the staging area. Deleted when dropped, unless it was renamed.
pub(super) struct Staged(PathBuf);

impl Staged {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let removed = match fs_err::symlink_metadata(&self.0) {
            Ok(metadata) if metadata.is_dir() => fs_err::remove_dir_all(&self.0),
            Ok(_) => fs_err::remove_file(&self.0),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot be deleted; the next start tries again");
            }
            _ => {}
        }
    }
}

/// Protects digests from sweeps.
pub(super) struct Pins {
    store: Arc<LayerStore>,
    digests: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = lock(&self.store.pins);
        for digest in &self.digests {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
    }
}

/// The data behind these locks is consistent at any time, so ignore poisoning by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn private_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| naming(&e, path))?;
    fs_err::set_permissions(path, PermissionsExt::from_mode(0o700))
}

fn unique() -> String {
    ulid::Ulid::generate().to_string().to_lowercase()
}

fn named(errno: Errno, path: &Path) -> io::Error {
    naming(&errno.into(), path)
}

fn naming(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Arc<LayerStore>) {
        let root = tempfile::tempdir().unwrap();
        let store = LayerStore::open(root.path()).unwrap();
        (root, Arc::new(store))
    }

    fn add(store: &LayerStore, content: &str) -> Digest {
        let digest = Digest::of(content.as_bytes());
        let staged = store.stage().unwrap();
        std::fs::write(staged.path().join("file"), content).unwrap();
        store.publish_layer(staged, &digest).unwrap();
        store.record_all(&HashSet::from([digest]));
        digest
    }

    fn staging_is_empty(store: &LayerStore) -> bool {
        std::fs::read_dir(&store.staging).unwrap().next().is_none()
    }

    #[test]
    fn a_layer_is_there_once_it_has_its_name() {
        let (_root, store) = store();
        let digest = Digest::of(b"a");
        assert!(!store.has_layer(&digest).unwrap());
        assert_eq!(add(&store, "a"), digest);
        assert!(store.has_layer(&digest).unwrap());
        // Created twice: the second copy is dropped.
        add(&store, "a");
        assert!(staging_is_empty(&store));
        assert_eq!(std::fs::read_to_string(store.layer(&digest).join("file")).unwrap(), "a");
        let mode = std::fs::metadata(store.layer(&digest)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        let mode = std::fs::metadata(&store.layers).unwrap().permissions().mode();
        assert_eq!(
            mode & 0o7777,
            0o700,
            "setuid programs of images are not for users of the host"
        );
        store.sync().unwrap();
    }

    #[test]
    fn what_is_dropped_half_way_leaves_nothing() {
        let (_root, store) = store();
        let staged = store.stage().unwrap();
        std::fs::create_dir_all(staged.path().join("a/b")).unwrap();
        drop(staged);
        assert!(staging_is_empty(&store));
        std::mem::forget(store.stage().unwrap());
        std::fs::write(store.staging.join("file"), "").unwrap();
        store.clear_staging().unwrap();
        assert!(staging_is_empty(&store));
    }

    #[test]
    fn another_layer_of_the_same_short_name_is_noticed() {
        let (_root, store) = store();
        let digest = add(&store, "a");
        let twin: Digest = format!("sha256:{}{}", &digest.hex()[..14], "0".repeat(50))
            .parse()
            .unwrap();
        assert_eq!(store.layer(&twin), store.layer(&digest));
        let error = store.has_layer(&twin).unwrap_err().to_string();
        assert!(error.contains("is not the layer"), "{error}");
    }

    #[test]
    fn a_layer_without_its_mark_is_mended_or_made_again() {
        let (_root, store) = store();
        let digest = add(&store, "a");
        let unmark = || rustix::fs::removexattr(store.layer(&digest), DIFF_ID).unwrap();
        unmark();
        assert!(!store.has_layer(&digest).unwrap());
        assert!(store.mend(&digest).unwrap() && store.has_layer(&digest).unwrap());
        // A damaged copy is unusable and is replaced by the layer.
        unmark();
        std::fs::write(store.layer(&digest).join("file"), "something else").unwrap();
        assert!(!store.mend(&digest).unwrap() && !store.has_layer(&digest).unwrap());
        add(&store, "a");
        assert!(store.has_layer(&digest).unwrap() && staging_is_empty(&store));
        assert_eq!(std::fs::read_to_string(store.layer(&digest).join("file")).unwrap(), "a");
        // As from an earlier version, without a record.
        std::fs::remove_file(store.record_of(&digest)).unwrap();
        unmark();
        assert!(!store.mend(&digest).unwrap());
        add(&store, "a");
        std::fs::remove_file(store.record_of(&digest)).unwrap();
        store.record_all(&HashSet::from([digest]));
        assert!(store.record_of(&digest).exists());
        drop(store.sweep(HashSet::new).unwrap());
        assert!(!store.record_of(&digest).exists());
    }

    #[test]
    fn a_bad_layer_does_not_keep_others_from_being_mended() {
        let (_root, store) = store();
        let (one, two) = (add(&store, "a"), add(&store, "b"));
        let twin = |of: &Digest| -> Digest { format!("sha256:{}{}", &of.hex()[..14], "0".repeat(50)).parse().unwrap() };
        rustix::fs::removexattr(store.layer(&two), DIFF_ID).unwrap();
        std::fs::remove_file(store.record_of(&one)).unwrap();
        let needed = HashSet::from([one, two, twin(&one)]);
        crate::image::mend(&store, &needed).unwrap();
        store.record_all(&needed);
        assert!(store.has_layer(&one).unwrap() && store.has_layer(&two).unwrap());
        assert!(store.record_of(&one).exists());
        store.has_layer(&twin(&one)).unwrap_err();
    }

    #[test]
    fn a_sweep_keeps_what_is_needed_or_pinned() {
        let (_root, store) = store();
        let [needed, pinned, unused] = ["needed", "pinned", "unused"].map(|name| add(&store, name));
        let (kept, doomed) = (Digest::of(b"kept"), Digest::of(b"doomed"));
        store.publish_blob(&kept, b"kept").unwrap();
        store.publish_blob(&doomed, b"doomed").unwrap();
        let first = store.pin(vec![pinned, kept]);
        let second = store.pin(vec![pinned, pinned]);
        drop(store.sweep(|| HashSet::from([needed])).unwrap());
        let exists = |digest| store.has_layer(digest).unwrap();
        assert!(exists(&needed) && exists(&pinned) && !exists(&unused));
        assert!(store.blobs.join(kept.hex()).exists() && !store.blobs.join(doomed.hex()).exists());
        drop(first);
        drop(store.sweep(HashSet::new).unwrap());
        assert!(!exists(&needed) && exists(&pinned) && !store.blobs.join(kept.hex()).exists());
        drop(second);
        drop(store.sweep(HashSet::new).unwrap());
        assert!(!exists(&pinned));
        assert!(staging_is_empty(&store));
    }

    #[test]
    fn usage_counts_blocks_once() {
        let (_root, store) = store();
        let staged = store.stage().unwrap();
        std::fs::write(staged.path().join("a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(staged.path().join("a"), staged.path().join("b")).unwrap();
        std::fs::File::create(staged.path().join("hole"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        std::os::unix::fs::symlink("/", staged.path().join("link")).unwrap();
        let digest = Digest::of(b"x");
        store.publish_layer(staged, &digest).unwrap();
        let bytes = store.layer_size(&digest).unwrap();
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        assert!(store.laid_out_size(&Digest::of(b"y")).unwrap() == 0 && store.blob_size(&digest).unwrap() == 0);
        drop(store.sweep(HashSet::new).unwrap());
        assert_eq!(
            store.layer_size(&digest).unwrap(),
            0,
            "what was swept has no size any more"
        );
    }

    #[test]
    fn many_layers_fit_a_mount_option() {
        let store = LayerStore {
            layers: "/etc/raind/image/l".into(),
            records: PathBuf::new(),
            blobs: PathBuf::new(),
            staging: PathBuf::new(),
            pins: Mutex::default(),
            turns: Mutex::default(),
            sizes: Mutex::default(),
            unrecorded: Mutex::default(),
            is_dirty: AtomicBool::new(true),
            syncing: Mutex::default(),
        };
        let path = store.layer(&Digest::of(b"")).display().to_string();
        let container = "/etc/raind/container/01m857ssbz87";
        let option = format!(
            "lowerdir={},upperdir={container}/diff,workdir={container}/work",
            vec![path; 127].join(":")
        );
        assert!(option.len() < 4096, "{}", option.len());
    }

    #[tokio::test]
    async fn one_at_a_time_makes_a_layer() {
        let (_root, store) = store();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let turn = store.lock_layer(&a).await;
        let _other = store.lock_layer(&b).await;
        let mut second = Box::pin(store.lock_layer(&a));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(turn);
        let _second = second.await;
        assert_eq!(lock(&store.turns).len(), 2);
    }
}
