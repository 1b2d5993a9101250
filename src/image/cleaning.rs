//! What rows need of the layer store, and the removal of everything else.

use std::collections::HashSet;
use std::sync::Arc;

use super::digest::Digest;
use super::layers::{LayerStore, Staged};
use super::{ImageError, Inner, blocking, document_digests, stack};
use crate::model::{Image, Snapshot};

impl Inner {
    /// Removes what no row needs and nobody has pinned, and waits until its space is free.
    pub(super) async fn sweep(&self) -> Result<(), ImageError> {
        let doomed = self.retire().await?;
        self.record_new();
        blocking(move || {
            drop(doomed);
            Ok(())
        })
        .await
    }

    /// The same, but the files are deleted later: many take seconds. After a crash, the next start deletes the rest.
    pub(super) async fn sweep_in_background(&self) -> Result<(), ImageError> {
        let doomed = self.retire().await?;
        self.record_new();
        if !doomed.is_empty() {
            std::thread::spawn(move || drop(doomed));
        }
        Ok(())
    }

    async fn retire(&self) -> Result<Vec<Staged>, ImageError> {
        let (layers, store, pause) = (self.layers.clone(), self.store.clone(), self.pause.clone());
        let needed = move || {
            let mut needed = needed(&store.snapshot());
            needed.extend(diff_ids_of(&pause));
            needed
        };
        blocking(move || layers.sweep(needed)).await
    }

    /// Records the layers that were published since the last call, in the background.
    fn record_new(&self) {
        record_in_background(&self.layers);
    }
}

/// Records the layers that were published since the last call. A start records what a crash has left out.
pub(super) fn record_in_background(layers: &Arc<LayerStore>) {
    let new = layers.take_unrecorded();
    if !new.is_empty() {
        let layers = layers.clone();
        std::thread::spawn(move || layers.record_all(&new));
    }
}

fn diff_ids_of(image: &Image) -> impl Iterator<Item = Digest> {
    image.layers.iter().filter_map(|layer| layer.diff_id.parse().ok())
}

/// Every digest that rows refer to.
pub(super) fn needed(snapshot: &Snapshot) -> HashSet<Digest> {
    let stacks = stacks_of(snapshot);
    let mut needed: HashSet<Digest> = stacks.iter().flat_map(|diff_ids| stack::digests(diff_ids)).collect();
    needed.extend(snapshot.images().iter().flat_map(|i| document_digests(i)));
    needed.extend(layers_of_builds(snapshot));
    needed
}

/// The layers that the build cache keeps.
pub(super) fn layers_of_builds(snapshot: &Snapshot) -> impl Iterator<Item = Digest> {
    let layers = snapshot.buildcache().iter().filter_map(|entry| entry.layer());
    layers.filter_map(|layer| layer.diff_id.parse().ok())
}

/// The stacks of layers that rows name, each once, by diff ids, bottom first.
pub(super) fn stacks_of(snapshot: &Snapshot) -> HashSet<Vec<String>> {
    let of_images = snapshot.images().iter().map(|image| image.diff_ids());
    of_images.chain(stacks_of_containers(snapshot)).collect()
}

/// Those of containers alone.
pub(super) fn stacks_of_containers(snapshot: &Snapshot) -> impl Iterator<Item = Vec<String>> {
    let containers = snapshot.containers().iter();
    containers.map(|container| container.spec.image.layers.clone())
}
