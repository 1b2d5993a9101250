//! Archives that are not what they say: PAX and GNU records, sparse files, headers out of step, ends that come early.
//! What other readers would see differently is refused, or read as Go's `archive/tar` reads it.

use tar::EntryType;

use crate::Case;
use crate::builder::{Tar, pax};
use crate::support::images::content::Layer;

pub fn cases() -> Vec<Case> {
    let mut cases = sparse();
    cases.extend(pax_records());
    cases.extend(gnu_records());
    cases.extend(headers());
    cases.extend(ends());
    cases
}

fn sparse() -> Vec<Case> {
    let no = "sparse file is not supported: f";
    let with = |records: &[(&str, &[u8])]| Tar::new().pax(records).file("f", "1\n0\n512\n");
    vec![
        Case::refused(
            "sparse-gnu",
            Tar::new().entry(EntryType::GNUSparse, b"f", 0o644, b"", b""),
            no,
        ),
        Case::refused(
            "sparse-pax-0",
            with(&[("GNU.sparse.size", b"99999999999"), ("GNU.sparse.numblocks", b"0")]),
            no,
        ),
        Case::refused(
            "sparse-pax-1",
            with(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9999999999")]),
            no,
        ),
    ]
}

/// A record as it is, before a file.
fn record(record: &[u8]) -> Tar {
    Tar::new()
        .entry(EntryType::XHeader, b"pax", 0, b"", record)
        .file("f", "x")
}

fn pax_records() -> Vec<Case> {
    let with = |key: &str, value: &[u8]| Tar::new().pax(&[(key, value)]).file("f", "x");
    let malformed = "a PAX record is malformed";
    let large = pax(&[("comment", &[b'v'; 1 << 20])]);
    let mut claims = Tar::new();
    let header = claims.header(EntryType::XHeader, b"pax", 0, b"", 1 << 40);
    claims.push(&header, b"");
    let twice = Tar::new().entry(EntryType::XHeader, b"pax", 0, b"", &pax(&[("path", b"a")]));
    let global = |key: &str, value: &[u8]| {
        Tar::new()
            .entry(EntryType::XGlobalHeader, b"g", 0, b"", &pax(&[(key, value)]))
            .file("f", "x")
    };
    let endless = (0..2100).fold(Tar::new(), |tar, _| {
        tar.entry(EntryType::XGlobalHeader, b"g", 0, b"", b"")
    });
    vec![
        Case::refused("pax-path-out", with("path", b"../../escape"), "path escapes root"),
        Case::refused(
            "pax-linkpath-out",
            Tar::new().pax(&[("linkpath", b"/etc/passwd")]).hard_link("a", "f"),
            "hard link to /etc/passwd, which is not in this layer",
        ),
        Case::refused(
            "pax-size-beyond-the-end",
            with("size", b"99999999999"),
            "unexpected end of file",
        ),
        Case::refused(
            "pax-size-not-a-number",
            with("size", b"-1"),
            "a PAX number is malformed",
        ),
        Case::contained("pax-size-hides-an-entry", smuggled_by_size(), &["f"]),
        Case::refused("pax-length-too-long", record(b"9 a=b\n"), malformed),
        Case::refused("pax-length-overflows", record(b"99999999999999999999 a=b\n"), malformed),
        Case::refused("pax-length-zero", record(b"0 a=b\n"), malformed),
        Case::refused("pax-length-negative", record(b"-6 a=b\n"), malformed),
        Case::refused("pax-without-equals", record(b"6 ab\n\n"), malformed),
        Case::refused(
            "pax-zero-byte-in-a-name",
            with("path", b"a\0b"),
            "a name holds a zero byte: a\\0b",
        ),
        Case::refused(
            "pax-zero-byte-in-a-link",
            Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("f", "x"),
            "zero byte: f",
        ),
        Case::refused(
            "pax-huge-record",
            record(&large),
            "the names and attributes of an entry are too long",
        ),
        Case::refused(
            "pax-claims-a-terabyte",
            claims,
            "the names and attributes of an entry are too long",
        ),
        Case::refused(
            "pax-twice",
            twice.pax(&[("path", b"b")]).file("f", "x"),
            "an entry is announced twice",
        ),
        Case::refused(
            "pax-without-an-entry",
            Tar::new().entry(EntryType::XHeader, b"pax", 0, b"", &pax(&[("path", b"b")])),
            "an entry is announced and does not follow",
        ),
        Case::contained("global-path", global("path", b"../../escape"), &["f"]),
        Case::contained("global-size", global("size", b"9999999"), &["f"]),
        Case::refused(
            "global-records-endless",
            endless,
            "the names and attributes of an entry are too long",
        ),
        Case::refused("owner-of-64-bits", with("uid", b"4294967296"), "f: Invalid argument"),
        Case::refused("time-malformed", with("mtime", b"1e300"), "a PAX time is malformed"),
        Case::contained(
            "time-at-the-end-of-all",
            with("mtime", b"9223372036854775807.999"),
            &["f"],
        ),
        Case::contained("time-before-all", with("mtime", b"-9223372036854775807"), &["f"]),
    ]
}

/// The header says that the file is long, the record that it is empty. The record counts: what would be data for a
/// reader that does not know it is an entry for one that does, and here the other way round.
fn smuggled_by_size() -> Tar {
    let hidden = Tar::new().file("hidden", "").open_end();
    let size = hidden.len().to_string();
    let mut tar = Tar::new().pax(&[("size", size.as_bytes())]);
    let header = tar.header(EntryType::Regular, b"f", 0o644, b"", 0);
    tar.push(&header, &hidden);
    tar
}

fn gnu_records() -> Vec<Case> {
    let name = |name: &[u8]| Tar::new().entry(EntryType::GNULongName, b"././@LongLink", 0, b"", name);
    let link = |name: &[u8]| Tar::new().entry(EntryType::GNULongLink, b"././@LongLink", 0, b"", name);
    let twice = "an entry is announced twice";
    let endless = (0..3000).fold(Tar::new(), |tar, _| tar.entry(EntryType::GNULongName, b"", 0, b"", b""));
    let large = vec![b'n'; 2 << 20];
    let second = |tar: Tar, name: &[u8]| tar.entry(EntryType::GNULongName, b"././@LongLink", 0, b"", name);
    vec![
        Case::refused(
            "long-name-out",
            name(b"../../escape\0").file("f", ""),
            "path escapes root",
        ),
        Case::refused(
            "long-link-out",
            link(b"/etc/passwd\0").hard_link("f", "x"),
            "which is not in this layer",
        ),
        Case::refused("long-name-twice", second(name(b"a\0"), b"b\0").file("f", ""), twice),
        Case::refused("long-names-endless", endless, twice),
        Case::refused(
            "long-name-and-pax-path",
            name(b"a\0").pax(&[("path", b"b")]).file("f", ""),
            twice,
        ),
        Case::refused(
            "long-name-huge",
            name(&large).file("f", ""),
            "the names and attributes of an entry are too long",
        ),
        Case::refused(
            "long-name-with-a-zero-byte",
            name(b"a\0/etc\0").file("f", ""),
            "a name holds a zero byte",
        ),
        Case::contained("long-name-filled-up", name(b"a\0\0\0").file("f", ""), &["a"]),
        Case::refused(
            "long-name-without-an-entry",
            name(b"a\0"),
            "an entry is announced and does not follow",
        ),
        Case::refused(
            "long-name-before-a-label",
            name(b"a\0")
                .entry(EntryType::new(b'V'), b"v", 0, b"", b"")
                .file("f", ""),
            "an entry is announced and does not follow",
        ),
    ]
}

/// A file whose header was bent.
fn bent(from: usize, bytes: &[u8]) -> Tar {
    let mut tar = Tar::new();
    let mut header = tar.header(EntryType::Regular, b"f", 0o644, b"", 1);
    header.as_mut_bytes()[from..from + bytes.len()].copy_from_slice(bytes);
    header.set_cksum();
    tar.push(&header, b"x");
    tar
}

fn headers() -> Vec<Case> {
    let size = |bytes: &[u8]| bent(124, bytes);
    let range = "the size of an entry is negative or too large";
    let mut sum = Tar::new().file("f", "x").build();
    sum[0] = b'g';
    // Some readers pass over so many bytes after a link, Go and this one do not.
    let mut out_of_step = Tar::new();
    let header = out_of_step.header(EntryType::Symlink, b"link", 0o777, b"x", 512);
    out_of_step.push(&header, b"");
    vec![
        Case::refused("checksum-wrong", Layer::gzip(sum), "the checksum of a header is wrong"),
        Case::refused("size-negative", size(&[0xff; 12]), range),
        Case::refused("size-of-63-bits-and-more", size(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), range),
        Case::refused("size-of-96-bits", size(b"\x80\0\0\x01\0\0\0\0\0\0\0\x01"), range),
        Case::refused(
            "size-claims-exabytes",
            size(b"\x80\0\0\0\x7f\0\0\0\0\0\0\0"),
            "unexpected end of file",
        ),
        Case::refused(
            "size-claims-gigabytes",
            size(b"77777777777\0"),
            "unexpected end of file",
        ),
        Case::refused(
            "size-not-a-number",
            size(b"x\n\x1b[2J\0"),
            "the size of an entry is not a number",
        ),
        Case::refused(
            "mode-not-a-number",
            bent(100, b"99999999"),
            "the mode of an entry is not a number",
        ),
        Case::contained("link-with-a-size", out_of_step.file("next", ""), &["link", "next"]),
        Case::refused(
            "entry-of-unknown-type",
            bent(156, b"M"),
            "entry of type 'M' is not supported: f",
        ),
        Case::refused(
            "text-instead-of-an-archive",
            Layer::gzip(vec![b'x'; 2048]),
            "the checksum of a header is wrong",
        ),
    ]
}

fn ends() -> Vec<Case> {
    let whole = Tar::new().file("f", "x".repeat(4096)).build();
    let cut = |at: usize| Layer::gzip(whole[..at].to_vec());
    let end = "unexpected end of file";
    let after = [
        Tar::new().file("f", "").build(),
        Tar::new().file("../escape", "").build(),
        vec![b'x'; 700],
    ]
    .concat();
    vec![
        Case::refused("cut-in-a-header", cut(100), end),
        Case::refused("cut-after-a-header", cut(512), end),
        Case::refused("cut-in-the-data", cut(2000), end),
        // Its diff id vouches for it; archives without an end mark are common.
        Case::contained("cut-after-the-data", cut(512 + 4096), &["f"]),
        Case::contained("data-after-the-end", Layer::gzip(after), &["f"]),
        Case::contained("empty", Layer::gzip(Vec::new()), &[]),
    ]
}
