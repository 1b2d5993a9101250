//! When the image of a container is asked for at its registry.

use std::sync::Arc;

use super::{ContainerError, ContainerService};
use crate::image::{ImageError, ImageRef, Platform};
use crate::model::{Image, PullPolicy};

/// The policy for an image of a pod of which nobody says when to pull it, as Kubernetes has it: a tag that moves is asked
/// for every time, every other reference when it is not there. What cannot be parsed is refused elsewhere.
pub fn pull_policy_of(image: &str) -> PullPolicy {
    match ImageRef::parse(image) {
        Ok(image) if image.reference() == "latest" => PullPolicy::Latest,
        _ => PullPolicy::IfNotPresent,
    }
}

impl ContainerService {
    /// The image, by the rules of a policy. With [`PullPolicy::Always`] a registry that does not answer is a failure also
    /// when the image is here: nobody could tell whether it is the right one.
    pub async fn obtain_image(&self, image: &ImageRef, policy: PullPolicy) -> Result<Arc<Image>, ContainerError> {
        let policy = match policy {
            PullPolicy::Latest if self.0.settings.pull_latest => PullPolicy::Always,
            PullPolicy::Latest => PullPolicy::IfNotPresent,
            other => other,
        };
        let images = &self.0.services.images;
        let obtained = match policy {
            PullPolicy::Always | PullPolicy::Latest => images.pull(image, &Platform::host()).await,
            PullPolicy::IfNotPresent => images.ensure(image, &Platform::host()).await,
            PullPolicy::Never => images.get(image),
        };
        obtained.map_err(|error| match policy {
            PullPolicy::Always if images.get(image).is_ok() => with_way_out(error).into(),
            _ => error.into(),
        })
    }
}

/// An image that is here is not used because the registry was to be asked: the user may not know that there is a choice.
fn with_way_out(error: ImageError) -> ImageError {
    let way_out = |message: String| {
        format!("{message} (an image of that name is here; imagePullPolicy: IfNotPresent would use it)")
    };
    match error {
        ImageError::Registry {
            registry,
            trouble,
            message,
        } => ImageError::Registry {
            registry,
            trouble,
            message: way_out(message),
        },
        ImageError::ManifestNotFound(message) => ImageError::ManifestNotFound(way_out(message)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_move_are_asked_for_every_time() {
        for image in [
            "nginx",
            "nginx:latest",
            "reg.example:5000/a/b",
            "docker.io/library/nginx:latest",
        ] {
            assert_eq!(pull_policy_of(image), PullPolicy::Latest, "{image}");
        }
        let digest = format!("nginx@sha256:{}", "a".repeat(64));
        for image in ["nginx:1", "reg.example:5000/a:latest-1", &digest, "nginx:LATEST", ""] {
            assert_eq!(pull_policy_of(image), PullPolicy::IfNotPresent, "{image}");
        }
    }
}
