//! What the image tests share: images made in memory, a registry that misbehaves, an image store.

pub mod content;
pub mod peer;

use std::path::{Path, PathBuf};

use condenser::image::{
    ImageRef, ImageService, ImageSettings, Platform, Registries, RegistryEntries, RegistrySettings,
};
use condenser::model::{Container, Image};
use condenser::observe::metrics::Activity;
use condenser::store::Store;
use serde_json::json;

/// An image service with a store of its own.
pub struct Place {
    pub scratch: tempfile::TempDir,
    pub store: Store,
    pub images: ImageService,
    /// What the service brings with it, as `inventory` names it.
    built_in: Vec<String>,
}

impl Place {
    /// `insecure`: registries in plain HTTP.
    pub async fn new(insecure: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("store.db")).unwrap();
        let images = service(&scratch.path().join("image"), &store, insecure);
        Self::around(scratch, store, images).await
    }

    /// With other settings for registries.
    pub async fn with(registry: RegistrySettings) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("store.db")).unwrap();
        let images = service_with(&scratch.path().join("image"), &store, registry);
        Self::around(scratch, store, images).await
    }

    async fn around(scratch: tempfile::TempDir, store: Store, images: ImageService) -> Self {
        images.recover().await.unwrap();
        let mut place = Self {
            scratch,
            store,
            images,
            built_in: Vec::new(),
        };
        place.built_in = place.inventory();
        place
    }

    pub fn root(&self) -> PathBuf {
        self.scratch.path().join("image")
    }

    pub async fn pull(&self, reference: &str) -> Result<std::sync::Arc<Image>, condenser::image::ImageError> {
        self.images.pull(&ImageRef::parse(reference)?, &Platform::host()).await
    }

    /// Directories of the image's layers, topmost first.
    pub fn lower_dirs(&self, image: &Image) -> Vec<PathBuf> {
        let diff_ids: Vec<String> = image.layers.iter().map(|l| l.diff_id.clone()).collect();
        self.images.lower_dirs(&diff_ids)
    }

    /// What is in the image store beyond the built-in layer, without what is in layers. What is being deleted gets a while.
    pub fn inventory(&self) -> Vec<String> {
        let is_empty = || std::fs::read_dir(self.root().join("staging")).unwrap().next().is_none();
        for _ in 0..200 {
            if is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let mut found = Vec::new();
        for directory in ["l", "blobs/sha256", "staging"] {
            for entry in std::fs::read_dir(self.root().join(directory)).unwrap() {
                found.push(format!("{directory}/{}", entry.unwrap().file_name().display()));
            }
        }
        found.retain(|path| !self.built_in.contains(path));
        found.sort();
        found
    }

    /// How many layers are stored beyond the built-in one.
    pub fn layers(&self) -> usize {
        self.inventory().iter().filter(|path| path.starts_with("l/")).count()
    }
}

pub fn service(root: &Path, store: &Store, insecure: &[&str]) -> ImageService {
    let insecure: Vec<String> = insecure.iter().map(|s| (*s).to_owned()).collect();
    let registry = RegistrySettings {
        registries: Registries::new(RegistryEntries::default(), &insecure).unwrap(),
        ..RegistrySettings::default()
    };
    service_with(root, store, registry)
}

pub fn service_with(root: &Path, store: &Store, registry: RegistrySettings) -> ImageService {
    let settings = ImageSettings {
        root: root.to_owned(),
        registry,
        max_layer_bytes: 64 << 20,
        max_layer_entries: 10_000,
        max_layer_ratio: 100,
        layer_ratio_from: 8 << 20,
    };
    ImageService::new(settings, store.clone(), Activity::default()).unwrap()
}

/// A container row that stands on `image`.
pub fn container(image: &Image, id: &str) -> Container {
    serde_json::from_value(json!({
        "id": id, "name": format!("name-of-{id}"), "role": "alone",
        "spec": {
            "image": {
                "repository": image.repository, "reference": image.reference,
                "layers": image.layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>(),
            },
            "process": {"args": ["sh"], "env": [], "cwd": "/", "uid": 0, "gid": 0, "additional_gids": []},
            "mounts": [], "tty": false, "forwards": [],
        },
        "status": {"state": "stopped"},
        "journal": {"certificate_due": false},
    }))
    .unwrap()
}
