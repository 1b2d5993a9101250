//! Blobs that are larger than they look, or not what the configuration promised. The test's store takes 64 MiB and, from
//! 8 MiB on, 100 bytes for one.

use crate::Case;
use crate::builder::Tar;
use crate::support::images::content::{Layer, gzip, zstd};

pub fn cases() -> Vec<Case> {
    let zeros = |n: usize| Tar::new().file("f", vec![0; n]).build();
    let (small, large) = (zeros(6 << 20), zeros(20 << 20));
    let tar = Tar::new().file("f", "x").build();
    let blob = |archive: &[u8], blob: Vec<u8>| Layer {
        archive: archive.to_vec(),
        blob,
    };
    let ratio = "100 times its size (max_layer_ratio)";
    let pieces: Vec<u8> = large.chunks(1 << 20).flat_map(gzip).collect();
    let halves = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    let mut wrong = Layer::gzip(tar.clone());
    wrong.archive.extend([0; 512]);
    let mut cut = gzip(&tar);
    cut.truncate(cut.len() - 4);
    vec![
        // Zeros shrink to a thousandth of themselves, and are legitimate.
        Case::contained("zeros-below-the-size-of-the-ratio", Layer::gzip(small.clone()), &["f"]),
        Case::contained("zeros-not-compressed", Layer::plain(large.clone()), &["f"]),
        Case::refused("bomb-gzip", Layer::gzip(large.clone()), ratio),
        Case::refused("bomb-zstd", Layer::zstd(large.clone()), ratio),
        Case::refused("bomb-of-many-members", blob(&large, pieces), ratio),
        Case::refused("bomb-after-the-end", Layer::gzip(vec![0; 20 << 20]), ratio),
        Case::refused(
            "too-large",
            Layer::plain(zeros(64 << 20)),
            "more than 67108864 bytes (max_layer_bytes)",
        ),
        Case::contained("gzip-in-two-members", blob(&tar, halves), &["f"]),
        Case::refused(
            "gzip-in-gzip",
            blob(&gzip(&tar), gzip(&gzip(&tar))),
            "unexpected end of file",
        ),
        Case::refused(
            "gzip-then-garbage",
            blob(&tar, [gzip(&tar), vec![b'x'; 100]].concat()),
            "invalid gzip header",
        ),
        Case::refused("gzip-cut", blob(&tar, cut), ""),
        Case::refused("gzip-with-an-endless-name", blob(&tar, endless_name()), ""),
        Case::refused("zstd-with-a-huge-window", blob(&tar, huge_window()), "too much memory"),
        Case::refused("zstd-cut", blob(&tar, zstd(&tar)[..20].to_vec()), "incomplete frame"),
        Case::refused("diff-id-of-another", wrong, "diff id mismatch"),
    ]
}

/// The header of a member may hold a file name; this one does not end.
fn endless_name() -> Vec<u8> {
    let mut blob = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03".to_vec();
    blob.resize(4 << 20, b'n');
    blob
}

/// A frame that asks for 2 GiB of memory.
fn huge_window() -> Vec<u8> {
    let magic = 0xfd2f_b528_u32.to_le_bytes();
    let (no_flags, window) = (0, (31 - 10) << 3);
    // One last block, raw, of one byte.
    [&magic[..], &[no_flags, window], &[0x09, 0, 0, b'x']].concat()
}
