//! One push, from a row to a tag in a registry.
//!
//! ```text
//! greet -> for each layer, several at once: there already | taken from another repository | packed and uploaded
//!       -> configuration -> manifest, under its tag
//! ```
//! The manifest comes last, so no tag exists whose blobs are missing. A layer is packed with gzip while it is uploaded:
//! one pass, and a few chunks in memory. Digest and size of the result are remembered beside the layer's record, so the
//! next push can ask whether the registry has it.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::assemble::{Assembled, Hashed};
use super::digest::Digest;
use super::layers::LayerStore;
use super::outgoing::Outgoing;
use super::registry::{Begun, Credentials, Sent, Source, Upload};
use super::{ImageError, ImageRef, ImageService, Inner, blocking, documents, relay};
use crate::observe::metrics::Verb;
use crate::ops::progress::{ProgressEvent, Reporter, Transfer, TransferState};
use crate::ops::task::detached;

/// How many layers are pushed at once.
const AT_ONCE: usize = 3;
/// How often an upload is begun again after the registry has lost it.
const RESTARTS: usize = 3;
/// How many repositories are remembered for a packed layer.
const MAX_PLACES: usize = 8;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const GZIP_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image to push.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// An image that is present.
    pub image: ImageRef,
    /// Where it goes; its reference is a tag.
    pub destination: ImageRef,
    /// Instead of the stored ones.
    pub credentials: Option<Credentials>,
    /// Whether everything that the image's registry has under that name is copied: all platforms, and attestations. Then
    /// the image need not be present.
    pub all_platforms: bool,
}

/// What was pushed.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Digest of the manifest in the registry.
    pub manifest_digest: String,
    /// Digest of the configuration: the image's id. Empty for an index.
    pub config_digest: String,
    /// Sizes of all blobs, in bytes.
    pub size: u64,
    /// Bytes that were uploaded.
    pub uploaded: u64,
    /// Layers that were uploaded.
    pub new_layers: usize,
    /// Layers that the repository had, or that the registry took from another one.
    pub present_layers: usize,
    /// Whether the image has another id in the registry: its configuration had to be rewritten, because the archive of a
    /// layer is not known.
    pub is_rewritten: bool,
}

/// A layer in the registry.
#[derive(Debug, Clone)]
struct Blob {
    digest: Digest,
    size: u64,
    media_type: String,
    /// Whether it had to be uploaded.
    is_new: bool,
}

/// What a layer becomes when it is packed, and repositories (`host/path`) that have it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct PackedForm {
    digest: String,
    size: u64,
    places: Vec<String>,
}

impl ImageService {
    /// Pushes an image. Continues if its caller is dropped.
    pub async fn push(&self, request: PushRequest, reporter: Reporter) -> Result<Pushed, ImageError> {
        if request.destination.reference().contains(':') {
            return Err(ImageError::DigestName(request.destination.canonical()));
        }
        let service = self.clone();
        detached(async move {
            let push = service.run_push(&request, &reporter);
            let pushed = service.0.activity.observe(Verb::ImagePush, push).await;
            let (image, destination) = (&request.image, &request.destination);
            match &pushed {
                Ok(pushed) => tracing::info!(%image, %destination, digest = pushed.manifest_digest, "image pushed"),
                Err(error) => tracing::warn!(%image, %destination, %error, "push failed"),
            }
            pushed
        })
        .await
    }

    async fn run_push(&self, request: &PushRequest, reporter: &Reporter) -> Result<Pushed, ImageError> {
        reporter.report(ProgressEvent::Phase("resolving")).await;
        if request.all_platforms {
            let (image, destination) = (&request.image, &request.destination);
            let relayed = relay::relay(&self.0, image, destination, request.credentials.as_ref(), reporter);
            let relayed = Box::pin(relayed).await?;
            return Ok(Pushed {
                manifest_digest: relayed.manifest_digest,
                config_digest: String::new(),
                size: relayed.size,
                uploaded: relayed.uploaded,
                new_layers: relayed.new_blobs,
                present_layers: relayed.present_blobs,
                is_rewritten: false,
            });
        }
        let outgoing = self.outgoing(&request.image).await?;
        let mut work = Vec::new();
        let mut seen = HashSet::new();
        for (layer, row) in outgoing.layers.iter().zip(&outgoing.row.layers) {
            if seen.insert(layer.diff_id) {
                let known = remembered(&self.0.layers, &layer.diff_id);
                work.push((layer.clone(), original(&outgoing, layer, row), known));
            }
        }
        let others = others(
            &request.image,
            &request.destination,
            work.iter().filter_map(|(_, _, known)| known.as_ref()),
        );
        let destination = self
            .0
            .registry
            .destination(&request.destination, &others, request.credentials.as_ref());
        destination.greet().await?;
        reporter.report(ProgressEvent::Phase("layers")).await;
        let push = Push {
            inner: &self.0,
            source: &destination,
            name: &request.destination,
            from: &request.image,
            reporter,
        };
        let one = |(layer, original, known): (Arc<Assembled>, _, _)| {
            let push = &push;
            async move {
                let blob = Box::pin(push.layer(&layer, original, known)).await?;
                Ok::<_, ImageError>((layer.diff_id, blob))
            }
        };
        let blobs = stream::iter(work).map(one).buffer_unordered(AT_ONCE);
        let blobs: HashMap<Digest, Blob> = blobs.try_collect().await?;
        reporter.report(ProgressEvent::Phase("committing")).await;
        push.documents(&outgoing, &blobs).await
    }
}

/// The blob that a layer was pulled as. `None` if it was made here, or if the layer that leaves is another one.
fn original(outgoing: &Outgoing, layer: &Assembled, row: &crate::model::ImageLayer) -> Option<Blob> {
    if row.digest == row.diff_id || row.diff_id != layer.diff_id.to_string() {
        return None;
    }
    let described = outgoing.manifest["layers"].as_array().into_iter().flatten();
    let media_type = described.into_iter().find(|other| other["digest"] == json!(row.digest));
    Some(Blob {
        digest: row.digest.parse().ok()?,
        size: row.size,
        media_type: media_type?["mediaType"].as_str().unwrap_or(GZIP_TYPE).to_owned(),
        is_new: false,
    })
}

/// Other repositories of the destination's registry that may have the layers.
fn others<'a>(image: &ImageRef, destination: &ImageRef, known: impl Iterator<Item = &'a PackedForm>) -> Vec<String> {
    let host = destination.registry();
    let mut others: Vec<String> = known.flat_map(|form| form.places_at(host).map(str::to_owned)).collect();
    if image.registry() == host {
        others.push(image.path().to_owned());
    }
    others.retain(|path| path != destination.path());
    others.sort();
    others.dedup();
    others
}

impl PackedForm {
    /// Paths of the repositories of one registry.
    fn places_at(&self, host: &str) -> impl Iterator<Item = &str> {
        let places = self.places.iter();
        places.filter_map(move |place| place.strip_prefix(host)?.strip_prefix('/'))
    }
}

fn remembered(store: &LayerStore, diff_id: &Digest) -> Option<PackedForm> {
    let body = fs_err::read(store.packed_form_of(diff_id)).ok()?;
    serde_json::from_slice(&body).ok()
}

/// Remembers what a layer becomes. A failure costs the next push time, nothing else.
fn remember(store: &LayerStore, diff_id: &Digest, form: &PackedForm) {
    let write = || {
        let (staged, mut file) = store.stage_file()?;
        file.write_all(&serde_json::to_vec(form)?)?;
        store.publish_file(staged, &store.packed_form_of(diff_id))
    };
    write().unwrap_or_else(|error: io::Error| tracing::warn!(%error, "the digest of a packed layer is not remembered"));
}

/// A push in progress.
struct Push<'a> {
    inner: &'a Arc<Inner>,
    source: &'a Source,
    name: &'a ImageRef,
    from: &'a ImageRef,
    reporter: &'a Reporter,
}

impl Push<'_> {
    /// Sees to it that the registry has a layer.
    async fn layer(
        &self,
        layer: &Arc<Assembled>,
        original: Option<Blob>,
        known: Option<PackedForm>,
    ) -> Result<Blob, ImageError> {
        let total = original.as_ref().map_or(0, |blob| blob.size);
        self.report(layer, TransferState::Waiting, 0, total).await;
        let mut upload = None;
        if let Some(blob) = original {
            let from = (self.from.registry() == self.name.registry()).then(|| self.from.path());
            if self.obtain(&blob.digest, from.into_iter(), &mut upload).await? {
                self.report(layer, TransferState::Present, blob.size, blob.size).await;
                return Ok(blob);
            }
        }
        if let Some(form) = &known
            && let Ok(digest) = form.digest.parse()
            && self
                .obtain(&digest, form.places_at(self.name.registry()), &mut upload)
                .await?
        {
            self.report(layer, TransferState::Present, form.size, form.size).await;
            self.remember(layer.diff_id, form.clone()).await?;
            return Ok(packed(digest, form.size, false));
        }
        let (digest, size) = self.upload(layer, upload).await?;
        self.report(layer, TransferState::Done, size, size).await;
        let places = known
            .filter(|form| form.digest == digest.to_string())
            .map(|form| form.places);
        let form = PackedForm {
            digest: digest.to_string(),
            size,
            places: places.unwrap_or_default(),
        };
        self.remember(layer.diff_id, form).await?;
        Ok(packed(digest, size, true))
    }

    /// Whether the repository has a blob, or can take it from another one. A registry that cannot begins an upload
    /// instead, which is kept.
    async fn obtain(
        &self,
        digest: &Digest,
        others: impl Iterator<Item = &str>,
        upload: &mut Option<Upload>,
    ) -> Result<bool, ImageError> {
        if self.source.has_blob(digest).await? {
            return Ok(true);
        }
        for path in others.filter(|path| *path != self.name.path()) {
            match self.source.begin_upload(Some((digest, path))).await? {
                Begun::Mounted => return Ok(true),
                Begun::Upload(begun) => {
                    if let Some(unused) = upload.replace(begun) {
                        self.source.cancel_upload(&unused).await;
                    }
                }
            }
        }
        Ok(false)
    }

    /// Packs a layer and uploads it. Begins again if the registry loses what it was sent.
    async fn upload(&self, layer: &Arc<Assembled>, mut begun: Option<Upload>) -> Result<(Digest, u64), ImageError> {
        for _ in 0..RESTARTS {
            let mut upload = match begun.take() {
                Some(upload) => upload,
                None => match self.source.begin_upload(None).await? {
                    Begun::Upload(upload) => upload,
                    Begun::Mounted => continue,
                },
            };
            let (mut chunks, packing) = pack(layer.clone(), upload.chunk);
            let sent = |done| {
                let event = self.event(layer, TransferState::Uploading, done, 0);
                self.reporter.report_lossy(event);
            };
            let sent = self.source.send_chunks(&mut upload, &mut chunks, sent).await;
            drop(chunks);
            let form = packing.await.map_err(ImageError::unfinished("packing failed"))?;
            match (sent?, form) {
                (Sent::Lost, _) => {}
                (Sent::All, Ok((digest, size))) => match self.source.finish_upload(&upload, &digest).await? {
                    Sent::All => return Ok((digest, size)),
                    Sent::Lost => {}
                },
                (Sent::All, Err(error)) => {
                    self.source.cancel_upload(&upload).await;
                    return Err(error.into());
                }
            }
            tracing::debug!(layer = %layer.diff_id, "the registry has lost an upload; it begins again");
        }
        Err(self.source.lost())
    }

    async fn remember(&self, diff_id: Digest, mut form: PackedForm) -> Result<(), ImageError> {
        let place = format!("{}/{}", self.name.registry(), self.name.path());
        form.places.retain(|other| *other != place);
        form.places.insert(0, place);
        form.places.truncate(MAX_PLACES);
        let store = self.inner.layers.clone();
        blocking(move || {
            remember(&store, &diff_id, &form);
            Ok(())
        })
        .await
    }

    /// Uploads configuration and manifest.
    async fn documents(&self, outgoing: &Outgoing, blobs: &HashMap<Digest, Blob>) -> Result<Pushed, ImageError> {
        let layers: Vec<&Blob> = outgoing
            .layers
            .iter()
            .filter_map(|layer| blobs.get(&layer.diff_id))
            .collect();
        let config_digest = Digest::of(&outgoing.config);
        let mut uploaded: u64 = blobs.values().filter(|blob| blob.is_new).map(|blob| blob.size).sum();
        if !self.source.has_blob(&config_digest).await? {
            uploaded += outgoing.config.len() as u64;
            let body = Bytes::from(outgoing.config.clone());
            self.source.put_small(&config_digest, body).await?;
        }
        let (media_type, manifest) = manifest(outgoing, &layers);
        let manifest_digest = Digest::of(&manifest);
        let tag = self.name.reference();
        if !self.source.has_manifest(tag, &manifest_digest).await? {
            self.source.put_manifest(tag, &media_type, manifest).await?;
        }
        let new_layers = blobs.values().filter(|blob| blob.is_new).count();
        Ok(Pushed {
            manifest_digest: manifest_digest.to_string(),
            config_digest: config_digest.to_string(),
            size: layers
                .iter()
                .map(|blob| blob.size)
                .fold(outgoing.config.len() as u64, u64::saturating_add),
            uploaded,
            new_layers,
            present_layers: blobs.len() - new_layers,
            is_rewritten: outgoing.is_rewritten,
        })
    }

    fn event(&self, layer: &Assembled, state: TransferState, done: u64, total: u64) -> ProgressEvent {
        ProgressEvent::Transfer(Transfer {
            digest: layer.diff_id.to_string().into(),
            state,
            done,
            total,
        })
    }

    async fn report(&self, layer: &Assembled, state: TransferState, done: u64, total: u64) {
        self.reporter.report(self.event(layer, state, done, total)).await;
    }
}

fn packed(digest: Digest, size: u64, is_new: bool) -> Blob {
    let media_type = GZIP_TYPE.to_owned();
    Blob {
        digest,
        size,
        media_type,
        is_new,
    }
}

/// The stored manifest if it describes just these blobs, else one of the OCI image specification.
fn manifest(outgoing: &Outgoing, layers: &[&Blob]) -> (String, Vec<u8>) {
    let stored = &outgoing.manifest;
    let described = stored["layers"].as_array();
    let is_same = described.is_some_and(|described| {
        described.len() == layers.len()
            && described
                .iter()
                .zip(layers)
                .all(|(stored, blob)| stored["digest"] == json!(blob.digest.to_string()))
    });
    if is_same && !outgoing.is_rewritten {
        let media_type = stored["mediaType"].as_str().unwrap_or(MANIFEST_TYPE);
        return (media_type.to_owned(), outgoing.manifest_body.clone());
    }
    let mut manifest = documents::manifest(&Value::Null, &outgoing.config, &[]);
    let layers = layers.iter().map(|blob| {
        let media_type = blob
            .media_type
            .replace("application/vnd.docker.image.rootfs.diff.tar.gzip", GZIP_TYPE);
        json!({ "mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size })
    });
    manifest["layers"] = layers.collect();
    if let Some(annotations) = stored.get("annotations") {
        manifest["annotations"] = annotations.clone();
    }
    (MANIFEST_TYPE.to_owned(), manifest.to_string().into_bytes())
}

/// Packs a layer into chunks, on a thread of its own that ends when nobody takes them. The result is digest and size.
fn pack(layer: Arc<Assembled>, chunk: usize) -> (mpsc::Receiver<Bytes>, JoinHandle<io::Result<(Digest, u64)>>) {
    let (sender, receiver) = mpsc::channel(1);
    let packing = tokio::task::spawn_blocking(move || {
        let chunks = Chunks {
            sender,
            chunk,
            full: Vec::with_capacity(chunk),
        };
        let mut encoder = GzEncoder::new(Hashed::new(chunks), Compression::default());
        layer.write(&mut encoder)?;
        let mut packed = encoder.finish()?;
        packed.flush()?;
        let (digest, size) = (Digest::finish(packed.hash.clone()), packed.bytes);
        Ok((digest, size))
    });
    (receiver, packing)
}

/// Cuts what is written into chunks of one size.
struct Chunks {
    sender: mpsc::Sender<Bytes>,
    chunk: usize,
    full: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let part = buffer.len().min(self.chunk - self.full.len());
        self.full.extend_from_slice(&buffer[..part]);
        if self.full.len() == self.chunk {
            self.flush()?;
        }
        Ok(part)
    }

    /// Sends what there is. Only the last chunk may be shorter.
    fn flush(&mut self) -> io::Result<()> {
        if self.full.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.full, Vec::with_capacity(self.chunk));
        self.sender
            .blocking_send(full.into())
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
