use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::container::HealthCheck;

/// An image that is present: its layers are unpacked in the layer store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Canonical string `<repository>:<reference>` (`docs/spec/api.md` 4.5).
    pub id: String,
    /// Repository as stored and shown; always contains a `/`.
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
    /// Digest of the manifest of the selected platform.
    pub manifest_digest: String,
    /// Digest of the image configuration, which is the image's id.
    pub config_digest: String,
    /// Size of configuration and compressed layers, in bytes.
    pub size_bytes: u64,
    /// The layers, bottom first.
    pub layers: Vec<ImageLayer>,
    /// The part of the image configuration that containers inherit.
    pub config: ImageRunConfig,
    /// Operating system (`linux`).
    pub os: String,
    /// Architecture in Go naming (`amd64`).
    pub architecture: String,
    /// When it was pulled or built.
    pub created_at: Timestamp,
}

impl Image {
    /// Diff ids of the layers, bottom first.
    pub fn diff_ids(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.diff_id.clone()).collect()
    }
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// Digest of the uncompressed archive: the key of the unpacked layer.
    pub diff_id: String,
    /// Digest of the blob in the registry.
    pub digest: String,
    /// Size of the blob in the registry, in bytes.
    pub size: u64,
}

/// The supported part of `config` of the OCI image specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRunConfig {
    /// `Env`
    pub env: Vec<String>,
    /// `Entrypoint`
    pub entrypoint: Vec<String>,
    /// `Cmd`
    pub cmd: Vec<String>,
    /// `WorkingDir`; empty if the image sets none.
    pub working_dir: String,
    /// `User`; empty if the image sets none.
    pub user: String,
    /// `StopSignal`; empty if the image sets none.
    #[serde(default)]
    pub stop_signal: String,
    /// `Healthcheck`, unless it is `NONE`.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// `Volumes`: absolute paths.
    #[serde(default)]
    pub volumes: BTreeSet<String>,
    /// `ExposedPorts`: `80/tcp`.
    #[serde(default)]
    pub exposed_ports: BTreeSet<String>,
    /// `Labels`
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// [`ImageRunConfig::REVISION`] of the version that read the configuration; 0 for one before there was a number.
    #[serde(default)]
    pub revision: u32,
}

impl ImageRunConfig {
    /// Which fields are read from a configuration. A version that reads more has a higher number, and reads the stored
    /// configurations again.
    pub const REVISION: u32 = 1;
}
