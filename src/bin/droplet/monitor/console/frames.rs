//! The frames that an attached client sends (`docs/spec/runtime.md` 12.2). The other direction is raw bytes.
//!
//! ```text
//! offset  size  meaning
//! 0       1     type: 0x00 data, 0x01 resize
//! 1       4     payload length, big-endian
//! 5       n     payload
//! ```
//!
//! This module does no I/O. The decoder passes data on as it arrives, so it needs only nine bytes of memory.

/// Maximum length of a payload.
pub const MAX_PAYLOAD: u32 = 8 << 20;
/// Length of the header.
const HEADER: usize = 5;
const DATA: u8 = 0;
const RESIZE: u8 = 1;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Number of lines.
    pub rows: u16,
    /// Number of characters per line.
    pub columns: u16,
}

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Input for the terminal: the payload of a frame or a part of it.
    Data(&'a [u8]),
    /// The new size of the terminal.
    Resize(Size),
}

/// A frame announces more than [`MAX_PAYLOAD`]. The connection must be closed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of {0} bytes is longer than {MAX_PAYLOAD}")]
pub struct TooLong(pub u32);

/// Decodes the frames of one connection. Frames may arrive split or merged in any way.
#[derive(Debug, Default)]
pub struct Decoder {
    header: Partial<HEADER>,
    /// Payload bytes still to come, once the header is complete.
    left: u32,
    size: Partial<4>,
}

/// A fixed number of bytes, of which the first `len` have arrived.
#[derive(Debug)]
struct Partial<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Partial<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Partial<N> {
    /// Takes the missing bytes from the front of `input`. Returns `true` when all bytes have arrived.
    fn fill(&mut self, input: &mut &[u8]) -> bool {
        let n = input.len().min(N - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&input[..n]);
        self.len += n;
        *input = &input[n..];
        self.len == N
    }
}

impl Decoder {
    /// Decodes the next bytes of the stream and calls `sink` for every event, in order.
    ///
    /// Skips unknown types, a resize frame whose length is not 4, and empty data frames.
    pub fn feed(&mut self, mut input: &[u8], mut sink: impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        while !input.is_empty() {
            if self.header.len < HEADER {
                if !self.header.fill(&mut input) {
                    break;
                }
                self.left = self.payload_len();
                if self.left > MAX_PAYLOAD {
                    return Err(TooLong(self.left));
                }
            }
            let (payload, rest) = input.split_at(input.len().min(self.left as usize));
            input = rest;
            self.left -= payload.len() as u32;
            self.payload(payload, &mut sink);
            if self.left == 0 {
                *self = Self::default();
            }
        }
        Ok(())
    }

    fn payload_len(&self) -> u32 {
        let [_, length @ ..] = self.header.bytes;
        u32::from_be_bytes(length)
    }

    /// Handles a piece of the current payload.
    fn payload(&mut self, piece: &[u8], sink: &mut impl FnMut(Event<'_>)) {
        match self.header.bytes[0] {
            DATA if !piece.is_empty() => sink(Event::Data(piece)),
            RESIZE if self.payload_len() == 4 => self.resize(piece, sink),
            _ => {}
        }
    }

    fn resize(&mut self, mut piece: &[u8], sink: &mut impl FnMut(Event<'_>)) {
        if self.size.fill(&mut piece) {
            let [r1, r2, c1, c2] = self.size.bytes;
            sink(Event::Resize(Size {
                rows: u16::from_be_bytes([r1, r2]),
                columns: u16::from_be_bytes([c1, c2]),
            }));
        }
    }
}

/// Appends a data frame to `out`. Takes at most [`MAX_PAYLOAD`] bytes of `data`.
pub fn encode_data(data: &[u8], out: &mut Vec<u8>) {
    let data = &data[..data.len().min(MAX_PAYLOAD as usize)];
    out.push(DATA);
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// Appends a resize frame to `out`.
pub fn encode_resize(size: Size, out: &mut Vec<u8>) {
    out.push(RESIZE);
    out.extend(4u32.to_be_bytes());
    out.extend(size.rows.to_be_bytes());
    out.extend(size.columns.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The decoded events, with adjacent data joined.
    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Data(Vec<u8>),
        Resize(Size),
    }

    fn push(seen: &mut Vec<Seen>, event: Event<'_>) {
        match (event, seen.last_mut()) {
            (Event::Data(more), Some(Seen::Data(data))) => data.extend(more),
            (Event::Data(data), _) => seen.push(Seen::Data(data.to_vec())),
            (Event::Resize(size), _) => seen.push(Seen::Resize(size)),
        }
    }

    fn decode(stream: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        Decoder::default().feed(stream, |e| push(&mut seen, e)).unwrap();
        seen
    }

    #[test]
    fn the_examples_of_the_contract_are_decoded_and_encoded() {
        let size = Size { rows: 40, columns: 100 };
        assert_eq!(decode(b"\x01\0\0\0\x04\0\x28\0\x64"), [Seen::Resize(size)]);
        assert_eq!(decode(b"\0\0\0\0\x03ls\r"), [Seen::Data(b"ls\r".to_vec())]);

        let mut out = Vec::new();
        encode_resize(size, &mut out);
        encode_data(b"ls\r", &mut out);
        assert_eq!(out, b"\x01\0\0\0\x04\0\x28\0\x64\0\0\0\0\x03ls\r");
    }

    #[test]
    fn unknown_frames_are_skipped() {
        let stream = b"\x07\0\0\0\x02zz\x01\0\0\0\x03abc\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x01!";
        assert_eq!(decode(stream), [Seen::Data(b"!".to_vec())]);
    }

    #[test]
    fn a_frame_that_is_too_long_is_an_error() {
        let header = |n: u32| [&[DATA][..], &n.to_be_bytes()].concat();
        assert_eq!(Decoder::default().feed(&header(MAX_PAYLOAD), |_| ()), Ok(()));
        assert_eq!(
            Decoder::default().feed(&header(MAX_PAYLOAD + 1), |_| ()),
            Err(TooLong(MAX_PAYLOAD + 1))
        );
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_stream_is_cut(
            frames in prop::collection::vec((0u8..4, prop::collection::vec(any::<u8>(), 0..9)), 0..20),
            cuts in prop::collection::vec(1usize..7, 1..20),
        ) {
            let mut stream = Vec::new();
            for (kind, payload) in &frames {
                stream.push(*kind);
                stream.extend((payload.len() as u32).to_be_bytes());
                stream.extend(payload);
            }
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            let (mut rest, mut cuts) = (&stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                decoder.feed(piece, |e| push(&mut seen, e)).unwrap();
                rest = tail;
            }
            prop_assert_eq!(seen, decode(&stream));
        }

        #[test]
        fn what_was_encoded_is_decoded(data in prop::collection::vec(any::<u8>(), 1..99), rows: u16, columns: u16) {
            let mut out = Vec::new();
            encode_data(&data, &mut out);
            encode_resize(Size { rows, columns }, &mut out);
            prop_assert_eq!(decode(&out), [Seen::Data(data), Seen::Resize(Size { rows, columns })]);
        }

        #[test]
        fn no_input_makes_it_fail_otherwise(stream in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Decoder::default().feed(&stream, |_| ());
        }
    }
}
