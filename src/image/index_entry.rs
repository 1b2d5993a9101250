//! The entries of an index: one image for several platforms.

use std::collections::HashMap;

use serde::Deserialize;

use super::artifact;
use super::json_null::or_default;

/// Annotation of an entry of an index that is about another entry, such as an attestation (BuildKit).
const ABOUT_ANOTHER: &str = "vnd.docker.reference.type";

/// An entry of an index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IndexEntry {
    pub digest: String,
    pub platform: Option<EntryPlatform>,
    #[serde(default, deserialize_with = "or_default")]
    pub artifact_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: HashMap<String, serde_json::Value>,
}

impl IndexEntry {
    /// Whether it may lead to an image. Attestations of builders stand beside the images they are about.
    pub(super) fn may_be_image(&self) -> bool {
        artifact::may_be_image(&self.artifact_type) && !self.annotations.contains_key(ABOUT_ANOTHER)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct EntryPlatform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    pub variant: Option<String>,
}
