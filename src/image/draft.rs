//! An image under construction: layers are added on top of a base, then documents and a row are written.
//!
//! ```text
//! draft(base) -> change | pack -> append, or note, any number -> commit -> row
//! ```
//! Nothing is visible before the commit. The draft pins its layers, so a sweep keeps them while the draft exists;
//! once it is dropped, the next sweep removes those that nothing else uses. After a crash, the sweep at the start
//! removes them.
//!
//! A layer is the upper directory of an overlay, written as an archive and unpacked again: that gives it its name
//! (the digest of the archive) and the same form as a pulled layer.

use std::io::{self, BufReader, BufWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::cache_changes::CacheChanges;
use super::capture::capture;
use super::digest::Digest;
use super::documents::{Made, Parts};
use super::layers::{LayerStore, Pins, Staged};
use super::manifest::ImageConfig;
use super::tree::TreeError;
use super::unpack::unpack_recorded;
use super::{ImageError, ImageRef, ImageService, Inner, Platform, blocking, document_digests, documents, stack};
use crate::base::cause::Cause;
use crate::model::{Image, ImageLayer, ImageRunConfig};
use crate::ops::task;

/// Maximum number of layers of an image: as many as fit into the mount options of its containers.
const MAX_LAYERS: usize = 127;

/// A private directory that is deleted when this is dropped, or at the next start after a crash.
pub struct Scratch(Staged);

impl Scratch {
    /// The path of the directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A stack of layers that exist as long as this does. Clones share them.
#[derive(Clone)]
pub struct Layers {
    inner: Arc<Inner>,
    /// Bottom first.
    layers: Vec<ImageLayer>,
    pins: Vec<Arc<Pins>>,
}

/// What a step has done to the files below it: a layer, or nothing. The layer exists as long as this does.
#[derive(Clone)]
pub struct Change {
    /// `None` if no file has changed.
    pub layer: Option<ImageLayer>,
    /// Allocated bytes of the layer on disk.
    pub bytes: u64,
    pins: Option<Arc<Pins>>,
}

/// An image under construction.
#[derive(Clone)]
pub struct Draft {
    /// Configuration and manifest of the base; `null` without one.
    base: Arc<(Value, Value)>,
    platform: Platform,
    layers: Layers,
    made: Vec<Made>,
}

impl ImageService {
    /// A private directory on the file system of the image store.
    pub async fn scratch(&self) -> Result<Scratch, ImageError> {
        let layers = self.0.layers.clone();
        blocking(move || layers.stage()).await.map(Scratch)
    }

    /// Starts an image, from scratch or on top of a base. [`ImageError::NotFound`] if the base was removed or
    /// replaced since it was looked up.
    pub async fn draft(&self, base: Option<&Image>) -> Result<Draft, ImageError> {
        let inner = self.0.clone();
        let Some(image) = base else {
            return Ok(Draft {
                base: Arc::new((Value::Null, Value::Null)),
                platform: Platform::host(),
                layers: Layers {
                    inner,
                    layers: Vec::new(),
                    pins: Vec::new(),
                },
                made: Vec::new(),
            });
        };
        let ids = stack::digests(&image.diff_ids()).into_iter();
        let pins = inner.layers.pin(ids.chain(document_digests(image)).collect());
        // Pin first, then check: a layer that exists now cannot be swept afterwards.
        let present = inner
            .store
            .snapshot()
            .get::<Image>(&image.id)
            .is_some_and(|row| row.layers == image.layers);
        if !present {
            return Err(ImageError::NotFound(image.id.clone()));
        }
        let (store, config, manifest) = (
            inner.layers.clone(),
            image.config_digest.clone(),
            image.manifest_digest.clone(),
        );
        let base = blocking(move || Ok((document(&store, &config)?, document(&store, &manifest)?))).await?;
        Ok(Draft {
            base: Arc::new(base),
            platform: Platform::parse(&image.os, &image.architecture),
            layers: Layers {
                inner,
                layers: image.layers.clone(),
                pins: vec![Arc::new(pins)],
            },
            made: Vec::new(),
        })
    }
}

impl Layers {
    /// Diff ids, bottom first.
    pub fn diff_ids(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.diff_id.clone()).collect()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Directories for overlayfs, topmost first.
    pub(super) fn lower_dirs(&self) -> Vec<PathBuf> {
        ImageService(self.inner.clone()).lower_dirs(&self.diff_ids())
    }

    /// Calls `work` with a directory that shows the files of the layers. What it writes there is thrown away. Links in it
    /// resolve within that root only for those who see to it; `work` must not follow them out of it.
    pub async fn read<T: Send + 'static, E>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        E: From<ImageError> + Send + 'static,
    {
        let layers = self.clone();
        let seen = blocking(move || {
            let root = Shown::stage(&layers)?;
            in_overlays(&[&root], |paths| work(paths[0]))
        });
        seen.await?
    }

    /// Calls `work` with the root of these layers, so that it can change files, and with the roots of `others`, and makes
    /// a layer from the changes in the first one. As for [`Layers::read`], links are for `work` to keep within.
    pub async fn change<E: From<ImageError> + Send + 'static>(
        &self,
        others: Vec<Layers>,
        work: impl FnOnce(&Path, &[&Path]) -> Result<(), E> + Send + 'static,
    ) -> Result<Change, E> {
        self.check_number()?;
        let layers = self.clone();
        let changed = blocking(move || {
            let root = Shown::stage(&layers)?;
            let others = others.iter().map(Shown::stage).collect::<io::Result<Vec<_>>>()?;
            let all: Vec<&Shown> = std::iter::once(&root).chain(&others).collect();
            let done = in_overlays(&all, |paths| work(paths[0], &paths[1..]))?;
            Ok(done.map(|()| root))
        });
        let root = changed.await??;
        let upper = root.upper.clone();
        let change = self.pack(upper).await?;
        drop(root);
        Ok(change)
    }

    /// Makes a layer from the upper directory of an unmounted overlay on top of these layers. The directory is not
    /// changed. A directory without changes makes no layer.
    pub async fn pack(&self, upper: PathBuf) -> Result<Change, ImageError> {
        self.check_number()?;
        let inner = self.inner.clone();
        let packed = task::blocking(move || {
            let Some((layer, pins)) = pack(&inner, &upper)? else {
                return Ok((None, 0));
            };
            let diff_id = layer.diff_id.parse::<Digest>().map_err(std::io::Error::other)?;
            let bytes = inner.layers.layer_size(&diff_id)?;
            Ok::<_, ImageError>((Some((layer, pins)), bytes))
        });
        let (packed, bytes) = packed.await?;
        let (layer, pins) = packed.map(|(layer, pins)| (layer, Arc::new(pins))).unzip();
        Ok(Change { layer, bytes, pins })
    }

    fn check_number(&self) -> Result<(), ImageError> {
        if self.layers.len() < MAX_LAYERS {
            return Ok(());
        }
        let message = format!("the image would have more than {MAX_LAYERS} layers; join some steps");
        Err(ImageError::NoLayer(message))
    }
}

impl Change {
    /// No change.
    pub fn none() -> Self {
        Self {
            layer: None,
            bytes: 0,
            pins: None,
        }
    }

    pub(super) fn kept(layer: ImageLayer, bytes: u64, pins: Pins) -> Self {
        Self {
            layer: Some(layer),
            bytes,
            pins: Some(Arc::new(pins)),
        }
    }
}

impl Draft {
    /// The layers so far.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The configuration document of the base (OCI image specification, image configuration); `null` without one.
    pub fn base_config(&self) -> &Value {
        &self.base.0
    }

    /// The platform of the base, or of the host.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// Adds a history entry for a step that changes no files.
    pub fn note(&mut self, by: String) {
        self.append(by, &Change::none());
    }

    /// Adds what a step has done, with its history entry.
    pub fn append(&mut self, by: String, change: &Change) {
        self.made.push(Made {
            by,
            layer: change.layer.is_some(),
            at: Timestamp::now(),
        });
        self.layers.layers.extend(change.layer.clone());
        self.layers.pins.extend(change.pins.clone());
    }

    /// Makes a layer from the upper directory of an unmounted overlay on top of the layers so far ([`Layers::pack`]).
    pub async fn add_layer(&mut self, by: String, upper: PathBuf) -> Result<(), ImageError> {
        let change = self.layers.pack(upper).await?;
        self.append(by, &change);
        Ok(())
    }

    /// Writes documents and row. If `target` names another image, it is replaced; its layers go once nothing uses
    /// them. What `run` does not hold is the base's.
    pub async fn commit(self, target: &ImageRef, run: ImageRunConfig) -> Result<Arc<Image>, ImageError> {
        let config = documents::with_run(self.base_config(), &run);
        let targets = std::slice::from_ref(target);
        let rows = self.commit_as(targets, config, None, CacheChanges::default()).await?;
        rows.into_iter()
            .next()
            .ok_or_else(|| ImageError::Io(Cause::new("an image without a name")))
    }

    /// Writes documents and a row for each of `targets`, together with the changes of the build cache. `config` is the
    /// member `config` of the configuration document, `author` the author if it is not the base's.
    pub async fn commit_as(
        self,
        targets: &[ImageRef],
        config: Map<String, Value>,
        author: Option<String>,
        cache: CacheChanges,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let now = Timestamp::now();
        let layers = self.layers.layers.clone();
        let config = documents::config(&Parts {
            base: &self.base.0,
            config,
            author,
            layers: &layers,
            made: &self.made,
            os: &self.platform.os,
            architecture: &self.platform.architecture,
            now,
        });
        let config = config.to_string().into_bytes();
        let manifest = documents::manifest(&self.base.1, &config, &layers)
            .to_string()
            .into_bytes();
        let read = ImageConfig::parse_alone(&config).map_err(ImageError::NoLayer)?;
        let (config_digest, manifest_digest) = (Digest::of(&config), Digest::of(&manifest));
        let sizes = layers.iter().map(|layer| layer.size);
        let size_bytes = sizes.fold(config.len() as u64, u64::saturating_add);
        let row = |target: &ImageRef| Image {
            id: target.canonical(),
            repository: target.repository().to_owned(),
            reference: target.reference().to_owned(),
            manifest_digest: manifest_digest.to_string(),
            config_digest: config_digest.to_string(),
            size_bytes,
            layers: layers.clone(),
            config: read.run.clone(),
            os: self.platform.os.clone(),
            architecture: self.platform.architecture.clone(),
            created_at: now,
        };
        let rows: Vec<Image> = targets.iter().map(row).collect();
        let inner = self.layers.inner.clone();
        let store = inner.layers.clone();
        let pins = store.pin(vec![config_digest, manifest_digest]);
        blocking(move || {
            store.publish_blob(&config_digest, &config)?;
            store.publish_blob(&manifest_digest, &manifest)?;
            store.sync()
        })
        .await?;
        let committed = inner.store.transact(move |t| {
            cache.apply(t)?;
            rows.into_iter()
                .map(|row| Ok::<_, ImageError>(t.put(row)?))
                .collect::<Result<Vec<_>, _>>()
        });
        let committed = committed.await;
        drop(pins);
        committed
    }
}

/// A stored document; `null` if it does not exist or is not JSON.
fn document(store: &LayerStore, digest: &str) -> io::Result<Value> {
    let Ok(digest) = digest.parse() else {
        return Ok(Value::Null);
    };
    let body = store.read_blob(&digest)?;
    Ok(body
        .and_then(|body| serde_json::from_slice(&body).ok())
        .unwrap_or_default())
}

/// Archives and unpacks `upper`. Returns the layer together with a pin on it.
fn pack(inner: &Inner, upper: &Path) -> Result<Option<(ImageLayer, Pins)>, ImageError> {
    let staged = inner.layers.stage()?;
    let (skeleton, file) = inner.layers.stage_file()?;
    let (reader, writer) = io::pipe()?;
    let mut archive = Hashing {
        reader: BufReader::with_capacity(128 << 10, reader),
        hash: Sha256::new(),
        bytes: 0,
        limit: inner.settings.max_layer_bytes,
    };
    let (unpacked, captured) = std::thread::scope(|scope| {
        let capturing = scope.spawn(|| capture(upper, BufWriter::with_capacity(128 << 10, writer)));
        let unpacked = unpack_recorded(&mut archive, staged.path(), inner.settings.max_layer_entries, file);
        let Hashing {
            reader, hash, bytes, ..
        } = archive;
        // Without its reader, the other thread ends.
        drop(reader);
        let captured = capturing
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the capture of a layer panicked")));
        (unpacked.map(|()| (Digest::finish(hash), bytes)), captured)
    });
    let (diff_id, size) = match (unpacked, captured) {
        (Ok(_), Ok(0)) => return Ok(None),
        (Ok(found), Ok(_)) => found,
        // The capture stopped because the unpacker had failed.
        (Err(TreeError::Refused(message)), Ok(_)) => return Err(ImageError::NoLayer(message)),
        (Err(TreeError::Refused(message)), Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
            return Err(ImageError::NoLayer(message));
        }
        (Err(TreeError::System(message)), _) => return Err(ImageError::Io(Cause::new(message))),
        (_, Err(e)) if e.kind() == io::ErrorKind::InvalidData => return Err(ImageError::NoLayer(e.to_string())),
        (_, Err(e)) => return Err(e.into()),
    };
    let pins = inner.layers.pin(vec![diff_id]);
    let skeleton_path = inner.layers.skeleton_of(&diff_id);
    inner.layers.publish_file(skeleton, &skeleton_path)?;
    inner.layers.publish_layer(staged, &diff_id)?;
    if !inner.layers.has_layer(&diff_id)? {
        return Err(ImageError::Io(Cause::new(format!("the layer {diff_id} vanished"))));
    }
    let diff_id = diff_id.to_string();
    let layer = ImageLayer {
        digest: diff_id.clone(),
        diff_id,
        size,
    };
    Ok(Some((layer, pins)))
}

/// Hashes, counts and limits the bytes that are read through it.
struct Hashing<R> {
    reader: R,
    hash: Sha256,
    bytes: u64,
    limit: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        if self.bytes > self.limit {
            let message = format!("the layer is larger than {} bytes (max_layer_bytes)", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(read)
    }
}

/// Directories for an overlay mount of layers.
struct Shown {
    /// Deleted when dropped.
    staged: Staged,
    /// Topmost first.
    lower: Vec<PathBuf>,
    upper: PathBuf,
}

impl Shown {
    fn stage(layers: &Layers) -> io::Result<Self> {
        let staged = layers.inner.layers.stage()?;
        for name in ["upper", "work", "merged"] {
            let path = staged.path().join(name);
            fs_err::create_dir(&path)?;
            // The root of the mount has the mode of the upper directory, whatever the umask is.
            fs_err::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        }
        Ok(Self {
            upper: staged.path().join("upper"),
            lower: layers.lower_dirs(),
            staged,
        })
    }

    /// Mounts it, unless there is nothing below the upper directory. Returns where it is.
    fn mount(&self) -> io::Result<PathBuf> {
        if self.lower.is_empty() {
            return Ok(self.upper.clone());
        }
        let merged = self.staged.path().join("merged");
        mount_overlay(&self.lower, &self.upper, &self.staged.path().join("work"), &merged)?;
        Ok(merged)
    }
}

/// Runs `work` on overlay mounts. The mounts exist in the mount namespace of a thread that ends with the work, so nothing
/// of them can be left behind, not even by a crash.
fn in_overlays<T: Send>(shown: &[&Shown], work: impl FnOnce(&[&Path]) -> T + Send) -> io::Result<T> {
    in_namespace(|| {
        let paths = shown
            .iter()
            .map(|shown| shown.mount())
            .collect::<io::Result<Vec<_>>>()?;
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        Ok(work(&paths))
    })
}

/// Runs `work` on one overlay mount, as [`in_overlays`] does.
pub(super) fn in_overlay<T: Send>(
    lower: &[PathBuf],
    upper: &Path,
    work_dir: &Path,
    merged: &Path,
    work: impl FnOnce(&Path) -> T + Send,
) -> io::Result<T> {
    in_namespace(|| {
        mount_overlay(lower, upper, work_dir, merged)?;
        Ok(work(merged))
    })
}

/// Runs `work` in a thread with a mount namespace of its own.
fn in_namespace<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> io::Result<T> {
            // SAFETY: replaces the mount namespace and the file system attributes of this thread only, which is not a
            // pool thread and ends here; memory and descriptors are not affected.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            work()
        });
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the work on the files of an image panicked")))
    })
}

fn mount_overlay(lower: &[PathBuf], upper: &Path, work_dir: &Path, merged: &Path) -> io::Result<()> {
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let layers = lower
        .iter()
        .map(|path| open(path))
        .collect::<Result<Vec<OwnedFd>, _>>()?;
    let (upper, work_dir) = (open(upper)?, open(work_dir)?);
    // Descriptors instead of paths: the options of many layers must fit into one page.
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.iter().map(path).collect::<Vec<_>>().join(":");
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},redirect_dir=off,metacopy=off",
        path(&upper),
        path(&work_dir)
    );
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount(
        "overlay",
        merged,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )?;
    Ok(())
}
