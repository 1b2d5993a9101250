//! What can go wrong with a bottle. The texts are the contract's (`docs/spec/api.md` 12); the API adds
//! `service failed: ` where an action failed.

use super::order::OrderError;
use crate::net::enforcement::NetworksError;
use crate::net::policy::PolicyError;
use crate::ops::task::Unfinished;
use crate::store::StoreError;
use crate::workload::container::ContainerError;
use crate::workload::manifest::ManifestError;

/// Why an operation on a bottle failed. Nothing of a failed registration stays.
#[derive(Debug, thiserror::Error)]
pub enum BottleError {
    /// The file is no YAML, or a field has the wrong shape.
    #[error("invalid yaml: {0}")]
    Yaml(#[from] ManifestError),
    /// The bottle has no name.
    #[error("invalid yaml: bottle.name is required")]
    NoName,
    /// The bottle has no services.
    #[error("invalid yaml: services is required")]
    NoServices,
    /// Parts of the file contradict each other.
    #[error("invalid yaml: {0}")]
    Invalid(String),
    /// Services cannot be put in order.
    #[error("invalid dependency: {0}")]
    Dependency(#[from] OrderError),
    /// Another bottle has the name.
    #[error("name already used by other bottle")]
    NameTaken,
    /// A policy that cannot be, in the words of the contract.
    #[error("policy failed: {0}")]
    PolicyFile(String),
    /// The policies could not be put in force.
    #[error("policy failed: {0}")]
    Policy(#[from] PolicyError),
    /// The policies could not be removed.
    #[error(transparent)]
    RemovePolicies(PolicyError),
    /// Its network could not be made.
    #[error("create containers failed: {0}")]
    CreateNetwork(#[source] NetworksError),
    /// Its network could not be removed.
    #[error(transparent)]
    RemoveNetwork(NetworksError),
    /// The directory of a volume could not be made or removed.
    #[error("volume {volume:?}: {source}")]
    Volume {
        /// Name of the volume.
        volume: String,
        /// Why.
        source: std::io::Error,
    },
    /// A container could not be made.
    #[error("create containers failed: {0}")]
    Create(#[source] ContainerError),
    /// No bottle of that name or id.
    #[error("bottle: {0} not found")]
    NotFound(String),
    /// What is left of a bottle whose registration or removal failed half-way.
    #[error("bottle: {0} is being removed; delete it again")]
    Unfinished(String),
    /// A service of the bottle could not be started or stopped.
    #[error("service {service:?}: {source}")]
    Service {
        /// Its name.
        service: String,
        /// Why.
        source: ContainerError,
    },
    /// A service has to be healthy before others start, and is not.
    #[error("service {service:?} did not become healthy: {reason}")]
    NotHealthy {
        /// Its name.
        service: String,
        /// Why the wait ended.
        reason: String,
    },
    /// The state could not be written.
    #[error("store failed: {0}")]
    Store(#[from] StoreError),
    /// The operation ended without an answer: a defect, which the log describes.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for BottleError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}
