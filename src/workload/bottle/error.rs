//! Errors of bottles. The texts are the contract's (`docs/spec/api.md` 12); the API adds `service failed: ` if an
//! action failed.

use super::order::OrderError;
use crate::net::enforcement::NetworksError;
use crate::net::policy::PolicyError;
use crate::ops::task::Unfinished;
use crate::store::StoreError;
use crate::workload::container::ContainerError;
use crate::workload::manifest::ManifestError;

/// Why an operation on a bottle failed. A failed registration leaves nothing behind.
#[derive(Debug, thiserror::Error)]
pub enum BottleError {
    /// The file is not valid YAML, or a field has the wrong type.
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
    /// The services have no start order.
    #[error("invalid dependency: {0}")]
    Dependency(#[from] OrderError),
    /// Another bottle has the name.
    #[error("name already used by other bottle")]
    NameTaken,
    /// A policy is invalid, in the words of the contract.
    #[error("policy failed: {0}")]
    PolicyFile(String),
    /// The policies could not be committed.
    #[error("policy failed: {0}")]
    Policy(#[from] PolicyError),
    /// The policies could not be removed.
    #[error(transparent)]
    RemovePolicies(PolicyError),
    /// Its network could not be created.
    #[error("create containers failed: {0}")]
    CreateNetwork(#[source] NetworksError),
    /// Its network could not be removed.
    #[error(transparent)]
    RemoveNetwork(NetworksError),
    /// The directory of a volume could not be created or removed.
    #[error("volume {volume:?}: {source}")]
    Volume {
        /// Name of the volume.
        volume: String,
        /// The underlying error.
        source: std::io::Error,
    },
    /// A container could not be created.
    #[error("create containers failed: {0}")]
    Create(#[source] ContainerError),
    /// There is no bottle of that name or id.
    #[error("bottle: {0} not found")]
    NotFound(String),
    /// The bottle is a remainder of a registration or removal that failed half-way.
    #[error("bottle: {0} is being removed; delete it again")]
    Unfinished(String),
    /// A service of the bottle could not be started or stopped.
    #[error("service {service:?}: {source}")]
    Service {
        /// Its name.
        service: String,
        /// The underlying error.
        source: ContainerError,
    },
    /// A service must be healthy before others start, and is not.
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
    /// The operation ended without a result: a bug, which is logged.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for BottleError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

impl BottleError {
    /// Why a bottle does not run, as one stable word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Service { source, .. } | Self::Create(source) => source.reason(),
            Self::NotHealthy { .. } => "DependencyUnhealthy",
            Self::Unfinished(_) => "BeingRemoved",
            Self::Store(_) => "StoreFailed",
            _ => "StartFailed",
        }
    }
}
