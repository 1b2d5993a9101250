#[path = "../../src/image/archive.rs"]
pub(crate) mod archive;
#[path = "../../src/image/printable.rs"]
pub(crate) mod printable;
#[path = "../../src/image/tree.rs"]
pub(crate) mod tree;
#[path = "../../src/image/unpack.rs"]
mod unpack;

#[path = "../../src/image/artifact.rs"]
mod artifact;
#[path = "../../src/image/digest.rs"]
mod digest;
#[path = "../../src/image/documents.rs"]
mod documents;
#[path = "../../src/image/health.rs"]
mod health;
#[path = "../../src/image/index_entry.rs"]
mod index_entry;
#[path = "../../src/image/json_null.rs"]
mod json_null;
#[path = "../../src/image/manifest.rs"]
mod manifest;
#[path = "../../src/image/platform.rs"]
mod platform;
#[path = "../../src/image/reference.rs"]
mod reference;
#[path = "../../src/image/skeleton.rs"]
mod skeleton;
#[path = "bundle.rs"]
mod bundle;

use std::path::Path;

use tree::TreeError;

pub use bundle::load;
pub(crate) use platform::Platform;
pub(crate) use reference::ImageRef;

/// What the files here know of the library's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("empty repository")]
    EmptyRepository,
    #[error("invalid image reference: {0}")]
    InvalidReference(String),
}

/// Why something was not unpacked.
#[derive(Debug)]
pub enum Failure {
    /// The archive's fault.
    Refused(String),
    /// The file system's.
    System(String),
}

/// Unpacks a layer of at most 2000 entries.
pub fn unpack_layer(archive: &[u8], root: &Path) -> Result<(), Failure> {
    unpack::unpack(archive, root, 2000).map_err(|e| match e {
        TreeError::Refused(message) => Failure::Refused(message),
        TreeError::System(message) => Failure::System(message),
    })
}
