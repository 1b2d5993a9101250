use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use super::*;
use crate::image::digest::Digest;
use crate::image::record::Record;
use crate::image::stack::{digests, stack};
use crate::image::testing::{Tar, names, with_overlay};
use crate::image::unpack::unpack;

/// A store with the layers of an image, bottom first.
struct Lab {
    _root: tempfile::TempDir,
    store: Arc<LayerStore>,
    diff_ids: Vec<String>,
}

impl Lab {
    fn new(layers: Vec<Tar>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(LayerStore::open(root.path()).unwrap());
        let add = |tar: Tar| {
            let archive = tar.build();
            let diff_id = Digest::of(&archive);
            let staged = store.stage().unwrap();
            unpack(&archive[..], staged.path(), 1000).unwrap();
            store.publish_layer(staged, &diff_id).unwrap();
            diff_id.to_string()
        };
        let diff_ids = layers.into_iter().map(add).collect();
        Self {
            _root: root,
            store,
            diff_ids,
        }
    }

    fn settled(layers: Vec<Tar>) -> Self {
        let lab = Self::new(layers);
        settle(&lab.store, &stack(&lab.diff_ids)).unwrap();
        lab
    }

    fn lower_dirs(&self) -> Vec<PathBuf> {
        let stack = stack(&self.diff_ids);
        stack.iter().rev().map(|link| self.store.lower_dir(link)).collect()
    }

    /// Whether the layers below make a difference for the topmost one.
    fn is_laid_out(&self) -> bool {
        let top = *stack(&self.diff_ids).last().unwrap();
        self.store.lower_dir(&top) != self.store.layer(&top.diff_id)
    }
}

/// Mode, owner and group of a directory.
fn like(path: &Path) -> (u32, u32, u32) {
    let metadata = fs_err::symlink_metadata(path).unwrap();
    assert!(metadata.is_dir(), "{}", path.display());
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

#[test]
fn a_directory_that_is_only_named_is_that_of_the_layers_below() {
    let bottom = Tar::new()
        .dir("tmp", 0o1777)
        .owner(33, 44)
        .mtime(1_000_000_000)
        .pax(&[("SCHILY.xattr.user.note", b"x")])
        .dir("home", 0o700)
        .dir("home/web", 0o2750);
    let middle = Tar::new().file("tmp/a", "1").file("home/web/new/b", "2");
    let top = Tar::new().file("tmp/c", "3").dir("home", 0o755).file("home/web/d", "4");
    let lab = Lab::settled(vec![bottom, middle, top]);
    with_overlay(&lab.lower_dirs(), |merged| {
        assert_eq!(like(&merged.join("tmp")), (0o1777, 0, 0));
        assert_eq!(like(&merged.join("home")), (0o755, 0, 0), "the top describes it");
        assert_eq!(like(&merged.join("home/web")), (0o2750, 33, 44));
        assert_eq!(like(&merged.join("home/web/new")), (0o755, 0, 0), "nobody does");
        assert_eq!(
            names(merged),
            [
                "home/",
                "home/web/",
                "home/web/d",
                "home/web/new/",
                "home/web/new/b",
                "tmp/",
                "tmp/a",
                "tmp/c"
            ]
        );
    });
    let middle = lab.lower_dirs()[1].join("home");
    assert_eq!(fs_err::metadata(&middle).unwrap().mtime(), 1_000_000_000);
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&middle, "user.note", &mut value[..]), Ok(1));
}

#[test]
fn a_link_below_leads_to_where_things_belong() {
    let bottom = Tar::new()
        .symlink("bin", "usr/bin")
        .symlink("lib64", "/usr/./lib")
        .symlink("away", "nowhere")
        .owner(5, 5)
        .dir("usr", 0o711)
        .dir("usr/bin", 0o750)
        .file("usr/bin/sh", "sh")
        .symlink("usr/lib", "lib-1")
        .dir("usr/lib-1/private", 0o700);
    let top = Tar::new()
        .file("bin/tool", "1")
        .symlink("bin/alias", "tool")
        .file("bin/.wh.sh", "")
        .file("bin/sub/x", "2")
        .file("lib64/private/y", "3")
        .file("away/z", "4");
    let lab = Lab::settled(vec![bottom, top]);
    with_overlay(&lab.lower_dirs(), |merged| {
        assert_eq!(
            names(merged),
            [
                "away/",
                "away/z",
                "bin",
                "lib64",
                "usr/",
                "usr/bin/",
                "usr/bin/alias",
                "usr/bin/sub/",
                "usr/bin/sub/x",
                "usr/bin/tool",
                "usr/lib",
                "usr/lib-1/",
                "usr/lib-1/private/",
                "usr/lib-1/private/y"
            ]
        );
        assert_eq!(fs_err::read_link(merged.join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(like(&merged.join("usr")), (0o711, 5, 5));
        assert_eq!(like(&merged.join("usr/bin")), (0o750, 5, 5));
        assert_eq!(like(&merged.join("usr/lib-1/private")), (0o700, 5, 5));
    });
}

#[test]
fn links_of_links_and_layers_that_were_laid_out_below() {
    let bottom = Tar::new().symlink("a", "b").symlink("b", "c").dir("c", 0o1777);
    let middle = Tar::new().file("a/1", "");
    let top = Tar::new().file("b/2", "");
    let lab = Lab::settled(vec![bottom, middle, top]);
    with_overlay(&lab.lower_dirs(), |merged| {
        assert_eq!(names(merged), ["a", "b", "c/", "c/1", "c/2"]);
        assert_eq!(like(&merged.join("c")), (0o1777, 0, 0));
    });
}

#[rstest::rstest]
#[case::nothing_below(Tar::new().file("x", ""), Tar::new().file("tmp/a", ""))]
#[case::the_same_below(Tar::new().dir("tmp", 0o755), Tar::new().file("tmp/a", ""))]
#[case::all_described(Tar::new().dir("tmp", 0o1777), Tar::new().dir("tmp", 0o755).file("tmp/a", ""))]
#[case::described_later(Tar::new().dir("tmp", 0o1777), Tar::new().file("tmp/a", "").dir("tmp", 0o755))]
#[case::a_link_replaced(Tar::new().symlink("bin", "usr").dir("usr", 0o700), Tar::new().dir("bin", 0o755).file("bin/a/b", ""))]
#[case::a_file_below(Tar::new().file("tmp", ""), Tar::new().file("tmp/a", ""))]
#[case::hidden(Tar::new().dir("tmp", 0o1777), Tar::new().file(".wh.tmp", "").file("tmp/a", ""))]
#[case::opaque(Tar::new().dir("a/b", 0o1777), Tar::new().file("a/.wh..wh..opq", "").file("a/b/c", ""))]
#[case::a_link_to_itself(Tar::new().symlink("tmp", "tmp"), Tar::new().file("tmp/a", ""))]
fn no_second_layout_without_a_difference(#[case] bottom: Tar, #[case] top: Tar) {
    assert!(!Lab::settled(vec![bottom, top]).is_laid_out());
}

#[test]
fn what_hides_below_still_hides() {
    let bottom = Tar::new().dir("tmp", 0o1777).file("etc/a/old", "").file("etc/gone", "");
    let top = Tar::new()
        .file("tmp/x", "")
        .file("etc/a/.wh..wh..opq", "")
        .file("etc/a/new", "")
        .file("etc/.wh.gone", "");
    let lab = Lab::settled(vec![bottom, top]);
    assert!(lab.is_laid_out());
    with_overlay(&lab.lower_dirs(), |merged| {
        assert_eq!(names(merged), ["etc/", "etc/a/", "etc/a/new", "tmp/", "tmp/x"]);
    });
}

#[test]
fn places_that_meet_are_one() {
    let bottom = Tar::new().symlink("bin", "usr/bin").dir("usr/bin", 0o700);
    let top = Tar::new()
        .file("bin/a", "by the link")
        .file("bin/b", "")
        .dir("usr/bin", 0o711)
        .file("usr/bin/a", "")
        .file("usr/bin/c", "");
    let lab = Lab::settled(vec![bottom, top]);
    with_overlay(&lab.lower_dirs(), |merged| {
        assert_eq!(
            names(merged),
            ["bin", "usr/", "usr/bin/", "usr/bin/a", "usr/bin/b", "usr/bin/c"]
        );
        assert_eq!(like(&merged.join("usr/bin")), (0o711, 0, 0));
    });
    // The layer has something else where the link below leads.
    let bottom = Tar::new().symlink("a", "b").dir("b", 0o700);
    let top = Tar::new().file("a/x", "").symlink("b", "/etc");
    let lab = Lab::settled(vec![bottom, top]);
    assert!(!Path::new("/etc/x").exists());
    with_overlay(&lab.lower_dirs(), |merged| {
        assert_eq!(names(merged), ["a", "b/", "b/x"])
    });
}

#[test]
fn no_link_leads_out_of_the_image() {
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("d")).unwrap();
    let before = super::super::testing::listing(host.path());
    let path = host.path().to_str().unwrap();
    let up = format!("{}{}", "../".repeat(30), &path[1..]);
    let bottom = Tar::new()
        .symlink("abs", path)
        .symlink("up", up)
        .symlink("proc-root", format!("/proc/self/root{path}"))
        .dir(path.trim_start_matches('/'), 0o1777);
    let top = Tar::new()
        .file("abs/d/x", "")
        .file("up/y", "")
        .file("proc-root/z", "")
        .file("abs/.wh.d", "");
    let lab = Lab::settled(vec![bottom, top]);
    assert_eq!(super::super::testing::listing(host.path()), before);
    with_overlay(&lab.lower_dirs(), |merged| {
        let inside = merged.join(&path[1..]);
        assert!(inside.join("d/x").exists() && inside.join("y").exists());
        assert!(
            merged.join("proc-root/z").exists(),
            "that link led nowhere in the image"
        );
    });
}

#[test]
fn it_is_kept_and_swept_by_its_chain() {
    let layers = || vec![Tar::new().dir("tmp", 0o1777), Tar::new().file("tmp/x", "")];
    let lab = Lab::settled(layers());
    let top = stack(&lab.diff_ids)[1];
    assert!(lab.is_laid_out());
    // Files are there once.
    let file = fs_err::metadata(lab.store.layer(&top.diff_id).join("tmp/x")).unwrap();
    assert_eq!(file.nlink(), 2);
    // A plain copy of it becomes what it was.
    let path = lab.store.layer(&top.chain_id);
    lab.store.record_all(&lab.store.take_unrecorded());
    let record = Record::of(&path).unwrap();
    rustix::fs::removexattr(&path, super::super::tree::DIFF_ID).unwrap();
    assert!(!lab.is_laid_out());
    assert!(lab.store.mend(&top.chain_id).unwrap() && lab.is_laid_out());
    assert_eq!(Record::of(&path).unwrap(), record);
    // Without its mark it is made again.
    rustix::fs::removexattr(&path, super::super::tree::DIFF_ID).unwrap();
    std::fs::set_permissions(path.join("tmp"), PermissionsExt::from_mode(0o700)).unwrap();
    settle(&lab.store, &stack(&lab.diff_ids)).unwrap();
    assert_eq!(like(&path.join("tmp")), (0o1777, 0, 0));
    let kept = || digests(&lab.diff_ids).into_iter().collect();
    drop(lab.store.sweep(kept).unwrap());
    assert!(lab.is_laid_out());
    drop(lab.store.sweep(|| [top.diff_id].into()).unwrap());
    assert!(!lab.is_laid_out());
}

#[test]
fn of_equal_layers_the_upper_one_counts() {
    let ids: Vec<String> = ["a", "b", "a"].map(|x| Digest::of(x.as_bytes()).to_string()).into();
    let links = stack(&ids);
    assert_eq!(links.len(), 2);
    assert_eq!(links[0].diff_id.to_string(), ids[1]);
    assert_eq!(
        (links[0].chain_id, links[1].diff_id.to_string()),
        (links[0].diff_id, ids[0].clone())
    );
    let chain = format!("{} {}", ids[1], ids[0]);
    assert_eq!(links[1].chain_id, Digest::of(chain.as_bytes()));
}
