//! The path of a layer from the network to the archive reader: hashed, decompressed, hashed again, and limited.
//!
//! ```text
//! channel of chunks -> BlobReader (sha256 of the blob) -> gzip | zstd | nothing -> LayerReader (sha256, limits)
//!                                                      a thread of its own ^        -> pieces -> Pieces -> archive reader
//! ```
//! Decompression happens only here, so no input can exceed the limits. It runs ahead of the reader of the archive, in
//! another thread: together they take as long as the slower one.

#![expect(clippy::disallowed_types, reason = "what comes out of them is counted here")]

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::digest::Digest;

/// Maximum window of a zstd frame, as a power of two: what `zstd --ultra --long` writes and every decoder accepts. It
/// limits the memory that one layer can use.
pub(super) const MAX_ZSTD_WINDOW: u32 = 27;

/// Size of a piece of the archive, and how many pieces one layer may have in memory.
const PIECE: usize = 128 << 10;
const PIECES: usize = 8;

/// Limits for the uncompressed size of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerLimits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Maximum number of bytes that one byte of the blob may unpack to; 0 for no limit.
    pub ratio: u64,
    /// Size of the uncompressed archive from which `ratio` applies, in bytes.
    pub ratio_from: u64,
}

impl LayerLimits {
    /// `unpacked` bytes of the archive have come out of the first `packed` bytes of the blob.
    fn check(&self, unpacked: u64, packed: u64) -> Result<(), String> {
        let Self {
            bytes,
            ratio,
            ratio_from,
        } = *self;
        if unpacked > bytes {
            return Err(format!("it unpacks to more than {bytes} bytes (max_layer_bytes)"));
        }
        if ratio > 0 && unpacked > ratio_from && unpacked > packed.saturating_mul(ratio) {
            return Err(format!(
                "it unpacks to more than {ratio_from} bytes (layer_ratio_from) and {ratio} times its size (max_layer_ratio)"
            ));
        }
        Ok(())
    }
}

/// Reads the blob from a channel. For blocking threads only.
pub(super) struct BlobReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    hash: Sha256,
    /// Bytes received so far.
    received: u64,
}

impl BlobReader {
    pub(super) fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self {
            chunks,
            current: Bytes::new(),
            hash: Sha256::new(),
            received: 0,
        }
    }

    fn receive(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.blocking_recv()?;
        self.hash.update(&chunk);
        self.received += chunk.len() as u64;
        Some(chunk)
    }

    /// The first bytes, without consuming them. Fewer than `n` only at the end.
    fn peek(&mut self, n: usize) -> &[u8] {
        while self.current.len() < n {
            let Some(next) = self.receive() else { break };
            self.current = [&self.current[..], &next].concat().into();
        }
        &self.current[..n.min(self.current.len())]
    }

    /// Reads the rest and returns the digest of the whole blob.
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
    /// Checks the magic bytes, because media types are often wrong.
    fn new(mut blob: BlobReader) -> io::Result<Self> {
        Ok(match blob.peek(4) {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(blob))),
            // A zstd frame, or a skippable frame before it.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                let mut decoder = zstd::Decoder::with_buffer(blob)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW)?;
                Self::Zstd(decoder)
            }
            _ => Self::Plain(blob),
        })
    }

    fn blob(&self) -> &BlobReader {
        match self {
            Self::Plain(blob) => blob,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
        }
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
    /// Bytes decompressed so far.
    unpacked: u64,
    limits: LayerLimits,
}

/// The digests of a layer, computed while reading it to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digests {
    /// Digest of the blob, compressed or not.
    pub blob: Digest,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
}

impl LayerReader {
    /// More than the limits allow is an error.
    pub(super) fn new(blob: BlobReader, limits: LayerLimits) -> io::Result<Self> {
        Ok(Self {
            decoder: Decoder::new(blob)?,
            hash: Sha256::new(),
            unpacked: 0,
            limits,
        })
    }

    /// Reads what follows the end of the archive (the digests cover the padding) and returns the digests.
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
        self.unpacked += n as u64;
        self.limits
            .check(self.unpacked, self.decoder.blob().received)
            .map_err(|message| io::Error::new(io::ErrorKind::InvalidData, message))?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// A piece of the archive, or why there is none.
type Piece = io::Result<Vec<u8>>;

/// The archive of a layer, as it comes from the thread that decompresses it.
pub(super) struct Pieces {
    pieces: Receiver<Piece>,
    /// Where used buffers go.
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    /// How much of `current` was read.
    read: usize,
}

impl Pieces {
    /// Reads what follows the end of the archive.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        while self.next()? {}
        Ok(())
    }

    /// Whether there is another piece.
    fn next(&mut self) -> io::Result<bool> {
        let Ok(piece) = self.pieces.recv() else {
            return Ok(false);
        };
        let used = std::mem::replace(&mut self.current, piece?);
        self.read = 0;
        // The other thread may have ended.
        let _ = self.used.send(used);
        Ok(true)
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.current.len() {
            if !self.next()? {
                return Ok(0);
            }
        }
        let n = buffer.len().min(self.current.len() - self.read);
        buffer[..n].copy_from_slice(&self.current[self.read..self.read + n]);
        self.read += n;
        Ok(n)
    }
}

/// Gives `work` the archive of a layer and decompresses in another thread meanwhile. `each` is called with the bytes of
/// the archive before and after each piece. The digests are known only if all of the archive was read: otherwise they are
/// an error.
pub(super) fn unpacked<T>(
    blob: BlobReader,
    limits: LayerLimits,
    each: impl Fn(u64, u64) -> io::Result<()> + Send,
    work: impl FnOnce(&mut Pieces) -> T,
) -> (T, io::Result<Digests>) {
    let (sender, pieces) = sync_channel(PIECES);
    let (used, buffers) = channel();
    std::thread::scope(|scope| {
        let decompressing = scope.spawn(|| decompress(blob, limits, each, sender, buffers));
        let mut archive = Pieces {
            pieces,
            used,
            current: Vec::new(),
            read: 0,
        };
        let done = work(&mut archive);
        // Ends the other thread if it still has something to say.
        drop(archive);
        let digests = decompressing.join();
        let panicked = |_| Err(io::Error::other("the decompression of a layer panicked"));
        (done, digests.unwrap_or_else(panicked))
    })
}

fn decompress(
    blob: BlobReader,
    limits: LayerLimits,
    each: impl Fn(u64, u64) -> io::Result<()>,
    pieces: SyncSender<Piece>,
    buffers: Receiver<Vec<u8>>,
) -> io::Result<Digests> {
    let gone = || io::Error::other("nobody reads the layer any more");
    let run = || {
        let mut reader = LayerReader::new(blob, limits)?;
        let mut allocated = 0;
        loop {
            let before = reader.unpacked;
            let mut buffer = match buffers.try_recv() {
                Ok(buffer) => buffer,
                Err(_) if allocated <= PIECES => {
                    allocated += 1;
                    Vec::with_capacity(PIECE)
                }
                Err(_) => buffers.recv().map_err(|_| gone())?,
            };
            buffer.clear();
            reader.by_ref().take(PIECE as u64).read_to_end(&mut buffer)?;
            if buffer.is_empty() {
                return reader.finish();
            }
            each(before, reader.unpacked)?;
            pieces.send(Ok(buffer)).map_err(|_| gone())?;
        }
    };
    run().inspect_err(|error| {
        // The reader of the archive tells why, and has it from here.
        let copy = io::Error::new(error.kind(), error.to_string());
        let _ = pieces.send(Err(copy));
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// No more than so many bytes.
    fn bytes(bytes: u64) -> LayerLimits {
        LayerLimits {
            bytes,
            ratio: 0,
            ratio_from: 0,
        }
    }

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
                let mut reader = LayerReader::new(blob(&compressed, piece), bytes(40_000)).unwrap();
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
    fn the_archive_is_read_in_another_thread() {
        let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let all = |compressed: &[u8], limit| {
            unpacked(
                blob(compressed, 5000),
                bytes(limit),
                |_, _| Ok(()),
                |archive| {
                    let mut out = Vec::new();
                    archive.read_to_end(&mut out).map(|_| out)
                },
            )
        };
        for compressed in [data.clone(), gzip(&data), zstd(&data)] {
            let (out, digests) = all(&compressed, 4_000_000);
            assert!(out.unwrap() == data);
            assert_eq!(digests.unwrap().diff_id, Digest::of(&data));
            let (out, digests) = all(&compressed, 3_999_999);
            let said = out.unwrap_err().to_string();
            assert!(said.contains("max_layer_bytes") && digests.is_err(), "{said}");
        }
        // Who stops early stops the other thread.
        let (_, digests) = unpacked(blob(&gzip(&data), 5000), bytes(4_000_000), |_, _| Ok(()), |_| ());
        digests.unwrap_err();
        let full = |_, now| match now > 1_000_000 {
            true => Err(io::Error::new(io::ErrorKind::StorageFull, "full")),
            false => Ok(()),
        };
        let (out, _) = unpacked(blob(&gzip(&data), 5000), bytes(4_000_000), full, Pieces::finish);
        assert_eq!(out.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn what_was_not_read_counts_too() {
        let compressed = gzip(&[7; 5000]);
        let mut reader = LayerReader::new(blob(&compressed, 100), bytes(5000)).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(reader.finish().unwrap().diff_id, Digest::of(&[7; 5000]));
        let nothing = LayerReader::new(blob(b"", 1), bytes(0)).unwrap().finish().unwrap();
        assert_eq!((nothing.blob, nothing.diff_id), (Digest::of(b""), Digest::of(b"")));
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        for compressed in [gzip(&vec![0; 1 << 20]), zstd(&vec![0; 1 << 20]), vec![0; 1 << 20]] {
            let reader = LayerReader::new(blob(&compressed, 1000), bytes((1 << 20) - 1)).unwrap();
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
    fn a_ratio_counts_from_a_size_on() {
        let limits = LayerLimits {
            bytes: 1 << 30,
            ratio: 100,
            ratio_from: 1 << 20,
        };
        let finish = |data: &[u8], limits| LayerReader::new(blob(data, 1000), limits).unwrap().finish();
        for pack in [gzip, zstd] {
            finish(&pack(&vec![0; 1 << 20]), limits).unwrap();
            let bomb = pack(&vec![0; 2 << 20]);
            let error = finish(&bomb, limits).unwrap_err().to_string();
            assert!(error.contains("100 times its size (max_layer_ratio)"), "{error}");
            finish(&bomb, LayerLimits { ratio: 0, ..limits }).unwrap();
            finish(
                &bomb,
                LayerLimits {
                    ratio: 1 << 20,
                    ..limits
                },
            )
            .unwrap();
        }
        finish(&vec![0; 2 << 20], LayerLimits { ratio: 1, ..limits }).unwrap();
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        for mut compressed in [gzip(&[7; 5000]), zstd(&[7; 5000])] {
            let cut = &compressed[..compressed.len() - 1];
            LayerReader::new(blob(cut, 100), bytes(5000))
                .unwrap()
                .finish()
                .unwrap_err();
            let middle = compressed.len() / 2;
            compressed[middle] ^= 0xff;
            let result = LayerReader::new(blob(&compressed, 100), bytes(1 << 20))
                .unwrap()
                .finish();
            assert!(result.map_or(true, |d| d.diff_id != Digest::of(&[7; 5000])));
        }
    }
}
