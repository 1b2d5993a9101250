//! Removes images that nothing uses.
//!
//! What to remove is decided in the transaction that removes the rows, so a container or pull that commits first keeps
//! what it needs, and one that comes later sees that the image is gone. Layers go in a sweep, like those of a removed image.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::space::{Part, Sizes, parts, parts_of_others};
use super::uses::Uses;
use super::{ImageError, ImageService, Inner};
use crate::model::{Image, Snapshot};
use crate::ops::prune::{PruneFilter, Pruned, PrunedObject};

/// Which images to remove.
#[derive(Debug, Clone, Default)]
pub struct ImagePrune {
    /// Age and labels.
    pub filter: PruneFilter,
    /// Also images with a tag. Otherwise only dangling ones: those known by digest alone.
    pub tagged: bool,
}

impl ImageService {
    /// Removes the images that nothing uses and the request names, and all layers that nothing needs. With `dry_run` it only
    /// says what it would remove.
    pub async fn prune(&self, request: ImagePrune, dry_run: bool) -> Result<Pruned, ImageError> {
        let chosen = choose(&self.0.store.snapshot(), &self.0, &request);
        let (sizes, pins) = self
            .sizes(chosen.iter().flat_map(|image| parts(image)).collect())
            .await?;
        if dry_run {
            return Ok(freed(&self.0.store.snapshot(), &chosen, &sizes));
        }
        let inner = self.0.clone();
        let measured: HashSet<String> = chosen.iter().map(|image| image.id.clone()).collect();
        let removed = self.0.store.transact(move |t| {
            let mut removed = choose(t.snapshot(), &inner, &request);
            // One that came since has not been measured, and is new.
            removed.retain(|image| measured.contains(&image.id));
            for image in &removed {
                t.remove::<Image>(&image.id);
            }
            Ok::<_, ImageError>(removed)
        });
        let removed = removed.await?;
        let pruned = freed(&self.0.store.snapshot(), &removed, &sizes);
        drop(pins);
        for image in &removed {
            tracing::info!(image = %image.id, digest = image.manifest_digest, "image pruned");
        }
        self.0.sweep().await?;
        Ok(pruned)
    }
}

/// The images that the request names and nothing uses, by repository and reference.
fn choose(snapshot: &Snapshot, inner: &Inner, request: &ImagePrune) -> Vec<Arc<Image>> {
    let uses = Uses::of(snapshot, inner);
    let mut chosen: Vec<Arc<Image>> = snapshot
        .images()
        .iter()
        .filter(|image| request.tagged || is_dangling(image))
        .filter(|image| request.filter.admits(image.created_at, labels(image)))
        .filter(|image| !uses.has(image))
        .cloned()
        .collect();
    chosen.sort_by(|a, b| (&a.repository, &a.reference).cmp(&(&b.repository, &b.reference)));
    chosen
}

/// Whether the image has no tag. An image that loses its tag to a newer one is removed at once, so only images that were
/// asked for by digest are without.
pub(super) fn is_dangling(image: &Image) -> bool {
    image.reference.contains(':')
}

fn labels(image: &Image) -> &BTreeMap<String, String> {
    &image.config.labels
}

/// What is free without these images, if they are not in `rest` or ignored there.
fn freed(rest: &Snapshot, removed: &[Arc<Image>], sizes: &Sizes) -> Pruned {
    let gone: HashSet<&str> = removed.iter().map(|image| &*image.id).collect();
    let others = rest.images().iter().filter(|image| !gone.contains(&*image.id));
    let mut kept = parts_of_others(rest);
    kept.extend(others.flat_map(|image| parts(image)));
    let free: HashSet<Part> = removed.iter().flat_map(|image| parts(image)).collect();
    let objects = removed.iter().map(|image| {
        let own: Vec<Part> = parts(image).into_iter().filter(|part| !kept.contains(part)).collect();
        PrunedObject {
            id: image.config_digest.clone(),
            name: image.id.clone(),
            bytes: sizes.of(&own),
        }
    });
    Pruned {
        removed: objects.collect(),
        failed: Vec::new(),
        bytes_freed: sizes.of(free.difference(&kept)),
    }
}
