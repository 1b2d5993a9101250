//! Trees that containers change between record, copy and restore.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, XattrFlags};

use super::*;

fn plenty() -> Allowance {
    Allowance {
        until: Some(Instant::now() + Duration::from_secs(60)),
        ..Allowance::UNLIMITED
    }
}

fn noted(root: &Path) -> Vec<Entry> {
    record_tree(root, &mut plenty()).unwrap()
}

fn program(path: &Path, owner: u32, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "program").unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn attribute(path: &Path) {
    rustix::fs::setxattr(path, "user.noted", b"1", XattrFlags::empty()).unwrap();
}

fn state(path: &Path) -> (u32, u32, usize) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let attributes = rustix::fs::llistxattr(path, &mut [0; 1024][..]).unwrap();
    (metadata.mode(), metadata.uid(), attributes)
}

/// A tree, and beside it a directory with the same names as `a` in the tree.
fn tree() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
    program(&tree.join("a/bash"), 1001, 0o4755);
    program(&tree.join("a/deeper/bash"), 1001, 0o4755);
    program(&tree.join("kept/bash"), 1001, 0o4755);
    attribute(&tree.join("a/bash"));
    program(&outside.join("bash"), 0, 0o755);
    program(&outside.join("deeper/bash"), 0, 0o755);
    (dir, tree, outside)
}

#[test]
fn a_link_in_the_place_of_a_directory_is_not_followed() {
    for target in ["../outside", "absolute"] {
        let (_dir, tree, outside) = tree();
        let (entries, record) = (noted(&tree), Record::of(&tree).unwrap());
        std::fs::rename(tree.join("a"), tree.join("b")).unwrap();
        let target = if target == "absolute" {
            outside.clone()
        } else {
            target.into()
        };
        symlink(target, tree.join("a")).unwrap();
        chown(tree.join("kept/bash"), Some(77), Some(77)).unwrap();
        let before = ["", "bash", "deeper", "deeper/bash"].map(|name| state(&outside.join(name)));

        restore_tree(&tree, &entries).unwrap();
        assert!(!record.restore(&tree).unwrap());
        let after = ["", "bash", "deeper", "deeper/bash"].map(|name| state(&outside.join(name)));
        assert_eq!(after, before);
        let (mode, uid, _) = state(&tree.join("kept/bash"));
        assert_eq!((mode & 0o7777, uid), (0o4755, 1001), "the others get theirs");
    }
}

#[test]
fn what_is_something_else_now_stays_as_it_is() {
    let (_dir, tree, outside) = tree();
    let entries = noted(&tree);
    let text = serde_json::to_string(&entries).unwrap();
    let entries: Vec<Entry> = serde_json::from_str(&text).unwrap();
    let file = tree.join("a/bash");
    let makes: [(&str, &dyn Fn()); 4] = [
        ("directory", &|| std::fs::create_dir(&file).unwrap()),
        ("link", &|| symlink(outside.join("bash"), &file).unwrap()),
        ("pipe", &|| {
            rustix::fs::mknodat(CWD, &file, FileType::Fifo, Mode::RUSR, 0).unwrap();
        }),
        ("other content", &|| std::fs::write(&file, "another program").unwrap()),
    ];
    for (what, make) in makes {
        let _ = std::fs::remove_file(&file).or_else(|_| std::fs::remove_dir(&file));
        make();
        let before = (state(&file), state(&outside.join("bash")));
        restore_tree(&tree, &entries).unwrap();
        assert_eq!((state(&file), state(&outside.join("bash"))), before, "{what}");
    }
}

#[test]
fn notes_of_an_earlier_version_count() {
    let (_dir, tree, _) = tree();
    let mut record = Record::of(&tree).unwrap();
    for entry in &mut record.entries {
        (entry.mode, entry.content) = (entry.mode & 0o7777, None);
    }
    chown(tree.join("a/bash"), Some(77), Some(77)).unwrap();
    assert!(record.restore(&tree).unwrap());
    let (mode, uid, _) = state(&tree.join("a/bash"));
    assert_eq!((mode & 0o7777, uid), (0o4755, 1001));
}

#[test]
fn a_tree_deeper_than_names_are_long_is_noted_as_far_as_they_go() {
    let (_dir, tree, _) = tree();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = rustix::fs::open(&tree, flags, Mode::empty()).unwrap();
    for _ in 0..2100 {
        rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "d", flags, Mode::empty()).unwrap();
    }
    let deep = tree.join("d/".repeat(1500));
    chown(&deep, Some(1001), None).unwrap();
    let entries = noted(&tree);
    chown(&deep, Some(77), None).unwrap();
    restore_tree(&tree, &entries).unwrap();
    assert_eq!((state(&deep).1, state(&tree.join("a/bash")).1), (1001, 1001));
}

#[test]
fn a_directory_that_becomes_a_link_while_it_is_read_is_not_left() {
    let (_dir, tree, outside) = tree();
    program(&outside.join("secret"), 1001, 0o600);
    symlink(&outside, tree.join("link")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let (a, b) = (tree.join("a"), tree.join("link"));
                rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let secret = |entry: &Entry| entry.path.ends_with("secret");
        let wrong = (0..2000).find_map(|_| match record_tree(&tree, &mut plenty()) {
            Ok(entries) => entries.into_iter().find(secret).map(|entry| format!("{entry:?}")),
            Err(error) => Some(error.to_string()),
        });
        over.store(true, Ordering::Relaxed);
        assert_eq!(wrong, None);
    });
}

#[test]
fn notes_have_bounds() {
    let (_dir, tree, _) = tree();
    for n in 0..50 {
        std::fs::write(tree.join(format!("{n}")), "").unwrap();
    }
    let refused = |mut allowance: Allowance, why: &str| {
        let bytes = allowance.bytes;
        let error = record_tree(&tree, &mut allowance).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(allowance.bytes, bytes);
    };
    refused(
        Allowance {
            entries: 40,
            ..plenty()
        },
        "has more than 40 entries",
    );
    refused(Allowance { bytes: 250, ..plenty() }, "too large");
    let now = Some(Instant::now());
    refused(Allowance { until: now, ..plenty() }, "no time was left");
    let mut allowance = Allowance {
        bytes: 10_000,
        ..plenty()
    };
    assert_eq!(record_tree(&tree, &mut allowance).unwrap().len(), 3);
    assert!((8_000..9_700).contains(&allowance.bytes), "{}", allowance.bytes);
}

#[test]
fn a_tree_that_is_a_link_itself_is_no_tree() {
    let (dir, tree, _) = tree();
    let entries = noted(&tree);
    let link = dir.path().join("link");
    symlink("tree", &link).unwrap();
    for path in [link.clone(), link.join("")] {
        record_tree(&path, &mut plenty()).unwrap_err();
        restore_tree(&path, &entries).unwrap_err();
    }
    restore_tree(&dir.path().join("missing"), &entries).unwrap();
}
