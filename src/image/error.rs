use crate::base::cause::Cause;
use crate::model::Taken;
use crate::ops::task::Unfinished;
use crate::store::StoreError;

/// Why an image operation failed. `api` maps each variant to a status (`docs/spec/api.md` 7); the texts are the tails
/// of its messages.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The reference is empty or has no name.
    #[error("empty repository: name an image, as in alpine:3.20 or registry.example:5000/team/app:1.0")]
    EmptyRepository,
    /// The reference does not match the grammar of `docs/spec/api.md` 4.5. Holds the text.
    #[error("invalid image reference: {0}")]
    InvalidReference(String),
    /// The registry does not have the manifest. Holds the body of its answer.
    #[error("manifest fetch failed: 404: {0}")]
    ManifestNotFound(String),
    /// The image does not exist for the platform.
    #[error("no manifest for platform {os}/{architecture}{offer}")]
    NoPlatform {
        /// Requested operating system.
        os: String,
        /// Requested architecture.
        architecture: String,
        /// Which platforms it exists for, as the tail of the message; may be empty.
        offer: String,
    },
    /// The image is present, but its programs cannot run here.
    #[error("image {image} is for {platform}; this host runs {host}")]
    OtherPlatform {
        /// Canonical string of the image.
        image: String,
        /// Its platform.
        platform: String,
        /// Platform of the host.
        host: String,
    },
    /// The image is not present. Holds its canonical string.
    #[error("{0} not found")]
    NotFound(String),
    /// A container uses the image.
    #[error("image {image} is used by container {container}; delete the container first")]
    InUse {
        /// Canonical string of the image.
        image: String,
        /// Name of one such container.
        container: String,
    },
    /// The registry cannot be reached, refuses the request, or sends an unusable answer.
    #[error("registry {registry}: {message}")]
    Registry {
        /// `host[:port]` of the registry.
        registry: String,
        /// Of which kind it is.
        trouble: RegistryTrouble,
        /// What went wrong.
        message: String,
    },
    /// The manifest or the configuration is not one of an image that can be used here.
    #[error("bad image {image}: {message}")]
    BadImage {
        /// Canonical string of the image.
        image: String,
        /// What is wrong with it.
        message: String,
    },
    /// The reference names an artifact that is not an image.
    #[error("{image} is not a container image{what}")]
    NotAnImage {
        /// Canonical string of the image.
        image: String,
        /// ` but …` or `: …`.
        what: String,
    },
    /// A layer does not match its digest, its size or the archive format, or it tries to escape its root.
    #[error("bad layer {layer}: {message}")]
    BadLayer {
        /// Digest of the blob.
        layer: String,
        /// What is wrong with it.
        message: String,
    },
    /// A layer is gone, or was copied without its extended attributes and has no record to restore them from. Holds
    /// its diff id.
    #[error(
        "layer {0} is missing, or was copied without its extended attributes; pull or build the image again, then repeat \
         this"
    )]
    LayerLost(String),
    /// The files that a build step left behind cannot become a layer.
    #[error("the files cannot be a layer: {0}")]
    NoLayer(String),
    /// The image does not fit on the disk.
    #[error(
        "the disk of the image store is full: {needed} bytes have to be free and {free} are; remove images or containers \
         (GET /v1/system/df says what takes space), then repeat this"
    )]
    DiskFull {
        /// How many bytes have to be free, at least.
        needed: u64,
        /// How many are.
        free: u64,
    },
    /// An archive that a client sent is none of images, or has invalid ones.
    #[error("invalid image archive: {0}")]
    BadArchive(String),
    /// A change of an image's settings is wrong.
    #[error("invalid change {0}")]
    InvalidChange(String),
    /// A digest cannot be given as a name. Holds the reference.
    #[error("{0} is a digest, which an image cannot be given as a name; use a tag")]
    DigestName(String),
    /// The image has no such user or group.
    #[error("the image has no {kind} {name:?} in /etc/{file}")]
    UnknownUser {
        /// `user` or `group`.
        kind: &'static str,
        /// The missing name.
        name: String,
        /// The file that was searched.
        file: &'static str,
    },
    /// The state store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image store on disk failed. The text contains the path.
    #[error("image store: {0}")]
    Io(#[source] Cause),
    /// Work ended without a result: a defect.
    #[error("image store: {work} unexpectedly: {source}")]
    Unfinished {
        /// `… ended` or `… failed`.
        work: &'static str,
        /// How it ended.
        source: Cause,
    },
    /// Another record has what the image needs, which images do not do.
    #[error("image store: {0}")]
    Taken(#[from] Taken),
    /// A pull that nobody waits for, or of which another part has failed.
    #[error("image store: the pull was given up")]
    GivenUp,
}

/// What a registry's failure asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryTrouble {
    /// Other credentials: it does not let us.
    Denied,
    /// Fewer requests.
    Limited,
    /// Something else.
    Other,
}

impl ImageError {
    /// Of work whose task has ended without a result.
    pub(super) fn unfinished(work: &'static str) -> impl Fn(tokio::task::JoinError) -> Self {
        move |error| Self::Unfinished {
            work,
            source: error.into(),
        }
    }
}

impl From<Unfinished> for ImageError {
    fn from(unfinished: Unfinished) -> Self {
        Self::Unfinished {
            work: "file work ended",
            source: unfinished.into(),
        }
    }
}

impl ImageError {
    /// Why something cannot be made of an image, in the words of the kubelet.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EmptyRepository | Self::InvalidReference(_) => "InvalidImageName",
            // Only a policy that never pulls ends so.
            Self::NotFound(_) => "ErrImageNeverPull",
            Self::ManifestNotFound(_)
            | Self::NoPlatform { .. }
            | Self::OtherPlatform { .. }
            | Self::Registry { .. }
            | Self::BadImage { .. }
            | Self::NotAnImage { .. }
            | Self::BadLayer { .. }
            | Self::DiskFull { .. } => "ErrImagePull",
            Self::InUse { .. }
            | Self::LayerLost(_)
            | Self::NoLayer(_)
            | Self::BadArchive(_)
            | Self::InvalidChange(_)
            | Self::DigestName(_)
            | Self::UnknownUser { .. }
            | Self::Unfinished { .. }
            | Self::Taken(_)
            | Self::GivenUp
            | Self::Store(_)
            | Self::Io(_) => "CreateContainerError",
        }
    }
}

impl From<std::io::Error> for ImageError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.into())
    }
}
