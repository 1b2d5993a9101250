//! An untrusted archive of images, taken apart into files of a private directory.
//!
//! The files have numbers for names, so no name of the archive reaches the file system; links of the archive lead only
//! from name to name within it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::image::archive::{Archive, EntryKind};
use crate::image::digest::Digest;
use crate::image::printable::printable;

/// Maximum number of entries of an archive. One image has some hundreds at most.
const MAX_ENTRIES: usize = 10_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 1024;
/// Most links from name to name.
const MAX_LINKS: usize = 8;
const BUFFER: usize = 128 << 10;

/// Why an archive is not taken.
#[derive(Debug)]
pub(crate) enum SpoolError {
    /// The archive is wrong.
    Refused(String),
    /// The file system failed.
    System(io::Error),
}

impl SpoolError {
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::Refused(message.into())
    }
}

/// A file of the archive.
#[derive(Debug, Clone)]
pub(crate) struct Spooled {
    pub path: PathBuf,
    pub size: u64,
    pub digest: Digest,
}

enum Named {
    File(Spooled),
    /// The name that a link leads to.
    Link(String),
}

/// The files of an archive.
#[derive(Default)]
pub(crate) struct Spool {
    names: HashMap<String, Named>,
}

impl Spool {
    /// Reads an archive to its end and writes its files into an empty directory.
    pub(crate) fn fill(reader: impl Read, directory: &Path) -> Result<Self, SpoolError> {
        let refused = |e: io::Error| SpoolError::refused(e.to_string());
        let mut archive = Archive::new(reader);
        let mut spool = Self::default();
        let mut entries = 0;
        let mut buffer = vec![0; BUFFER];
        while let Some(entry) = archive.next().map_err(refused)? {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(SpoolError::refused(format!("it has more than {MAX_ENTRIES} entries")));
            }
            let name = clean(&entry.path, "")?;
            let named = match &entry.kind {
                EntryKind::Directory => continue,
                EntryKind::File => {
                    let path = directory.join(entries.to_string());
                    Named::File(keep(&mut archive, path, &mut buffer)?)
                }
                EntryKind::Symlink(target) => {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    Named::Link(clean(target, parent)?)
                }
                EntryKind::HardLink(target) => Named::Link(clean(target, "")?),
                EntryKind::Character(..) | EntryKind::Block(..) | EntryKind::Fifo => {
                    let message = format!("{} is neither a file nor a link", printable(&entry.path));
                    return Err(SpoolError::Refused(message));
                }
            };
            spool.names.insert(name, named);
        }
        io::copy(archive.source(), &mut io::sink()).map_err(refused)?;
        Ok(spool)
    }

    /// The file of a name, through links.
    pub(crate) fn file(&self, name: &str) -> Option<&Spooled> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.names.get(name)? {
                Named::File(file) => return Some(file),
                Named::Link(target) => name = target,
            }
        }
        None
    }

    /// The content of a small file. `None` if the archive has no file of that name.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, SpoolError> {
        let Some(file) = self.file(name) else { return Ok(None) };
        if file.size > limit {
            let message = format!("{name:?} is longer than {limit} bytes");
            return Err(SpoolError::Refused(message));
        }
        fs_err::read(&file.path).map(Some).map_err(SpoolError::System)
    }
}

fn keep<R: Read>(archive: &mut Archive<R>, path: PathBuf, buffer: &mut [u8]) -> Result<Spooled, SpoolError> {
    let mut file: File = fs_err::File::create_new(&path)
        .map_err(SpoolError::System)?
        .into_parts()
        .0;
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        let read = archive.read(buffer).map_err(|e| SpoolError::refused(e.to_string()))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        size += read as u64;
        file.write_all(&buffer[..read]).map_err(SpoolError::System)?;
    }
    let digest = Digest::finish(hash);
    Ok(Spooled { path, size, digest })
}

/// A name within the archive: without `.`, `..` and slashes at the ends.
fn clean(name: &[u8], parent: &str) -> Result<String, SpoolError> {
    let refused = || SpoolError::refused(format!("invalid name: {}", printable(name)));
    let text = std::str::from_utf8(name).ok().filter(|text| text.len() <= MAX_NAME);
    let text = text.ok_or_else(refused)?;
    let from_parent = parent.split('/').filter(|_| !text.starts_with('/'));
    let mut parts: Vec<&str> = Vec::new();
    for part in from_parent.chain(text.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(refused)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;
    use crate::image::testing::Tar;

    fn spooled(tar: Tar) -> Result<(tempfile::TempDir, Spool), String> {
        let directory = tempfile::tempdir().unwrap();
        match Spool::fill(&tar.build()[..], directory.path()) {
            Ok(spool) => Ok((directory, spool)),
            Err(SpoolError::Refused(message)) => Err(message),
            Err(SpoolError::System(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn names_lead_to_files_through_links() {
        let tar = Tar::new()
            .dir("one/", 0o755)
            .file("./one/layer.tar", "layer")
            .symlink("two/layer.tar", "../one/layer.tar")
            .hard_link("three", "two/layer.tar")
            .symlink("loop", "loop")
            .symlink("nowhere", "/etc/passwd")
            .file("/manifest.json", "1")
            .file("manifest.json", "2");
        let (directory, spool) = spooled(tar).unwrap();
        for name in ["one/layer.tar", "two/layer.tar", "three"] {
            assert_eq!(spool.read(name, 10).unwrap().unwrap(), b"layer", "{name}");
        }
        assert_eq!(spool.read("manifest.json", 10).unwrap().unwrap(), b"2");
        assert!(spool.file("loop").is_none() && spool.file("nowhere").is_none() && spool.file("one").is_none());
        assert_eq!(spool.file("three").unwrap().digest, Digest::of(b"layer"));
        assert!(matches!(spool.read("three", 4), Err(SpoolError::Refused(_))));
        let names = std::fs::read_dir(directory.path()).unwrap();
        assert!(
            names
                .into_iter()
                .all(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u32>().is_ok())
        );
    }

    #[rstest::rstest]
    #[case(Tar::new().file("../x", ""), "invalid name: ../x")]
    #[case(Tar::new().symlink("a/b", "../../x"), "invalid name: ../../x")]
    #[case(Tar::new().file(b"\xff", ""), "invalid name")]
    #[case(Tar::new().node(EntryType::Char, "null", 0o666, (1, 3)), "null is neither a file nor a link")]
    #[case(Tar::new().pax(&[("size", b"99999")]).file("x", ""), "unexpected end of file")]
    #[case((0..10_001).fold(Tar::new(), |tar, _| tar.dir("d", 0o755)), "more than 10000 entries")]
    fn what_is_refused(#[case] tar: Tar, #[case] reason: &str) {
        let error = spooled(tar).map(drop).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}
