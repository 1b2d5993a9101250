//! Space on disk: of each image, of all, and what a prune would free.
//!
//! Layers and documents are shared between images, and layers are also kept for containers whose image was replaced. All
//! sizes are allocated blocks, each inode once (`docs/spec/storage.md` D-44). The size of a layer never changes, so each
//! is measured once per run of the daemon.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::cleaning::{layers_of_builds, stacks_of_containers};
use super::digest::Digest;
use super::layers::{LayerStore, Pins};
use super::uses::Uses;
use super::{ImageError, ImageRef, ImageService, blocking, document_digests, stack};
use crate::model::{Image, Snapshot};

/// How many threads measure. More would only make each other wait for the disk.
const MEASURING: usize = 2;

/// Space of one image.
#[derive(Debug, Clone)]
pub struct ImageSpace {
    /// The image.
    pub image: Arc<Image>,
    /// Bytes on disk, shared ones included.
    pub bytes: u64,
    /// Those of them that other images use too.
    pub shared_bytes: u64,
    /// How many containers were created from it.
    pub containers: usize,
    /// Whether a container was created from it, or a pod, replica set or bottle names it.
    pub is_used: bool,
}

/// Space of all images.
#[derive(Debug, Clone, Default)]
pub struct ImagesSpace {
    /// Each image, by repository and reference.
    pub images: Vec<ImageSpace>,
    /// Bytes on disk, what is shared counted once. Includes layers of images that were replaced or removed and are kept
    /// for containers.
    pub bytes: u64,
    /// What would be free without the images that nothing uses.
    pub reclaimable_bytes: u64,
}

/// Something in the store that takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Layer(Digest),
    /// A layer that was laid out again on top of others; by its chain id.
    LaidOut(Digest),
    Document(Digest),
}

impl Part {
    fn digest(&self) -> Digest {
        match self {
            Self::Layer(digest) | Self::LaidOut(digest) | Self::Document(digest) => *digest,
        }
    }

    fn size(&self, layers: &LayerStore) -> io::Result<u64> {
        match self {
            Self::Layer(digest) => layers.layer_size(digest),
            Self::LaidOut(digest) => layers.laid_out_size(digest),
            Self::Document(digest) => layers.blob_size(digest),
        }
    }
}

/// The parts of an image, each once.
pub(super) fn parts(image: &Image) -> HashSet<Part> {
    let documents = document_digests(image).map(Part::Document);
    documents.chain(parts_of_stack(&image.diff_ids())).collect()
}

/// The parts of a stack of layers, by diff ids, bottom first.
fn parts_of_stack(diff_ids: &[String]) -> impl Iterator<Item = Part> + use<> {
    let links = stack::stack(diff_ids).into_iter();
    links.flat_map(|link| {
        let laid_out = (link.chain_id != link.diff_id).then_some(Part::LaidOut(link.chain_id));
        [Part::Layer(link.diff_id)].into_iter().chain(laid_out)
    })
}

/// The parts that something else than images keeps: containers and build cache.
pub(super) fn parts_of_others(snapshot: &Snapshot) -> HashSet<Part> {
    let mut parts = parts_of_containers(snapshot);
    parts.extend(layers_of_builds(snapshot).map(Part::Layer));
    parts
}

/// The parts that containers keep.
fn parts_of_containers(snapshot: &Snapshot) -> HashSet<Part> {
    let stacks: HashSet<Vec<String>> = stacks_of_containers(snapshot).collect();
    stacks.iter().flat_map(|stack| parts_of_stack(stack)).collect()
}

/// Sizes of parts.
#[derive(Debug, Default)]
pub(super) struct Sizes(HashMap<Part, u64>);

impl Sizes {
    /// Sum of the sizes of these parts.
    pub(super) fn of<'a>(&self, parts: impl IntoIterator<Item = &'a Part>) -> u64 {
        parts.into_iter().filter_map(|part| self.0.get(part)).sum()
    }
}

impl ImageService {
    /// Disk usage of one image in bytes, shared layers included.
    pub async fn disk_usage(&self, image: &ImageRef) -> Result<u64, ImageError> {
        let row = self.get(image)?;
        let (sizes, _pins) = self.sizes(parts(&row)).await?;
        Ok(sizes.of(&parts(&row)))
    }

    /// Space of all images.
    pub async fn space(&self) -> Result<ImagesSpace, ImageError> {
        let snapshot = self.0.store.snapshot();
        let rows: Vec<(Arc<Image>, HashSet<Part>)> = self
            .list_in(&snapshot)
            .into_iter()
            .map(|image| (image.clone(), parts(&image)))
            .collect();
        let of_containers = parts_of_containers(&snapshot);
        let mut users = HashMap::<Part, usize>::new();
        for part in rows.iter().flat_map(|(_, parts)| parts) {
            *users.entry(*part).or_default() += 1;
        }
        let all: HashSet<Part> = users.keys().chain(&of_containers).copied().collect();
        let (sizes, _pins) = self.sizes(all.clone()).await?;
        let uses = Uses::of(&snapshot, &self.0);
        let mut kept = parts_of_others(&snapshot);
        let mut images = Vec::with_capacity(rows.len());
        for (image, parts) in rows {
            let shared = parts.iter().filter(|part| users.get(part).is_some_and(|n| *n > 1));
            let is_used = uses.has(&image);
            images.push(ImageSpace {
                bytes: sizes.of(&parts),
                shared_bytes: sizes.of(shared),
                containers: uses.containers(&image),
                is_used,
                image,
            });
            if is_used {
                kept.extend(parts);
            }
        }
        let bytes = sizes.of(&all);
        Ok(ImagesSpace {
            images,
            bytes,
            reclaimable_bytes: bytes.saturating_sub(sizes.of(kept.intersection(&all))),
        })
    }

    /// Measures parts. They are pinned, so that no sweep makes them smaller meanwhile.
    pub(super) async fn sizes(&self, parts: HashSet<Part>) -> Result<(Sizes, Pins), ImageError> {
        let layers = self.0.layers.clone();
        let pins = layers.pin(parts.iter().map(Part::digest).collect());
        let measured = blocking(move || {
            let parts: Vec<Part> = parts.into_iter().collect();
            let share = parts.len().div_ceil(MEASURING).max(1);
            let measured = std::thread::scope(|scope| {
                let threads: Vec<_> = parts
                    .chunks(share)
                    .map(|chunk| scope.spawn(|| measure(&layers, chunk)))
                    .collect();
                let joined = threads.into_iter().map(|thread| {
                    let ended = thread.join();
                    ended.unwrap_or_else(|_| Err(io::Error::other("measuring a layer panicked")))
                });
                joined.collect::<io::Result<Vec<_>>>()
            });
            Ok(Sizes(measured?.into_iter().flatten().collect()))
        });
        Ok((measured.await?, pins))
    }
}

fn measure(layers: &LayerStore, parts: &[Part]) -> io::Result<Vec<(Part, u64)>> {
    parts.iter().map(|part| Ok((*part, part.size(layers)?))).collect()
}
