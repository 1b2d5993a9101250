//! The files of a container, as an archive or as an image.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::assemble::Assembled;
use super::capture::{capture, capture_live};
use super::digest::Digest;
use super::layers::Pins;
use super::manifest::ImageConfig;
use super::outgoing::{ByteStream, ChannelWriter, streamed};
use super::receive::{self, Arrived};
use super::stack::Link;
use super::stream::{BlobReader, Digests};
use super::{ImageError, ImageRef, ImageService, Inner, Platform, changes, confined, documents, stack};
use crate::base::cause::Cause;
use crate::model::{Image, ImageLayer};
use crate::ops::task;

/// Maximum number of layers of an image: as many as fit into the mount options of its containers.
const MAX_LAYERS: usize = 127;
const PIECES: usize = 16;

/// A container to make an image of.
#[derive(Debug, Clone)]
pub struct CommitRequest {
    /// Diff ids of its layers, bottom first.
    pub layers: Vec<String>,
    /// Its image, if that is still present with these layers.
    pub base: Option<Arc<Image>>,
    /// The upper directory of its overlay.
    pub upper: PathBuf,
    /// Whether processes may change that directory meanwhile.
    pub is_live: bool,
    /// Name of the new image, which replaces one of that name.
    pub target: ImageRef,
    /// Instructions of a build file that make no files.
    pub changes: Vec<String>,
    /// Who makes the image; may be empty.
    pub author: String,
    /// Remark for its history; may be empty.
    pub message: String,
    /// The command that changed the files, for the history.
    pub made_by: String,
}

impl ImageService {
    /// The files that a container sees, without what is mounted in it, as a tar. Processes may change them meanwhile.
    /// `upper` is the upper directory of its overlay.
    pub async fn export(&self, layers: &[String], upper: PathBuf) -> Result<ByteStream, ImageError> {
        let pins = self.0.layers.pin(stack::digests(layers));
        self.check_layers(layers).await?;
        let store = self.0.layers.clone();
        let directories: Vec<PathBuf> = std::iter::once(upper).chain(self.lower_dirs(layers)).collect();
        Ok(streamed(move |out| {
            let _pins = pins;
            let at = store.stage()?;
            let written = confined::in_layers(&directories, at.path(), |root| capture_live(root, out, false));
            written?.map(drop)
        }))
    }

    /// Makes an image of a container: its layers, and one with its changes. Drops `held` when the files were read.
    pub async fn commit(&self, request: CommitRequest, held: impl Send + 'static) -> Result<Arc<Image>, ImageError> {
        changes::apply(&mut Map::new(), &request.changes).map_err(ImageError::InvalidChange)?;
        let inner = self.0.clone();
        let mut ids = stack::digests(&request.layers);
        ids.extend(request.base.iter().flat_map(|base| super::document_digests(base)));
        let _pins = inner.layers.pin(ids);
        self.check_layers(&request.layers).await?;
        if request.layers.len() >= MAX_LAYERS {
            let message = format!("the image would have more than {MAX_LAYERS} layers");
            return Err(ImageError::NoLayer(message));
        }
        let (packing, upper, is_live) = (inner.clone(), request.upper.clone(), request.is_live);
        let packed = task::blocking(move || {
            let packed = pack(&packing, &upper, is_live);
            drop(held);
            packed
        });
        let packed = packed.await?;
        let (layer, _pinned) = packed.unzip();
        let target = request.target.clone();
        let store = inner.layers.clone();
        let arrived = task::blocking(move || describe(&store, &request, layer)).await?;
        let (row, _settled) = receive::settle(&inner, &target, arrived).await?;
        let committed = inner.store.transact(move |t| Ok::<_, ImageError>(t.put(row)?)).await;
        self.sweep_or_warn().await;
        committed
    }
}

/// The layer of a container's changes; `None` if there are none.
fn pack(inner: &Arc<Inner>, upper: &Path, is_live: bool) -> Result<Option<(ImageLayer, Pins)>, ImageError> {
    let at = inner.layers.stage()?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let (captured, received) = std::thread::scope(|scope| {
        let capturing = scope.spawn(|| {
            let out = BufWriter::with_capacity(128 << 10, ChannelWriter(sender));
            match is_live {
                true => confined::in_directory(upper, at.path(), |root| capture_live(root, out, true))?,
                false => capture(upper, out),
            }
        });
        let mut pins = None;
        let check = |found: &Digests| {
            pins = Some(inner.layers.pin(vec![found.diff_id]));
            Ok(())
        };
        let received = receive::layer(inner, BlobReader::new(receiver), "of the container", check);
        let captured = capturing.join();
        let captured = captured.unwrap_or_else(|_| Err(io::Error::other("the capture of a layer panicked")));
        (captured, received.map(|found| (found.diff_id, pins)))
    });
    match captured {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(ImageError::NoLayer(e.to_string())),
        // The receiver has ended first, and says why.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(e) => return Err(e.into()),
    }
    let (diff_id, pins) = received.map_err(|error| match error {
        ImageError::BadLayer { message, .. } => ImageError::NoLayer(message),
        other => other,
    })?;
    let pins = pins.ok_or_else(|| ImageError::Io(Cause::new("a layer has no digest".to_owned())))?;
    Ok(Some((image_layer(inner, &diff_id)?, pins)))
}

/// A layer that was made here.
fn image_layer(inner: &Arc<Inner>, diff_id: &Digest) -> io::Result<ImageLayer> {
    let (diff_id, chain_id) = (*diff_id, *diff_id);
    let size = Assembled::open(&inner.layers, &Link { diff_id, chain_id })?.size;
    let diff_id = diff_id.to_string();
    Ok(ImageLayer {
        digest: diff_id.clone(),
        diff_id,
        size,
    })
}

/// The documents of the new image.
fn describe(
    store: &super::layers::LayerStore,
    request: &CommitRequest,
    layer: Option<ImageLayer>,
) -> Result<Arrived, ImageError> {
    let document = |digest: Option<&String>| -> io::Result<Value> {
        let digest = digest.and_then(|digest| digest.parse().ok());
        let body = digest.map(|digest| store.read_blob(&digest)).transpose()?.flatten();
        Ok(body
            .and_then(|body| serde_json::from_slice(&body).ok())
            .unwrap_or_default())
    };
    let base = request.base.as_ref();
    let mut config = document(base.map(|base| &base.config_digest))?;
    let manifest = document(base.map(|base| &base.manifest_digest))?;
    let mut layers = match base {
        Some(base) => base.layers.clone(),
        None => request.layers.iter().map(|id| unknown(id)).collect(),
    };
    let below = layers.len();
    let made_layer = layer.is_some();
    layers.extend(layer);
    if !config.is_object() {
        let host = Platform::host();
        config = json!({ "os": host.os, "architecture": host.architecture });
    }
    let mut run = match config["config"].take() {
        Value::Object(run) => run,
        _ => Map::new(),
    };
    changes::apply(&mut run, &request.changes).map_err(ImageError::InvalidChange)?;
    config["config"] = run.into();
    let now = Timestamp::now().to_string();
    config["created"] = json!(now);
    if !request.author.is_empty() {
        config["author"] = json!(request.author);
    }
    config["history"] = history(config["history"].take(), below, made_layer, &now, request).into();
    let ids: Vec<&str> = layers.iter().map(|layer| &layer.diff_id[..]).collect();
    config["rootfs"] = json!({ "type": "layers", "diff_ids": ids });
    let config = config.to_string().into_bytes();
    let manifest = documents::manifest(&manifest, &config, &layers)
        .to_string()
        .into_bytes();
    Ok(Arrived {
        read: ImageConfig::parse(&config, layers.len()).map_err(ImageError::InvalidChange)?,
        manifest: (Digest::of(&manifest), manifest),
        config: (Digest::of(&config), config),
        layers,
    })
}

/// The base's history, if it fits its layers, and an entry for the container.
fn history(base: Value, below: usize, made_layer: bool, now: &str, request: &CommitRequest) -> Vec<Value> {
    let mut history = match base {
        Value::Array(history) => history,
        _ => Vec::new(),
    };
    let with_layer = history
        .iter()
        .filter(|entry| entry["empty_layer"] != json!(true))
        .count();
    if with_layer != below {
        history = vec![json!({ "created_by": "layer" }); below];
    }
    let mut entry = json!({ "created": now, "created_by": request.made_by });
    for (name, text) in [("author", &request.author), ("comment", &request.message)] {
        if !text.is_empty() {
            entry[name] = json!(text);
        }
    }
    if !made_layer {
        entry["empty_layer"] = json!(true);
    }
    history.push(entry);
    history
}

/// A layer of an image that is gone: what it was in a registry is not known any more.
fn unknown(diff_id: &str) -> ImageLayer {
    ImageLayer {
        diff_id: diff_id.to_owned(),
        digest: diff_id.to_owned(),
        size: 0,
    }
}
