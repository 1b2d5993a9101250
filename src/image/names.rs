//! Names of images, and everything that is known about one.

use std::sync::Arc;

use serde_json::Value;

use super::{ImageError, ImageRef, ImageService, blocking};
use crate::model::{Container, Image};

/// Everything about an image.
#[derive(Debug, Clone)]
pub struct ImageDetails {
    /// Its row.
    pub image: Arc<Image>,
    /// Ids of all rows with the same configuration, sorted: the image's names.
    pub names: Vec<Arc<Image>>,
    /// Its configuration (OCI image specification); `null` if the document is lost.
    pub config: Value,
    /// Its manifest; `null` if the document is lost.
    pub manifest: Value,
    /// Containers whose root stands on exactly these layers.
    pub containers: Vec<Arc<Container>>,
}

/// The same image under another name.
pub(super) fn under(row: &Image, name: &ImageRef) -> Image {
    Image {
        id: name.canonical(),
        repository: name.repository().to_owned(),
        reference: name.reference().to_owned(),
        ..row.clone()
    }
}

impl ImageService {
    /// Gives an image another name as well. An image that had the name loses it; its layers go once nothing uses them.
    pub async fn tag(&self, image: &ImageRef, target: &ImageRef) -> Result<Arc<Image>, ImageError> {
        if target.reference().contains(':') {
            return Err(ImageError::DigestName(target.canonical()));
        }
        let (image, target) = (image.canonical(), target.clone());
        let tagged = self.0.store.transact(move |t| {
            let row = t.get::<Image>(&image).ok_or(ImageError::NotFound(image))?;
            Ok::<_, ImageError>(t.put(under(&row, &target))?)
        });
        let tagged = tagged.await?;
        self.sweep_or_warn().await;
        Ok(tagged)
    }

    /// Everything about an image that is present.
    pub async fn details(&self, image: &ImageRef) -> Result<ImageDetails, ImageError> {
        let image = self.get(image)?;
        let snapshot = self.0.store.snapshot();
        let mut names: Vec<_> = snapshot.images().iter().cloned().collect();
        names.retain(|other| other.config_digest == image.config_digest);
        names.sort_by(|a, b| a.id.cmp(&b.id));
        let diff_ids = image.diff_ids();
        let mut containers: Vec<_> = snapshot.containers().iter().cloned().collect();
        containers.retain(|container| container.spec.image.layers == diff_ids);
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        let (store, row) = (self.0.layers.clone(), image.clone());
        let (config, manifest) = blocking(move || {
            let read = |digest: &str| match digest.parse() {
                Ok(digest) => store.read_blob(&digest).map(Option::unwrap_or_default),
                Err(_) => Ok(Vec::new()),
            };
            let parsed = |body: Vec<u8>| serde_json::from_slice(&body).unwrap_or_default();
            Ok((parsed(read(&row.config_digest)?), parsed(read(&row.manifest_digest)?)))
        })
        .await?;
        Ok(ImageDetails {
            image,
            names,
            config,
            manifest,
            containers,
        })
    }
}
