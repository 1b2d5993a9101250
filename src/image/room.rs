//! Keeps what is unpacked from filling the disk: everything else on this host, the state of the daemon too, may be on it.
//!
//! A pull that cannot fit fails before its first layer; one that turns out not to fit fails while there is still a reserve.
//! Either way its layers are swept and nothing of it is left.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ImageError;
use super::layers::LayerStore;
use crate::base::space::{self, Free};

/// What is left free: this much, or a part of a small file system.
const RESERVE: u64 = 64 << 20;
const RESERVE_PART: u64 = 20;
/// Objects that are left free.
const RESERVE_OBJECTS: u64 = 1024;
/// What compressed layers take at least once they are unpacked, as a fraction of their size. Programs take two to three
/// times as much; what is compressed already (models, media) hardly more than once.
const UNPACKED: (u64, u64) = (5, 4);
/// How many bytes of an archive pass between two looks at the disk.
const INTERVAL: u64 = 8 << 20;

/// A look at the file system of the store from time to time.
pub(super) struct Room {
    directory: fs_err::File,
    /// Set once the reserve was touched.
    is_used_up: AtomicBool,
}

impl Room {
    pub(super) fn new(layers: &LayerStore) -> io::Result<Self> {
        Ok(Self {
            directory: layers.directory()?,
            is_used_up: AtomicBool::new(false),
        })
    }

    /// Fails when less than the reserve is free. To be called with the number of bytes so far and that before; looks only
    /// now and then.
    pub(super) fn check(&self, before: u64, now: u64) -> io::Result<()> {
        if before / INTERVAL == now / INTERVAL && before > 0 {
            return Ok(());
        }
        let free = space::free(&self.directory)?;
        if !is_low(&free) {
            return Ok(());
        }
        self.is_used_up.store(true, Ordering::Relaxed);
        Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full"))
    }

    /// The error of what failed, if the disk was the reason. `failed_to_write`: it was an error of the file system.
    pub(super) fn reason(&self, failed_to_write: bool) -> Option<ImageError> {
        let free = space::free(&self.directory).ok()?;
        let is_full = failed_to_write && is_low(&free);
        (is_full || self.is_used_up.load(Ordering::Relaxed)).then(|| ImageError::DiskFull {
            needed: reserve(&free),
            free: free.bytes,
        })
    }
}

/// Fails if layers of that compressed size cannot fit.
pub(super) fn check_fits(layers: &LayerStore, compressed: u64) -> Result<(), ImageError> {
    let free = space::free(layers.directory()?)?;
    let (times, by) = UNPACKED;
    let unpacked = compressed.saturating_mul(times) / by;
    let needed = unpacked.saturating_add(reserve(&free));
    match needed <= free.bytes {
        true => Ok(()),
        false => Err(ImageError::DiskFull {
            needed,
            free: free.bytes,
        }),
    }
}

fn is_low(free: &Free) -> bool {
    free.bytes < reserve(free) || free.objects < RESERVE_OBJECTS.min(free.objects_total / RESERVE_PART)
}

fn reserve(free: &Free) -> u64 {
    RESERVE.min(free.total_bytes / RESERVE_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_keeps_a_part_free() {
        let free = |total_bytes| Free {
            bytes: 0,
            objects: 0,
            objects_total: 0,
            total_bytes,
        };
        assert_eq!(reserve(&free(100 << 20)), 5 << 20);
        assert_eq!(reserve(&free(1 << 40)), RESERVE);
    }

    #[test]
    fn what_cannot_fit_is_refused_before_it_begins() {
        let root = tempfile::tempdir().unwrap();
        let layers = LayerStore::open(root.path()).unwrap();
        check_fits(&layers, 1 << 10).unwrap();
        let ImageError::DiskFull { needed, free } = check_fits(&layers, u64::MAX).unwrap_err() else {
            panic!("another error");
        };
        assert!(needed > free);
        let room = Room::new(&layers).unwrap();
        room.check(0, 1).unwrap();
        assert!(room.reason(true).is_none() && room.reason(false).is_none());
    }
}
