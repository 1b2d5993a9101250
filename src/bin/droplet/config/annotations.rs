//! The annotations of config.json that this runtime reads.

use std::path::PathBuf;

use serde::Deserialize;

use super::nullable;

/// Annotation with the version of the `io.raind.*` annotations.
pub const ANNOTATION_VERSION: &str = "io.raind.runtime.annotation.version";
/// Annotation that tells whether hook arguments include argv\[0\] (6.2).
pub const ANNOTATION_HOOK_ARGS: &str = "io.raind.hooks.args";
/// Annotation with a [`NetConfig`] as JSON text.
pub const ANNOTATION_NET: &str = "io.raind.net.config";
/// Annotation with an [`ImageConfig`] as JSON text.
pub const ANNOTATION_IMAGE: &str = "io.raind.image.config";

/// Content of [`ANNOTATION_NET`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetConfig {
    /// Bridge to attach the host end of the veth pair to.
    #[serde(deserialize_with = "nullable")]
    pub bridge_interface: String,
    /// The veth pair.
    #[serde(deserialize_with = "nullable")]
    pub interface: NetInterface,
}

/// `interface` of [`NetConfig`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetInterface {
    /// Name of the host end.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// IPv4 settings.
    #[serde(deserialize_with = "nullable")]
    pub ipv4: Ipv4,
}

/// `interface.ipv4` of [`NetConfig`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Ipv4 {
    /// Address with prefix length, or empty.
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    /// Gateway of the default route, or empty.
    #[serde(deserialize_with = "nullable")]
    pub gateway: String,
}

/// Content of [`ANNOTATION_IMAGE`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageConfig {
    /// Type; only `overlay` is supported.
    #[serde(deserialize_with = "nullable")]
    pub rootfs_type: String,
    /// Lower directories, topmost first.
    #[serde(deserialize_with = "nullable")]
    pub image_layer: Vec<PathBuf>,
    /// Upper directory.
    #[serde(deserialize_with = "nullable")]
    pub upper_dir: PathBuf,
    /// Work directory.
    #[serde(deserialize_with = "nullable")]
    pub work_dir: PathBuf,
}
