//! Copies an image from one registry to another with everything that its index has: all platforms, attestations, and
//! whatever else, byte by byte.
//!
//! An index is not kept here, and images of other platforms are never unpacked. So what goes to the destination comes
//! from the image's own registry, through a few chunks of memory.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::digest::Digest;
use super::manifest::{Descriptor, Document};
use super::registry::{Begun, Credentials, Fetched, Sent, Session, Source};
use super::{ImageError, ImageRef, Inner};
use crate::ops::progress::{ProgressEvent, Reporter, Transfer, TransferState};

/// Maximum nesting of indexes, and of manifests of one image.
const MAX_DEPTH: usize = 4;
const MAX_MANIFESTS: usize = 256;
/// How often an upload is begun again after the registry has lost it.
const RESTARTS: usize = 3;
const PIECES: usize = 16;

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Relayed {
    pub manifest_digest: String,
    /// All blobs, in bytes.
    pub size: u64,
    pub uploaded: u64,
    pub new_blobs: usize,
    pub present_blobs: usize,
}

/// Copies `image` to the tag `destination`. The image need not be present here.
pub(super) async fn relay(
    inner: &Inner,
    image: &ImageRef,
    destination: &ImageRef,
    credentials: Option<&Credentials>,
    reporter: &Reporter,
) -> Result<Relayed, ImageError> {
    let is_same_registry = image.registry() == destination.registry();
    let others: Vec<String> = is_same_registry.then(|| image.path().to_owned()).into_iter().collect();
    let target = inner.registry.destination(destination, &others, credentials);
    target.greet().await?;
    let mut relay = Relay {
        source: inner.registry.session(image),
        target,
        mount_from: is_same_registry.then(|| image.path().to_owned()),
        reporter,
        seen: HashSet::new(),
        manifests: MAX_MANIFESTS,
        relayed: Relayed::default(),
    };
    reporter.report(ProgressEvent::Phase("layers")).await;
    let top = relay.source.manifest(image.reference()).await?;
    relay.relayed.manifest_digest = top.digest.to_string();
    relay.manifest(top, Some(destination.reference()), MAX_DEPTH).await?;
    Ok(relay.relayed)
}

struct Relay<'a> {
    source: Session,
    target: Source,
    /// The repository that the destination's registry can take blobs from.
    mount_from: Option<String>,
    reporter: &'a Reporter,
    /// Manifests and blobs that were copied.
    seen: HashSet<Digest>,
    /// Manifests that may still be copied.
    manifests: usize,
    relayed: Relayed,
}

impl Relay<'_> {
    /// Copies all that a manifest names, and then itself: under a tag, or under its digest.
    async fn manifest(&mut self, fetched: Fetched, tag: Option<&str>, depth: usize) -> Result<(), ImageError> {
        let too_many = self.manifests == 0 || depth == 0;
        self.manifests = self.manifests.saturating_sub(1);
        let Fetched { digest, body, document } = fetched;
        let media_type = match &document {
            _ if too_many => return Err(self.target.refuse("its index leads to too many others")),
            Document::Index(entries) => {
                for entry in entries {
                    let id: Digest = entry.digest.parse().map_err(|e| self.target.refuse(&format!("{e}")))?;
                    if self.seen.insert(id) {
                        let next = self.source.manifest(&id.to_string()).await?;
                        Box::pin(self.manifest(next, None, depth - 1)).await?;
                    }
                }
                "application/vnd.oci.image.index.v1+json"
            }
            Document::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    self.blob(blob).await?;
                }
                "application/vnd.oci.image.manifest.v1+json"
            }
            Document::Artifact(kind) => {
                return Err(self
                    .target
                    .refuse(&format!("a manifest of it is of a withdrawn kind ({kind})")));
            }
        };
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let media_type = said["mediaType"].as_str().unwrap_or(media_type);
        let reference = tag.map_or_else(|| digest.to_string(), str::to_owned);
        self.target.put_manifest(&reference, media_type, body).await
    }

    /// Copies a blob unless the destination has it.
    async fn blob(&mut self, blob: &Descriptor) -> Result<(), ImageError> {
        if !self.seen.insert(blob.digest) {
            return Ok(());
        }
        self.relayed.size = self.relayed.size.saturating_add(blob.size);
        if self.target.has_blob(&blob.digest).await? || self.mounts(blob).await? {
            self.relayed.present_blobs += 1;
            self.report(blob, TransferState::Present, blob.size).await;
            return Ok(());
        }
        for _ in 0..RESTARTS {
            let Begun::Upload(mut upload) = self.target.begin_upload(None).await? else {
                continue;
            };
            let (pieces, mut arriving) = mpsc::channel::<Bytes>(PIECES);
            let (chunks, mut ready) = mpsc::channel(1);
            let size = upload.chunk;
            let cut = async {
                let mut chunk = BytesMut::with_capacity(size);
                while let Some(piece) = arriving.recv().await {
                    chunk.extend_from_slice(&piece);
                    while chunk.len() >= size {
                        // Without a receiver the upload has ended, and says why.
                        if chunks.send(chunk.split_to(size).freeze()).await.is_err() {
                            return;
                        }
                    }
                }
                if !chunk.is_empty() {
                    chunks.send(chunk.freeze()).await.unwrap_or_default();
                }
                drop(chunks);
            };
            let told = |done| {
                let event = self.event(blob, TransferState::Uploading, done);
                self.reporter.report_lossy(event);
            };
            let upload_all = async {
                let sent = self.target.send_chunks(&mut upload, &mut ready, told).await;
                drop(ready);
                sent
            };
            let download = self.source.itself().download(blob, pieces, |_| ());
            let (downloaded, (), sent) = tokio::join!(download, cut, upload_all);
            let sent = sent?;
            if let Err(error) = downloaded {
                self.target.cancel_upload(&upload).await;
                return Err(error);
            }
            if let Sent::All = sent
                && let Sent::All = self.target.finish_upload(&upload, &blob.digest).await?
            {
                self.relayed.new_blobs += 1;
                self.relayed.uploaded += blob.size;
                self.report(blob, TransferState::Done, blob.size).await;
                return Ok(());
            }
        }
        Err(self.target.lost())
    }

    /// Whether the destination's registry takes the blob from the image's repository.
    async fn mounts(&self, blob: &Descriptor) -> Result<bool, ImageError> {
        let Some(from) = &self.mount_from else { return Ok(false) };
        match self.target.begin_upload(Some((&blob.digest, from))).await? {
            Begun::Mounted => Ok(true),
            Begun::Upload(upload) => {
                self.target.cancel_upload(&upload).await;
                Ok(false)
            }
        }
    }

    fn event(&self, blob: &Descriptor, state: TransferState, done: u64) -> ProgressEvent {
        ProgressEvent::Transfer(Transfer {
            digest: blob.digest.to_string().into(),
            state,
            done,
            total: blob.size,
        })
    }

    async fn report(&self, blob: &Descriptor, state: TransferState, done: u64) {
        self.reporter.report(self.event(blob, state, done)).await;
    }
}
