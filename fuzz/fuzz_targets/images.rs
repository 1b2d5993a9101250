//! Archives of images (oci-archive, docker-archive): whatever they are, they end in files of their own directory, and one
//! that is refused is never the file system's fault.

#![no_main]

use std::sync::LazyLock;

use condenser_fuzz::{Failure, Place, load, mend};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let archive = mend(bytes);
    PLACE.with_root(|root| match load(&archive, root) {
        Ok(()) | Err(Failure::Refused(_)) => {}
        Err(Failure::System(message)) => panic!("{message}"),
    });
});
