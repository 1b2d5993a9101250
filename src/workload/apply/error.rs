//! Why a manifest was not applied or not deleted.

use crate::ops::task::Unfinished;
use crate::workload::balancer::ServiceError;
use crate::workload::manifest::{Document, ManifestError, ResourceKind};
use crate::workload::pod::PodError;
use crate::workload::replica_set::SetError;

/// Why a request failed, and whether its changes were undone.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The text is invalid. Nothing was changed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A resource could not be applied. Earlier changes were undone.
    #[error("{failed}{place}{undone}")]
    Failed {
        /// The underlying error.
        failed: Box<Failed>,
        /// The resource and its document.
        place: String,
        /// The changes that were undone, and those that could not be.
        undone: String,
    },
    /// None of the resources to delete exists.
    #[error("{} not found", word(*.0))]
    NotFound(ResourceKind),
    /// A resource could not be removed; the rest of it is removed later.
    #[error("remove failed: {failed} ({what}); {rest}")]
    Remove {
        /// The first error.
        failed: Box<Failed>,
        /// The resource.
        what: String,
        /// The results of the others.
        rest: String,
    },
    /// The operation ended without a result: a bug, which is logged.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for ApplyError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

/// The error of one resource, with the contract's prefix (`docs/spec/api.md` 11.5).
#[derive(Debug, thiserror::Error)]
#[error("{}{what}", self.step)]
pub struct Failed {
    /// `container create failed: ` and the like.
    pub step: &'static str,
    /// The underlying error.
    pub what: ResourceError,
}

/// The error of an underlying service.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps the error of the part it names")]
pub enum ResourceError {
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Set(#[from] SetError),
}

impl Failed {
    /// Whether the error is due to a race: the resource was created or removed after the check.
    pub(super) fn is_overtaken(&self) -> bool {
        matches!(
            self.what,
            ResourceError::Pod(PodError::NameTaken { .. })
                | ResourceError::Service(ServiceError::NameTaken | ServiceError::NotFound(_))
        )
    }

    /// Converts the result of a step.
    pub(super) fn at<E: Into<ResourceError>>(step: &'static str) -> impl Fn(E) -> Self {
        move |error| Self {
            step,
            what: error.into(),
        }
    }
}

impl From<PodError> for Failed {
    fn from(error: PodError) -> Self {
        Self::at("")(error)
    }
}

impl From<ServiceError> for Failed {
    fn from(error: ServiceError) -> Self {
        let step = match &error {
            // The error's own text contains the rest of the contract's `service store failed: `.
            ServiceError::Store(_) => "service ",
            _ => "",
        };
        Self::at(step)(error)
    }
}

impl From<SetError> for Failed {
    fn from(error: SetError) -> Self {
        let step = match &error {
            SetError::Store(_) => "replicaset store failed: ",
            _ => "",
        };
        Self::at(step)(error)
    }
}

impl ApplyError {
    /// Nothing was changed.
    pub(super) fn refused(failed: Failed, document: &Document) -> Self {
        Self::failed(failed, document, String::new())
    }

    pub(super) fn failed(failed: Failed, document: &Document, undone: String) -> Self {
        let (_, namespace, name) = document.resource.key();
        let place = format!(" (document {}: {} {namespace}/{name})", document.number, document.kind);
        let failed = Box::new(failed);
        Self::Failed { failed, place, undone }
    }
}

/// A kind, as in the contract's messages.
pub(super) fn word(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Pod => "pod",
        ResourceKind::ReplicaSet => "replicaset",
        ResourceKind::Service => "service",
    }
}
