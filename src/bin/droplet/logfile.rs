//! The files in `<dir>/logs` (`docs/spec/runtime.md` 2.1, 16.4 L1 to L3).
//!
//! [`LogFile`] takes the raw output of processes, [`EventLog`] the notes of a monitor about itself. Both are appended to
//! and never truncated, so several writers and a restart keep what is there. Whoever rotates a log renames it: the next
//! write notices and goes to a new file under the old name. A line that had begun is ended in the old file, unless it
//! goes on and on. When what was written stands beside the log ([`times`](condenser::observe::logs::times)).

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use condenser::observe::logs::times::TimesWriter;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

/// How far a line may go on in a file that was renamed; a limit on the size of a log must hold for one without lines.
const MAX_OVERHANG: usize = 1 << 20;

/// Output of processes.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: fs::File,
    /// `None` where they cannot be kept: the log matters more.
    times: Option<TimesWriter>,
    /// Device and inode of `file`.
    identity: (u64, u64),
    mid_line: bool,
    /// Bytes written to `file` since it was renamed.
    overhang: usize,
}

impl LogFile {
    /// Opens the file for appending and creates it (0640) if need be.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            times: TimesWriter::open(&path, &metadata).ok(),
            path,
            file,
            identity: identity(&metadata),
            mid_line: false,
            overhang: 0,
        })
    }

    /// Appends one piece of output with one `write`, so that pieces of concurrent writers are not mixed.
    pub fn write(&mut self, mut piece: &[u8]) -> io::Result<()> {
        if self.was_rotated() {
            let end_of_line = match piece.iter().position(|&b| b == b'\n') {
                _ if !self.mid_line => 0,
                Some(newline) => newline + 1,
                None if self.overhang < MAX_OVERHANG => piece.len(),
                None => 0,
            };
            let (tail, rest) = piece.split_at(end_of_line);
            self.append(tail)?;
            self.overhang += tail.len();
            piece = rest;
            if piece.is_empty() {
                return Ok(());
            }
            // A failure (the container's directory is being removed) leaves the old file, which still takes the output.
            if let Ok(new) = Self::open(&self.path) {
                *self = new;
            }
        }
        self.append(piece)
    }

    fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        let Some(last) = piece.last() else { return Ok(()) };
        self.mid_line = *last != b'\n';
        if let Some(times) = &mut self.times {
            let _ = times.note(|| Ok(self.file.metadata()?.len()));
        }
        self.file.write_all(piece)
    }

    fn was_rotated(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(now) => identity(&now) != self.identity,
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// One dated line per event: `shim: 2026/01/02 03:04:05.678901 attach connected`. Its failures are ignored: a monitor
/// has nobody to tell, and the container matters more.
#[derive(Debug)]
pub struct EventLog {
    prefix: &'static str,
    file: Option<LogFile>,
}

impl EventLog {
    /// Opens the log; `prefix` names the writer (`shim`, `exec_shim`).
    pub fn open(path: impl Into<PathBuf>, prefix: &'static str) -> Self {
        Self {
            prefix,
            file: LogFile::open(path).ok(),
        }
    }

    /// Writes one line, local time.
    pub fn line(&mut self, event: impl Display) {
        if let Some(file) = &mut self.file {
            let now = crate::clock::now().strftime("%Y/%m/%d %H:%M:%S.%6f");
            let _ = file.write(format!("{}: {now} {event}\n", self.prefix).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use condenser::observe::logs::{LogReader, View};

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.path(name)).unwrap()
        }
    }

    #[test]
    fn output_is_added_to_what_is_there() {
        let place = Place::new();
        std::fs::write(place.path("log"), "from an earlier run\n").unwrap();
        let (mut one, mut two) = (
            LogFile::open(place.path("log")).unwrap(),
            LogFile::open(place.path("log")).unwrap(),
        );
        one.write(b"one\n").unwrap();
        two.write(b"two\n").unwrap();
        one.write(b"one again\n").unwrap();
        assert_eq!(place.read("log"), "from an earlier run\none\ntwo\none again\n");
    }

    #[test]
    fn a_new_log_is_for_root_and_group() {
        let place = Place::new();
        LogFile::open(place.path("log")).unwrap();
        let mode = std::fs::metadata(place.path("log")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn after_a_rotation_whole_lines_go_to_the_new_file() {
        let place = Place::new();
        let mut log = LogFile::open(place.path("log")).unwrap();
        log.write(b"begun").unwrap();
        std::fs::rename(place.path("log"), place.path("log.1")).unwrap();
        log.write(b" still").unwrap();
        log.write(b" ended\nnext\n").unwrap();
        log.write(b"more\n").unwrap();
        assert_eq!(place.read("log.1"), "begun still ended\n");
        assert_eq!(place.read("log"), "next\nmore\n");
    }

    #[test]
    fn a_line_without_end_does_not_stay_in_the_old_file_for_ever() {
        let place = Place::new();
        let mut log = LogFile::open(place.path("log")).unwrap();
        log.write(b"begun").unwrap();
        std::fs::rename(place.path("log"), place.path("log.1")).unwrap();
        for _ in 0..40 {
            log.write(&[b'x'; 32 << 10]).unwrap();
        }
        assert_eq!(place.read("log.1").len(), "begun".len() + MAX_OVERHANG);
        assert_eq!(place.read("log").len(), 40 * (32 << 10) - MAX_OVERHANG);
    }

    #[test]
    fn the_time_of_each_line_can_be_read() {
        let place = Place::new();
        let mut log = LogFile::open(place.path("log")).unwrap();
        let before = jiff::Timestamp::now();
        log.write(b"one\n").unwrap();
        std::fs::rename(place.path("log"), place.path("log.1")).unwrap();
        log.write(b"two\n").unwrap();
        let view = View {
            timestamps: true,
            ..View::default()
        };
        let text = LogReader::open(&place.path("log"), &view)
            .unwrap()
            .read_to_end()
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
        assert_eq!((lines[0].1, lines[1].1), ("one", "two"));
        for (time, _) in lines {
            let time: jiff::Timestamp = time.parse().unwrap();
            assert!(time.duration_since(before).as_millis_f64().abs() < 10_000.0, "{time}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_is_noticed_too() {
        let place = Place::new();
        let mut log = LogFile::open(place.path("log")).unwrap();
        log.write(b"old\n").unwrap();
        std::fs::rename(place.path("log"), place.path("log.1")).unwrap();
        std::fs::write(place.path("log"), "header\n").unwrap();
        log.write(b"new\n").unwrap();
        assert_eq!(place.read("log.1"), "old\n");
        assert_eq!(place.read("log"), "header\nnew\n");
    }

    #[test]
    fn without_its_directory_output_goes_nowhere_but_does_not_fail() {
        let place = Place::new();
        std::fs::create_dir(place.path("logs")).unwrap();
        let mut log = LogFile::open(place.path("logs/log")).unwrap();
        std::fs::remove_dir_all(place.path("logs")).unwrap();
        log.write(b"lost\n").unwrap();
    }

    #[test]
    fn events_are_dated_lines() {
        let place = Place::new();
        EventLog::open(place.path("shim.log"), "shim").line("attach connected");
        let line = place.read("shim.log");
        let (prefix, rest) = line.split_at(6);
        assert_eq!((prefix, &rest[26..]), ("shim: ", " attach connected\n"), "{line}");
        EventLog::open(place.path("nowhere/shim.log"), "shim").line("ignored");
    }
}
