//! Builds valid and invalid archives. Tests outside of the library compile this file too.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    reason = "for tests, each of which uses its part"
)]

use tar::{EntryType, Header};

/// Builds an archive entry by entry.
#[derive(Default, Clone)]
pub struct Tar {
    bytes: Vec<u8>,
    /// Records for the next entry.
    records: Vec<u8>,
    uid: u64,
    gid: u64,
    mtime: u64,
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// Owner of the following entries.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Time of the following entries.
    pub fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// PAX records of the next entry.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.records.extend(pax(records));
        self
    }

    pub fn dir(self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.entry(EntryType::Directory, path.as_ref(), mode, b"", b"")
    }

    pub fn file(self, path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.file_mode(path, 0o644, data)
    }

    pub fn file_mode(self, path: impl AsRef<[u8]>, mode: u32, data: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path.as_ref(), mode, b"", data.as_ref())
    }

    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Symlink, path.as_ref(), 0o777, target.as_ref(), b"")
    }

    pub fn hard_link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Link, path.as_ref(), 0o644, target.as_ref(), b"")
    }

    pub fn node(mut self, kind: EntryType, path: impl AsRef<[u8]>, mode: u32, device: (u32, u32)) -> Self {
        let mut header = self.header(kind, path.as_ref(), mode, b"", 0);
        header.set_device_major(device.0).unwrap();
        header.set_device_minor(device.1).unwrap();
        header.set_cksum();
        self.push(&header, b"");
        self
    }

    /// An entry of any type. Names that do not fit into the header go into GNU records.
    pub fn entry(mut self, kind: EntryType, path: &[u8], mode: u32, link: &[u8], data: &[u8]) -> Self {
        for (kind, name) in [(EntryType::GNULongName, path), (EntryType::GNULongLink, link)] {
            if name.len() > 100 {
                let header = self.header(kind, b"././@LongLink", 0, b"", name.len() as u64);
                self.push(&header, name);
            }
        }
        let header = self.header(kind, path, mode, link, data.len() as u64);
        self.push(&header, data);
        self
    }

    pub fn header(&mut self, kind: EntryType, path: &[u8], mode: u32, link: &[u8], size: u64) -> Header {
        if !self.records.is_empty() && kind != EntryType::XHeader {
            let records = std::mem::take(&mut self.records);
            let header = self.header(EntryType::XHeader, b"pax", 0, b"", records.len() as u64);
            self.push(&header, &records);
        }
        let mut header = Header::new_ustar();
        let block = header.as_mut_bytes();
        let (path, link) = (&path[..path.len().min(100)], &link[..link.len().min(100)]);
        block[..path.len()].copy_from_slice(path);
        block[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        header.set_size(size);
        header.set_cksum();
        header
    }

    pub fn push(&mut self, header: &Header, data: &[u8]) {
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// The archive without an end marker.
    pub fn open_end(self) -> Vec<u8> {
        self.bytes
    }

    pub fn build(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

/// PAX records.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..).find(|n| rest + n.to_string().len() == *n).unwrap();
        out.extend_from_slice(format!("{length} {key}=").as_bytes());
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}
