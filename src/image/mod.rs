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
//! (with [`capture`], [`documents`] and [`stubs`]) makes an image here, [`build_cache`] keeps what builds made; [`copy`] gives a
//! part of one away. [`cleaning`], [`uses`] and [`prune`] decide what may go, [`space`] measures, and [`room`] keeps the disk
//! from filling up. [`adopt`] takes over what an earlier installation unpacked.
//!
//! The other way: [`skeleton`] is what an unpacked layer lacks of its archive, [`assemble`] makes the archive again, and
//! [`outgoing`] is an image that leaves, in an archive ([`bundle`]) or to a registry.
//!
//! This module never runs anything, mounts anything that others can see, decides who may pull, keeps compressed
//! blobs, or trusts a byte from a registry that no digest covers.

mod adopt;
pub(crate) mod archive;
mod artifact;
mod assemble;
mod beneath;
mod build_cache;
mod bundle;
mod cache_changes;
mod capture;
mod chain;
mod changes;
mod cleaning;
mod commit;
mod confined;
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
mod names;
mod outgoing;
mod pause;
mod platform;
pub(crate) mod printable;
mod prune;
mod pull;
mod push;
mod receive;
pub(crate) mod record;
mod reference;
mod registry;
mod relay;
mod room;
mod skeleton;
mod space;
mod stack;
mod stream;
mod stubs;
#[cfg(test)]
pub(crate) mod testing;
mod track;
pub(crate) mod tree;
mod unarchive;
mod unpack;
mod user;
mod uses;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{Semaphore, watch};

use crate::model::{Container, Image, ImageRunConfig, Snapshot, Txn};
use crate::observe::metrics::{Activity, Verb};
use crate::ops::progress::Reporter;
use crate::ops::task;
use crate::store::Store;

use self::cleaning::stacks_of;
use self::digest::Digest;
use self::layers::LayerStore;
use self::manifest::ImageConfig;
use self::registry::Registry;
use self::stack::Link;
use self::track::{Tracker, Watched};
use self::view::View;

pub use self::adopt::Bundle;
pub use self::bundle::{ArchiveFormat, ImportRequest, Loaded};
pub use self::cache_changes::CacheChanges;
pub use self::commit::CommitRequest;
pub use self::copy::Copied;
pub use self::draft::{Change, Draft, Layers, Scratch};
pub use self::error::{ImageError, RegistryTrouble};
pub use self::names::ImageDetails;
pub use self::outgoing::ByteStream;
pub use self::platform::Platform;
pub use self::prune::ImagePrune;
pub use self::push::{PushRequest, Pushed};
pub use self::reference::ImageRef;
pub use self::registry::{Credentials, Patience, Registries, RegistryEntries, RegistryEntry, RegistrySettings};
pub use self::space::{ImageSpace, ImagesSpace};
pub use self::stubs::remove_stubs;
pub use self::track::Progress;
pub use self::unarchive::ArchiveLimits;
pub(crate) use self::unarchive::unpack_archive;
pub use self::user::User;
pub use self::uses::Hold;

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
    /// Images that are about to be used, and by how many.
    held: Mutex<HashMap<ImageRef, usize>>,
}

/// A running pull, shared by everybody who waits for it.
#[derive(Clone)]
struct Flight {
    done: Shared<BoxFuture<'static, Result<Arc<Image>, ImageError>>>,
    watched: Watched,
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
            held: Mutex::default(),
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
            // In the background: it reads every file of layers that have no record yet.
            std::thread::spawn(move || layers.record_all(&needed));
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

    /// Adds to rows of earlier versions the fields that those did not read from a configuration, once.
    async fn backfill_run_config(&self) -> Result<(), ImageError> {
        let layers = self.0.layers.clone();
        let is_old = |image: &Arc<Image>| image.config.revision < ImageRunConfig::REVISION;
        let rows: Vec<_> = self.list().into_iter().filter(is_old).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let found = blocking(move || {
            let read = |image: &Arc<Image>| {
                let run = match layers.read_blob(&image.config_digest.parse().ok()?) {
                    // The next start tries again.
                    Err(_) => return None,
                    // What is not there, or not understood, will not be at the next start.
                    Ok(body) => body.and_then(|body| Some(ImageConfig::parse_alone(&body).ok()?.run)),
                };
                Some((image.clone(), run))
            };
            Ok(rows.iter().filter_map(read).collect::<Vec<_>>())
        })
        .await?;
        let changed = self.0.store.transact(move |t| {
            for (image, run) in found {
                if let Some(row) = t
                    .get::<Image>(&image.id)
                    .filter(|row| row.config_digest == image.config_digest)
                {
                    let mut row = Image::clone(&row);
                    row.config = refreshed(row.config, run);
                    t.put(row)?;
                }
            }
            Ok(())
        });
        changed.await
    }

    /// Annotations of the manifest; none if the document is not there or not understood.
    pub async fn annotations(&self, image: &Image) -> BTreeMap<String, String> {
        let (layers, digest) = (self.0.layers.clone(), image.manifest_digest.parse::<Digest>());
        let read = blocking(move || match digest {
            Ok(digest) => layers.read_blob(&digest),
            Err(_) => Ok(None),
        });
        match read.await {
            Ok(body) => manifest::annotations(&body.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(image = %image.id, %error, "the annotations of an image cannot be read");
                BTreeMap::new()
            }
        }
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

    /// The same, and reports the phases `resolving`, `layers` and `committing` and the transfers of the layers. A caller
    /// that joins a running pull is first told what has happened so far.
    pub async fn pull_reported(
        &self,
        image: &ImageRef,
        platform: &Platform,
        reporter: &Reporter,
    ) -> Result<Arc<Image>, ImageError> {
        let flight = self.flight(image, platform);
        match reporter.is_heard() {
            true => flight.watched.report(reporter, flight.done).await,
            false => flight.done.await,
        }
    }

    /// The image, which is pulled first if it is not present or has lost a layer.
    pub async fn ensure(&self, image: &ImageRef, platform: &Platform) -> Result<Arc<Image>, ImageError> {
        self.ensure_reported(image, platform, &Reporter::silent()).await
    }

    /// The same, and reports a pull as [`ImageService::pull_reported`] does.
    pub async fn ensure_reported(
        &self,
        image: &ImageRef,
        platform: &Platform,
        reporter: &Reporter,
    ) -> Result<Arc<Image>, ImageError> {
        let present = match self.get(image) {
            Err(ImageError::NotFound(_)) => return self.pull_reported(image, platform, reporter).await,
            present => present?,
        };
        match self.check_layers(&present.diff_ids()).await {
            Ok(()) => Ok(present),
            Err(lost) => {
                tracing::warn!(%image, %lost, "pulling the image again");
                self.pull_reported(image, platform, reporter).await
            }
        }
    }

    /// Progress of the running pull of an image, if there is one.
    pub fn progress(&self, image: &ImageRef, platform: &Platform) -> Option<watch::Receiver<Progress>> {
        let flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights
            .get(&(image.clone(), platform.clone()))
            .map(|flight| flight.watched.totals.clone())
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
        self.list_in(&self.0.store.snapshot())
    }

    fn list_in(&self, snapshot: &Snapshot) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = snapshot.images().iter().cloned().collect();
        images.sort_by(|a, b| (&a.repository, &a.reference).cmp(&(&b.repository, &b.reference)));
        images
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

    async fn sweep_or_warn(&self) {
        if let Err(error) = self.sweep().await {
            tracing::warn!(%error, "unused layers stay for now");
        }
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
        let (progress, watched) = Tracker::new();
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
            watched,
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

/// A row's configuration with the fields that its version did not read. `read` is the stored configuration, if there is one.
fn refreshed(old: ImageRunConfig, read: Option<ImageRunConfig>) -> ImageRunConfig {
    let read = read.unwrap_or_else(|| old.clone());
    ImageRunConfig {
        stop_signal: read.stop_signal,
        health_check: read.health_check,
        volumes: read.volumes,
        exposed_ports: read.exposed_ports,
        labels: read.labels,
        revision: ImageRunConfig::REVISION,
        ..old
    }
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
