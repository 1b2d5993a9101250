//! A layer on its way from the network to the archive reader: hashed as it comes, decompressed, hashed again, capped.
//!
//! ```text
//! channel of chunks -> BlobReader (sha256 of the blob) -> gzip | zstd | nothing -> LayerReader (sha256, byte limit)
//! ```
//! This is the only place where something is decompressed, so no input can grow past the limit.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::digest::Digest;

/// The blob, from a channel. For blocking threads only.
pub(super) struct BlobReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    hash: Sha256,
}

impl BlobReader {
    pub(super) fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self {
            chunks,
            current: Bytes::new(),
            hash: Sha256::new(),
        }
    }

    fn receive(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.blocking_recv()?;
        self.hash.update(&chunk);
        Some(chunk)
    }

    /// The first bytes, which stay to be read. Fewer than `n` only if there are no more.
    fn peek(&mut self, n: usize) -> &[u8] {
        while self.current.len() < n {
            let Some(next) = self.receive() else { break };
            self.current = [&self.current[..], &next].concat().into();
        }
        &self.current[..n.min(self.current.len())]
    }

    /// Takes what is left and tells the digest of it all.
    fn finish(mut self) -> Digest {
        while self.receive().is_some() {}
        Digest::finish(self.hash)
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            self.current = self.receive().unwrap_or_default();
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        self.current.advance(n);
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        buffer[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

enum Decoder {
    Plain(BlobReader),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BlobReader>>),
    Zstd(zstd::Decoder<'static, BlobReader>),
}

impl Decoder {
    /// Media types are often wrong, the first bytes never are.
    fn new(mut blob: BlobReader) -> io::Result<Self> {
        Ok(match blob.peek(4) {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(blob))),
            // A zstd frame, or a skippable one before it.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd(zstd::Decoder::with_buffer(blob)?),
            _ => Self::Plain(blob),
        })
    }

    fn into_blob(self) -> BlobReader {
        match self {
            Self::Plain(blob) => blob,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// The uncompressed archive of a layer.
pub(super) struct LayerReader {
    decoder: Decoder,
    hash: Sha256,
    left: u64,
    limit: u64,
}

/// The digests of a layer that was read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digests {
    /// Of the blob, compressed or not.
    pub blob: Digest,
    /// Of the uncompressed archive.
    pub diff_id: Digest,
}

impl LayerReader {
    /// At most `limit` bytes come out; more is an error.
    pub(super) fn new(blob: BlobReader, limit: u64) -> io::Result<Self> {
        Ok(Self {
            decoder: Decoder::new(blob)?,
            hash: Sha256::new(),
            left: limit,
            limit,
        })
    }

    /// Reads what stands after the archive's end (padding belongs to the digests) and tells the digests.
    pub(super) fn finish(mut self) -> io::Result<Digests> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digests {
            blob: self.decoder.into_blob().finish(),
            diff_id: Digest::finish(self.hash),
        })
    }
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.decoder.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            let message = format!("it unpacks to more than {} bytes (max_layer_bytes)", self.limit);
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn blob(data: &[u8], piece: usize) -> BlobReader {
        let (sender, receiver) = mpsc::channel(data.len() + 1);
        for chunk in data.chunks(piece) {
            sender.try_send(Bytes::copy_from_slice(chunk)).unwrap();
        }
        BlobReader::new(receiver)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    #[test]
    fn every_compression_gives_both_digests() {
        let data: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
        let halves = [gzip(&data[..5000]), gzip(&data[5000..])].concat();
        let frames = [zstd(&data[..5000]), zstd(&data[5000..])].concat();
        let skippable = [&b"\x50\x2a\x4d\x18\x02\0\0\0xy"[..], &zstd(&data)].concat();
        for compressed in [data.clone(), gzip(&data), zstd(&data), halves, frames, skippable] {
            for piece in [1, 3, 4096] {
                let mut reader = LayerReader::new(blob(&compressed, piece), 40_000).unwrap();
                let mut out = Vec::new();
                reader.read_to_end(&mut out).unwrap();
                assert_eq!(out, data);
                let expected = Digests {
                    blob: Digest::of(&compressed),
                    diff_id: Digest::of(&data),
                };
                assert_eq!(reader.finish().unwrap(), expected);
            }
        }
    }

    #[test]
    fn what_was_not_read_counts_too() {
        let compressed = gzip(&[7; 5000]);
        let mut reader = LayerReader::new(blob(&compressed, 100), 5000).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(reader.finish().unwrap().diff_id, Digest::of(&[7; 5000]));
        let nothing = LayerReader::new(blob(b"", 1), 0).unwrap().finish().unwrap();
        assert_eq!((nothing.blob, nothing.diff_id), (Digest::of(b""), Digest::of(b"")));
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        for compressed in [gzip(&vec![0; 1 << 20]), zstd(&vec![0; 1 << 20]), vec![0; 1 << 20]] {
            let reader = LayerReader::new(blob(&compressed, 1000), (1 << 20) - 1).unwrap();
            assert!(
                reader
                    .finish()
                    .unwrap_err()
                    .to_string()
                    .contains("more than 1048575 bytes")
            );
        }
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        for mut compressed in [gzip(&[7; 5000]), zstd(&[7; 5000])] {
            let cut = &compressed[..compressed.len() - 1];
            LayerReader::new(blob(cut, 100), 5000).unwrap().finish().unwrap_err();
            let middle = compressed.len() / 2;
            compressed[middle] ^= 0xff;
            let result = LayerReader::new(blob(&compressed, 100), 1 << 20).unwrap().finish();
            assert!(result.map_or(true, |d| d.diff_id != Digest::of(&[7; 5000])));
        }
    }
}
