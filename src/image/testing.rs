//! Archives and overlay mounts for the tests of this module.

use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

/// Builds archives entry by entry, good ones and bad ones.
#[derive(Default, Clone)]
pub(super) struct Tar {
    bytes: Vec<u8>,
    /// Records for the next entry.
    records: Vec<u8>,
    uid: u64,
    gid: u64,
    mtime: u64,
}

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Owner of the entries that follow.
    pub(super) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Time of the entries that follow.
    pub(super) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// PAX records of the next entry.
    pub(super) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.records.extend(pax(records));
        self
    }

    pub(super) fn dir(self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.entry(EntryType::Directory, path.as_ref(), mode, b"", b"")
    }

    pub(super) fn file(self, path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.file_mode(path, 0o644, data)
    }

    pub(super) fn file_mode(self, path: impl AsRef<[u8]>, mode: u32, data: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path.as_ref(), mode, b"", data.as_ref())
    }

    pub(super) fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Symlink, path.as_ref(), 0o777, target.as_ref(), b"")
    }

    pub(super) fn hard_link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Link, path.as_ref(), 0o644, target.as_ref(), b"")
    }

    pub(super) fn node(mut self, kind: EntryType, path: impl AsRef<[u8]>, mode: u32, device: (u32, u32)) -> Self {
        let mut header = self.header(kind, path.as_ref(), mode, b"", 0);
        header.set_device_major(device.0).unwrap();
        header.set_device_minor(device.1).unwrap();
        header.set_cksum();
        self.push(&header, b"");
        self
    }

    /// An entry of any type. Names longer than the header has room for go into GNU records.
    pub(super) fn entry(mut self, kind: EntryType, path: &[u8], mode: u32, link: &[u8], data: &[u8]) -> Self {
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

    pub(super) fn header(&mut self, kind: EntryType, path: &[u8], mode: u32, link: &[u8], size: u64) -> Header {
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

    pub(super) fn push(&mut self, header: &Header, data: &[u8]) {
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// The archive without an end mark.
    pub(super) fn open_end(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn build(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// Unpacks the archive into a new directory.
    pub(super) fn unpack_to(self, root: &Path) -> Result<(), super::tree::TreeError> {
        std::fs::create_dir(root).unwrap();
        super::unpack::unpack(&self.build()[..], root, 1000)
    }
}

/// PAX records.
pub(super) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
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

/// Shows `check` a real overlay mount of the layers, topmost first, in a mount namespace of its own.
pub(super) fn with_overlay(lower_dirs: &[PathBuf], check: impl FnOnce(&Path) + Send) {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = scratch.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (upper, work, merged) = (place("upper"), place("work"), place("merged"));
    let lower: Vec<_> = lower_dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    std::thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(
                Some("overlay"),
                &merged,
                Some("overlay"),
                MsFlags::empty(),
                Some(&options[..]),
            )
            .unwrap();
            check(&merged);
        });
        if let Err(panic) = mounted.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// All paths beneath `root` with what can be seen of them, except access times.
pub(super) fn listing(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let m = std::fs::symlink_metadata(&path).unwrap();
        let content = if m.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            String::new()
        } else if m.is_symlink() {
            format!("{:?}", std::fs::read_link(&path).unwrap())
        } else if m.is_file() {
            super::digest::Digest::of(&std::fs::read(&path).unwrap()).to_string()
        } else {
            m.rdev().to_string()
        };
        let (mode, times) = (m.mode(), (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()));
        let path = path.strip_prefix(root).unwrap();
        lines.push(format!(
            "{path:?} {mode:o} {}:{} {} {times:?} {content}",
            m.uid(),
            m.gid(),
            m.nlink()
        ));
    }
    lines.sort();
    lines
}

/// The paths beneath `root`, sorted, directories with a slash at the end.
pub(super) fn names(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = path.symlink_metadata().unwrap().is_dir();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            names.push(if is_dir { name + "/" } else { name });
            if is_dir {
                pending.push(path);
            }
        }
    }
    names.sort();
    names
}
