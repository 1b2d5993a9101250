//! A client of a terminal's socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection, and what it has received.
pub struct Viewer {
    /// To write anything to.
    pub stream: UnixStream,
    seen: String,
}

impl Viewer {
    /// Connects to a socket.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self {
            stream,
            seen: String::new(),
        }
    }

    /// A data frame.
    pub fn type_in(&mut self, text: &str) {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        self.stream
            .write_all(&[&[0], &length[..], text.as_bytes()].concat())
            .unwrap();
    }

    /// A resize frame.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = [rows.to_be_bytes(), columns.to_be_bytes()].concat();
        self.stream.write_all(&[&[1, 0, 0, 0, 4], &size[..]].concat()).unwrap();
    }

    /// Reads until a text appears; what came before it.
    pub fn expect(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some((before, after)) = self.seen.split_once(text) {
                let before = before.to_owned();
                self.seen = after.to_owned();
                return before;
            }
            let n = self.stream.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "end of stream instead of {text:?} after {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&buffer[..n]);
        }
    }

    /// Everything until the end of the stream.
    pub fn rest(mut self) -> String {
        self.stream.read_to_string(&mut self.seen).unwrap();
        self.seen
    }
}
