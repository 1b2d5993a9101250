//! `ilm.json`: images (`docs/spec/storage.md` 3.3). Pure, except for the adoption of their files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ImportError;
use super::json::{Time, nullable, version_0_1};
use crate::image::{Bundle, ImageRef, ImageService};
use crate::model::Image;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(deserialize_with = "version_0_1")]
    version: String,
    #[serde(default, deserialize_with = "nullable")]
    repositories: BTreeMap<String, Repository>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Repository {
    #[serde(default, deserialize_with = "nullable")]
    references: BTreeMap<String, Record>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(default)]
    bundle_path: PathBuf,
    config_path: PathBuf,
    rootfs_path: PathBuf,
    #[serde(default)]
    created_at: Time,
}

/// The row's id for an image as the original's records name it; `None` if no client can name it.
pub(super) fn image(repository: &str, reference: &str) -> Option<ImageRef> {
    let mark = if reference.contains(':') { '@' } else { ':' };
    ImageRef::parse(&format!("{repository}{mark}{reference}")).ok()
}

impl Stored {
    fn bundles(&self, warnings: &mut Vec<String>) -> Vec<Bundle> {
        let mut bundles = Vec::new();
        for (repository, entry) in &self.repositories {
            for (reference, record) in &entry.references {
                let Some(image) = image(repository, reference) else {
                    warnings.push(format!(
                        "image {repository}:{reference} is left out: its name is not valid"
                    ));
                    continue;
                };
                bundles.push(Bundle {
                    image,
                    directory: record.bundle_path.clone(),
                    config: record.config_path.clone(),
                    rootfs: record.rootfs_path.clone(),
                    created_at: record.created_at.0.unwrap_or(Timestamp::UNIX_EPOCH),
                });
            }
        }
        bundles
    }
}

/// The rows of the complete images. Afterwards their files are in the image store.
pub(super) async fn adopt(
    stored: &Stored,
    images: &ImageService,
    warnings: &mut Vec<String>,
) -> Result<Vec<Image>, ImportError> {
    let adopted = images.adopt(stored.bundles(warnings)).await?;
    let keep = |row: Result<Image, _>| {
        row.map_err(|e| warnings.push(format!("an image is left out: {e}")))
            .ok()
    };
    Ok(adopted.into_iter().filter_map(keep).collect())
}
