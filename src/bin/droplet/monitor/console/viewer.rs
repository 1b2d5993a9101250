//! A client that is connected to a terminal.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::termios::{Winsize, tcsetwinsize};

use super::frames::{Decoder, Event, Size};

/// Maximum number of bytes that wait for one viewer.
const MAX_QUEUE: usize = 256 << 10;

/// A connected client.
#[derive(Debug)]
pub struct Viewer {
    connection: OwnedFd,
    decoder: Decoder,
    queue: VecDeque<u8>,
    /// Whether the client takes no more output. Its earlier input still counts; its end is seen after all input was
    /// read.
    output_closed: bool,
}

/// Why a viewer must be disconnected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Disconnect(String);

impl Viewer {
    pub fn new(connection: OwnedFd) -> Self {
        Self {
            connection,
            decoder: Decoder::default(),
            queue: VecDeque::new(),
            output_closed: false,
        }
    }

    /// Returns whether output waits for the client.
    pub fn has_queued_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends as much as possible now and queues the rest.
    pub fn send(&mut self, mut piece: &[u8]) -> Result<(), Disconnect> {
        if self.queue.is_empty() {
            piece = &piece[self.send_some(piece)..];
        }
        if self.queue.len() + piece.len() > MAX_QUEUE {
            return Err(Disconnect("it does not read".into()));
        }
        self.queue.extend(piece);
        Ok(())
    }

    /// Sends as much of the queue as possible.
    pub fn flush(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        let sent = self.send_some(queue.as_slices().0);
        queue.drain(..sent);
        if !self.output_closed {
            self.queue = queue;
        }
    }

    /// Returns how many bytes need not be sent any more.
    fn send_some(&mut self, piece: &[u8]) -> usize {
        if self.output_closed {
            return piece.len();
        }
        match send(&self.connection, piece, SendFlags::NOSIGNAL) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.output_closed = true;
                self.queue.clear();
                piece.len()
            }
        }
    }

    /// Reads once: queues input, applies a new size.
    pub fn receive(&mut self, buffer: &mut [u8], input: &mut VecDeque<u8>, master: &OwnedFd) -> Result<(), Disconnect> {
        let received = match read(&self.connection, &mut *buffer) {
            Ok(0) => return Err(Disconnect("closed".into())),
            Ok(n) => &buffer[..n],
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(Disconnect(error.to_string())),
        };
        let events = |event: Event<'_>| match event {
            Event::Data(data) => input.extend(data),
            Event::Resize(size) => resize(master, size),
        };
        self.decoder
            .feed(received, events)
            .map_err(|e| Disconnect(e.to_string()))
    }

    /// Discards unread input before the connection is closed. Otherwise the viewer would see a reset instead of an end.
    pub fn discard_input(&self, buffer: &mut [u8]) {
        let _ = shutdown(&self.connection, Shutdown::Read);
        while read(&self.connection, &mut *buffer).is_ok_and(|n| n > 0) {}
    }
}

impl AsFd for Viewer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn resize(master: &OwnedFd, size: Size) {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // Any size is valid, and the terminal may be gone.
    let _ = tcsetwinsize(master, size);
}
