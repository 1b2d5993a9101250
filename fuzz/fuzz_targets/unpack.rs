//! Unpacking layers and build contexts: nothing outside of the root changes, and an archive is never the file system's
//! fault.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use condenser_fuzz::{Failure, Place, fill_context, mend, unpack_layer};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let archive = mend(bytes);
    for unpack in [unpack_layer, fill_context] as [fn(&[u8], &Path) -> Result<(), Failure>; 2] {
        PLACE.with_root(|root| match unpack(&archive, root) {
            Ok(()) => {}
            Err(Failure::Refused(message)) => {
                assert!(
                    !message.contains(char::is_control),
                    "{message:?} has more than one line"
                );
            }
            Err(Failure::System(message)) => panic!("{message}"),
        });
    }
});
