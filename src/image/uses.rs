//! Who uses an image.
//!
//! Containers name the image that they were created from. Pods, replica sets and bottles name the images of containers
//! that they may create at any moment. An operation that is about to create a container [holds](ImageService::hold) its
//! image.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use super::{ImageRef, ImageService, Inner};
use crate::model::{Image, PodTemplate, Snapshot};

/// Keeps an image from being pruned for as long as it lives, whether or not the image is present.
pub struct Hold {
    inner: Arc<Inner>,
    image: ImageRef,
}

impl ImageService {
    /// Holds an image that is about to be used.
    pub fn hold(&self, image: &ImageRef) -> Hold {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held.entry(image.clone()).or_default() += 1;
        Hold {
            inner: self.0.clone(),
            image: image.clone(),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.image);
            }
        }
    }
}

/// The uses of all images in one snapshot.
pub(super) struct Uses {
    /// Repository and reference -> how many containers were created from it.
    containers: HashMap<(String, String), usize>,
    /// The same of images that controllers may need or that are held.
    wanted: HashSet<(String, String)>,
}

impl Uses {
    pub(super) fn of(snapshot: &Snapshot, inner: &Inner) -> Self {
        let mut containers = HashMap::new();
        for container in snapshot.containers().iter() {
            let image = &container.spec.image;
            *containers
                .entry((image.repository.clone(), image.reference.clone()))
                .or_default() += 1;
        }
        let held = inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = described(snapshot).filter_map(|text| ImageRef::parse(text).ok());
        let wanted = wanted.chain(held.keys().cloned());
        Self {
            containers,
            wanted: wanted
                .map(|image| (image.repository().to_owned(), image.reference().to_owned()))
                .collect(),
        }
    }

    /// How many containers were created from the image.
    pub(super) fn containers(&self, image: &Image) -> usize {
        self.containers.get(&key(image)).copied().unwrap_or(0)
    }

    /// Whether anything uses the image or may do so at any moment.
    pub(super) fn has(&self, image: &Image) -> bool {
        let key = key(image);
        self.containers.contains_key(&key) || self.wanted.contains(&key)
    }
}

fn key(image: &Image) -> (String, String) {
    (image.repository.clone(), image.reference.clone())
}

/// The images of pods, replica sets and bottles, as they were written.
fn described(snapshot: &Snapshot) -> impl Iterator<Item = &str> {
    let standing = snapshot.pods().iter().filter_map(|pod| pod.standing());
    let of_pods = standing.flat_map(|pod| images(&pod.template));
    let sets = snapshot.replicasets().iter().filter(|set| !set.removing);
    let of_sets = sets.flat_map(|set| images(&set.template));
    let bottles = snapshot.bottles().iter();
    let of_bottles = bottles.flat_map(|bottle| bottle.services.values().map(|service| &*service.request.image));
    of_pods.chain(of_sets).chain(of_bottles)
}

fn images(template: &PodTemplate) -> impl Iterator<Item = &str> {
    template
        .spec
        .containers
        .iter()
        .map(|container| &*container.request.image)
}
