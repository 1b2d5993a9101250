//! The part of a key that stands for files.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};

use super::super::BuildError;
use super::super::cache::Key;
use super::walk::{Info, Sink};

const BUFFER: usize = 128 << 10;

/// Adds what it is given to a key. Times are left out.
pub(super) struct Hash<'a> {
    key: &'a mut Key,
    buffer: Vec<u8>,
}

impl<'a> Hash<'a> {
    pub(super) fn new(key: &'a mut Key) -> Self {
        Self {
            key,
            buffer: vec![0; BUFFER],
        }
    }

    fn add(&mut self, kind: &str, path: &[u8], info: &Info) {
        self.key.add(kind);
        self.key.add(path);
        for number in [info.uid, info.gid, info.mode] {
            self.key.add(number.to_le_bytes());
        }
        let attributes = info.attributes.iter().flat_map(|(name, value)| [name, value]);
        self.key.all(attributes);
    }

    fn content(&mut self, mut file: File) -> io::Result<Vec<u8>> {
        let mut hash = Sha256::new();
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok(hash.finalize().to_vec()),
                Ok(read) => hash.update(&self.buffer[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Sink for Hash<'_> {
    fn directory(&mut self, path: &[u8], info: Info, _: bool) -> Result<(), BuildError> {
        self.add("directory", path, &info);
        Ok(())
    }

    fn file(&mut self, path: &[u8], info: Info, content: File, _: bool) -> Result<(), BuildError> {
        self.add("file", path, &info);
        let content = self.content(content)?;
        self.key.add(content);
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], info: Info, target: &[u8]) -> Result<(), BuildError> {
        self.add("link", path, &info);
        self.key.add(target);
        Ok(())
    }

    fn node(&mut self, path: &[u8], info: Info, kind: FileType, device: u64) -> Result<(), BuildError> {
        self.add("node", path, &info);
        self.key.add(kind.as_raw_mode().to_le_bytes());
        self.key.add(device.to_le_bytes());
        Ok(())
    }

    fn parents(&mut self, path: &[u8]) -> Result<(), BuildError> {
        self.key.add("parents");
        self.key.add(path);
        Ok(())
    }
}
