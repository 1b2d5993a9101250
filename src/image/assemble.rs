//! The archive of a layer, put together again from its skeleton and its unpacked files, and checked against its diff id.
//!
//! A layer that an earlier version unpacked has no skeleton. It is captured instead: the archive has the same files, but
//! another diff id, and the image that it belongs to gets another configuration.
//!
//! All functions block.

#![expect(clippy::disallowed_types, reason = "the skeleton is a file of our own")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256};

use super::capture::capture;
use super::digest::Digest;
use super::layers::{LayerStore, Staged};
use super::skeleton::{END, FILE, KEPT, LITERAL, MAGIC, MAX_LITERAL};
use super::stack::Link;

/// A layer of which the archive can be written.
pub(super) struct Assembled {
    /// Digest of the archive.
    pub(super) diff_id: Digest,
    /// Size of the archive, in bytes.
    pub(super) size: u64,
    from: From,
}

enum From {
    Skeleton {
        path: PathBuf,
        files: PathBuf,
        kept: Kept,
    },
    /// The directory says everything.
    Directory(PathBuf),
}

/// Contents of files that did not stay, in a file of the staging area.
#[derive(Default)]
struct Kept {
    places: HashMap<u64, (u64, u64)>,
    file: Option<(Staged, File)>,
}

impl Assembled {
    /// Finds out what a layer's archive is. Reads the files of a layer that has no skeleton.
    pub(super) fn open(store: &LayerStore, link: &Link) -> io::Result<Self> {
        let path = store.skeleton_of(&link.diff_id);
        if path.exists() {
            let (size, kept) = scan(store, &path)?;
            let files = store.layer(&link.diff_id);
            return Ok(Self {
                diff_id: link.diff_id,
                size,
                from: From::Skeleton { path, files, kept },
            });
        }
        // On top of others, if they make a difference: a captured archive has no directories that are only implied.
        let directory = fs_err::canonicalize(store.lower_dir(link))?;
        let mut sink = Hashed::new(io::sink());
        capture(&directory, &mut sink)?;
        Ok(Self {
            diff_id: Digest::finish(sink.hash),
            size: sink.bytes,
            from: From::Directory(directory),
        })
    }

    /// Writes the archive. An error if it is not the one that was announced; then it has been written all the same.
    pub(super) fn write(&self, out: impl Write) -> io::Result<()> {
        let mut out = Hashed::new(out);
        match &self.from {
            From::Skeleton { path, files, kept } => join(path, files, kept, &mut out)?,
            From::Directory(directory) => capture(directory, &mut out).map(drop)?,
        }
        let found = Digest::finish(out.hash);
        if found != self.diff_id {
            let diff_id = self.diff_id;
            let message = format!(
                "the files of the layer {diff_id} were changed on disk (its archive has the digest {found} now); remove \
                 the image, and pull or build it again"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(())
    }
}

/// Reads a skeleton to its end: the size of the archive, and the contents that it keeps.
fn scan(store: &LayerStore, path: &Path) -> io::Result<(u64, Kept)> {
    let mut skeleton = Skeleton::open(path)?;
    let mut kept = Kept::default();
    loop {
        match skeleton.next()? {
            Part::Literal | Part::File { .. } => {}
            Part::Kept { number, size } => {
                if kept.file.is_none() {
                    kept.file = Some(store.stage_file()?);
                }
                if let Some((_, file)) = &mut kept.file {
                    let at = file.stream_position()?;
                    skeleton.copy(size, file)?;
                    kept.places.insert(number, (at, size));
                }
            }
            Part::End { size } => return Ok((size, kept)),
        }
    }
}

/// Writes the archive that the skeleton and the files beneath a directory give.
fn join(path: &Path, files: &Path, kept: &Kept, out: &mut impl Write) -> io::Result<()> {
    let mut skeleton = Skeleton::open(path)?;
    let root = rustix::fs::open(files, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut number = 0;
    loop {
        match skeleton.next()? {
            Part::Literal => out.write_all(&skeleton.literal)?,
            Part::File { path, size } => {
                let copied = match (kept.places.get(&number), &kept.file) {
                    (Some((at, size)), Some((_, file))) => {
                        let mut file = file.try_clone()?;
                        file.seek(SeekFrom::Start(*at))?;
                        io::copy(&mut file.take(*size), out)?
                    }
                    _ => {
                        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                        let file = rustix::fs::openat2(&root, &path, flags, Mode::empty(), resolve);
                        let file = file.map_err(|e| naming(&e.into(), &files.join(&path)))?;
                        let mut file = BufReader::with_capacity(128 << 10, File::from(file).take(size));
                        io::copy(&mut file, out)?
                    }
                };
                if copied != size {
                    let message = format!("{} has {copied} bytes instead of {size}", files.join(&path).display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
                number += 1;
            }
            Part::Kept { size, .. } => skeleton.copy(size, &mut io::sink())?,
            Part::End { .. } => return Ok(()),
        }
    }
}

/// A skeleton that is being read.
struct Skeleton {
    reader: BufReader<zstd::Decoder<'static, BufReader<File>>>,
    path: PathBuf,
    /// The last literal.
    literal: Vec<u8>,
}

/// The next record.
enum Part {
    /// Its bytes are in [`Skeleton::literal`].
    Literal,
    File {
        path: PathBuf,
        size: u64,
    },
    /// The caller reads its bytes.
    Kept {
        number: u64,
        size: u64,
    },
    End {
        size: u64,
    },
}

impl Skeleton {
    fn open(path: &Path) -> io::Result<Self> {
        let file = fs_err::File::open(path)?.into_parts().0;
        let mut skeleton = Self {
            reader: BufReader::with_capacity(MAX_LITERAL, zstd::Decoder::new(file)?),
            path: path.to_owned(),
            literal: Vec::new(),
        };
        match skeleton.bytes::<8>()? {
            magic if magic == *MAGIC => Ok(skeleton),
            _ => Err(skeleton.damaged()),
        }
    }

    fn next(&mut self) -> io::Result<Part> {
        let [kind] = self.bytes()?;
        Ok(match kind {
            LITERAL => {
                let length = u32::from_le_bytes(self.bytes()?) as usize;
                if length > MAX_LITERAL {
                    return Err(self.damaged());
                }
                self.literal.resize(length, 0);
                self.reader.read_exact(&mut self.literal)?;
                Part::Literal
            }
            FILE => {
                let size = u64::from_le_bytes(self.bytes()?);
                let mut path = vec![0; u16::from_le_bytes(self.bytes()?).into()];
                self.reader.read_exact(&mut path)?;
                let path = PathBuf::from(OsString::from_vec(path));
                Part::File { path, size }
            }
            KEPT => Part::Kept {
                number: u64::from_le_bytes(self.bytes()?),
                size: u64::from_le_bytes(self.bytes()?),
            },
            END => Part::End {
                size: u64::from_le_bytes(self.bytes()?),
            },
            _ => return Err(self.damaged()),
        })
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn copy(&mut self, size: u64, out: &mut impl Write) -> io::Result<()> {
        match io::copy(&mut self.reader.by_ref().take(size), out)? {
            copied if copied == size => Ok(()),
            _ => Err(self.damaged()),
        }
    }

    fn damaged(&self) -> io::Error {
        let message = format!("{} is damaged", self.path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

/// Hashes and counts the bytes that are written through it.
pub(super) struct Hashed<W> {
    out: W,
    pub(super) hash: Sha256,
    pub(super) bytes: u64,
}

impl<W> Hashed<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            hash: Sha256::new(),
            bytes: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn naming(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
