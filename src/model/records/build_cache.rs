use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ImageLayer;

/// Something that builds keep for later ones (decision 21). What it refers to exists as long as it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildCacheEntry {
    /// Of the result of a step its key, 64 hexadecimal digits; of a cache mount a ULID.
    pub id: String,
    /// What is kept.
    pub content: BuildCacheContent,
    /// For people: the instruction of a step, the id of a cache mount.
    pub description: String,
    /// Allocated bytes on disk. Those of a layer are counted here even if an image has it too.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When a build last used it.
    pub last_used_at: Timestamp,
    /// How many builds have used it, without the one that made it.
    pub uses: u64,
}

/// What an entry keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildCacheContent {
    /// What a step has done to the files below it. `None`: nothing.
    Step(Option<ImageLayer>),
    /// A directory of `RUN --mount=type=cache`, named by the entry's id.
    Mount {
        /// Which mounts mean it.
        key: String,
    },
}

impl BuildCacheEntry {
    /// The layer that a step made.
    pub fn layer(&self) -> Option<&ImageLayer> {
        match &self.content {
            BuildCacheContent::Step(layer) => layer.as_ref(),
            BuildCacheContent::Mount { .. } => None,
        }
    }

    /// The key of a cache mount.
    pub fn mount_key(&self) -> Option<&str> {
        match &self.content {
            BuildCacheContent::Step(_) => None,
            BuildCacheContent::Mount { key } => Some(key),
        }
    }
}
