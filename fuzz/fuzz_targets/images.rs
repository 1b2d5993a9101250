//! Archives of images (oci-archive, docker-archive): whatever they are, they end in files of their own directory, and one
//! that is refused is never the file system's fault.

#![no_main]

use std::sync::LazyLock;

use condenser_fuzz::{Failure, Place, load};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let archive = with_checksums(bytes);
    PLACE.with_root(|root| match load(&archive, root) {
        Ok(()) | Err(Failure::Refused(_)) => {}
        Err(Failure::System(message)) => panic!("{message}"),
    });
});

/// Gives every header its checksum and leaves contents as they are: documents and digests are to stay what they are.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + 512) {
        let size = std::str::from_utf8(&header[124..135]).unwrap_or_default();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        if header.iter().any(|b| *b != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        at = at.saturating_add(512).saturating_add(size.next_multiple_of(512));
        if at > bytes.len() {
            break;
        }
    }
    bytes
}
