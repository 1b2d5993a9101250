use serde::{Deserialize, Serialize};

use super::ContainerOptions;

/// What a container is asked to be, whoever asks: a client, the template of a pod, the file of a bottle, a manifest. Its
/// choices are checked; its strings are as they were written, in the forms of a create request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRequest {
    /// Image reference.
    pub image: String,
    /// When the image is pulled.
    pub pull: PullPolicy,
    /// Replaces the image's entrypoint when not empty.
    pub entrypoint: Vec<String>,
    /// Replaces entrypoint and cmd of the image when not empty.
    pub command: Vec<String>,
    /// Whether `command` follows the image's entrypoint (`args` without `command` of a manifest) instead of replacing it.
    pub keep_entrypoint: bool,
    /// `KEY=VALUE`, after the image's.
    pub env: Vec<String>,
    /// Published ports; those of a pod's containers on the pod's address.
    pub ports: Vec<String>,
    /// `<host path>:<container path>[:<options>]`; in a bottle a volume may stand for the host path.
    pub mounts: Vec<String>,
    /// Name of a network; empty for that of the bottle, else for the default one. A pod has that of its first container
    /// which names one.
    pub network: String,
    /// Whether it has a pseudo-terminal.
    pub tty: bool,
    /// User as `docker run --user` takes it; empty for the image's.
    pub user: String,
    /// Working directory; empty for the image's.
    pub working_dir: String,
    /// Limits and the rest. `restart` and `hostname` of a pod's containers are the pod's.
    pub options: ContainerOptions,
    /// Whether each port that the image exposes is published at a free port of the host.
    pub publish_all: bool,
    /// Whether the image's health check does not count.
    pub no_health_check: bool,
}

/// When to pull an image before a container is created from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PullPolicy {
    /// If it is not present.
    #[default]
    IfNotPresent,
    /// Always.
    Always,
    /// Never: a missing image is an error.
    Never,
    /// No policy was given and the tag is `latest`: always, unless the configuration overrides it
    /// (`pull_policy_latest`).
    Latest,
}
