//! An image as it leaves this machine: its documents, and its layers as archives.
//!
//! The configuration is the stored one, byte by byte, if the layers have the diff ids that it names. They have not if a
//! layer has no skeleton, or if lower layers are gone because an upper one hides them. Then the configuration is
//! rewritten, and the image that leaves has another id.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::assemble::Assembled;
use super::digest::Digest;
use super::layers::Pins;
use super::{ImageError, ImageRef, ImageService, blocking, document_digests, stack};
use crate::model::{Image, ImageLayer};

/// Size of the pieces of a stream, in bytes, and how many of them wait for the reader.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// Bytes as they are made.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// An image that leaves. Its layers exist as long as this does.
pub(super) struct Outgoing {
    pub(super) row: Arc<Image>,
    pub(super) config: Vec<u8>,
    /// The stored manifest; `null` if it is lost.
    pub(super) manifest: Value,
    /// The stored manifest as it is.
    pub(super) manifest_body: Vec<u8>,
    /// One for each layer of the row, bottom first.
    pub(super) layers: Vec<Arc<Assembled>>,
    /// Whether the configuration is not the stored one.
    pub(super) is_rewritten: bool,
    _pins: Pins,
}

impl Outgoing {
    /// The layers as they are in archives.
    pub(super) fn plain_layers(&self) -> Vec<ImageLayer> {
        let plain = |layer: &Arc<Assembled>| ImageLayer {
            diff_id: layer.diff_id.to_string(),
            digest: layer.diff_id.to_string(),
            size: layer.size,
        };
        self.layers.iter().map(plain).collect()
    }
}

impl ImageService {
    /// Prepares an image. Reads all files of a layer only if the layer has no skeleton.
    pub(super) async fn outgoing(&self, image: &ImageRef) -> Result<Outgoing, ImageError> {
        let row = self.get(image)?;
        let ids = stack::digests(&row.diff_ids()).into_iter();
        let pins = self.0.layers.pin(ids.chain(document_digests(&row)).collect());
        // Pin first, then check: a layer that exists now cannot be swept afterwards.
        if self.get_by_id(&row.id).is_none_or(|now| now.layers != row.layers) {
            return Err(ImageError::NotFound(row.id.clone()));
        }
        self.check_layers(&row.diff_ids()).await?;
        let store = self.0.layers.clone();
        let prepared = blocking(move || {
            let read = |digest: &str| match digest.parse() {
                Ok(digest) => store.read_blob(&digest).map(Option::unwrap_or_default),
                Err(_) => Ok(Vec::new()),
            };
            let (stored, manifest_body) = (read(&row.config_digest)?, read(&row.manifest_digest)?);
            let mut found = HashMap::new();
            for link in stack::stack(&row.diff_ids()) {
                found.insert(link.diff_id.to_string(), Arc::new(Assembled::open(&store, &link)?));
            }
            let of_row = row.layers.iter().filter_map(|layer| found.get(&layer.diff_id).cloned());
            let layers: Vec<Arc<Assembled>> = of_row.collect();
            let ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
            let config = match has_layers(&stored, &ids) {
                true => stored.clone(),
                false => rewritten(&stored, &row, &ids).to_string().into_bytes(),
            };
            Ok(Outgoing {
                is_rewritten: config != stored,
                manifest: serde_json::from_slice(&manifest_body).unwrap_or_default(),
                manifest_body,
                row,
                config,
                layers,
                _pins: pins,
            })
        });
        prepared.await
    }
}

fn has_layers(config: &[u8], ids: &[Digest]) -> bool {
    let document: Value = serde_json::from_slice(config).unwrap_or_default();
    let named = document["rootfs"]["diff_ids"].as_array();
    let ids = ids.iter().map(|id| Value::from(id.to_string()));
    named.is_some_and(|named| named.iter().eq(ids.collect::<Vec<_>>().iter()))
}

/// The configuration with other layers. Of a history for another number of layers nothing can be kept.
fn rewritten(stored: &[u8], row: &Image, ids: &[Digest]) -> Value {
    let mut document: Value = serde_json::from_slice(stored).unwrap_or_default();
    if !document.is_object() {
        let run = &row.config;
        document = json!({
            "created": row.created_at.to_string(), "os": row.os, "architecture": row.architecture,
            "config": { "Env": run.env, "Entrypoint": run.entrypoint, "Cmd": run.cmd, "WorkingDir": run.working_dir,
                "User": run.user },
        });
    }
    let ids: Vec<String> = ids.iter().map(Digest::to_string).collect();
    let with_layer = document["history"].as_array().into_iter().flatten();
    let with_layer = with_layer.filter(|entry| entry["empty_layer"] != json!(true)).count();
    if with_layer != ids.len() {
        document["history"] = vec![json!({ "created_by": "layer" }); ids.len()].into();
    }
    document["rootfs"] = json!({ "type": "layers", "diff_ids": ids });
    document
}

/// What `write` writes, as a stream. It runs on a thread of its own, which waits for the reader and ends when the stream
/// is dropped. Its error, or its panic, is the last item of the stream.
pub(super) fn streamed(write: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()> + Send + 'static) -> ByteStream {
    let (pieces, mut receiver) = mpsc::channel(PIECES);
    let work = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PIECE, ChannelWriter(pieces));
        write(&mut out)?;
        out.flush()
    });
    let pieces = stream::poll_fn(move |context| receiver.poll_recv(context)).map(Ok);
    let end = stream::once(work).filter_map(async |ended| ended.map_err(io::Error::other).flatten().err().map(Err));
    pieces.chain(end).boxed()
}

/// Writes to a channel. For blocking threads.
pub(super) struct ChannelWriter(pub(super) mpsc::Sender<Bytes>);

impl Write for ChannelWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(buffer));
        sent.map(|()| buffer.len())
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_with_what_went_wrong() {
        let all = streamed(|out| out.write_all(&vec![7; 1 << 20]));
        let pieces: Vec<Bytes> = all.try_collect().await.unwrap();
        assert_eq!(pieces.concat().len(), 1 << 20);
        let cut = streamed(|out| {
            out.write_all(b"beginning")?;
            Err(io::Error::other("gone"))
        });
        let error = cut.try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error.to_string(), "gone");
        let panicked = streamed(|_| panic!("a defect"));
        panicked.try_collect::<Vec<_>>().await.unwrap_err();
    }

    #[test]
    fn a_configuration_keeps_all_that_is_not_about_layers() {
        let ids = [Digest::of(b"a"), Digest::of(b"b")];
        let stored = json!({ "author": "x", "config": { "Labels": { "l": "1" } },
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"old").to_string(), ids[1].to_string()] },
            "history": [{ "created_by": "1" }, { "created_by": "2" }, { "created_by": "3", "empty_layer": true }] });
        let row = super::super::pause::image(ids[0], 1);
        let stored = stored.to_string();
        assert!(!has_layers(stored.as_bytes(), &ids));
        let document = rewritten(stored.as_bytes(), &row, &ids);
        assert!(has_layers(document.to_string().as_bytes(), &ids));
        assert_eq!(
            (&document["author"], &document["config"]["Labels"]["l"]),
            (&json!("x"), &json!("1"))
        );
        assert_eq!(document["history"].as_array().unwrap().len(), 3);
        let document = rewritten(stored.as_bytes(), &row, &ids[1..]);
        assert_eq!(document["history"], json!([{ "created_by": "layer" }]));
        assert!(has_layers(rewritten(b"", &row, &ids).to_string().as_bytes(), &ids));
    }
}
