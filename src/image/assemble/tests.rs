use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tar::EntryType;

use super::super::testing::Tar;
use super::super::tree::TreeError;
use super::super::unpack::{unpack, unpack_recorded};
use super::*;

struct Lab {
    _root: tempfile::TempDir,
    store: LayerStore,
}

impl Lab {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = LayerStore::open(root.path()).unwrap();
        Self { _root: root, store }
    }

    /// Unpacks an archive into the store.
    fn add(&self, archive: &[u8]) -> Result<Link, TreeError> {
        let diff_id = Digest::of(archive);
        let staged = self.store.stage().unwrap();
        let (skeleton, file) = self.store.stage_file().unwrap();
        unpack_recorded(archive, staged.path(), 1000, file)?;
        self.store
            .publish_file(skeleton, &self.store.skeleton_of(&diff_id))
            .unwrap();
        self.store.publish_layer(staged, &diff_id).unwrap();
        let chain_id = diff_id;
        Ok(Link { diff_id, chain_id })
    }

    fn assembled(&self, link: &Link) -> io::Result<Vec<u8>> {
        let layer = Assembled::open(&self.store, link)?;
        let mut out = Vec::new();
        layer.write(&mut out)?;
        assert_eq!(layer.size, out.len() as u64);
        Ok(out)
    }

    fn check(&self, archive: &[u8]) {
        let link = self.add(archive).unwrap();
        let found = self.assembled(&link).unwrap();
        assert!(found == archive, "{} bytes of {}", found.len(), archive.len());
    }
}

fn big(byte: u8) -> Vec<u8> {
    (0..300_000_u32).map(|n| byte ^ (n % 251) as u8).collect()
}

#[rstest::rstest]
#[case::nothing(Tar::new())]
#[case::plain(Tar::new().dir("d", 0o700).file("d/f", "1").file("empty", "").symlink("l", "d").owner(7, 8).file("g", big(1)))]
#[case::padding(Tar::new().file("a", "1").file("b", vec![1; 511]).file("c", vec![1; 512]).file("d", vec![1; 513]))]
#[case::twice(Tar::new().file("a", "first").file("b", "x").file("a", "second").file("a", big(3)))]
#[case::twice_through_a_link(Tar::new().file("usr/lib/x", "1").symlink("lib", "usr/lib").file("lib/x", "2").file("usr/lib/x", "3"))]
#[case::a_link_that_gives_way(Tar::new().symlink("lib", "usr/lib").file("lib/x", "2").dir("lib", 0o755).file("lib/x", "3"))]
#[case::hard_links(Tar::new().file("a", "one").hard_link("b", "a").file("a", "two").hard_link("c", "a").file("b", "three"))]
#[case::link_over_its_target(Tar::new().file("a", "one").file("b", "two").hard_link("a", "b").file("b", "3").file("c", ""))]
#[case::directory_gives_way(Tar::new().file("d/e/f", big(1)).file("d/g", "2").hard_link("h", "d/g").file("d", "now a file").dir("d", 0o755).file("d/g", "again"))]
#[case::whiteouts(Tar::new().file(".wh.a", "with content").file("d/.wh..wh..opq", "").file("d/f", "1").file(".wh.d", ""))]
#[case::aufs(Tar::new().file(".wh..wh.plnk/1.2", big(5)).hard_link("f", ".wh..wh.plnk/1.2").file(".wh..wh.aufs", "ignored").file("d/.wh..wh.x/y", "ignored"))]
#[case::long_names(Tar::new().file(b"n".repeat(200), "1").symlink(b"s".repeat(200), b"t".repeat(300)).file([b"d/".repeat(90), b"f".to_vec()].concat(), "2"))]
#[case::pax(Tar::new().pax(&[("path", b"long\nname"), ("mtime", b"12.5"), ("SCHILY.xattr.user.a", b"\0\n")]).file("short", big(2)))]
#[case::pax_global(Tar::new().entry(EntryType::XGlobalHeader, b"g", 0, b"", b"13 comment=x\n").entry(EntryType::new(b'V'), b"volume", 0, b"", b"").file("f", "1"))]
#[case::odd_names(Tar::new().file("./a//b/../c", "1").file("/abs", "2").file(b"\xff\xfe", "3"))]
#[case::nodes(Tar::new().node(EntryType::Fifo, "fifo", 0o600, (0, 0)).file("fifo", "file").node(EntryType::Char, "null", 0o600, (1, 3)))]
#[case::sparse(Tar::new().file("hole", vec![0; 1 << 20]).file("both", [vec![0; 200_000], big(1), vec![0; 4096]].concat()))]
fn the_same_archive_comes_out(#[case] tar: Tar) {
    let lab = Lab::new();
    lab.check(&tar.clone().build());
    // Ends of all kinds: none, half of one, much padding, and something that no reader looks at.
    let open = tar.open_end();
    lab.check(&open);
    for end in [vec![0; 512], vec![0; 10_240], [vec![0; 1024], big(9)].concat()] {
        lab.check(&[&open[..], &end].concat());
    }
}

#[test]
fn a_missing_last_padding_stays_missing() {
    let archive = Tar::new().file("a", "12").open_end();
    Lab::new().check(&archive[..archive.len() - 510]);
}

#[test]
fn zeros_become_holes() {
    let lab = Lab::new();
    let link = lab.add(&Tar::new().file("hole", vec![0; 8 << 20]).build()).unwrap();
    let file = std::fs::metadata(lab.store.layer(&link.diff_id).join("hole")).unwrap();
    assert_eq!(file.len(), 8 << 20);
    assert!(file.blocks() * 512 < 1 << 20, "{} blocks", file.blocks());
}

#[test]
fn a_skeleton_is_small() {
    let lab = Lab::new();
    let tar = (0..900).fold(Tar::new(), |tar, n| {
        tar.file(format!("usr/share/doc/file-{n}"), big(n as u8))
    });
    let link = lab.add(&tar.build()).unwrap();
    let size = std::fs::metadata(lab.store.skeleton_of(&link.diff_id)).unwrap().len();
    assert!(size < 64 << 10, "{size} bytes");
}

#[test]
fn what_was_changed_on_disk_is_noticed() {
    let lab = Lab::new();
    let link = lab.add(&Tar::new().file("a", "12").file("b", "3").build()).unwrap();
    let path = lab.store.layer(&link.diff_id).join("a");
    for (change, reason) in [("13", "were changed on disk"), ("1", "1 bytes instead of 2")] {
        std::fs::write(&path, change).unwrap();
        let error = lab.assembled(&link).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(
        lab.assembled(&link)
            .unwrap_err()
            .to_string()
            .contains("/a: No such file")
    );
    // A link in the place of a file is not followed.
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    lab.assembled(&link).unwrap_err();
    let skeleton = lab.store.skeleton_of(&link.diff_id);
    let body = std::fs::read(&skeleton).unwrap();
    std::fs::write(&skeleton, &body[..body.len() / 2]).unwrap();
    lab.assembled(&link).unwrap_err();
    std::fs::write(&skeleton, zstd::encode_all(&b"CNDSKEL1X"[..], 1).unwrap()).unwrap();
    assert!(lab.assembled(&link).unwrap_err().to_string().contains("is damaged"));
}

#[test]
fn a_layer_without_a_skeleton_is_captured() {
    let lab = Lab::new();
    let archive = Tar::new()
        .dir("d", 0o750)
        .file("d/f", "1")
        .file("gone/.wh.x", "")
        .build();
    let link = lab.add(&archive).unwrap();
    std::fs::remove_file(lab.store.skeleton_of(&link.diff_id)).unwrap();
    let layer = Assembled::open(&lab.store, &link).unwrap();
    let mut captured = Vec::new();
    layer.write(&mut captured).unwrap();
    assert_ne!(layer.diff_id, link.diff_id);
    assert_eq!(layer.diff_id, Digest::of(&captured));
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    unpack(&captured[..], root.path(), 100).unwrap();
    assert_eq!(std::fs::read_to_string(root.path().join("d/f")).unwrap(), "1");
    assert_eq!(std::fs::symlink_metadata(root.path().join("gone/x")).unwrap().rdev(), 0);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_unpacks_can_be_assembled(steps in proptest::collection::vec((0..7_u8, 0..4_u8, 0..4_u8, 0..3000_usize), 1..25)) {
        const NAMES: [&str; 4] = ["a", "d/a", "d", "d/e/b"];
        let tar = steps.into_iter().fold(Tar::new(), |tar, (kind, name, other, size)| {
            let (name, other) = (NAMES[usize::from(name)], NAMES[usize::from(other)]);
            match kind {
                0..3 => tar.file(name, vec![kind + 1; size]),
                3 => tar.dir(name, 0o755),
                4 => tar.hard_link(name, other),
                5 => tar.symlink(name, other),
                _ => tar.file(format!("d/.wh.{}", name.replace('/', "-")), vec![7; size % 9]),
            }
        });
        let lab = Lab::new();
        let archive = tar.build();
        // Some of these archives are refused, as they should be.
        if let Ok(link) = lab.add(&archive) {
            proptest::prop_assert!(lab.assembled(&link).unwrap() == archive);
        }
    }
}
