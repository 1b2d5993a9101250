//! What can go wrong with a pod. The texts are the contract's (`docs/spec/api.md` 8); the API adds its prefix.

use crate::image::ImageError;
use crate::model::PodProblem;
use crate::ops::task::Unfinished;
use crate::store::StoreError;
use crate::workload::container::ContainerError;

/// Why an operation on a pod failed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No pod of that id, and none of that name in the namespace.
    #[error("pod: {0} not found")]
    NotFound(String),
    /// Without a name.
    #[error("pod name is required")]
    NoName,
    /// A name or namespace outside the grammar.
    #[error(
        "invalid pod {what}: {text:?}; use up to {most} letters, digits, '_', '.', '-', beginning with a letter or digit"
    )]
    InvalidName {
        /// `name` or `namespace`
        what: &'static str,
        /// As given.
        text: String,
        /// Longest.
        most: usize,
    },
    /// Another pod has the name, and the request does not say that it is to be replaced.
    #[error("pod {namespace}/{name} exists; give another name, or a uid of its own to replace it")]
    NameTaken {
        /// Namespace of both.
        namespace: String,
        /// Name of both.
        name: String,
    },
    /// A template that cannot be carried out.
    #[error("pod template invalid: {0}")]
    InvalidTemplate(String),
    /// A container for a pod that a set keeps like its other pods.
    #[error("pod {pod} is kept by a replica set; change the template of the set instead")]
    Owned {
        /// Name of the pod.
        pod: String,
    },
    /// A container for a pod without a name.
    #[error("a container of a pod needs a name")]
    NoContainerName,
    /// The pod is going away.
    #[error("pod {0} is being removed")]
    BeingRemoved(String),
    /// The pod did not come to what it should be, although no step failed: something else keeps changing it.
    #[error("pod {0} keeps changing; it will be tried again")]
    Unsettled(String),
    /// A container of it.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Its volumes.
    #[error("volumes: {0}")]
    Volumes(#[source] std::io::Error),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operation ended without an answer: a defect, which the log describes.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for PodError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

impl PodError {
    /// What clients are told of a pod that could not be brought to its goal, in the words of the kubelet where it has
    /// some; nothing where it is only a matter of time.
    pub(super) fn problem(&self) -> Option<PodProblem> {
        let reason = match self {
            Self::NotFound(_) | Self::BeingRemoved(_) | Self::Unsettled(_) => return None,
            Self::Container(ContainerError::Image(error)) => image_reason(error),
            Self::Container(ContainerError::ImageGone(_)) => "ErrImagePull",
            Self::Container(ContainerError::Runtime { step, .. }) if step.starts_with("start") => "RunContainerError",
            Self::Container(ContainerError::NoInfra(_)) => "FailedCreatePodSandBox",
            Self::Volumes(_) => "FailedMount",
            _ => "CreateContainerError",
        };
        Some(PodProblem {
            reason: reason.to_owned(),
            message: self.to_string(),
        })
    }
}

fn image_reason(error: &ImageError) -> &'static str {
    match error {
        ImageError::EmptyRepository | ImageError::InvalidReference(_) => "InvalidImageName",
        // Only a policy that never pulls ends so.
        ImageError::NotFound(_) => "ErrImageNeverPull",
        ImageError::ManifestNotFound(_)
        | ImageError::NoPlatform { .. }
        | ImageError::Registry { .. }
        | ImageError::BadImage { .. }
        | ImageError::BadLayer { .. } => "ErrImagePull",
        _ => "CreateContainerError",
    }
}
