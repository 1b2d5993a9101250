use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use proptest::sample::select;
use proptest::strategy::Strategy;
use tar::EntryType;

use super::*;
use crate::image::testing::{Tar, listing, names, with_overlay};

/// A root to unpack into and, beside it, a host directory that must not change.
struct Lab {
    scratch: tempfile::TempDir,
    before: Vec<String>,
}

impl Lab {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let host = scratch.path().join("host");
        fs::create_dir_all(host.join("dir/sub")).unwrap();
        fs::write(host.join("secret"), "secret").unwrap();
        fs::write(host.join("dir/file"), "file").unwrap();
        let before = listing(&host);
        Self { scratch, before }
    }

    fn host(&self) -> PathBuf {
        self.scratch.path().join("host")
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    /// Path of a host file when resolved from the root.
    fn inside(&self, path: &str) -> PathBuf {
        self.root().join(self.host().strip_prefix("/").unwrap()).join(path)
    }

    fn unpack(&self, tar: Tar) -> Result<(), TreeError> {
        let result = tar.unpack_to(&self.root());
        assert_eq!(listing(&self.host()), self.before, "the host was touched");
        result
    }
}

fn refusal(result: Result<(), TreeError>) -> String {
    match result {
        Err(TreeError::Refused(message)) => message,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn everything_about_an_object_is_kept() {
    // The umask must not affect the unpacked files.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let lab = Lab::new();
    let capability = b"\x01\x00\x00\x02\x0a\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let tar = Tar::new()
        .owner(0, 0)
        .mtime(1_000_000_000)
        .dir("./", 0o711)
        .dir("tmp/", 0o1777)
        .owner(1000, 1001)
        .dir("var", 0o2775)
        .file_mode("var/setuid", 0o6755, "program")
        .pax(&[("mtime", b"1000000001.25")])
        .file_mode("var/plain", 0o604, "")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"two\nlines"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .file_mode("var/capable", 0o755, "x")
        .hard_link("var/linked", "./var/setuid")
        .symlink("var/link", "/anywhere")
        .node(EntryType::Fifo, "var/fifo", 0o622, (0, 0))
        .node(EntryType::Char, "var/null", 0o666, (1, 3))
        .node(EntryType::Block, "var/disk", 0o660, (7, 300))
        .file(b"var/\xff\xfe", "not UTF-8")
        .owner(0, 0)
        .file("implied/parents/file", "x");
    lab.unpack(tar).unwrap();

    let metadata = |path: &str| fs::symlink_metadata(lab.root().join(path)).unwrap();
    let attributes = |path: &str| {
        (
            metadata(path).mode() & 0o7777,
            metadata(path).uid(),
            metadata(path).gid(),
        )
    };
    assert_eq!(attributes(""), (0o711, 0, 0));
    assert_eq!(attributes("tmp"), (0o1777, 0, 0));
    assert_eq!(attributes("var"), (0o2775, 1000, 1001));
    assert_eq!(attributes("var/setuid"), (0o6755, 1000, 1001));
    assert_eq!(attributes("var/plain"), (0o604, 1000, 1001));
    assert_eq!(attributes("implied/parents"), (0o755, 0, 0));
    assert_eq!(attributes("implied/parents/file"), (0o644, 0, 0));
    assert_eq!(
        (metadata("").mtime(), metadata("var").mtime(), metadata("tmp").mtime()),
        (1_000_000_000, 1_000_000_000, 1_000_000_000)
    );
    assert_eq!(
        (metadata("var/plain").mtime(), metadata("var/plain").mtime_nsec()),
        (1_000_000_001, 250_000_000)
    );
    assert_eq!(
        (metadata("var/link").mtime(), metadata("var/link").uid()),
        (1_000_000_000, 1000)
    );
    assert_eq!(
        fs::read_link(lab.root().join("var/link")).unwrap(),
        PathBuf::from("/anywhere")
    );
    assert_eq!(
        (metadata("var/linked").ino(), metadata("var/linked").nlink()),
        (metadata("var/setuid").ino(), 2)
    );
    assert!(metadata("var/fifo").file_type().is_fifo());
    assert_eq!(
        (attributes("var/fifo").0, metadata("var/fifo").mtime()),
        (0o622, 1_000_000_000)
    );
    assert_eq!(
        (metadata("var/null").rdev(), attributes("var/null").0),
        (rustix::fs::makedev(1, 3), 0o666)
    );
    assert_eq!(metadata("var/disk").rdev(), rustix::fs::makedev(7, 300));
    let odd = lab.root().join("var").join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(fs::read(odd).unwrap(), b"not UTF-8");

    let capable = lab.root().join("var/capable");
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(&capable, "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..length], capability[..]);
    let mut list = [0; 256];
    let length = rustix::fs::listxattr(&capable, &mut list[..]).unwrap();
    let mut attributes: Vec<_> = list[..length]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(printable)
        .collect();
    attributes.sort();
    assert_eq!(attributes, ["security.capability", "user.note"]);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let lab = Lab::new();
    let tar = Tar::new()
        .file("a", "1")
        .dir("a", 0o755)
        .file("a/deep/file", "2")
        .file("a", "3")
        .symlink("b", "a")
        .dir("b", 0o700)
        .file("b/x", "4")
        .dir("c", 0o700)
        .file("c/kept", "5")
        .dir("c", 0o750)
        .symlink("d", "c")
        .node(EntryType::Fifo, "d", 0o600, (0, 0))
        .file("e", "6")
        .hard_link("f", "e")
        .file("e", "7")
        .hard_link("f", "f");
    lab.unpack(tar).unwrap();
    assert_eq!(names(&lab.root()), ["a", "b/", "b/x", "c/", "c/kept", "d", "e", "f"]);
    let read = |path: &str| fs::read_to_string(lab.root().join(path)).unwrap();
    assert_eq!((read("a"), read("e"), read("f")), ("3".into(), "7".into(), "6".into()));
    assert_eq!(fs::metadata(lab.root().join("c")).unwrap().mode() & 0o777, 0o750);
}

#[test]
fn a_path_means_what_it_means_now() {
    let lab = Lab::new();
    let tar = Tar::new()
        .dir("one", 0o755)
        .dir("two", 0o755)
        .symlink("link", "one")
        .file("link/first", "")
        .symlink("link", "two")
        .file("link/second", "")
        .file("dir/sub/old", "")
        .file("dir", "")
        .dir("dir", 0o755)
        .file("dir/sub/new", "");
    lab.unpack(tar).unwrap();
    let expected = [
        "dir/",
        "dir/sub/",
        "dir/sub/new",
        "link",
        "one/",
        "one/first",
        "two/",
        "two/second",
    ];
    assert_eq!(names(&lab.root()), expected);
}

#[test]
fn links_lead_to_places_inside_the_root() {
    let lab = Lab::new();
    let host = lab.host();
    let host = host.to_str().unwrap();
    let up = "../".repeat(20);
    let tar = Tar::new()
        // Absolute, relative, chained, with dots, to a missing place, to one that exists, and over /proc.
        .symlink("abs", host)
        .file("abs/secret", "mine")
        .symlink("rel", format!("{up}{}", &host[1..]))
        .file("rel/dir/file", "mine")
        .symlink("chain", "abs/./../host/dir")
        .file("chain/chained", "mine")
        .node(EntryType::Fifo, "abs/fifo", 0o600, (0, 0))
        .symlink("abs/link", "x")
        .hard_link("abs/hard", "rel/secret")
        .symlink("p", "/proc/self/root")
        .file(format!("p{host}/via-proc"), "mine")
        .dir("abs/dir/sub", 0o700)
        .file("/etc/passwd", "mine")
        .file("a/b/../c", "mine");
    lab.unpack(tar).unwrap();
    for path in ["secret", "dir/file", "dir/chained"] {
        assert_eq!(fs::read_to_string(lab.inside(path)).unwrap(), "mine", "{path}");
    }
    assert!(lab.inside("hard").exists() && lab.inside("fifo").exists());
    assert_eq!(fs::read_to_string(lab.root().join("etc/passwd")).unwrap(), "mine");
    assert!(lab.root().join("a/c").exists());
    let via_proc = lab.root().join("proc/self/root").join(&host[1..]).join("via-proc");
    assert_eq!(fs::read_to_string(via_proc).unwrap(), "mine");
}

#[test]
fn a_last_link_is_replaced_not_followed() {
    let lab = Lab::new();
    let host = lab.host();
    let target = |path: &str| host.join(path).to_str().unwrap().to_owned();
    let tar = Tar::new()
        .symlink("file", target("secret"))
        .file_mode("file", 0o777, "mine")
        .symlink("dir", target("dir"))
        .owner(1, 1)
        .dir("dir", 0o777)
        .file("dir/file", "mine")
        .symlink("link", target("secret"))
        .hard_link("hard", "link")
        .file("hard", "mine")
        .symlink("node", target("secret"))
        .node(EntryType::Char, "node", 0o666, (1, 3))
        .symlink("again", target("secret"))
        .symlink("again", "elsewhere");
    lab.unpack(tar).unwrap();
    assert_eq!(fs::read_to_string(lab.root().join("dir/file")).unwrap(), "mine");
    assert!(fs::symlink_metadata(lab.root().join("link")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(lab.root().join("hard")).unwrap().is_file());
}

#[test]
fn whiteouts_do_not_reach_the_host() {
    let lab = Lab::new();
    let host = lab.host();
    let tar = Tar::new()
        .symlink("a", host.to_str().unwrap())
        .file("a/.wh.secret", "")
        .file("a/dir/.wh..wh..opq", "")
        .hard_link("a/dir/.wh.file", "whatever")
        .symlink("b", host.join("dir").to_str().unwrap())
        .file(".wh.b", "");
    lab.unpack(tar).unwrap();
    assert!(
        fs::symlink_metadata(lab.inside("secret"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
}

#[test]
fn the_root_may_be_reached_through_a_link() {
    let lab = Lab::new();
    let store = lab.scratch.path().join("store");
    std::os::unix::fs::symlink(lab.scratch.path(), &store).unwrap();
    Tar::new().file("a/b/c", "").unpack_to(&store.join("root")).unwrap();
    assert_eq!(names(&lab.root()), ["a/", "a/b/", "a/b/c"]);
}

#[test]
fn the_number_of_objects_is_bounded() {
    let lab = Lab::new();
    let files = (0..10).fold(Tar::new(), |tar, n| tar.file(format!("f{n}"), "")).build();
    fs::create_dir(lab.root()).unwrap();
    super::unpack(&files[..], &lab.root(), 10).unwrap();
    let message = refusal(super::unpack(&files[..], &lab.root(), 9));
    assert!(message.contains("more than 9 entries"), "{message}");
    let implied = Tar::new().file("a/b/c/d/e/f", "").file("x", "").build();
    let message = refusal(super::unpack(&implied[..], &lab.root(), 5));
    assert!(message.contains("more than 5 entries"), "{message}");
}

#[test]
fn a_full_disk_is_not_the_archives_fault() {
    assert!(matches!(tree::error(Errno::NOSPC, b"a"), TreeError::System(_)));
    assert!(matches!(tree::error(Errno::NAMETOOLONG, b"a"), TreeError::Refused(_)));
}

/// Lower and upper layer, and the merged view of a container.
#[rstest::rstest]
#[case::file(Tar::new().file("a", "").file("b", ""), Tar::new().file(".wh.a", ""), &["b"])]
#[case::directory(Tar::new().file("d/a", "").file("b", ""), Tar::new().file(".wh.d", ""), &["b"])]
#[case::nested(Tar::new().file("d/a", "").file("d/b", ""), Tar::new().file("d/.wh.a", ""), &["d/", "d/b"])]
#[case::of_nothing(Tar::new().file("b", ""), Tar::new().file(".wh.a", ""), &["b"])]
#[case::then_a_file(Tar::new().file("d/a", ""), Tar::new().file(".wh.d", "").file("d", ""), &["d"])]
#[case::before_a_directory(
    Tar::new().file("d/old", ""), Tar::new().file(".wh.d", "").dir("d", 0o755).file("d/new", ""), &["d/", "d/new"])]
#[case::before_an_implied_directory(
    Tar::new().file("d/old", ""), Tar::new().file(".wh.d", "").file("d/new", ""), &["d/", "d/new"])]
#[case::after_a_directory(
    Tar::new().file("d/old", ""), Tar::new().dir("d", 0o755).file("d/new", "").file(".wh.d", ""), &["d/", "d/new"])]
#[case::after_a_file(Tar::new().file("a", ""), Tar::new().file("a", "new").file(".wh.a", ""), &["a"])]
#[case::opaque_first(
    Tar::new().file("d/old", ""), Tar::new().file("d/.wh..wh..opq", "").file("d/new", ""), &["d/", "d/new"])]
#[case::opaque_last(
    Tar::new().file("d/old", "").file("d/s/old", ""),
    Tar::new().file("d/new", "").file("d/s/new", "").file("d/.wh..wh..opq", ""),
    &["d/", "d/new", "d/s/", "d/s/new"])]
#[case::file_over_a_directory(Tar::new().file("d/old", ""), Tar::new().file("d", ""), &["d"])]
#[case::directory_over_a_file(Tar::new().file("d", ""), Tar::new().file("d/new", ""), &["d/", "d/new"])]
#[case::aufs(Tar::new().file("a", ""), Tar::new().file(".wh..wh.aufs", "").file(".wh..wh.plnk/1", ""), &["a"])]
#[case::a_directory_as_whiteout(Tar::new().file("a", ""), Tar::new().dir(".wh.a", 0o755), &[])]
fn whiteouts_act_on_lower_layers_only(#[case] lower: Tar, #[case] upper: Tar, #[case] expected: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let [bottom, lower_dir, upper_dir] = ["bottom", "lower", "upper"].map(|n| scratch.path().join(n));
    fs::create_dir(&bottom).unwrap();
    lower.unpack_to(&lower_dir).unwrap();
    upper.unpack_to(&upper_dir).unwrap();
    with_overlay(&[upper_dir, lower_dir, bottom], |merged| {
        assert_eq!(names(merged), expected)
    });
}

/// Few names and many links, so that entries collide.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"a/b",
    b"a/b/c",
    b"b/a",
    b"c/a/b",
    b"./a/",
    b"a/../b",
    b"../a",
    b"/a",
    b".wh.a",
    b"a/.wh.b",
    b"a/.wh..wh..opq",
    b".wh...",
    b"a/\xff\n",
    b"",
];
const TARGETS: &[&str] = &[
    "a",
    "b",
    "a/b",
    "b/../a",
    "../..",
    "/",
    "HOST",
    "HOST/dir",
    "HOST/secret",
    "../host/dir",
    "/proc/self/root",
    "",
];

/// Parameters of one archive entry.
fn entry() -> impl Strategy<Value = (u8, &'static [u8], &'static str, u32)> {
    (0..8_u8, select(NAMES), select(TARGETS), 0..0o10000_u32)
}

fn assemble(entries: &[(u8, &[u8], &str, u32)], host: &str) -> Tar {
    entries.iter().fold(Tar::new(), |tar, (kind, name, target, mode)| {
        let target = target.replace("HOST", host);
        match kind {
            0 | 1 => tar.file_mode(name, *mode, "data"),
            2 => tar.dir(name, *mode),
            3 | 4 => tar.symlink(name, target),
            5 => tar.hard_link(name, target),
            6 => tar.node(EntryType::Char, name, *mode, (0, 0)),
            _ => tar.pax(&[("path", name), ("size", b"4")]).file("x", "data"),
        }
    })
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]
    #[test]
    fn no_archive_escapes_or_panics(
        entries in proptest::collection::vec(entry(), 1..30),
        bent in proptest::option::of((0..10_000_usize, 1..=255_u8)),
    ) {
        let lab = Lab::new();
        let mut archive = assemble(&entries, lab.host().to_str().unwrap()).build();
        if let Some((at, by)) = bent {
            let at = at % archive.len();
            archive[at] ^= by;
        }
        fs::create_dir(lab.root()).unwrap();
        let result = super::unpack(&archive[..], &lab.root(), 1000);
        proptest::prop_assert!(!matches!(result, Err(TreeError::System(_))), "{result:?}");
        proptest::prop_assert_eq!(listing(&lab.host()), lab.before.clone());
        let mut beside: Vec<_> = fs::read_dir(lab.scratch.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        beside.sort();
        proptest::prop_assert_eq!(beside, ["host", "root"]);
    }
}

#[test]
fn files_that_aufs_kept_elsewhere_are_one_file() {
    let lab = Lab::new();
    let tar = Tar::new()
        .file(".wh..wh.aufs", "")
        .dir(".wh..wh.orph", 0o700)
        .dir(".wh..wh.plnk", 0o700)
        .file(".wh..wh.plnk/12.34", "content")
        .hard_link("bin/one", ".wh..wh.plnk/12.34")
        .hard_link("bin/two", "./.wh..wh.plnk/12.34");
    lab.unpack(tar).unwrap();
    assert_eq!(names(&lab.root()), ["bin/", "bin/one", "bin/two"]);
    let metadata = |path: &str| fs::metadata(lab.root().join(path)).unwrap();
    assert_eq!(
        (metadata("bin/one").ino(), metadata("bin/one").nlink()),
        (metadata("bin/two").ino(), 2)
    );
    assert_eq!(fs::read_to_string(lab.root().join("bin/two")).unwrap(), "content");
}

#[test]
fn links_to_a_device_that_is_left_out_are_left_out() {
    let lab = Lab::new();
    let tar = Tar::new()
        .node(EntryType::Char, "dev/zero", 0o666, (1, 5))
        .hard_link("dev/other", "dev/zero")
        .hard_link("dev/third", "dev/other")
        .file("kept", "");
    // Capabilities are per thread.
    let unpacked = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.remove(rustix::thread::CapabilitySet::MKNOD);
            rustix::thread::set_capabilities(None, sets).unwrap();
            lab.unpack(tar)
        });
        thread.join().unwrap()
    });
    unpacked.unwrap();
    assert_eq!(names(&lab.root()), ["dev/", "kept"]);
}
