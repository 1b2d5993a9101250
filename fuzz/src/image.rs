#[path = "../../src/image/archive.rs"]
pub(crate) mod archive;
#[path = "../../src/image/printable.rs"]
pub(crate) mod printable;
#[path = "../../src/image/tree.rs"]
pub(crate) mod tree;
#[path = "../../src/image/unpack.rs"]
mod unpack;

use std::path::Path;

use tree::TreeError;

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
