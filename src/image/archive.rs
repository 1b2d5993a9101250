//! Reading of tar archives: ustar, GNU and PAX, one entry after the other. No file system here.
//!
//! Headers are read with the `tar` crate. Its entry iterator is not used for layers: it holds PAX records and long
//! names of any size in memory, and it splits PAX records at line breaks instead of by their length, which loses binary
//! attributes such as file capabilities.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Largest sum of extension records (long names, PAX) of one entry, in bytes.
const MAX_EXTENSIONS: u64 = 1 << 20;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What an entry makes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// Target as written.
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
pub(super) struct Entry {
    pub kind: Kind,
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
pub(super) struct Archive<R> {
    reader: R,
    /// Data of the current entry that is still to be read.
    data: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            data: 0,
            padding: 0,
        }
    }

    /// The next entry; what was not read of the data of the one before is passed over. `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return match extensions.is_empty() {
                    true => Ok(None),
                    false => Err(bad("the archive ends where an entry was announced")),
                };
            };
            let size = match extensions.number(b"size")? {
                Some(size) if !is_extension(header.entry_type()) => size,
                _ => header.entry_size()?,
            };
            self.data = size;
            self.padding = size.wrapping_neg() % BLOCK;
            match header.entry_type() {
                EntryType::XHeader => extensions.read_pax(&self.read_extension(&extensions)?)?,
                EntryType::GNULongName => extensions.long_name = Some(self.read_name(&extensions)?),
                EntryType::GNULongLink => extensions.long_link = Some(self.read_name(&extensions)?),
                // Defaults for all entries (git writes its commit there), and the name of the volume.
                EntryType::XGlobalHeader => {}
                kind if kind.as_byte() == b'V' => extensions = Extensions::default(),
                _ => return entry(&header, extensions).map(Some),
            }
        }
    }

    fn skip_data(&mut self) -> io::Result<()> {
        let mut left = self.data + self.padding;
        let mut buffer = [0; 8 << 10];
        while left > 0 {
            let part = left.min(buffer.len() as u64) as usize;
            self.reader.read_exact(&mut buffer[..part])?;
            left -= part as u64;
        }
        (self.data, self.padding) = (0, 0);
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
        if header.cksum()? != found {
            return Err(bad("the checksum of a header is wrong"));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, so_far: &Extensions) -> io::Result<Vec<u8>> {
        if so_far.bytes.saturating_add(self.data) > MAX_EXTENSIONS {
            return Err(bad("the names and attributes of an entry are too long"));
        }
        let mut record = vec![0; self.data as usize];
        self.reader.read_exact(&mut record)?;
        self.data = 0;
        Ok(record)
    }

    fn read_name(&mut self, so_far: &Extensions) -> io::Result<Vec<u8>> {
        let mut name = self.read_extension(so_far)?;
        if name.last() == Some(&0) {
            name.pop();
        }
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

/// What stands before an entry and belongs to it.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of all records so far.
    bytes: u64,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.long_name.is_none() && self.long_link.is_none() && self.pax.is_empty()
    }

    /// Adds records `<length> <key>=<value>\n`, where the length counts the whole record.
    fn read_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        self.bytes += records.len() as u64;
        // Some writers fill up with zeros.
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
            self.pax.insert(key.to_owned(), value.to_owned());
            records = rest;
        }
        Ok(())
    }

    fn number(&self, key: &[u8]) -> io::Result<Option<u64>> {
        let Some(value) = self.pax.get(key).filter(|v| !v.is_empty()) else {
            return Ok(None);
        };
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| bad("a PAX number is malformed"))
    }

    /// A name from PAX, else from a GNU record.
    fn name(&mut self, key: &[u8], gnu: Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.pax.remove(key).filter(|v| !v.is_empty()).or(gnu)
    }
}

fn is_extension(kind: EntryType) -> bool {
    kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
        || kind.is_gnu_longname()
        || kind.is_gnu_longlink()
}

fn entry(header: &Header, mut extensions: Extensions) -> io::Result<Entry> {
    let long_name = extensions.long_name.take();
    let long_link = extensions.long_link.take();
    let path = extensions
        .name(b"path", long_name)
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extensions.name(b"linkpath", long_link);
    let link = link
        .or_else(|| header.link_name_bytes().map(|l| l.into_owned()))
        .unwrap_or_default();
    if extensions.pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
        return Err(unsupported("sparse file", &path));
    }
    let device =
        || -> io::Result<(u32, u32)> { Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))) };
    let kind = match header.entry_type() {
        // Before ustar a directory was a file whose name ends in a slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link),
        EntryType::Link => Kind::HardLink(link),
        EntryType::Char => device().map(|(major, minor)| Kind::Character(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::Block(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        EntryType::GNUSparse => return Err(unsupported("sparse file", &path)),
        other => {
            return Err(unsupported(
                &format!("entry of type {:?}", char::from(other.as_byte())),
                &path,
            ));
        }
    };
    Ok(Entry {
        kind,
        mode: header.mode()? & 0o7777,
        uid: extensions.number(b"uid")?.map_or_else(|| header.uid(), Ok)?,
        gid: extensions.number(b"gid")?.map_or_else(|| header.gid(), Ok)?,
        mtime: match extensions.pax.get(&b"mtime"[..]) {
            Some(text) => time(text).ok_or_else(|| bad("a PAX time is malformed"))?,
            None => (i64::try_from(header.mtime()?).unwrap_or(0), 0),
        },
        xattrs: extensions
            .pax
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?.to_owned(), value)))
            .collect(),
        path,
    })
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
    bad(&format!("{what} is not supported: {}", String::from_utf8_lossy(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, name: &[u8], size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        header.set_cksum();
        header
    }

    fn append(archive: &mut Vec<u8>, kind: EntryType, name: &[u8], data: &[u8]) {
        archive.extend_from_slice(header(kind, name, data.len() as u64).as_bytes());
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }

    fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length += 1;
            }
            out.extend_from_slice(format!("{length} {key}=").as_bytes());
            out.extend_from_slice(value);
            out.push(b'\n');
        }
        out
    }

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

    #[test]
    fn plain_entries_with_and_without_an_end_mark() {
        let mut archive = Vec::new();
        append(&mut archive, EntryType::Regular, b"a", b"hello");
        append(&mut archive, EntryType::Directory, b"d/", b"");
        append(&mut archive, EntryType::Regular, b"old/", b"");
        for end in [0, 512, 1024, 4096] {
            let mut archive = archive.clone();
            archive.resize(archive.len() + end, 0);
            let entries = all(&archive).unwrap();
            assert_eq!(entries[0].1, b"hello");
            let first = &entries[0].0;
            assert_eq!((first.mode, first.uid, first.gid, first.mtime), (0o4755, 7, 8, (9, 0)));
            assert_eq!(entries[1].0.kind, Kind::Directory);
            assert_eq!(entries[2].0.kind, Kind::Directory);
            assert_eq!(entries.len(), 3);
        }
    }

    #[test]
    fn pax_records_count_by_length_not_by_line() {
        let mut archive = Vec::new();
        let records = pax(&[
            ("path", b"long\nname"),
            ("uid", b"4000000000"),
            ("gid", b""),
            ("mtime", b"12.5"),
            ("size", b"3"),
            ("SCHILY.xattr.security.capability", b"\x01\x00\x00\x02\x0a\x0a=\x00"),
            ("SCHILY.xattr.user.empty", b""),
        ]);
        append(&mut archive, EntryType::XHeader, b"pax", &records);
        // The size in the header is wrong on purpose: the one in the record counts.
        archive.extend_from_slice(header(EntryType::Regular, b"short", 0).as_bytes());
        archive.extend_from_slice(b"abc");
        archive.resize(archive.len().next_multiple_of(512), 0);
        append(&mut archive, EntryType::Regular, b"next", b"x");
        let entries = all(&archive).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!((&entry.path[..], &data[..]), (&b"long\nname"[..], &b"abc"[..]));
        assert_eq!(
            (entry.uid, entry.gid, entry.mtime),
            (4_000_000_000, 8, (12, 500_000_000))
        );
        assert_eq!(entry.xattrs[0].1, b"\x01\x00\x00\x02\x0a\x0a=\x00");
        assert_eq!(entry.xattrs[1], (b"user.empty".to_vec(), Vec::new()));
        assert_eq!((&entries[1].0.path[..], entries[1].0.xattrs.len()), (&b"next"[..], 0));
    }

    #[test]
    fn gnu_long_names_and_what_is_ignored() {
        let mut archive = Vec::new();
        let long = vec![b'n'; 300];
        append(
            &mut archive,
            EntryType::XGlobalHeader,
            b"g",
            &pax(&[("comment", b"x"), ("path", b"evil")]),
        );
        append(&mut archive, EntryType::new(b'V'), b"volume", b"");
        append(
            &mut archive,
            EntryType::GNULongName,
            b"././@LongLink",
            &[&long[..], b"\0"].concat(),
        );
        append(&mut archive, EntryType::GNULongLink, b"././@LongLink", b"target\0");
        append(&mut archive, EntryType::Symlink, b"short", b"");
        append(&mut archive, EntryType::Regular, b"\xff\xfe", b"");
        let entries = all(&archive).unwrap();
        assert_eq!(entries[0].0.path, long);
        assert_eq!(entries[0].0.kind, Kind::Symlink(b"target".to_vec()));
        assert_eq!(entries[1].0.path, b"\xff\xfe");
    }

    #[test]
    fn what_is_refused() {
        let huge = header(EntryType::XHeader, b"pax", 1 << 40);
        assert!(all(huge.as_bytes()).unwrap_err().to_string().contains("too long"));

        let mut archive = Vec::new();
        for _ in 0..3 {
            append(
                &mut archive,
                EntryType::XHeader,
                b"pax",
                &pax(&[("k", &[b'v'; 400 << 10])]),
            );
        }
        assert!(all(&archive).unwrap_err().to_string().contains("too long"));

        let mut archive = Vec::new();
        append(
            &mut archive,
            EntryType::XHeader,
            b"pax",
            &pax(&[("GNU.sparse.major", b"1")]),
        );
        append(&mut archive, EntryType::Regular, b"f", b"");
        assert!(
            all(&archive)
                .unwrap_err()
                .to_string()
                .contains("sparse file is not supported: f")
        );

        for records in [
            &b"9 a=b\n"[..],
            b"6 a=b",
            b"x a=b\n",
            b"6 ab\n\n",
            b"99999999999999999999 a=b\n",
            b"1 a=b\n",
        ] {
            let mut archive = Vec::new();
            append(&mut archive, EntryType::XHeader, b"pax", records);
            append(&mut archive, EntryType::Regular, b"f", b"");
            assert!(
                all(&archive).unwrap_err().to_string().contains("malformed"),
                "{records:?}"
            );
        }

        let mut archive = Vec::new();
        append(&mut archive, EntryType::Regular, b"f", b"0123456789");
        assert_eq!(all(&archive[..515]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(all(&archive[..100]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        archive[0] = b'g';
        assert!(all(&archive).unwrap_err().to_string().contains("checksum"));

        let mut archive = Vec::new();
        append(&mut archive, EntryType::GNULongName, b"././@LongLink", b"name\0");
        assert!(all(&archive).unwrap_err().to_string().contains("announced"));
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
            // A right checksum, so that more than the first check is reached.
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[..512]);
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
            let _ = all(&bytes);
        }
    }
}
