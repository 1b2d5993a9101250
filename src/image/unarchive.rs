//! Archives of a build that are no layers: tar, also compressed with gzip, bzip2, xz or zstd.
//!
//! What they unpack to is limited here, as [`stream`](super::stream) does for layers. Names that begin with `.wh.` have no
//! meaning in them and could not be stored in a layer, so they are refused.

#![expect(clippy::disallowed_types, reason = "what comes out of them is counted here")]

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::ImageService;
use super::archive::Archive;
use super::stream::MAX_ZSTD_WINDOW;
use super::tree::TreeError;
use super::unpack::unpack_plain;

/// Longest beginning that tells a compression.
const MAGIC: usize = 6;
/// Memory that an xz decoder may use, in KiB.
const MAX_XZ_MEMORY: u32 = 256 << 10;

/// Limits of an archive.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveLimits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl ImageService {
    /// The limits of a layer.
    pub fn archive_limits(&self) -> ArchiveLimits {
        ArchiveLimits {
            bytes: self.0.settings.max_layer_bytes,
            entries: self.0.settings.max_layer_entries,
        }
    }
}

/// Unpacks `file` into the empty directory `root`, with owners, modes and times. `false` if it is no archive; then nothing
/// was unpacked. Blocks.
pub(crate) fn unpack_archive(mut file: File, root: &Path, limits: ArchiveLimits) -> Result<bool, TreeError> {
    let system = |e: io::Error| TreeError::System(e.to_string());
    let is_archive = match uncompressed(&mut file, limits.bytes) {
        // Most files that begin like a compressed one and are none end here.
        Ok(reader) => matches!(Archive::new(reader).next(), Ok(Some(_))),
        Err(_) => false,
    };
    file.rewind().map_err(system)?;
    if !is_archive {
        return Ok(false);
    }
    let reader = uncompressed(&mut file, limits.bytes).map_err(system)?;
    unpack_plain(reader, root, limits.entries)?;
    Ok(true)
}

fn uncompressed(file: &mut File, limit: u64) -> io::Result<Limited<Box<dyn Read + '_>>> {
    let mut magic = Vec::new();
    file.by_ref().take(MAGIC as u64).read_to_end(&mut magic)?;
    file.rewind()?;
    let buffered = BufReader::with_capacity(128 << 10, file);
    let reader: Box<dyn Read + '_> = match &magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(buffered)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(buffered, true, MAX_XZ_MEMORY))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        _ => Box::new(buffered),
    };
    Ok(Limited {
        reader,
        left: limit,
        limit,
    })
}

struct Limited<R> {
    reader: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let message = format!("it unpacks to more than {} bytes (max_layer_bytes)", self.limit);
            io::Error::new(io::ErrorKind::FileTooLarge, message)
        })?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::testing::{Tar, names};
    use super::*;

    const LIMITS: ArchiveLimits = ArchiveLimits {
        bytes: 1 << 20,
        entries: 100,
    };

    fn unpacked(bytes: &[u8]) -> Result<Option<Vec<String>>, String> {
        let root = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let is_archive = unpack_archive(file, root.path(), LIMITS).map_err(|e| e.to_string())?;
        Ok(is_archive.then(|| names(root.path())))
    }

    fn through(program: &str, bytes: &[u8]) -> Vec<u8> {
        let mut child = std::process::Command::new(program)
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    #[test]
    fn archives_with_every_compression() {
        let tar = Tar::new().file("a/b", "1").symlink("c", "a").build();
        for bytes in [
            tar.clone(),
            through("gzip", &tar),
            through("bzip2", &tar),
            through("xz", &tar),
            zstd::encode_all(&tar[..], 1).unwrap(),
        ] {
            assert_eq!(unpacked(&bytes).unwrap().unwrap(), ["a/", "a/b", "c"]);
        }
    }

    #[test]
    fn what_is_no_archive_is_left_alone() {
        for bytes in [
            &b""[..],
            b"text",
            &through("gzip", b"text"),
            b"\x1f\x8b",
            b"BZh9",
            b"\xfd7zXZ\0",
        ] {
            assert_eq!(unpacked(bytes).unwrap(), None);
        }
    }

    #[test]
    fn what_no_layer_could_hold_or_no_limit_allows() {
        let error = unpacked(&Tar::new().file("a/.wh.b", "").build()).unwrap_err();
        assert!(error.contains("names that begin with .wh."), "{error}");
        let large = Tar::new().file("zeros", "\0".repeat(2 << 20)).build();
        let error = unpacked(&through("gzip", &large)).unwrap_err();
        assert!(error.contains("max_layer_bytes"), "{error}");
        let error = unpacked(&Tar::new().file("../a", "").build()).unwrap_err();
        assert!(error.contains("escapes"), "{error}");
    }
}
