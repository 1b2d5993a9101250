//! The cache of builds (decision 21): keys of steps, what one build makes and uses of it, and its bounds.
//!
//! A step is found by a digest of all that its result depends on: the layers below it, its resolved words, and the names,
//! modes, owners and contents of the files that it reads. Times do not count, nor do secrets and predefined proxies.
//! Rows are written at the end of a build, when its layers are durable; until then the build itself holds the layers.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{BuildError, BuildService};
use crate::image::{CacheChanges, Change, ImageService};
use crate::model::{BuildCacheContent, BuildCacheEntry};

/// Changed whenever the same words give another result than before.
const VERSION: &[u8] = b"condenser build step 1";
/// Most entries of one kind. Those of steps without a layer need no space on disk but some in the store.
const MAX_ENTRIES: usize = 10_000;
/// Longest description of an entry, in characters.
const MAX_DESCRIPTION: usize = 200;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BuildCacheKind {
    /// What a step has done to the files of an image.
    Step,
    /// A directory of `RUN --mount=type=cache`.
    Mount,
}

/// An entry of the cache, as it is shown.
#[derive(Debug, Clone)]
pub struct BuildCacheUsage {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: BuildCacheKind,
    /// The instruction of a step, the id of a cache mount.
    pub description: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When a build last used it.
    pub last_used_at: Timestamp,
    /// How many builds have used it, without the one that made it.
    pub uses: u64,
    /// Whether a running command has the cache mount: it cannot be removed now.
    pub in_use: bool,
    /// Whether an image or a container has the layer, too: to remove the entry frees nothing.
    pub shared: bool,
}

/// Which entries to remove. Those that are in use are always kept.
#[derive(Debug, Clone, Default)]
pub struct BuildCacheFilter {
    /// Only of this kind.
    pub kind: Option<BuildCacheKind>,
    /// Only those that no build has used for so long.
    pub unused_for: Option<Duration>,
    /// The least recently used ones, until the rest (of the kind) has at most so many bytes. Otherwise all.
    pub keep_bytes: Option<u64>,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunedBuildCache {
    /// Ids of the entries.
    pub entries: Vec<String>,
    /// Bytes that this frees: without layers that images, containers or other entries still have.
    pub freed_bytes: u64,
}

impl BuildCacheUsage {
    fn of(entry: BuildCacheEntry, shared: &HashSet<String>, in_use: &HashSet<String>) -> Self {
        let kind = match entry.content {
            BuildCacheContent::Step(_) => BuildCacheKind::Step,
            BuildCacheContent::Mount { .. } => BuildCacheKind::Mount,
        };
        Self {
            in_use: in_use.contains(&entry.id),
            shared: shared.contains(&entry.id),
            id: entry.id,
            kind,
            description: entry.description,
            size_bytes: entry.size_bytes,
            created_at: entry.created_at,
            last_used_at: entry.last_used_at,
            uses: entry.uses,
        }
    }
}

impl BuildService {
    /// What the cache holds, the least recently used first.
    pub fn build_cache_usage(&self) -> Vec<BuildCacheUsage> {
        let (shared, in_use) = (self.0.images.shared_cache_entries(), self.0.mounts.in_use());
        let entries = self.0.images.cache_entries().into_iter();
        entries
            .map(|entry| BuildCacheUsage::of(entry, &shared, &in_use))
            .collect()
    }

    /// Removes entries, or says which ones it would remove. Builds that run keep what they have.
    pub async fn prune_build_cache(
        &self,
        filter: &BuildCacheFilter,
        dry_run: bool,
    ) -> Result<PrunedBuildCache, BuildError> {
        // Nobody begins to use a mount between the choice and the removal.
        let _turn = self.0.mounts.turn().await;
        let usage = self.build_cache_usage();
        let layers: HashMap<String, String> = self
            .0
            .images
            .cache_entries()
            .into_iter()
            .filter_map(|entry| Some((entry.id.clone(), entry.layer()?.diff_id.clone())))
            .collect();
        let doomed = chosen(&usage, filter, Timestamp::now());
        let freed_bytes = freed(&usage, &layers, &doomed);
        let entries: Vec<String> = doomed.into_iter().cloned().collect();
        if !dry_run && !entries.is_empty() {
            self.0.images.remove_cache_entries(entries.clone()).await?;
            self.0.images.sweep().await?;
        }
        Ok(PrunedBuildCache { entries, freed_bytes })
    }

    /// Keeps the cache within its bounds.
    pub(super) async fn bound_cache(&self) {
        for (kind, bytes) in [
            (BuildCacheKind::Step, self.0.settings.cache_bytes),
            (BuildCacheKind::Mount, self.0.settings.cache_mount_bytes),
        ] {
            let filter = BuildCacheFilter {
                kind: Some(kind),
                unused_for: None,
                keep_bytes: Some(bytes),
            };
            match self.prune_build_cache(&filter, false).await {
                Ok(pruned) if pruned.entries.is_empty() => {}
                Ok(pruned) => tracing::info!(
                    entries = pruned.entries.len(),
                    freed_bytes = pruned.freed_bytes,
                    ?kind,
                    "the build cache is over its limit; its least recently used entries were removed"
                ),
                Err(error) => tracing::warn!(%error, "cannot bound the build cache; the next build tries again"),
            }
        }
    }
}

/// The entries to remove, of those in `usage`, which is in the order of their last use.
fn chosen<'a>(usage: &'a [BuildCacheUsage], filter: &BuildCacheFilter, now: Timestamp) -> Vec<&'a String> {
    let of_kind = || {
        usage
            .iter()
            .filter(|entry| filter.kind.is_none_or(|kind| entry.kind == kind))
    };
    let mut bytes: u64 = of_kind().map(|entry| entry.size_bytes).sum();
    let mut count = of_kind().count();
    let unused = |entry: &BuildCacheUsage| {
        let since = now.duration_since(entry.last_used_at);
        filter
            .unused_for
            .is_none_or(|least| Duration::try_from(since).is_ok_and(|since| since >= least))
    };
    let mut doomed = Vec::new();
    for entry in of_kind().filter(|entry| !entry.in_use && unused(entry)) {
        if let Some(keep) = filter.keep_bytes
            && bytes <= keep
            && count <= MAX_ENTRIES
            // A limit of nothing keeps no entry, not even one without bytes.
            && keep > 0
        {
            break;
        }
        bytes -= entry.size_bytes;
        count -= 1;
        doomed.push(&entry.id);
    }
    doomed
}

/// `layers`: the layers of entries, by their ids.
fn freed(usage: &[BuildCacheUsage], layers: &HashMap<String, String>, doomed: &[&String]) -> u64 {
    let doomed: HashSet<&String> = doomed.iter().copied().collect();
    let stay = usage.iter().filter(|entry| !doomed.contains(&entry.id));
    let mut counted: HashSet<&String> = stay.filter_map(|entry| layers.get(&entry.id)).collect();
    let gone = usage.iter().filter(|entry| doomed.contains(&entry.id) && !entry.shared);
    gone.filter(|entry| layers.get(&entry.id).is_none_or(|layer| counted.insert(layer)))
        .map(|entry| entry.size_bytes)
        .sum()
}

/// A key that is being computed.
pub(super) struct Key(Sha256);

impl Key {
    /// Of a step of this kind.
    pub(super) fn of(kind: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.add(VERSION);
        key.add(kind);
        key
    }

    /// Adds a part. Its length is a part of the key, so that no two lists of parts give the same.
    pub(super) fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// Adds a list of parts.
    pub(super) fn all<T: AsRef<[u8]>>(&mut self, parts: impl IntoIterator<Item = T>) {
        let mut count = 0_u64;
        for part in parts {
            self.add(part);
            count += 1;
        }
        self.add(count.to_le_bytes());
    }

    /// 64 hexadecimal digits.
    pub(super) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

/// What one build makes and uses of the cache.
pub(super) struct Recorder {
    images: ImageService,
    /// Whether results of earlier builds are used.
    reads: bool,
    own: Mutex<Own>,
}

#[derive(Default)]
struct Own {
    made: HashMap<String, (BuildCacheEntry, Change)>,
    used: HashMap<String, Timestamp>,
    bytes: u64,
}

impl Recorder {
    pub(super) fn new(images: ImageService, reads: bool) -> Self {
        Self {
            images,
            reads,
            own: Mutex::default(),
        }
    }

    fn own(&self) -> std::sync::MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result of a step, if this build or an earlier one has made it.
    pub(super) async fn find(&self, key: &str) -> Result<Option<Change>, BuildError> {
        if let Some((_, change)) = self.own().made.get(key) {
            return Ok(Some(change.clone()));
        }
        if !self.reads {
            return Ok(None);
        }
        let found = self.images.cached_step(key).await?;
        if found.is_some() {
            self.own().used.insert(key.to_owned(), Timestamp::now());
        }
        Ok(found)
    }

    /// Remembers the result of a step. Returns how many bytes the build has made so far.
    pub(super) fn keep(&self, key: String, description: &str, change: Change) -> u64 {
        let now = Timestamp::now();
        let entry = BuildCacheEntry {
            id: key.clone(),
            content: BuildCacheContent::Step(change.layer.clone()),
            description: shortened(description),
            size_bytes: change.bytes,
            created_at: now,
            last_used_at: now,
            uses: 0,
        };
        let mut own = self.own();
        own.bytes = own.bytes.saturating_add(change.bytes);
        own.made.insert(key, (entry, change));
        own.bytes
    }

    /// All changes of the cache. The layers of new entries exist as long as the second value does.
    pub(super) fn take(&self) -> (CacheChanges, Vec<Change>) {
        let own = std::mem::take(&mut *self.own());
        let (made, kept) = own.made.into_values().unzip();
        let used = own.used.into_iter().collect();
        (CacheChanges { made, used }, kept)
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_DESCRIPTION) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The cache mounts that running commands have.
#[derive(Default)]
pub(super) struct CacheMounts {
    used: Arc<Mutex<HashMap<String, usize>>>,
    turn: tokio::sync::Mutex<()>,
}

/// A cache mount of a running command.
pub(super) struct MountLease {
    used: Arc<Mutex<HashMap<String, usize>>>,
    pub(super) id: String,
    pub(super) path: PathBuf,
    /// Whether it was made just now, and is empty.
    pub(super) is_new: bool,
}

impl CacheMounts {
    /// Waits until nobody else chooses a mount, or removes some.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn in_use(&self) -> HashSet<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.keys().cloned().collect()
    }

    /// The directory for a mount with that key, which is made if there is none, or if `alone` and all of them are in use.
    pub(super) async fn lease(
        &self,
        images: &ImageService,
        key: &str,
        description: &str,
        alone: bool,
        (mode, owner): (u32, (u32, u32)),
    ) -> Result<MountLease, BuildError> {
        let _turn = self.turn().await;
        let in_use = self.in_use();
        let entries = images.cache_entries();
        let mut fitting = entries.iter().filter(|entry| entry.mount_key() == Some(key));
        let found = fitting.find(|entry| !alone || !in_use.contains(&entry.id));
        if let Some(entry) = found {
            return Ok(self.begin(entry.id.clone(), images.cache_mount(&entry.id), false));
        }
        let id = ulid::Ulid::generate().to_string().to_lowercase();
        let now = Timestamp::now();
        let entry = BuildCacheEntry {
            id: id.clone(),
            content: BuildCacheContent::Mount { key: key.to_owned() },
            description: shortened(description),
            size_bytes: 0,
            created_at: now,
            last_used_at: now,
            uses: 0,
        };
        // The directory first: a crash leaves one without a row, which the next start removes.
        let path = images.make_cache_mount(&id, mode, owner).await?;
        let changes = CacheChanges {
            made: vec![entry],
            used: Vec::new(),
        };
        images.record_cache(changes).await?;
        Ok(self.begin(id, path, true))
    }

    fn begin(&self, id: String, path: PathBuf, is_new: bool) -> MountLease {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used.entry(id.clone()).or_default() += 1;
        MountLease {
            used: self.used.clone(),
            id,
            path,
            is_new,
        }
    }
}

impl MountLease {
    /// Ends the use, and records it with the size that the directory has now.
    pub(super) async fn end(self, images: &ImageService) -> Result<(), BuildError> {
        let bytes = images.cache_mount_bytes(&self.id).await?;
        let entry = images.cache_entries().into_iter().find(|entry| entry.id == self.id);
        if let Some(mut entry) = entry {
            entry.size_bytes = bytes;
            entry.last_used_at = Timestamp::now();
            entry.uses += u64::from(!self.is_new);
            let changes = CacheChanges {
                made: vec![entry],
                used: Vec::new(),
            };
            images.record_cache(changes).await?;
        }
        Ok(())
    }
}

impl Drop for MountLease {
    fn drop(&mut self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = used.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, kind: BuildCacheKind, size_bytes: u64, used: i64) -> BuildCacheUsage {
        BuildCacheUsage {
            id: id.into(),
            kind,
            description: String::new(),
            size_bytes,
            created_at: Timestamp::UNIX_EPOCH,
            last_used_at: Timestamp::from_second(used).unwrap(),
            uses: 0,
            in_use: id.starts_with("busy"),
            shared: id.starts_with("shared"),
        }
    }

    fn some() -> Vec<BuildCacheUsage> {
        use BuildCacheKind::{Mount, Step};
        vec![
            entry("old", Step, 10, 100),
            entry("busy", Mount, 1000, 150),
            entry("shared", Step, 20, 200),
            entry("mount", Mount, 40, 300),
            entry("none", Step, 0, 350),
            entry("new", Step, 80, 400),
        ]
    }

    fn ids(filter: BuildCacheFilter) -> Vec<String> {
        let usage = some();
        let chosen = chosen(&usage, &filter, Timestamp::from_second(500).unwrap());
        chosen.into_iter().cloned().collect()
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let steps = |keep| BuildCacheFilter {
            kind: Some(BuildCacheKind::Step),
            keep_bytes: Some(keep),
            ..BuildCacheFilter::default()
        };
        assert_eq!(ids(steps(110)), [""; 0]);
        assert_eq!(ids(steps(109)), ["old"]);
        assert_eq!(ids(steps(80)), ["old", "shared"]);
        assert_eq!(ids(steps(1)), ["old", "shared", "none", "new"]);
        assert_eq!(ids(steps(0)), ["old", "shared", "none", "new"]);
        assert_eq!(
            ids(BuildCacheFilter::default()),
            ["old", "shared", "mount", "none", "new"]
        );
        let aged = BuildCacheFilter {
            unused_for: Some(Duration::from_secs(200)),
            ..BuildCacheFilter::default()
        };
        assert_eq!(ids(aged), ["old", "shared", "mount"]);
    }

    #[test]
    fn only_what_nobody_else_has_is_freed() {
        let usage = some();
        let layers = [("old", "a"), ("shared", "b"), ("none", "a"), ("new", "c")];
        let layers = layers.map(|(id, layer)| (id.to_owned(), layer.to_owned())).into();
        let all = |ids: &[usize]| ids.iter().map(|n| &usage[*n].id).collect::<Vec<_>>();
        assert_eq!(
            freed(&usage, &layers, &all(&[0, 2, 3])),
            40,
            "none has the layer of old"
        );
        assert_eq!(freed(&usage, &layers, &all(&[0, 4, 5])), 90);
    }

    #[test]
    fn the_parts_of_a_key_do_not_run_together() {
        let key = |parts: &[&str]| {
            let mut key = Key::of("run");
            key.all(parts);
            key.finish()
        };
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), key(&["ab"]));
        assert_ne!(key(&["a", ""]), key(&["a"]));
        assert_eq!(key(&[]).len(), 64);
    }
}
