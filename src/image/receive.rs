//! A layer on its way into the store: from the bytes of its blob to a directory with its skeleton, under its diff id.
//!
//! And the last step of every image that arrives, pulled or loaded: its documents and its stack become durable.

use std::io::ErrorKind;
use std::sync::Arc;

use jiff::Timestamp;

use super::digest::Digest;
use super::layers::Pins;
use super::manifest::ImageConfig;
use super::room::Room;
use super::stream::{BlobReader, Digests, LayerLimits, unpacked};
use super::tree::TreeError;
use super::unpack::unpack_recorded;
use super::{ImageError, ImageRef, Inner, blocking, chain, stack};
use crate::base::cause::Cause;
use crate::model::{Image, ImageLayer};

/// Unpacks a layer and publishes it, if `check` has nothing against its digests. `name` stands for it in errors.
/// Blocks. The layer must be pinned; that of unknown diff id is pinned by `check`.
pub(super) fn layer(
    inner: &Inner,
    blob: BlobReader,
    name: &str,
    check: impl FnOnce(&Digests) -> Result<(), String>,
) -> Result<Digests, ImageError> {
    let bad = |message: String| ImageError::BadLayer {
        layer: name.to_owned(),
        message,
    };
    let store = &inner.layers;
    let staged = store.stage()?;
    let (skeleton, file) = store.stage_file()?;
    let (room, most) = (Room::new(store)?, inner.settings.max_layer_entries);
    let (unpacked, found) = unpacked(
        blob,
        limits(inner),
        |before, now| room.check(before, now),
        |archive| {
            unpack_recorded(&mut *archive, staged.path(), most, file)?;
            archive.finish().map_err(|e| TreeError::Refused(e.to_string()))
        },
    );
    unpacked.map_err(|error| {
        let is_system = matches!(error, TreeError::System(_));
        room.reason(is_system).unwrap_or_else(|| match error {
            TreeError::Refused(message) => bad(message),
            TreeError::System(message) => ImageError::Io(Cause::new(message)),
        })
    })?;
    let found = found.map_err(|e| bad(e.to_string()))?;
    check(&found).map_err(bad)?;
    store.publish_file(skeleton, &store.skeleton_of(&found.diff_id))?;
    store
        .publish_layer(staged, &found.diff_id)
        .map_err(|e| match e.kind() {
            ErrorKind::ArgumentListTooLong => bad("the attributes of its root are too large".into()),
            _ => e.into(),
        })?;
    Ok(found)
}

/// The limits of one layer.
pub(super) fn limits(inner: &Inner) -> LayerLimits {
    LayerLimits {
        bytes: inner.settings.max_layer_bytes,
        ratio: inner.settings.max_layer_ratio,
        ratio_from: inner.settings.layer_ratio_from,
    }
}

/// An image whose layers are all in the store.
pub(super) struct Arrived {
    /// Digest and body.
    pub manifest: (Digest, Vec<u8>),
    /// Digest and body.
    pub config: (Digest, Vec<u8>),
    /// What the configuration says.
    pub read: ImageConfig,
    /// One for each of its diff ids, bottom first.
    pub layers: Vec<ImageLayer>,
}

/// Makes an image durable except for its row, which is returned with pins that must live until it is committed.
pub(super) async fn settle(
    inner: &Arc<Inner>,
    image: &ImageRef,
    arrived: Arrived,
) -> Result<(Image, Pins), ImageError> {
    let Arrived {
        manifest,
        config,
        read,
        layers,
    } = arrived;
    let sizes = layers.iter().map(|layer| layer.size);
    let mut row = Image {
        id: image.canonical(),
        repository: image.repository().to_owned(),
        reference: image.reference().to_owned(),
        manifest_digest: manifest.0.to_string(),
        config_digest: config.0.to_string(),
        size_bytes: sizes.fold(config.1.len() as u64, u64::saturating_add),
        layers,
        config: read.run,
        os: read.os,
        architecture: read.architecture,
        created_at: Timestamp::now(),
    };
    let (store, diff_ids) = (inner.layers.clone(), read.diff_ids);
    blocking(move || {
        for (digest, body) in [&manifest, &config] {
            store.publish_blob(digest, body)?;
        }
        // overlayfs stacks the roots of all layers, opaque or not. What such a root hides must not be stacked.
        let mut hidden = 0;
        for (n, diff_id) in diff_ids.iter().enumerate() {
            if store.hides_all(diff_id)? {
                hidden = n;
            }
        }
        row.layers.drain(..hidden);
        let diff_ids = row.diff_ids();
        let pins = store.pin(stack::digests(&diff_ids));
        chain::settle(&store, &stack::stack(&diff_ids))?;
        store.sync()?;
        Ok((row, pins))
    })
    .await
}
