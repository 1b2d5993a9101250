//! Reads tar archives (ustar, GNU and PAX) one entry at a time. No file system access here.
//!
//! Headers are read with the `tar` crate. Its entry iterator is not used for layers: it holds PAX records and long
//! names of any size in memory, and it splits PAX records at line breaks instead of by their length, which loses binary
//! attributes such as file capabilities.
//!
//! Archives that readers interpret differently are refused, or read like the tools that make and scan most images
//! (Go's `archive/tar`): otherwise each tool could see other files in the same archive.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::printable::printable;

const BLOCK: u64 = 512;
/// Maximum size of everything that precedes one entry (long names, PAX records, labels), in bytes, headers included.
const MAX_EXTENSIONS: u64 = 1 << 20;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The object that an entry creates.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Directory,
    /// Target, uninterpreted.
    Symlink(Vec<u8>),
    /// Name of another entry.
    HardLink(Vec<u8>),
    /// Major and minor number.
    Character(u32, u32),
    /// Major and minor number.
    Block(u32, u32),
    Fifo,
}

/// One entry, without its data.
#[derive(Debug)]
pub(crate) struct Entry {
    pub kind: EntryKind,
    /// Name as written.
    pub path: Vec<u8>,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive that is being read.
pub(crate) struct Archive<R> {
    reader: R,
    /// Bytes of the current entry that have not been read yet.
    data: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            data: 0,
            padding: 0,
        }
    }

    /// Where the archive comes from.
    pub(crate) fn source(&mut self) -> &mut R {
        &mut self.reader
    }

    /// The next entry; the unread data of the previous one is skipped. `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return extensions.none_is_left().map(|()| None);
            };
            let kind = header.entry_type();
            self.data = match extensions.number(b"size")? {
                _ if is_header_only(kind) => 0,
                Some(size) if !is_extension(kind) => size,
                _ => size(&header)?,
            };
            self.padding = self.data.wrapping_neg() % BLOCK;
            if !is_extension(kind) {
                return entry(&header, extensions).map(Some);
            }
            extensions.count(BLOCK.saturating_add(self.data))?;
            match kind {
                EntryType::XHeader => extensions.read_pax(&self.read_extension()?)?,
                EntryType::GNULongName => set_once(&mut extensions.long_name, self.read_name()?)?,
                EntryType::GNULongLink => set_once(&mut extensions.long_link, self.read_name()?)?,
                // Defaults for all entries (git stores its commit there) and the volume name are skipped.
                _ => extensions.none_is_left()?,
            }
        }
    }

    /// Skips the rest of the current entry. Some writers omit the padding of the last one.
    fn skip_data(&mut self) -> io::Result<()> {
        io::copy(&mut self.by_ref(), &mut io::sink())?;
        let padding = std::mem::take(&mut self.padding);
        io::copy(&mut self.reader.by_ref().take(padding), &mut io::sink())?;
        Ok(())
    }

    /// The next header block. `None` at the end: a block of zeros, or no block at all.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut read = 0;
        while read < block.len() {
            match self.reader.read(&mut block[read..]) {
                Ok(0) if read == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
        let found = sum(&block[..148]) + sum(&block[156..]) + 8 * u32::from(b' ');
        if !header.cksum().is_ok_and(|sum| sum == found) {
            return Err(bad("the checksum of a header is wrong"));
        }
        Ok(Some(header))
    }

    /// The record of an extension entry. Its size has been counted.
    fn read_extension(&mut self) -> io::Result<Vec<u8>> {
        let mut record = vec![0; self.data as usize];
        self.reader.read_exact(&mut record)?;
        self.data = 0;
        Ok(record)
    }

    fn read_name(&mut self) -> io::Result<Vec<u8>> {
        let mut name = self.read_extension()?;
        let end = name.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        name.truncate(end);
        Ok(name)
    }
}

/// The data of the current entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.data.min(buffer.len() as u64) as usize;
        if part == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..part])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        Ok(read)
    }
}

/// Extensions that precede an entry and belong to it.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Total size of the extensions before the entry so far, in bytes.
    bytes: u64,
}

impl Extensions {
    /// Fails if extensions were read whose entry is missing.
    fn none_is_left(&self) -> io::Result<()> {
        match self.long_name.is_none() && self.long_link.is_none() && self.pax.is_none() {
            true => Ok(()),
            false => Err(bad("an entry is announced and does not follow")),
        }
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.bytes {
            ..=MAX_EXTENSIONS => Ok(()),
            _ => Err(bad("the names and attributes of an entry are too long")),
        }
    }

    /// Parses records `<length> <key>=<value>
    /// `, where the length covers the whole record.
    fn read_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        let mut pax = BTreeMap::new();
        // Some writers pad with zeros.
        while records.first().is_some_and(|b| *b != 0) {
            let record = (|| {
                let space = records.iter().take(20).position(|b| *b == b' ')?;
                let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
                let (record, rest) = records.split_at_checked(length)?;
                let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
                let equals = pair.iter().position(|b| *b == b'=')?;
                Some((&pair[..equals], &pair[equals + 1..], rest))
            })();
            let (key, value, rest) = record.ok_or_else(|| bad("a PAX record is malformed"))?;
            pax.insert(key.to_owned(), value.to_owned());
            records = rest;
        }
        set_once(&mut self.pax, pax)
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let value = self.pax.as_ref()?.get(key)?;
        Some(&value[..]).filter(|value| !value.is_empty())
    }

    fn number(&self, key: &[u8]) -> io::Result<Option<u64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| bad("a PAX number is malformed"))
    }

    fn xattrs(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let attribute = |(key, value): (Vec<u8>, _)| Some((key.strip_prefix(XATTR_PREFIX)?.to_owned(), value));
        self.pax.into_iter().flatten().filter_map(attribute).collect()
    }

    /// A name from PAX or from a GNU record. Both together are an error: readers disagree about which one wins.
    fn name(&self, key: &[u8], gnu: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        match (self.get(key), gnu) {
            (Some(_), Some(_)) => Err(duplicate()),
            (name, gnu) => Ok(name.or(gnu).map(<[u8]>::to_owned)),
        }
    }
}

fn set_once<T>(place: &mut Option<T>, value: T) -> io::Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(duplicate()),
    }
}

fn duplicate() -> io::Error {
    bad("an entry is announced twice")
}

/// Whether the entry creates no object but describes other entries.
fn is_extension(kind: EntryType) -> bool {
    kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
        || kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.as_byte() == b'V'
}

/// Whether no data follows, whatever the size field says. Some writers store the size of the target with a link.
fn is_header_only(kind: EntryType) -> bool {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    matches!(kind, Link | Symlink | Char | Block | Directory | Fifo)
}

/// The size field of the header.
fn size(header: &Header) -> io::Result<u64> {
    let field = &header.as_old().size;
    // The crate reads only the last eight bytes of a binary number, whatever the bytes before them say.
    let fits = field[0] & 0x80 == 0 || field[..4] == [0x80, 0, 0, 0];
    let size = number("size", field, || header.entry_size())?;
    match fits && i64::try_from(size).is_ok() {
        true => Ok(size),
        false => Err(bad("the size of an entry is negative or too large")),
    }
}

fn entry(header: &Header, extensions: Extensions) -> io::Result<Entry> {
    let path = extensions.name(b"path", extensions.long_name.as_deref())?;
    let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extensions.name(b"linkpath", extensions.long_link.as_deref())?;
    let link = link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
    let link = link.unwrap_or_default();
    if path.contains(&0) || link.contains(&0) {
        return Err(bad(&format!("a name holds a zero byte: {}", printable(&path))));
    }
    let mut keys = extensions.pax.iter().flat_map(BTreeMap::keys);
    if keys.any(|key| key.starts_with(b"GNU.sparse.")) {
        return Err(unsupported("sparse file", &path));
    }
    let old = header.as_old();
    let (uid, gid) = (extensions.number(b"uid")?, extensions.number(b"gid")?);
    Ok(Entry {
        kind: kind(header, &path, link)?,
        mode: number("mode", &old.mode, || header.mode().map(u64::from))? as u32 & 0o7777,
        uid: uid.map_or_else(|| number("owner", &old.uid, || header.uid()), Ok)?,
        gid: gid.map_or_else(|| number("group", &old.gid, || header.gid()), Ok)?,
        mtime: match extensions.get(b"mtime") {
            Some(text) => time(text).ok_or_else(|| bad("a PAX time is malformed"))?,
            None => {
                let seconds = number("time", &old.mtime, || header.mtime())?;
                (i64::try_from(seconds).unwrap_or(0), 0)
            }
        },
        xattrs: extensions.xattrs(),
        path,
    })
}

fn kind(header: &Header, path: &[u8], link: Vec<u8>) -> io::Result<EntryKind> {
    Ok(match header.entry_type() {
        // Before ustar a directory was a file whose name ends in a slash.
        EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous => EntryKind::File,
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink(link),
        EntryType::Link => EntryKind::HardLink(link),
        EntryType::Char => device(header).map(|(major, minor)| EntryKind::Character(major, minor))?,
        EntryType::Block => device(header).map(|(major, minor)| EntryKind::Block(major, minor))?,
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::GNUSparse => return Err(unsupported("sparse file", path)),
        other => {
            let what = format!("entry of type {:?}", char::from(other.as_byte()));
            return Err(unsupported(&what, path));
        }
    })
}

/// Major and minor number of a device.
fn device(header: &Header) -> io::Result<(u32, u32)> {
    let part = |at, read: io::Result<Option<u32>>| {
        // Both fields have the same offset in ustar and GNU headers; older headers have neither.
        let field = &header.as_bytes()[at..at + 8];
        number("device number", field, || read.map(|n| n.unwrap_or(0).into())).map(|n| n as u32)
    };
    Ok((part(329, header.device_major())?, part(337, header.device_minor())?))
}

/// A number of a header; a blank field is zero. The crate's own errors quote the field, which may contain anything.
fn number(what: &str, field: &[u8], read: impl FnOnce() -> io::Result<u64>) -> io::Result<u64> {
    match field.iter().all(|b| matches!(b, 0 | b' ')) {
        true => Ok(0),
        false => read().map_err(|_| bad(&format!("the {what} of an entry is not a number"))),
    }
}

/// `[-]seconds[.fraction]`.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    // -1.25 is a quarter of a second before -1.
    match (whole.starts_with('-'), nanoseconds) {
        (true, n @ 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - n)),
        (_, n) => Some((seconds, n)),
    }
}

fn bad(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn unsupported(what: &str, path: &[u8]) -> io::Error {
    bad(&format!("{what} is not supported: {}", printable(path)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tar, pax};
    use super::*;

    fn all(archive: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut archive = Archive::new(archive);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next()? {
            let mut data = Vec::new();
            archive.read_to_end(&mut data)?;
            entries.push((entry, data));
        }
        Ok(entries)
    }

    fn refusal(archive: Tar) -> String {
        all(&archive.build()).unwrap_err().to_string()
    }

    #[test]
    fn plain_entries_with_and_without_an_end_mark() {
        let tar = Tar::new()
            .owner(7, 8)
            .mtime(9)
            .file_mode("a", 0o4755, "hello")
            .dir("d/", 0o755);
        let archive = tar.file("old/", "").open_end();
        for end in [0, 512, 1024, 4096] {
            let mut archive = archive.clone();
            archive.resize(archive.len() + end, 0);
            let entries = all(&archive).unwrap();
            assert_eq!(entries[0].1, b"hello");
            let first = &entries[0].0;
            assert_eq!((first.mode, first.uid, first.gid, first.mtime), (0o4755, 7, 8, (9, 0)));
            assert_eq!(entries[1].0.kind, EntryKind::Directory);
            assert_eq!(entries[2].0.kind, EntryKind::Directory);
            assert_eq!(entries.len(), 3);
        }
    }

    #[test]
    fn pax_records_count_by_length_not_by_line() {
        let capability = b"\x01\x00\x00\x02\x0a\x0a=\x00";
        let mut tar = Tar::new().owner(7, 8).pax(&[
            ("path", b"long\nname"),
            ("uid", b"4000000000"),
            ("gid", b""),
            ("mtime", b"12.5"),
            ("size", b"3"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.empty", b""),
        ]);
        // The size in the header is wrong on purpose: the one in the PAX record wins.
        let header = tar.header(EntryType::Regular, b"short", 0o644, b"", 0);
        tar.push(&header, b"abc");
        let entries = all(&tar.file("next", "x").build()).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!((&entry.path[..], &data[..]), (&b"long\nname"[..], &b"abc"[..]));
        assert_eq!(
            (entry.uid, entry.gid, entry.mtime),
            (4_000_000_000, 8, (12, 500_000_000))
        );
        assert_eq!(entry.xattrs[0].1, capability);
        assert_eq!(entry.xattrs[1], (b"user.empty".to_vec(), Vec::new()));
        assert_eq!((&entries[1].0.path[..], entries[1].0.xattrs.len()), (&b"next"[..], 0));
    }

    #[test]
    fn gnu_long_names_and_what_is_ignored() {
        let long = vec![b'n'; 300];
        let global = pax(&[("comment", b"x"), ("path", b"evil")]);
        let tar = Tar::new()
            .entry(EntryType::XGlobalHeader, b"g", 0, b"", &global)
            .entry(EntryType::new(b'V'), b"volume", 0, b"", b"")
            .entry(EntryType::GNULongLink, b"././@LongLink", 0, b"", b"target\0")
            .symlink(&long, "short")
            .file(b"\xff\xfe", "");
        let entries = all(&tar.build()).unwrap();
        assert_eq!(entries[0].0.path, long);
        assert_eq!(entries[0].0.kind, EntryKind::Symlink(b"target".to_vec()));
        assert_eq!(entries[1].0.path, b"\xff\xfe");
    }

    #[test]
    fn extensions_are_bounded() {
        let mut tar = Tar::new();
        let huge = tar.header(EntryType::XHeader, b"pax", 0, b"", 1 << 40);
        tar.push(&huge, b"");
        assert!(refusal(tar).contains("too long"));
        let record = pax(&[("k", &[b'v'; 400 << 10])]);
        for kind in [EntryType::XGlobalHeader, EntryType::new(b'V')] {
            let many = (0..3).fold(Tar::new(), |tar, _| tar.entry(kind, b"pax", 0, b"", &record));
            assert!(refusal(many).contains("too long"));
            let endless = (0..2049).fold(Tar::new(), |tar, _| tar.entry(kind, b"", 0, b"", b""));
            assert!(refusal(endless).contains("too long"));
        }
    }

    #[test]
    fn sparse_files_are_refused() {
        let sparse = Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("f", "");
        assert!(refusal(sparse).contains("sparse file is not supported: f"));
        let sparse = Tar::new().entry(EntryType::GNUSparse, b"f", 0o644, b"", b"");
        assert!(refusal(sparse).contains("sparse file is not supported: f"));
    }

    #[rstest::rstest]
    #[case(b"9 a=b\n")]
    #[case(b"6 a=b")]
    #[case(b"x a=b\n")]
    #[case(b"6 ab\n\n")]
    #[case(b"99999999999999999999 a=b\n")]
    #[case(b"1 a=b\n")]
    #[case(b"-6 a=b\n")]
    #[case(b"10 uid=x\n\n")]
    fn malformed_records(#[case] records: &[u8]) {
        let tar = Tar::new()
            .entry(EntryType::XHeader, b"pax", 0, b"", records)
            .file("f", "");
        assert!(refusal(tar).contains("malformed"));
    }

    #[test]
    fn broken_archives() {
        let mut archive = Tar::new().file("f", "0123456789").build();
        assert_eq!(all(&archive[..515]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(all(&archive[..100]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        archive[0] = b'g';
        assert!(all(&archive).unwrap_err().to_string().contains("checksum"));
        let lonely = Tar::new().entry(EntryType::GNULongName, b"././@LongLink", 0, b"", b"name\0");
        assert!(refusal(lonely).contains("announced"));
        let multi = Tar::new().entry(EntryType::new(b'M'), b"f", 0, b"", b"");
        assert!(refusal(multi).contains("'M'"));
    }

    #[test]
    fn blank_fields_and_missing_padding_are_tolerated() {
        let mut tar = Tar::new();
        let mut header = tar.header(EntryType::Char, b"a", 0o644, b"", 0);
        for (from, to) in [(100, 148), (329, 345)] {
            header.as_mut_bytes()[from..to].fill(0);
        }
        header.set_cksum();
        tar.push(&header, b"");
        let archive = tar.file("last", "12").open_end();
        let entries = all(&archive[..archive.len() - 510]).unwrap();
        assert_eq!(
            (&entries[0].0.kind, entries[0].0.mode),
            (&EntryKind::Character(0, 0), 0)
        );
        assert_eq!(entries[1].1, b"12");
    }

    #[test]
    fn times() {
        assert_eq!(time(b"0"), Some((0, 0)));
        assert_eq!(time(b"1.123456789123"), Some((1, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        for text in [&b"1.x"[..], b"", b"1e3", b"1.-5", b"\xff"] {
            assert_eq!(time(text), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_archive_panics(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 512..2048)) {
            // A valid checksum, so that the test gets past the first check.
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[..512]);
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
            let _ = all(&bytes);
        }
    }
}
