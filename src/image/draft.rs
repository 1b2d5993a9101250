//! An image under construction: layers are added on top of a base, then documents and a row are written.
//!
//! ```text
//! draft(base) -> edit | add_layer | note, any number -> commit -> row
//! ```
//! Nothing is visible before the commit. The draft pins its layers, so a sweep keeps them while the draft exists;
//! once it is dropped, the next sweep removes those that nothing else uses. After a crash, the sweep at the start
//! removes them.
//!
//! A layer is the upper directory of an overlay, written as an archive and unpacked again: that gives it its name
//! (the digest of the archive) and the same form as a pulled layer.

use std::io::{self, BufReader, BufWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::capture::capture;
use super::digest::Digest;
use super::documents::{Made, Parts};
use super::layers::{LayerStore, Pins, Staged};
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

/// An image under construction.
pub struct Draft {
    inner: Arc<Inner>,
    /// Configuration and manifest of the base; `null` without one.
    base: (Value, Value),
    platform: Platform,
    layers: Vec<ImageLayer>,
    made: Vec<Made>,
    pins: Vec<Pins>,
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
                inner,
                base: (Value::Null, Value::Null),
                platform: Platform::host(),
                layers: Vec::new(),
                made: Vec::new(),
                pins: Vec::new(),
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
            inner,
            base,
            platform: Platform::parse(&image.os, &image.architecture),
            layers: image.layers.clone(),
            made: Vec::new(),
            pins: vec![pins],
        })
    }
}

impl Draft {
    /// Diff ids of the layers so far, bottom first.
    pub fn layers(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.diff_id.clone()).collect()
    }

    /// Adds a history entry for a step that changes no files.
    pub fn note(&mut self, by: String) {
        self.made.push(Made {
            by,
            layer: false,
            at: Timestamp::now(),
        });
    }

    /// Calls `work` with the root of the image so that it can change files, and makes a layer from the changes. Links
    /// in the image resolve within that root; `work` must not follow them out of it.
    pub async fn edit<E: From<ImageError> + Send + 'static>(
        &mut self,
        by: String,
        work: impl FnOnce(&Path) -> Result<(), E> + Send + 'static,
    ) -> Result<(), E> {
        let lower: Vec<PathBuf> = ImageService(self.inner.clone()).lower_dirs(&self.layers());
        let inner = self.inner.clone();
        let edited = blocking(move || {
            let staged = inner.layers.stage()?;
            let [upper, work_dir, merged] = ["upper", "work", "merged"].map(|name| staged.path().join(name));
            for path in [&upper, &work_dir, &merged] {
                fs_err::create_dir(path)?;
            }
            if lower.is_empty() {
                return Ok(work(&upper).map(|()| (staged, upper)));
            }
            let done = in_overlay(&lower, &upper, &work_dir, &merged, work)?;
            Ok(done.map(|()| (staged, upper)))
        });
        let (staged, upper) = edited.await??;
        self.add_layer(by, upper).await?;
        drop(staged);
        Ok(())
    }

    /// Makes a layer from the upper directory of an unmounted overlay on top of the layers so far. The directory is
    /// not changed. A directory without changes makes no layer.
    pub async fn add_layer(&mut self, by: String, upper: PathBuf) -> Result<(), ImageError> {
        if self.layers.len() >= MAX_LAYERS {
            let message = format!("the image would have more than {MAX_LAYERS} layers; join some steps");
            return Err(ImageError::NoLayer(message));
        }
        let inner = self.inner.clone();
        let packed = task::blocking(move || pack(&inner, &upper)).await?;
        self.made.push(Made {
            by,
            layer: packed.is_some(),
            at: Timestamp::now(),
        });
        if let Some((layer, pins)) = packed {
            self.layers.push(layer);
            self.pins.push(pins);
        }
        Ok(())
    }

    /// Writes documents and row. If `target` names another image, it is replaced; its layers go once nothing uses
    /// them.
    pub async fn commit(self, target: &ImageRef, run: ImageRunConfig) -> Result<Arc<Image>, ImageError> {
        let now = Timestamp::now();
        let config = documents::config(&Parts {
            base: &self.base.0,
            run: &run,
            layers: &self.layers,
            made: &self.made,
            os: &self.platform.os,
            architecture: &self.platform.architecture,
            now,
        });
        let config = config.to_string().into_bytes();
        let manifest = documents::manifest(&self.base.1, &config, &self.layers)
            .to_string()
            .into_bytes();
        let (config_digest, manifest_digest) = (Digest::of(&config), Digest::of(&manifest));
        let sizes = self.layers.iter().map(|layer| layer.size);
        let row = Image {
            id: target.canonical(),
            repository: target.repository().to_owned(),
            reference: target.reference().to_owned(),
            manifest_digest: manifest_digest.to_string(),
            config_digest: config_digest.to_string(),
            size_bytes: sizes.fold(config.len() as u64, u64::saturating_add),
            layers: self.layers.clone(),
            config: run,
            os: self.platform.os.clone(),
            architecture: self.platform.architecture.clone(),
            created_at: now,
        };
        let store = self.inner.layers.clone();
        let pins = store.pin(vec![config_digest, manifest_digest]);
        blocking(move || {
            store.publish_blob(&config_digest, &config)?;
            store.publish_blob(&manifest_digest, &manifest)?;
            store.sync()
        })
        .await?;
        let committed = self
            .inner
            .store
            .transact(move |t| Ok::<_, ImageError>(t.put(row)?))
            .await;
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

/// Runs `work` on an overlay mount. The mount exists in the mount namespace of a thread that ends with the work, so
/// nothing of it can be left behind, not even by a crash.
pub(super) fn in_overlay<T: Send>(
    lower: &[PathBuf],
    upper: &Path,
    work_dir: &Path,
    merged: &Path,
    work: impl FnOnce(&Path) -> T + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> io::Result<T> {
            // SAFETY: replaces the mount namespace and the file system attributes of this thread only, which is not a
            // pool thread and ends here; memory and descriptors are not affected.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let open =
                |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
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
            Ok(work(merged))
        });
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the work on the files of an image panicked")))
    })
}
