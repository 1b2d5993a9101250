//! Pod errors. The texts are part of the contract (`docs/spec/api.md` 8); the API adds its prefix.

use crate::model::PodProblem;
use crate::ops::task::Unfinished;
use crate::store::StoreError;
use crate::workload::container::ContainerError;

/// Why an operation on a pod failed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No pod has that id, or that name in the namespace.
    #[error("pod: {0} not found")]
    NotFound(String),
    /// The pod has no name.
    #[error("pod name is required")]
    NoName,
    /// The name or namespace is outside the grammar.
    #[error(
        "invalid pod {what}: {text:?}; use up to {most} letters, digits, '_', '.', '-', beginning with a letter or digit"
    )]
    InvalidName {
        /// `name` or `namespace`
        what: &'static str,
        /// The given text.
        text: String,
        /// Maximum length.
        most: usize,
    },
    /// Another pod has the name, and the request does not ask to replace it.
    #[error("pod {namespace}/{name} exists; give another name, or a uid of its own to replace it")]
    NameTaken {
        /// Namespace of both.
        namespace: String,
        /// Name of both.
        name: String,
    },
    /// The template cannot be realized.
    #[error("pod template invalid: {0}")]
    InvalidTemplate(String),
    /// The request adds a container to a pod of a replica set, which keeps its pods alike.
    #[error("pod {pod} is kept by a replica set; change the template of the set instead")]
    Owned {
        /// Name of the pod.
        pod: String,
    },
    /// The request adds a container without a name to a pod.
    #[error("a container of a pod needs a name")]
    NoContainerName,
    /// The pod is being removed.
    #[error("pod {0} is being removed")]
    BeingRemoved(String),
    /// The pod did not reach its goal although no step failed: something else keeps changing it.
    #[error("pod {0} keeps changing; it will be tried again")]
    Unsettled(String),
    /// A container of the pod failed.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The volumes of the pod failed.
    #[error("volumes: {0}")]
    Volumes(#[source] std::io::Error),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operation ended without a result: a defect, which the log describes.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for PodError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

impl PodError {
    /// A stable one-word reason why a pod did not reach its goal; the kubelet's word where it has one.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) | Self::BeingRemoved(_) | Self::Unsettled(_) => "Unsettled",
            Self::Container(error) => error.reason(),
            Self::Volumes(_) => "FailedMount",
            Self::Store(_) => "StoreFailed",
            _ => "CreateContainerError",
        }
    }

    /// The problem to report to clients for a pod that did not reach its goal; none if it only needs more time.
    pub(super) fn problem(&self) -> Option<PodProblem> {
        match self {
            Self::NotFound(_) | Self::BeingRemoved(_) | Self::Unsettled(_) => None,
            _ => Some(PodProblem {
                reason: self.reason().to_owned(),
                message: self.to_string(),
            }),
        }
    }
}
