//! Images: pulling them from registries and keeping their layers, content addressed and shared.
//!
//! An image is a row ([`Image`](crate::model::Image)) plus unpacked layers and two documents on disk. The row is the
//! truth: an image is present when its row is committed, and the row is committed only when all it names is on disk,
//! durable. What no row (image or container) names and no running pull has pinned is garbage and is swept.
//!
//! ```text
//!           pull                     remove (no container uses it)
//! absent ----------> present (row) -------------------------------> absent; unshared layers are swept
//!    ^---- failure      ^ | pull again: the row is replaced at the end, or nothing changes
//!                       +-+
//! ```
//! From outside in: [`reference`] reads names; [`registry`] speaks to registries;
//! [`manifest`] and [`platform`] say what is wanted; [`pull`] puts it together; [`stream`], [`archive`], [`unpack`] and
//! [`tree`] turn a blob into a directory; [`layers`] keeps directories; [`view`] and [`user`] look into them. [`draft`]
//! (with [`capture`] and [`documents`]) makes an image here; [`copy`] gives a part of one away. [`adopt`] takes over what an earlier installation unpacked.
//!
//! What this module never does: run anything, mount anything that others can see, decide who may pull, keep compressed blobs, or believe a byte
//! of a registry that a digest does not vouch for.

mod adopt;
pub(crate) mod archive;
mod artifact;
mod beneath;
mod capture;
mod copy;
mod digest;
mod documents;
mod draft;
mod error;
mod health;
mod layers;
mod manifest;
mod pause;
mod platform;
pub(crate) mod printable;
mod pull;
pub(crate) mod record;
mod reference;
mod registry;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tree;
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
use crate::store::Store;

use self::digest::Digest;
use self::layers::LayerStore;
use self::manifest::ImageConfig;
use self::registry::Registry;
use self::view::View;

pub use self::adopt::Bundle;
pub use self::copy::Copied;
pub use self::draft::{Draft, Scratch};
pub use self::error::ImageError;
pub use self::platform::Platform;
pub use self::pull::Progress;
pub use self::reference::ImageRef;
pub use self::registry::{Patience, Registries, RegistryEntries, RegistryEntry, RegistrySettings};
pub use self::user::User;

/// How many blobs are downloaded and unpacked at once, at most. One more than there are processors: now and then each
/// of them waits for the network or the disk.
const MAX_DOWNLOADS: usize = 3;
/// Largest `/etc/passwd` or `/etc/group` of an image that is read, in bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;

/// What the image service needs to know.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// Directory of the image store. Its own directories are made in it; others (`layers/` of an earlier installation)
    /// are left alone.
    pub root: PathBuf,
    /// How registries are reached.
    pub registry: RegistrySettings,
    /// Largest uncompressed archive of one layer, in bytes.
    pub max_layer_bytes: u64,
    /// Largest number of entries of one layer.
    pub max_layer_entries: u64,
    /// Largest number of bytes that one byte of a compressed layer may unpack to; 0 for any number.
    pub max_layer_ratio: u64,
    /// Unpacked size of a layer from which that ratio counts, in bytes.
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

/// A pull that is running, for all who wait for it.
#[derive(Clone)]
struct Flight {
    done: Shared<BoxFuture<'static, Result<Arc<Image>, ImageError>>>,
    progress: watch::Receiver<Progress>,
}

impl ImageService {
    /// Makes the directories of the store. Must be followed by [`ImageService::recover`] before anything else.
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

    /// Removes what an earlier run left behind: half-made and half-deleted things, and layers that no row names. To be
    /// called once, before anything else.
    pub async fn recover(&self) -> Result<(), ImageError> {
        let (layers, needed) = (self.0.layers.clone(), layers_of(&self.0.store.snapshot()));
        blocking(move || {
            layers.clear_staging()?;
            unpack_pause(&layers)?;
            mend(&layers, &needed)?;
            // Not waited for: it looks at every file of layers that an earlier version has unpacked.
            std::thread::spawn(move || {
                if let Err(error) = layers.record_all(&needed) {
                    tracing::warn!(%error, "records of layers are missing; the next start tries again");
                }
            });
            Ok(())
        })
        .await?;
        self.read_again().await?;
        self.0.sweep().await
    }

    /// Refuses to go on with layers that are not there as they were unpacked.
    pub async fn check_layers(&self, diff_ids: &[String]) -> Result<(), ImageError> {
        let layers = self.0.layers.clone();
        let wanted: Vec<Digest> = diff_ids.iter().filter_map(|id| id.parse().ok()).collect();
        let lost = blocking(move || {
            for diff_id in wanted {
                if !layers.has_layer(&diff_id)? {
                    return Ok(Some(diff_id));
                }
            }
            Ok(None)
        });
        match lost.await? {
            Some(layer) => Err(ImageError::LayerLost(layer.to_string())),
            None => Ok(()),
        }
    }

    /// Takes into the rows what earlier versions did not read of a configuration: stop signal and health check.
    async fn read_again(&self) -> Result<(), ImageError> {
        let layers = self.0.layers.clone();
        let says_nothing = |image: &Image| image.config.stop_signal.is_empty() && image.config.health_check.is_none();
        let rows: Vec<_> = self.list().into_iter().filter(|image| says_nothing(image)).collect();
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
                    t.put(row).map_err(|taken| ImageError::Io(taken.to_string()))?;
                }
            }
            Ok(())
        });
        changed.await
    }

    /// The built-in image of infra containers. It has no row, and its layer is always there.
    pub fn pause(&self) -> Arc<Image> {
        self.0.pause.clone()
    }

    /// Pulls an image. Always asks the registry; whoever asks for the same while it runs shares the result. It goes on
    /// when its callers lose interest.
    pub async fn pull(&self, image: &ImageRef, platform: &Platform) -> Result<Arc<Image>, ImageError> {
        self.flight(image, platform).done.await
    }

    /// The image, pulled if it is not present, or a layer of it is lost.
    pub async fn ensure(&self, image: &ImageRef, platform: &Platform) -> Result<Arc<Image>, ImageError> {
        let present = match self.get(image) {
            Err(ImageError::NotFound(_)) => return self.pull(image, platform).await,
            present => present?,
        };
        let diff_ids: Vec<String> = present.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        match self.check_layers(&diff_ids).await {
            Ok(()) => Ok(present),
            Err(lost) => {
                tracing::warn!(%image, %lost, "pulling the image again");
                self.pull(image, platform).await
            }
        }
    }

    /// How far the running pull of an image is, if there is one.
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

    /// Bytes that the image takes on disk, shared layers included: blocks, each inode once (`docs/spec/storage.md`
    /// D-44).
    pub async fn disk_usage(&self, image: &ImageRef) -> Result<u64, ImageError> {
        let row = self.get(image)?;
        let blobs: HashSet<Digest> = document_digests(&row).collect();
        let diff_ids: HashSet<Digest> = row.layers.iter().filter_map(|l| l.diff_id.parse().ok()).collect();
        let layers = self.0.layers.clone();
        let pins = layers.pin(blobs.iter().chain(&diff_ids).copied().collect());
        blocking(move || {
            let _pins = pins;
            layers.usage(&diff_ids, &blobs)
        })
        .await
    }

    /// Removes an image that no container uses, and what of its layers nothing else needs.
    pub async fn remove(&self, image: &ImageRef) -> Result<(), ImageError> {
        let image = image.clone();
        self.0.store.transact(move |t| remove_row(t, &image)).await?;
        self.0.sweep().await
    }

    /// Removes layers that nothing needs any more. To be called after containers are gone: theirs may have been the
    /// last use of layers that a newer pull has replaced.
    pub async fn sweep(&self) -> Result<(), ImageError> {
        self.0.sweep().await
    }

    /// Directories for the `lowerdir` option of overlayfs, topmost first. Short: 127 of them fit its 4096 bytes with
    /// `/etc/raind/image` as the root.
    pub fn lower_dirs(&self, diff_ids_bottom_first: &[String]) -> Vec<PathBuf> {
        // overlayfs refuses one directory twice. Of equal layers the upper one decides alone: it shows and hides
        // all that the lower one does.
        let mut seen = HashSet::new();
        let topmost_first = diff_ids_bottom_first.iter().rev().filter(|id| seen.insert(*id));
        topmost_first.map(|id| self.0.layers.lower_dir(id)).collect()
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

    /// Joins the running pull or starts one.
    fn flight(&self, image: &ImageRef, platform: &Platform) -> Flight {
        let key = (image.clone(), platform.clone());
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let (progress, receiver) = watch::channel(Progress::default());
        // A task of its own: a client that hangs up must not stop what others wait for, nor cut a commit in two.
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
            Err(error) => Err(ImageError::Io(format!("the pull ended unexpectedly: {error}"))),
        });
        let flight = Flight {
            done: done.boxed().shared(),
            progress: receiver,
        };
        flights.insert(key, flight.clone());
        flight
    }
}

/// Whether `image` is still what its row says. A transaction that makes a container stand on the image's layers checks
/// this: between [`ImageService::ensure`] and the transaction the image may have been removed or replaced, and its
/// layers be gone.
pub fn still_present(t: &Txn, image: &Image) -> bool {
    pause::is_builtin(image) || t.get::<Image>(&image.id).is_some_and(|row| row.layers == image.layers)
}

/// Ends a flight, even by a panic: the next to ask starts a new one.
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

/// Everything that rows name.
fn needed(snapshot: &Snapshot) -> HashSet<Digest> {
    let mut needed = layers_of(snapshot);
    needed.extend(snapshot.images().iter().flat_map(|i| document_digests(i)));
    needed
}

/// The layers that rows name.
fn layers_of(snapshot: &Snapshot) -> HashSet<Digest> {
    let of_images = snapshot
        .images()
        .iter()
        .flat_map(|i| i.layers.iter().map(|l| &l.diff_id));
    let of_containers = snapshot.containers().iter().flat_map(|c| &c.spec.image.layers);
    of_images
        .chain(of_containers)
        .filter_map(|id| id.parse().ok())
        .collect()
}

/// Makes layers whole that a plain copy of the state has brought, and says what could not be.
fn mend(layers: &LayerStore, needed: &HashSet<Digest>) -> std::io::Result<()> {
    let mut mended = 0;
    for layer in needed {
        let whole = match layers.has_layer(layer) {
            Ok(true) => continue,
            Ok(false) => layers.mend(layer),
            Err(error) => Err(error),
        };
        let lost = || ImageError::LayerLost(layer.to_string());
        match whole {
            Ok(true) => mended += 1,
            Ok(false) => tracing::warn!(%layer, "{}", lost()),
            // One bad layer is no reason for all other containers to be down.
            Err(error) => tracing::warn!(%layer, %error, "{}", lost()),
        }
    }
    if mended > 0 {
        tracing::warn!(
            mended,
            "the state was copied without extended attributes; layers are whole again from their records"
        );
        layers.sync()?;
    }
    Ok(())
}

/// Puts the layer of the built-in image into the store, if it is not there.
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

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| ImageError::Io(format!("file work ended unexpectedly: {e}")))??)
}
