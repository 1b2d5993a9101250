//! Makes an image of one layer from the archive of a root file system.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::load::{Upload, discard, send};
use crate::image::assemble::Assembled;
use crate::image::digest::Digest;
use crate::image::layers::Pins;
use crate::image::manifest::ImageConfig;
use crate::image::receive::{self, Arrived};
use crate::image::stack::Link;
use crate::image::stream::{BlobReader, Digests};
use crate::image::{ImageError, ImageRef, ImageService, Platform, changes, documents};
use crate::model::{Image, ImageLayer};
use crate::observe::metrics::Verb;
use crate::ops::progress::{ProgressEvent, Reporter};
use crate::ops::task::{self, detached};

const PIECES: usize = 16;

/// What an imported image is to be.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// Its name.
    pub target: ImageRef,
    /// Instructions of a build file, as [`commit`](ImageService::commit) takes them.
    pub changes: Vec<String>,
    /// Comment of its history; may be empty.
    pub message: String,
    /// What it is for.
    pub platform: Platform,
}

impl ImageService {
    /// Makes an image from the archive of a root file system, which may be compressed with gzip or zstd. Replaces an
    /// image of the same name.
    pub async fn import(
        &self,
        upload: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        request: ImportRequest,
        reporter: Reporter,
    ) -> Result<Arc<Image>, ImageError> {
        let mut config = Map::new();
        changes::apply(&mut config, &request.changes).map_err(ImageError::InvalidChange)?;
        let (service, mut upload) = (self.clone(), upload.boxed());
        detached(async move {
            let import = service.run_import(&mut upload, request, config, &reporter);
            let imported = service.0.activity.observe(Verb::ImageLoad, import).await;
            if let Err(error) = &imported {
                tracing::warn!(%error, "import failed");
                discard(upload, service.0.settings.max_layer_bytes).await;
            }
            service.sweep_or_warn().await;
            imported
        })
        .await
    }

    async fn run_import(
        &self,
        upload: &mut Upload,
        request: ImportRequest,
        config: Map<String, Value>,
        reporter: &Reporter,
    ) -> Result<Arc<Image>, ImageError> {
        reporter.report(ProgressEvent::Phase("receiving")).await;
        let (sender, receiver) = mpsc::channel(PIECES);
        let inner = self.0.clone();
        let unpacking = task::blocking(move || {
            let mut pins: Option<Pins> = None;
            let check = |found: &Digests| {
                pins = Some(inner.layers.pin(vec![found.diff_id]));
                Ok(())
            };
            let found = receive::layer(&inner, BlobReader::new(receiver), "of the archive", check)?;
            let (diff_id, chain_id) = (found.diff_id, found.diff_id);
            let size = Assembled::open(&inner.layers, &Link { diff_id, chain_id })?.size;
            Ok::<_, ImageError>((diff_id, size, pins))
        });
        let (sent, unpacked) = tokio::join!(send(upload, sender), unpacking);
        if sent? == 0 {
            let message = "it is empty: send the tar of a root file system".to_owned();
            return Err(ImageError::BadArchive(message));
        }
        let (diff_id, size, _pins) = unpacked.map_err(|error| match error {
            ImageError::BadLayer { message, .. } => ImageError::BadArchive(message),
            other => other,
        })?;
        reporter.report(ProgressEvent::Phase("committing")).await;
        let layer = ImageLayer {
            diff_id: diff_id.to_string(),
            digest: diff_id.to_string(),
            size,
        };
        let (image, platform) = (request.target, request.platform);
        let now = Timestamp::now().to_string();
        let config = json!({
            "created": now, "os": platform.os, "architecture": platform.architecture, "config": config,
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
            "history": [{ "created": now, "created_by": "import", "comment": request.message }],
        });
        let config = config.to_string().into_bytes();
        let manifest = documents::manifest(&Value::Null, &config, std::slice::from_ref(&layer));
        let manifest = manifest.to_string().into_bytes();
        let read = ImageConfig::parse(&config, 1).map_err(ImageError::InvalidChange)?;
        let arrived = Arrived {
            manifest: (Digest::of(&manifest), manifest),
            config: (Digest::of(&config), config),
            read,
            layers: vec![layer],
        };
        let (row, _settled) = receive::settle(&self.0, &image, arrived).await?;
        let committed = self.0.store.transact(move |t| Ok::<_, ImageError>(t.put(row)?));
        committed.await
    }
}
