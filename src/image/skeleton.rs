//! The skeleton of a layer: all bytes of its archive except the contents of the files that were unpacked from it.
//!
//! Unpacked layers do not have the bytes of their archive, but an image that leaves this machine must have layers with
//! the diff ids of its configuration. So the unpacker writes down everything that it does not unpack (headers, padding,
//! what follows the end), and [`assemble`](super::assemble) puts both together again.
//!
//! ```text
//! zstd of: MAGIC record* END
//! LITERAL  length u32, bytes         bytes of the archive
//! FILE     size u64, length u16, path   contents of a file: those of the unpacked file at this path
//! KEPT     number u64, size u64, bytes  contents of the file of the n-th FILE, which did not stay
//! END      size u64                  size of the whole archive
//! ```
//! Numbers are little-endian. Paths are relative to the layer's root and free of links. A file does not stay if a later
//! entry replaces it, or removes it with its directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

pub(super) const MAGIC: &[u8; 8] = b"CNDSKEL1";
pub(super) const LITERAL: u8 = b'L';
pub(super) const FILE: u8 = b'F';
pub(super) const KEPT: u8 = b'K';
pub(super) const END: u8 = b'E';
/// Longest literal of one record, in bytes.
pub(super) const MAX_LITERAL: usize = 64 << 10;
/// Headers compress well at any level, and the unpacker waits for this.
const LEVEL: i32 = 1;

/// Writes the skeleton of an archive that is being unpacked.
pub(super) struct Recorder {
    out: zstd::Encoder<'static, BufWriter<File>>,
    /// Bytes that have not been written yet.
    literal: Vec<u8>,
    /// Bytes of the archive so far.
    total: u64,
    /// Whether the bytes that are read now are contents of a file.
    in_file: bool,
    /// Size of that file so far.
    file_size: u64,
    files: Files,
    /// The first error. Nothing is written after it.
    failed: Option<io::Error>,
}

/// Which FILE an inode belongs to. An image has many files and hardly ever loses one, so the index is built only then.
enum Files {
    /// Inodes in the order of their FILE.
    InOrder(Vec<u64>),
    Indexed {
        by_inode: HashMap<u64, u64>,
        next: u64,
    },
}

impl Files {
    fn add(&mut self, inode: u64) {
        match self {
            Self::InOrder(inodes) => inodes.push(inode),
            Self::Indexed { by_inode, next } => {
                by_inode.insert(inode, *next);
                *next += 1;
            }
        }
    }

    /// The number of an inode's FILE; only the first time that it is asked for.
    fn take(&mut self, inode: u64) -> Option<u64> {
        if let Self::InOrder(inodes) = self {
            *self = Self::Indexed {
                next: inodes.len() as u64,
                by_inode: inodes.iter().copied().zip(0..).collect(),
            };
        }
        match self {
            Self::Indexed { by_inode, .. } => by_inode.remove(&inode),
            Self::InOrder(_) => None,
        }
    }
}

impl Recorder {
    /// Writes to an empty file.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut out = zstd::Encoder::new(BufWriter::with_capacity(MAX_LITERAL, file), LEVEL)?;
        out.write_all(MAGIC)?;
        Ok(Self {
            out,
            literal: Vec::with_capacity(MAX_LITERAL),
            total: 0,
            in_file: false,
            file_size: 0,
            files: Files::InOrder(Vec::new()),
            failed: None,
        })
    }

    /// Takes the next bytes of the archive.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if self.in_file {
            self.file_size += bytes.len() as u64;
            return;
        }
        while !bytes.is_empty() && self.failed.is_none() {
            let part = bytes.len().min(MAX_LITERAL - self.literal.len());
            self.literal.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if self.literal.len() == MAX_LITERAL {
                self.try_write(Self::write_literal);
            }
        }
    }

    /// From now on the archive's bytes are contents of a file that is unpacked.
    pub(super) fn begin_file(&mut self) {
        self.in_file = true;
        self.file_size = 0;
    }

    /// The contents end here. They are in the file with that inode, in a directory with that path.
    pub(super) fn end_file(&mut self, directory: &[u8], name: &[u8], inode: u64) {
        self.in_file = false;
        let size = self.file_size;
        if size == 0 {
            return;
        }
        self.files.add(inode);
        self.try_write(|recorder| {
            recorder.write_literal()?;
            let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
            let length = directory.len() + slash.len() + name.len();
            let length = u16::try_from(length).map_err(|_| io::Error::other("the path of a file is too long"))?;
            recorder.out.write_all(&[FILE])?;
            recorder.out.write_all(&size.to_le_bytes())?;
            recorder.out.write_all(&length.to_le_bytes())?;
            [directory, slash, name]
                .iter()
                .try_for_each(|part| recorder.out.write_all(part))
        });
    }

    /// A file is about to lose a name. If contents that the skeleton refers to could be lost with it, they are kept.
    pub(super) fn before_removal(&mut self, directory: &OwnedFd, name: &[u8], inode: u64) {
        let Some(number) = self.files.take(inode) else { return };
        self.try_write(|recorder| {
            recorder.write_literal()?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
            let size = file.metadata()?.len();
            recorder.out.write_all(&[KEPT])?;
            recorder.out.write_all(&number.to_le_bytes())?;
            recorder.out.write_all(&size.to_le_bytes())?;
            match io::copy(&mut file.take(size), &mut recorder.out)? {
                copied if copied == size => Ok(()),
                _ => Err(io::Error::other("a file of the layer became shorter")),
            }
        });
    }

    /// Completes the skeleton after the whole archive was read.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.try_write(Self::write_literal);
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.out.write_all(&[END])?;
        self.out.write_all(&self.total.to_le_bytes())?;
        self.out.finish()?.flush()
    }

    fn write_literal(&mut self) -> io::Result<()> {
        if self.literal.is_empty() {
            return Ok(());
        }
        self.out.write_all(&[LITERAL])?;
        self.out.write_all(&(self.literal.len() as u32).to_le_bytes())?;
        self.out.write_all(&self.literal)?;
        self.literal.clear();
        Ok(())
    }

    /// An error is told at the end: in the middle it would look like one of the archive.
    fn try_write(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.failed.is_none()
            && let Err(error) = write(self)
        {
            self.failed = Some(error);
        }
    }
}
