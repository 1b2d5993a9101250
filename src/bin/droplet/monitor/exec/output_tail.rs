//! Collects the last bytes that a process writes to one of its outputs.

use std::os::fd::OwnedFd;

use condenser::runtime::exec::MAX_STREAM;
use rustix::fs::{OFlags, fchown, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};

/// Maximum number of bytes of one read: the capacity of a pipe.
pub const PIECE: usize = 64 * 1024;

/// One output of the process.
#[derive(Debug)]
pub struct Stream {
    /// `None` after the end of the stream.
    reader: Option<OwnedFd>,
    tail: Tail,
}

impl Stream {
    /// Makes a pipe. `owner` is the user of the process.
    pub fn new(owner: (Uid, Gid)) -> rustix::io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // Make the user of the process the owner of the pipe, so that it can open `/dev/stdout`.
        fchown(&writer, Some(owner.0), Some(owner.1))?;
        // The container can open the pipe too and read data that poll has announced to this process.
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        let stream = Self {
            reader: Some(reader),
            tail: Tail::default(),
        };
        Ok((stream, writer))
    }

    /// Returns the read end, until the stream has ended.
    pub fn reader(&self) -> Option<&OwnedFd> {
        self.reader.as_ref()
    }

    /// Reads once, at most a full buffer, so that no other stream has to wait long.
    pub fn take(&mut self, buffer: &mut [u8]) -> usize {
        let Some(reader) = &self.reader else { return 0 };
        match rustix::io::read(reader, &mut *buffer) {
            Ok(n @ 1..) => {
                self.tail.push(&buffer[..n]);
                return n;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.reader = None,
        }
        0
    }

    /// Returns the collected output, and whether its beginning was cut off. Background processes may write forever, so
    /// this reads only what is available now.
    pub fn finish(mut self) -> (Vec<u8>, bool) {
        let announced = self.reader.as_ref().and_then(|reader| ioctl_fionread(reader).ok());
        let mut left = usize::try_from(announced.unwrap_or(0)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; PIECE];
        while left > 0 {
            let most = left.min(PIECE);
            match self.take(&mut buffer[..most]) {
                0 => break,
                n => left -= n,
            }
        }
        self.tail.finish()
    }
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        // Do not cut after every piece, so that each byte is moved at most once.
        if self.bytes.len() >= 2 * MAX_STREAM {
            self.cut();
        }
    }

    fn finish(mut self) -> (Vec<u8>, bool) {
        self.cut();
        (self.bytes, self.cut)
    }

    fn cut(&mut self) {
        if let Some(surplus @ 1..) = self.bytes.len().checked_sub(MAX_STREAM) {
            self.bytes.drain(..surplus);
            self.cut = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_stream_is_kept() {
        let mut tail = Tail::default();
        tail.push(&vec![b'a'; MAX_STREAM]);
        assert_eq!(tail.finish(), (vec![b'a'; MAX_STREAM], false));
        let mut tail = Tail::default();
        for n in 0..=255_u8 {
            tail.push(&[n; PIECE]);
            assert!(tail.bytes.len() < 2 * MAX_STREAM);
        }
        let (bytes, cut) = tail.finish();
        assert_eq!(
            (bytes.len(), bytes[0], bytes.last(), cut),
            (MAX_STREAM, 240, Some(&255), true)
        );
    }

    #[test]
    fn the_end_of_a_stream_is_not_waited_for() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        rustix::io::write(&writer, b"so far").unwrap();
        let stream = Stream {
            reader: Some(reader),
            tail: Tail::default(),
        };
        assert_eq!(stream.finish(), (b"so far".to_vec(), false));
    }
}
