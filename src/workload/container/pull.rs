//! When to ask the registry for a container's image.

use std::sync::Arc;

use super::{ContainerError, ContainerService};
use crate::image::printable::printable;
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

/// Refuses an image whose programs cannot run here. One that an emulator runs (`binfmt_misc`) is fine.
pub(super) fn check_platform(image: &Image) -> Result<(), ImageError> {
    let host = Platform::host();
    let is_linux = image.os.is_empty() || image.os == host.os;
    if host.runs(&image.os, &image.architecture) || is_linux && is_emulated(&image.architecture) {
        return Ok(());
    }
    let platform = Platform::parse(&image.os, &image.architecture);
    Err(ImageError::OtherPlatform {
        image: image.id.clone(),
        platform: printable(platform.to_string().as_bytes()),
        host: host.to_string(),
    })
}

/// Whether the kernel hands programs of that architecture to QEMU, under the name that the packages of QEMU register.
fn is_emulated(architecture: &str) -> bool {
    let name = match architecture {
        "386" => "i386",
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "loong64" => "loongarch64",
        "mips64le" => "mips64el",
        same @ ("arm" | "mips64" | "ppc64le" | "riscv64" | "s390x") => same,
        _ => return false,
    };
    let rule = fs_err::read_to_string(format!("/proc/sys/fs/binfmt_misc/qemu-{name}"));
    rule.is_ok_and(|text| text.starts_with("enabled"))
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
    fn an_image_of_another_platform_is_told_apart() {
        let image = |os: &str, architecture: &str| Image {
            id: "team/app:1".into(),
            repository: "team/app".into(),
            reference: "1".into(),
            manifest_digest: String::new(),
            config_digest: String::new(),
            size_bytes: 0,
            layers: Vec::new(),
            config: crate::model::ImageRunConfig::default(),
            os: os.into(),
            architecture: architecture.into(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let host = Platform::host();
        check_platform(&image("linux", &host.architecture)).unwrap();
        check_platform(&image("", "")).unwrap();
        let error = check_platform(&image("windows", "amd64")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("image team/app:1 is for windows/amd64; this host runs {host}")
        );
        let error = check_platform(&image("linux", "sparc64")).unwrap_err().to_string();
        assert!(error.contains("is for linux/sparc64"), "{error}");
    }

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
