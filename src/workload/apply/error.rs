//! Why a manifest was not applied or not deleted.

use crate::ops::task::Unfinished;
use crate::workload::balancer::ServiceError;
use crate::workload::manifest::{Document, ManifestError, ResourceKind};
use crate::workload::pod::PodError;
use crate::workload::replica_set::SetError;

/// Why a request failed, and what became of what it had done.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The text is wrong. Nothing was changed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A resource could not be made what it shall be. What had been done before was undone.
    #[error("{failed}{place}{undone}")]
    Failed {
        /// What went wrong.
        failed: Box<Failed>,
        /// Which resource of which document.
        place: String,
        /// What was undone, and what could not be.
        undone: String,
    },
    /// Nothing of what is to be deleted exists.
    #[error("{} not found", word(*.0))]
    NotFound(ResourceKind),
    /// Something could not be removed; what is left of it is removed later.
    #[error("remove failed: {failed} ({what}); {rest}")]
    Remove {
        /// What went wrong first.
        failed: Box<Failed>,
        /// Which resource.
        what: String,
        /// What became of the others.
        rest: String,
    },
    /// The operation ended without an answer: a defect, which the log describes.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for ApplyError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

/// What went wrong with one resource, with the words of the contract in front (`docs/spec/api.md` 11.5).
#[derive(Debug, thiserror::Error)]
#[error("{}{what}", self.step)]
pub struct Failed {
    /// `container create failed: ` and the like.
    pub step: &'static str,
    /// Why.
    pub what: ResourceError,
}

/// The error of a service below.
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
    /// Whether it was right when it was decided: the resource has come or gone since.
    pub(super) fn is_overtaken(&self) -> bool {
        matches!(
            self.what,
            ResourceError::Pod(PodError::NameTaken { .. })
                | ResourceError::Service(ServiceError::NameTaken | ServiceError::NotFound(_))
        )
    }

    /// What a step came to.
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
            // The rest of the contract's `service store failed: ` is in its own text.
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

/// A kind as the contract's messages have it.
pub(super) fn word(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Pod => "pod",
        ResourceKind::ReplicaSet => "replicaset",
        ResourceKind::Service => "service",
    }
}
