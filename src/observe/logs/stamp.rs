//! Prefixes each line of a log with its time.

use std::io;

use jiff::Timestamp;

use super::times::Times;

/// Prefix of a line whose time is unknown: "never", as everywhere (`docs/spec/api.md` 4.4).
const UNKNOWN: &str = "0001-01-01T00:00:00.000Z";

/// Adds timestamps to one file of a log.
#[derive(Debug)]
pub(super) struct Stamps {
    times: Option<Times>,
    /// Whether the next byte begins a line.
    pub at_line_start: bool,
    /// The time of the last line and its text: consecutive lines often share it.
    last: (Option<Timestamp>, String),
}

impl Stamps {
    pub fn new(times: Option<Times>, at_line_start: bool) -> Self {
        Self {
            times,
            at_line_start,
            last: (None, UNKNOWN.to_owned()),
        }
    }

    /// The chunk at that offset with `<time> ` before each line that begins in it.
    pub fn apply(&mut self, offset: u64, piece: &[u8]) -> io::Result<Vec<u8>> {
        if let Some(times) = &mut self.times {
            times.refresh()?;
        }
        let mut stamped = Vec::with_capacity(piece.len() + piece.len() / 2);
        let mut done = 0;
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.at_line_start {
                stamped.extend_from_slice(self.stamp(offset + done)?.as_bytes());
                stamped.push(b' ');
            }
            stamped.extend_from_slice(line);
            done += line.len() as u64;
            self.at_line_start = line.ends_with(b"\n");
        }
        Ok(stamped)
    }

    fn stamp(&mut self, offset: u64) -> io::Result<&str> {
        let time = self.times.as_mut().map(|times| times.at(offset)).transpose()?.flatten();
        if time != self.last.0 {
            self.last = (time, time.map_or_else(|| UNKNOWN.to_owned(), text));
        }
        Ok(&self.last.1)
    }
}

/// UTC with milliseconds, in a fixed width, so that lines sort by it.
fn text(time: Timestamp) -> String {
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn lines_are_stamped_however_they_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        super::super::times::tests::write(&log, &[(at(1), "one\ntw"), (at(5_500), "o\n\nlast")]);
        let text = std::fs::read(&log).unwrap();
        let times = || Times::open(&log, std::fs::metadata(&log).unwrap().ino());
        let expected = "1970-01-01T00:00:00.001Z one\n1970-01-01T00:00:00.001Z two\n1970-01-01T00:00:05.500Z \n\
                        1970-01-01T00:00:05.500Z last";
        for size in 1..=text.len() {
            let mut stamps = Stamps::new(times(), true);
            let mut stamped = Vec::new();
            for (n, piece) in text.chunks(size).enumerate() {
                stamped.extend(stamps.apply((n * size) as u64, piece).unwrap());
            }
            assert_eq!(String::from_utf8(stamped).unwrap(), expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_a_time_says_never() {
        let stamped = Stamps::new(None, true).apply(0, b"text\n").unwrap();
        assert_eq!(stamped, b"0001-01-01T00:00:00.000Z text\n");
    }
}
