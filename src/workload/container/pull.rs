//! When to ask the registry for a container's image.

use std::sync::Arc;

use super::{ContainerError, ContainerService};
use crate::image::{ImageError, ImageRef, Platform};
use crate::model::{Image, PullPolicy};

/// The default pull policy for an image of a pod, as in Kubernetes: always pull a moving tag, pull every other
/// reference only if absent. References that cannot be parsed are refused elsewhere.
pub fn pull_policy_of(image: &str) -> PullPolicy {
    match ImageRef::parse(image) {
        Ok(image) if image.reference() == "latest" => PullPolicy::Latest,
        _ => PullPolicy::IfNotPresent,
    }
}

impl ContainerService {
    /// The image, obtained by a policy. With [`PullPolicy::Always`] an unreachable registry is a failure even if the
    /// image is here, because it may be out of date.
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

/// Adds a hint: the image is here, but the policy required the registry. The user may not know of the other policies.
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
