//! Images: pulls them from registries and stores their layers, content-addressed and shared.
//!
//! An image is a row ([`Image`](crate::model::Image)) plus unpacked layers and two documents on disk. The row
//! decides: an image is present once its row is committed, and the row is committed only when everything that it
//! refers to is durable on disk. Objects that no row (image or container) refers to and no running pull has pinned
//! are garbage and are swept.
//!
//! ```text
//!           pull                     remove (no container uses it)
//! absent ----------> present (row) -------------------------------> absent; unshared layers are swept
//!    ^---- failure      ^ | pull again: the row is replaced at the end, or nothing changes
//!                       +-+
//! ```
//! From outside in: [`reference`] reads names; [`registry`] speaks to registries;
//! [`manifest`] and [`platform`] say what is wanted; [`pull`] puts it together; [`stream`], [`archive`], [`unpack`] and
//! [`tree`] turn a blob into a directory; [`layers`] keeps directories, [`chain`] those that
//! depend on what is below; [`view`] and [`user`] look into them. [`draft`]
//! (with [`capture`], [`documents`] and [`stubs`]) makes an image here, [`build_cache`] keeps what builds made; [`copy`] gives a part of one away. [`adopt`] takes over what an earlier installation unpacked.
//!
//! This module never runs anything, mounts anything that others can see, decides who may pull, keeps compressed
//! blobs, or trusts a byte from a registry that no digest covers.

mod adopt;
pub(crate) mod archive;
mod artifact;
mod beneath;
mod build_cache;
mod cache_changes;
mod capture;
mod chain;
mod copy;
mod digest;
mod documents;
mod draft;
mod error;
mod health;
mod index_entry;
mod json_null;
mod layers;
mod manifest;
mod pause;
mod platform;
pub(crate) mod printable;
mod pull;
pub(crate) mod record;
mod reference;
mod registry;
mod stack;
mod stream;
mod stubs;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tree;
mod unarchive;
mod unpack;
mod user;
mod view;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{Semaphore, watch};

use crate::model::{Container, Image, Snapshot, Txn};
use crate::observe::metrics::{Activity, Verb};
use crate::ops::task;
use crate::store::Store;

use self::digest::Digest;
use self::layers::LayerStore;
use self::manifest::ImageConfig;
use self::registry::Registry;
use self::stack::Link;
use self::view::View;

pub use self::adopt::Bundle;
pub use self::cache_changes::CacheChanges;
pub use self::copy::Copied;
pub use self::draft::{Change, Draft, Layers, Scratch};
pub use self::error::{ImageError, RegistryTrouble};
pub use self::platform::Platform;
pub use self::pull::Progress;
pub use self::reference::ImageRef;
pub use self::registry::{Patience, Registries, RegistryEntries, RegistryEntry, RegistrySettings};
pub use self::stubs::remove_stubs;
pub use self::unarchive::ArchiveLimits;
pub(crate) use self::unarchive::unpack_archive;
pub use self::user::User;

/// Maximum number of concurrent downloads. One more than there are processors, because each of them sometimes waits
/// for the network or the disk.
const MAX_DOWNLOADS: usize = 3;
/// Maximum size of an image's `/etc/passwd` or `/etc/group`, in bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;

/// Settings of the image service.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// Directory of the image store. The service creates its own directories in it and leaves others alone (`layers/`
    /// of an earlier installation).
    pub root: PathBuf,
    /// Registry settings.
    pub registry: RegistrySettings,
    /// Maximum size of the uncompressed archive of one layer, in bytes.
    pub max_layer_bytes: u64,
    /// Maximum number of entries of one layer.
    pub max_layer_entries: u64,
    /// Maximum number of bytes that one byte of a compressed layer may unpack to; 0 for no limit.
    pub max_layer_ratio: u64,
    /// Unpacked size from which that ratio applies, in bytes.
    pub layer_ratio_from: u64,
}

/// The image service. Clones share everything.
#[derive(Clone)]
pub struct ImageService(Arc<Inner>);

struct Inner {
    settings: ImageSettings,
    store: Store,
    activity: Activity,
    layers: Arc<LayerStore>,
    registry: Registry,
    downloads: Semaphore,
    pause: Arc<Image>,
    flights: Mutex<HashMap<(ImageRef, Platform), Flight>>,
}

/// A running pull, shared by everybody who waits for it.
#[derive(Clone)]
struct Flight {
    done: Shared<BoxFuture<'static, Result<Arc<Image>, ImageError>>>,
    progress: watch::Receiver<Progress>,
}

impl ImageService {
    /// Creates the directories of the store. Call [`ImageService::recover`] before anything else.
    pub fn new(settings: ImageSettings, store: Store, activity: Activity) -> Result<Self, ImageError> {
        let layers = Arc::new(LayerStore::open(&settings.root)?);
        let archive = pause::archive()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self(Arc::new(Inner {
            registry: Registry::new(settings.registry.clone()),
            downloads: Semaphore::new(MAX_DOWNLOADS.min(cores + 1)),
            pause: Arc::new(pause::image(Digest::of(&archive), archive.len())),
            flights: Mutex::default(),
            settings,
            store,
            activity,
            layers,
        })))
    }

    /// Removes what an earlier run left behind: half-created and half-deleted objects, and layers that no row refers
    /// to. Call once, before anything else.
    pub async fn recover(&self) -> Result<(), ImageError> {
        let snapshot = self.0.store.snapshot();
        let (layers, stacks) = (self.0.layers.clone(), stacks_of(&snapshot));
        let root = self.0.settings.root.clone();
        blocking(move || {
            layers.clear_staging()?;
            build_cache::remove_strays(&root, &snapshot)?;
            unpack_pause(&layers)?;
            let links: HashSet<Link> = stacks.iter().flat_map(|diff_ids| stack::stack(diff_ids)).collect();
            let mut needed: HashSet<Digest> = links.iter().map(|link| link.diff_id).collect();
            let laid_out = links.into_iter().map(|link| link.chain_id);
            needed.extend(laid_out.filter(|id| layers.layer(id).exists()));
            mend(&layers, &needed)?;
            // In the background: it reads every file of layers that an earlier version unpacked.
            std::thread::spawn(move || {
                if let Err(error) = layers.record_all(&needed) {
                    tracing::warn!(%error, "cannot write the records of layers; the next start tries again");
                }
            });
            Ok(())
        })
        .await?;
        self.backfill_run_config().await?;
        self.0.sweep().await
    }

    /// Fails if layers are missing or no longer as they were unpacked.
    pub async fn check_layers(&self, diff_ids: &[String]) -> Result<(), ImageError> {
        let layers = self.0.layers.clone();
        let wanted = stack::stack(diff_ids);
        let lost = blocking(move || {
            for link in wanted {
                // What was laid out a second time is there only if the layers below made a difference.
                let has_lost_its_mark = |id| layers.layer(id).exists() && matches!(layers.has_layer(id), Ok(false));
                if !layers.has_layer(&link.diff_id)? || has_lost_its_mark(&link.chain_id) {
                    return Ok(Some(link.diff_id));
                }
            }
            Ok(None)
        });
        match lost.await? {
            Some(layer) => Err(ImageError::LayerLost(layer.to_string())),
            None => Ok(()),
        }
    }

    /// Adds fields to the rows that earlier versions did not read from a configuration: stop signal and health check.
    async fn backfill_run_config(&self) -> Result<(), ImageError> {
        let layers = self.0.layers.clone();
        let has_defaults = |image: &Image| image.config.stop_signal.is_empty() && image.config.health_check.is_none();
        let rows: Vec<_> = self.list().into_iter().filter(|image| has_defaults(image)).collect();
        let found = blocking(move || {
            let read = |image: &Arc<Image>| {
                let body = layers.read_blob(&image.config_digest.parse().ok()?).ok()??;
                let run = ImageConfig::parse_alone(&body).ok()?.run;
                let news = !run.stop_signal.is_empty() || run.health_check.is_some();
                news.then(|| (image.id.clone(), run))
            };
            Ok(rows.iter().filter_map(read).collect::<Vec<_>>())
        })
        .await?;
        if found.is_empty() {
            return Ok(());
        }
        let changed = self.0.store.transact(move |t| {
            for (id, run) in found {
                if let Some(row) = t.get::<Image>(&id) {
                    let mut row = Image::clone(&row);
                    row.config.stop_signal = run.stop_signal;
                    row.config.health_check = run.health_check;
                    t.put(row)?;
                }
            }
            Ok(())
        });
        changed.await
    }

    /// The built-in image of infra containers. It has no row, and its layer always exists.
    pub fn pause(&self) -> Arc<Image> {
        self.0.pause.clone()
    }

    /// Pulls an image. Always asks the registry; concurrent calls for the same image share one pull. The pull
    /// continues even if its callers are dropped.
    pub async fn pull(&self, image: &ImageRef, platform: &Platform) -> Result<Arc<Image>, ImageError> {
        self.flight(image, platform).done.await
    }

    /// The image, which is pulled first if it is not present or has lost a layer.
    pub async fn ensure(&self, image: &ImageRef, platform: &Platform) -> Result<Arc<Image>, ImageError> {
        let present = match self.get(image) {
            Err(ImageError::NotFound(_)) => return self.pull(image, platform).await,
            present => present?,
        };
        match self.check_layers(&present.diff_ids()).await {
            Ok(()) => Ok(present),
            Err(lost) => {
                tracing::warn!(%image, %lost, "pulling the image again");
                self.pull(image, platform).await
            }
        }
    }

    /// Progress of the running pull of an image, if there is one.
    pub fn progress(&self, image: &ImageRef, platform: &Platform) -> Option<watch::Receiver<Progress>> {
        let flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights
            .get(&(image.clone(), platform.clone()))
            .map(|flight| flight.progress.clone())
    }

    /// The image, if it is present.
    pub fn get(&self, image: &ImageRef) -> Result<Arc<Image>, ImageError> {
        let id = image.canonical();
        self.get_by_id(&id).ok_or(ImageError::NotFound(id))
    }

    fn get_by_id(&self, id: &str) -> Option<Arc<Image>> {
        self.0.store.snapshot().get::<Image>(id).cloned()
    }

    /// All images, by repository and reference.
    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.0.store.snapshot().images().iter().cloned().collect();
        images.sort_by(|a, b| (&a.repository, &a.reference).cmp(&(&b.repository, &b.reference)));
        images
    }

    /// Disk usage of the image in bytes, shared layers included: allocated blocks, each inode once
    /// (`docs/spec/storage.md` D-44).
    pub async fn disk_usage(&self, image: &ImageRef) -> Result<u64, ImageError> {
        let row = self.get(image)?;
        let blobs: HashSet<Digest> = document_digests(&row).collect();
        let stack = stack::stack(&row.diff_ids());
        let layers = self.0.layers.clone();
        let pins = layers.pin(blobs.iter().copied().chain(stack::digests(&row.diff_ids())).collect());
        blocking(move || {
            let _pins = pins;
            let mut directories: HashSet<Digest> = stack.iter().map(|link| link.diff_id).collect();
            let laid_out = stack.iter().map(|link| link.chain_id);
            directories.extend(laid_out.filter(|id| layers.has_layer(id).unwrap_or(false)));
            layers.usage(&directories, &blobs)
        })
        .await
    }

    /// Removes an image that no container uses, and those of its layers that nothing else uses.
    pub async fn remove(&self, image: &ImageRef) -> Result<(), ImageError> {
        let image = image.clone();
        self.0.store.transact(move |t| remove_row(t, &image)).await?;
        self.0.sweep().await
    }

    /// Removes layers that nothing uses any more. Call this after removing containers: theirs may have been the last
    /// use of layers that a newer pull has replaced.
    pub async fn sweep(&self) -> Result<(), ImageError> {
        self.0.sweep().await
    }

    /// Directories for the `lowerdir` option of overlayfs, topmost first. The paths are short: with the root
    /// `/etc/raind/image`, 127 of them fit into the 4096 bytes of mount options.
    pub fn lower_dirs(&self, diff_ids_bottom_first: &[String]) -> Vec<PathBuf> {
        let layers = &self.0.layers;
        let stack = stack::stack(diff_ids_bottom_first);
        let bad = diff_ids_bottom_first.iter().filter(|id| id.parse::<Digest>().is_err());
        let bad = bad.map(|_| layers.no_layer()).take(1);
        bad.chain(stack.iter().rev().map(|link| layers.lower_dir(link)))
            .collect()
    }

    /// Looks up an image's `User` in the image's own account files (`docs/spec/api.md` 22, I12). `""` is root.
    pub async fn resolve_user(&self, diff_ids: &[String], user: &str) -> Result<User, ImageError> {
        if user.is_empty() {
            return Ok(User::default());
        }
        let lower_dirs = self.lower_dirs(diff_ids);
        let user = user.to_owned();
        let (passwd, group) = blocking(move || {
            let view = View::open(&lower_dirs)?;
            let read = |path| Ok::<_, std::io::Error>(view.read(path, MAX_ACCOUNTS)?.unwrap_or_default());
            Ok((read("etc/passwd")?, read("etc/group")?))
        })
        .await?;
        user::resolve(
            &user,
            &String::from_utf8_lossy(&passwd),
            &String::from_utf8_lossy(&group),
        )
    }

    /// Joins the running pull or starts a new one.
    fn flight(&self, image: &ImageRef, platform: &Platform) -> Flight {
        let key = (image.clone(), platform.clone());
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let (progress, receiver) = watch::channel(Progress::default());
        // A separate task: a client that disconnects must not abort a pull that others wait for, nor interrupt a
        // commit.
        let task = tokio::spawn({
            let (inner, key) = (self.0.clone(), key.clone());
            async move {
                let _landing = Landing(&inner, &key);
                let pull = pull::pull(&inner, &key.0, &key.1, &progress);
                let result = inner.activity.observe(Verb::ImagePull, pull).await;
                match &result {
                    Ok(row) => tracing::info!(image = %key.0, digest = row.manifest_digest, "image pulled"),
                    Err(error) => tracing::warn!(image = %key.0, %error, "pull failed"),
                }
                result
            }
        });
        let done = task.map(|ended| match ended {
            Ok(result) => result,
            Err(error) => Err(ImageError::unfinished("the pull ended")(error)),
        });
        let flight = Flight {
            done: done.boxed().shared(),
            progress: receiver,
        };
        flights.insert(key, flight.clone());
        flight
    }
}

/// Whether the row of `image` is unchanged. Check this in every transaction that stores a container on the image's
/// layers: between [`ImageService::ensure`] and the transaction the image may have been removed or replaced, and its
/// layers swept.
pub fn still_present(t: &Txn, image: &Image) -> bool {
    pause::is_builtin(image) || t.get::<Image>(&image.id).is_some_and(|row| row.layers == image.layers)
}

/// Ends the shared pull, even after a panic: the next caller starts a new one.
struct Landing<'a>(&'a Inner, &'a (ImageRef, Platform));

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.0
            .flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.1);
    }
}

impl Inner {
    async fn sweep(&self) -> Result<(), ImageError> {
        let (layers, store, pause) = (self.layers.clone(), self.store.clone(), self.pause.clone());
        let needed = move || {
            let mut needed = needed(&store.snapshot());
            needed.extend(pause.layers.iter().filter_map(|l| l.diff_id.parse::<Digest>().ok()));
            needed
        };
        blocking(move || layers.sweep(needed)).await
    }
}

/// Every digest that rows refer to.
fn needed(snapshot: &Snapshot) -> HashSet<Digest> {
    let stacks = stacks_of(snapshot);
    let mut needed: HashSet<Digest> = stacks.iter().flat_map(|diff_ids| stack::digests(diff_ids)).collect();
    needed.extend(snapshot.images().iter().flat_map(|i| document_digests(i)));
    let of_builds = snapshot.buildcache().iter().filter_map(|entry| entry.layer());
    needed.extend(of_builds.filter_map(|layer| layer.diff_id.parse::<Digest>().ok()));
    needed
}

/// The stacks of layers that rows name, each once, by diff ids, bottom first.
fn stacks_of(snapshot: &Snapshot) -> HashSet<Vec<String>> {
    let of_images = snapshot.images().iter().map(|image| image.diff_ids());
    let of_containers = snapshot
        .containers()
        .iter()
        .map(|container| container.spec.image.layers.clone());
    of_images.chain(of_containers).collect()
}

/// Restores layers that were copied without extended attributes, and logs the ones that cannot be restored.
fn mend(layers: &LayerStore, needed: &HashSet<Digest>) -> std::io::Result<()> {
    let mut mended = 0;
    for layer in needed {
        let outcome = match layers.has_layer(layer) {
            Ok(true) => continue,
            Ok(false) => layers.mend(layer),
            Err(error) => Err(error),
        };
        let lost = || ImageError::LayerLost(layer.to_string());
        match outcome {
            Ok(true) => mended += 1,
            Ok(false) => tracing::warn!(%layer, "{}", lost()),
            // One bad layer must not keep all other containers down.
            Err(error) => tracing::warn!(%layer, %error, "{}", lost()),
        }
    }
    if mended > 0 {
        tracing::warn!(
            mended,
            "the state was copied without extended attributes; the layers were restored from their records"
        );
        layers.sync()?;
    }
    Ok(())
}

/// Adds the layer of the built-in image to the store unless it exists.
fn unpack_pause(layers: &LayerStore) -> std::io::Result<()> {
    let archive = pause::archive()?;
    let diff_id = Digest::of(&archive);
    if layers.has_layer(&diff_id)? {
        return Ok(());
    }
    let staged = layers.stage()?;
    unpack::unpack(&archive[..], staged.path(), u64::MAX).map_err(std::io::Error::other)?;
    layers.publish_layer(staged, &diff_id)?;
    layers.sync()
}

fn document_digests(image: &Image) -> impl Iterator<Item = Digest> {
    [&image.manifest_digest, &image.config_digest]
        .into_iter()
        .filter_map(|d| d.parse().ok())
}

fn remove_row(t: &mut Txn, image: &ImageRef) -> Result<(), ImageError> {
    let (repository, reference) = (image.repository(), image.reference());
    let uses = |c: &&Arc<Container>| c.spec.image.repository == repository && c.spec.image.reference == reference;
    if let Some(container) = t.snapshot().containers().iter().find(uses) {
        return Err(ImageError::InUse {
            image: image.canonical(),
            container: container.name.clone(),
        });
    }
    let removed = t.remove::<Image>(&image.canonical());
    removed.map(drop).ok_or_else(|| ImageError::NotFound(image.canonical()))
}

/// Runs file operations on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ImageError> {
    task::blocking(move || Ok(work()?)).await
}
