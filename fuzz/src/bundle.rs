#[path = "../../src/image/bundle/index.rs"]
mod index;
#[path = "../../src/image/bundle/spool.rs"]
mod spool;

use std::path::Path;

use super::{Failure, Platform};
use spool::{Spool, SpoolError};

/// Takes an archive apart and reads what images it has.
pub fn load(archive: &[u8], directory: &Path) -> Result<(), Failure> {
    let spool = Spool::fill(archive, directory);
    let found = spool.and_then(|spool| index::images(&spool, &Platform::parse("linux", "amd64")));
    match found {
        Ok(found) => {
            assert!(!found.is_empty());
            for image in found {
                assert_eq!(image.read.diff_ids.len(), image.layers.len());
                assert!(image.layers.iter().all(|(_, file)| file.path.starts_with(directory)));
            }
            Ok(())
        }
        Err(SpoolError::Refused(message)) => Err(Failure::Refused(message)),
        Err(SpoolError::System(error)) => Err(Failure::System(error.to_string())),
    }
}
