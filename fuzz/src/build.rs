#[path = "../../src/build/context.rs"]
mod context;

use std::path::Path;

use context::{ContextError, Limits};

use crate::Failure;

/// Unpacks a build context of at most 2000 entries.
pub fn fill_context(archive: &[u8], root: &Path) -> Result<(), Failure> {
    let limits = Limits {
        bytes: 1 << 20,
        entries: 2000,
    };
    context::unpack(archive, root, limits).map_err(|e| match e {
        ContextError::Invalid(message) | ContextError::TooLarge(message) => Failure::Refused(message),
        ContextError::System(message) => Failure::System(message),
    })
}
