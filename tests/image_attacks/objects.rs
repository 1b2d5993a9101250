//! Objects that do harm where they lie: devices, setuid programs, attributes, names, numbers, depths.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::EntryType;

use crate::Case;
use crate::builder::Tar;

pub fn cases() -> Vec<Case> {
    let mut cases = nodes();
    cases.extend(attributes());
    cases.extend(names());
    cases.extend(replacements());
    cases.extend(amounts());
    cases
}

/// Policy (`docs/spec/storage.md` D-34): made as they are, below a directory that only root of the host may enter, and
/// usable in a container only as far as its device rules go.
fn nodes() -> Vec<Case> {
    let node = |kind, device| Tar::new().node(kind, "n", 0o666, device);
    let socket = EntryType::new(b's');
    let mut wide = Tar::new();
    let mut header = wide.header(EntryType::Char, b"n", 0o666, b"", 0);
    header.as_mut_bytes()[329..337].copy_from_slice(b"\x80\0\0\0\0\0\0\x01");
    header.set_cksum();
    wide.push(&header, b"");
    vec![
        Case::contained("block-device", node(EntryType::Block, (8, 0)), &["n"]),
        Case::contained("character-device-of-memory", node(EntryType::Char, (1, 1)), &["n"]),
        Case::contained("device-like-a-whiteout", node(EntryType::Char, (0, 0)), &["n"]),
        Case::refused(
            "device-number-not-octal",
            wide,
            "the device number of an entry is not a number",
        ),
        Case::contained("fifo", node(EntryType::Fifo, (0, 0)), &["n"]),
        Case::refused(
            "socket",
            Tar::new().entry(socket, b"n", 0o666, b"", b""),
            "entry of type 's' is not supported",
        ),
        Case::checked("setuid", Tar::new().file_mode("n", 0o6755, "program"), |root| {
            assert_eq!(std::fs::metadata(root.join("n")).unwrap().mode() & 0o7777, 0o6755);
        }),
        Case::refused(
            "beneath-a-fifo",
            node(EntryType::Fifo, (0, 0)).file("n/x", ""),
            "n: Not a directory",
        ),
    ]
}

fn attribute(name: &str, value: &[u8]) -> Tar {
    Tar::new()
        .pax(&[(&format!("SCHILY.xattr.{name}"), value)])
        .file("a", "")
}

/// None of the attributes that speak to overlayfs, to security modules or to the store reaches the disk.
fn attributes() -> Vec<Case> {
    let foreign = [
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "trusted.overlay.metacopy",
        "trusted.condenser.diff_id",
        "user.overlay.opaque",
        "user.overlay.redirect",
        "security.selinux",
        "security.ima",
        "system.posix_acl_access",
    ];
    let records: Vec<String> = foreign.iter().map(|name| format!("SCHILY.xattr.{name}")).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|name| (&**name, &b"/etc"[..])).collect();
    let none = |root: &Path| {
        let own = if root.join("a").exists() {
            root.join("a")
        } else {
            root.to_owned()
        };
        let mut list = [0; 1024];
        let length = rustix::fs::listxattr(&own, &mut list[..]).unwrap();
        let list = String::from_utf8_lossy(&list[..length]).into_owned();
        let ours = if own == root { "trusted.condenser.diff_id\0" } else { "" };
        assert_eq!(list, ours);
    };
    vec![
        Case::checked(
            "attributes-that-are-not-its-own",
            Tar::new().pax(&records).file("a", ""),
            none,
        ),
        Case::checked(
            "attributes-of-the-root",
            Tar::new().pax(&records).dir("./", 0o755),
            none,
        ),
        Case::refused(
            "capability-malformed",
            attribute("security.capability", b"x"),
            "a: Invalid argument",
        ),
        Case::refused(
            "attributes-fill-the-root",
            filled().dir("./", 0o755),
            "the attributes of its root are too large",
        ),
        Case::refused(
            "attribute-without-a-name",
            attribute("user.", b"x"),
            "a: Invalid argument",
        ),
        Case::refused(
            "attribute-with-a-zero-byte",
            attribute("user.a\0b", b"x"),
            "a: Invalid argument",
        ),
        Case::refused(
            "attribute-too-large",
            attribute("user.a", &[b'x'; 100_000]),
            "a: Argument list too long",
        ),
        Case::refused(
            "attribute-larger-than-a-block",
            attribute("user.a", &[b'x'; 60_000]),
            "a: Argument list too long",
        ),
    ]
}

/// Attributes of the next entry that leave no room for one more where all have to fit a block of 4 KiB.
fn filled() -> Tar {
    Tar::new().pax(&[("SCHILY.xattr.user.a", &[b'x'; 4000])])
}

fn names() -> Vec<Case> {
    let forged = "a\n2026-01-01T00:00:00Z  INFO forged\x1b[2J";
    vec![
        Case::contained("name-not-utf8", Tar::new().file(b"\xff\xfe", ""), &["\u{fffd}\u{fffd}"]),
        Case::contained("name-with-control-characters", Tar::new().file(forged, ""), &[forged]),
        Case::refused(
            "log-injection",
            Tar::new().file(forged, "").file(format!("{forged}/x"), ""),
            "a\\n2026-01-01T00:00:00Z  INFO forged\\u{1b}[2J: Not a directory",
        ),
        Case::refused(
            "log-injection-by-a-link",
            Tar::new().hard_link("a", forged),
            "hard link to a\\n2026-01-01T00:00:00Z  INFO forged\\u{1b}[2J, which",
        ),
        Case::refused(
            "log-injection-by-a-type",
            Tar::new().entry(EntryType::new(b'\n'), b"a\nb", 0, b"", b""),
            "a\\nb",
        ),
        Case::contained(
            "name-longest",
            Tar::new().file("n".repeat(255), ""),
            &[&"n".repeat(255)],
        ),
        Case::refused(
            "name-too-long",
            Tar::new().file("n".repeat(256), ""),
            "File name too long",
        ),
        Case::refused(
            "path-too-long",
            Tar::new().file("nn/".repeat(1400), ""),
            "the path is too long",
        ),
        Case::refused(
            "path-of-a-megabyte",
            Tar::new().file("n/".repeat(500_000), ""),
            "the path is too long",
        ),
        Case::refused(
            "path-too-deep",
            Tar::new().file("n/".repeat(257) + "x", ""),
            "the path is too long",
        ),
        Case::refused("nested-through-links", nested(), "nested more than 256 deep"),
    ]
}

/// Directories that nest deeper with every link.
fn nested() -> Tar {
    let step = "d/".repeat(120);
    (0..4).fold(Tar::new(), |tar, n| {
        let base = if n == 0 { String::new() } else { format!("l{}/", n - 1) };
        tar.file(format!("{base}{step}f"), "")
            .symlink(format!("l{n}"), format!("{base}{step}"))
    })
}

fn replacements() -> Vec<Case> {
    let back_and_forth = Tar::new()
        .file("a", "1")
        .dir("a", 0o755)
        .file("a/b/c", "2")
        .file("a", "3")
        .dir("a", 0o700);
    vec![
        Case::contained("file-directory-file-directory", back_and_forth, &["a/"]),
        Case::refused(
            "beneath-a-file",
            Tar::new().file("a", "").file("a/b", ""),
            "a: Not a directory",
        ),
        Case::refused(
            "directory-beneath-a-file",
            Tar::new().file("a", "").dir("a/b/c", 0o755),
            "a/b: Not a directory",
        ),
    ]
}

/// The limits of the test's store: 10,000 entries, 64 MiB.
fn amounts() -> Vec<Case> {
    let many = |n: usize, name: fn(usize) -> String| (0..n).fold(Tar::new(), |tar, i| tar.file(name(i), ""));
    let implied = many(2500, |n| format!("{n}/a/b/c/d"));
    let alternating = (0..500).fold(Tar::new(), |tar, _| tar.file("a", "").dir("a", 0o755));
    vec![
        Case::contained("same-name-10000-times", many(10_000, |_| "a".into()), &["a"]),
        Case::contained("file-and-directory-1000-times", alternating, &["a/"]),
        Case::refused(
            "endless-entries",
            many(10_001, |n| n.to_string()),
            "more than 10000 entries (max_layer_entries)",
        ),
        Case::refused(
            "endless-parents",
            implied,
            "more than 10000 entries (max_layer_entries)",
        ),
        Case::refused(
            "endless-whiteouts",
            many(10_001, |n| format!(".wh.{n}")),
            "more than 10000 entries",
        ),
        Case::refused(
            "owner-too-large",
            Tar::new().owner(u32::MAX.into(), 0).file("a", ""),
            "a: Invalid argument",
        ),
    ]
}
