//! The files in `<dir>/logs` (`docs/spec/runtime.md` 2.1, 16.4 L1 to L3).
//!
//! [`LogFile`] takes the raw output of processes, [`EventLog`] the messages of a monitor. Both append and never
//! truncate, so several writers can share a file and a restart keeps the content. To rotate a log, rename it: the next
//! write notices and continues in a new file under the old name. A line that has begun is completed in the old file,
//! unless it becomes too long. The time of each line is recorded next to the log ([`times`](condenser::observe::logs::times)).

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use condenser::observe::logs::times::TimesWriter;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

/// Maximum length of a line's rest in a renamed file. The size limit of a log must also hold for output without lines.
const MAX_LINE_REST: usize = 1 << 20;

/// A log of the output of processes.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: fs::File,
    /// `None` if the times cannot be recorded. The log matters more.
    times: Option<TimesWriter>,
    /// Device and inode of `file`.
    identity: (u64, u64),
    mid_line: bool,
    /// Bytes written to `file` since it was renamed.
    bytes_after_rename: usize,
}

impl LogFile {
    /// Opens the file for appending. Creates it with mode 0640 if it does not exist.
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
            bytes_after_rename: 0,
        })
    }

    /// Appends a piece of output with one `write`, so that the pieces of concurrent writers do not mix.
    pub fn write(&mut self, mut piece: &[u8]) -> io::Result<()> {
        if self.was_rotated() {
            let end_of_line = match piece.iter().position(|&b| b == b'\n') {
                _ if !self.mid_line => 0,
                Some(newline) => newline + 1,
                None if self.bytes_after_rename < MAX_LINE_REST => piece.len(),
                None => 0,
            };
            let (tail, rest) = piece.split_at(end_of_line);
            self.append(tail)?;
            self.bytes_after_rename += tail.len();
            piece = rest;
            if piece.is_empty() {
                return Ok(());
            }
            // If this fails, the container's directory is being removed. The old file still takes the output.
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
        match fs_err::metadata(&self.path) {
            Ok(now) => identity(&now) != self.identity,
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A log of events, one dated line each: `shim: 2026/01/02 03:04:05.678901 attach connected`. Errors are ignored: a
/// monitor cannot report them, and the container matters more.
#[derive(Debug)]
pub struct EventLog {
    prefix: &'static str,
    file: Option<LogFile>,
}

impl EventLog {
    /// Opens the log. `prefix` names the writer (`shim`, `exec_shim`).
    pub fn open(path: impl Into<PathBuf>, prefix: &'static str) -> Self {
        Self {
            prefix,
            file: LogFile::open(path).ok(),
        }
    }

    /// Writes one line with the local time.
    pub fn line(&mut self, event: impl Display) {
        if let Some(file) = &mut self.file {
            let now = crate::report::clock::now().strftime("%Y/%m/%d %H:%M:%S.%6f");
            let _ = file.write(format!("{}: {now} {event}\n", self.prefix).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use condenser::observe::logs::{LogReader, View};

    use super::*;

    struct TestDir(tempfile::TempDir);

    impl TestDir {
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
    fn output_is_appended_to_an_existing_log() {
        let dir = TestDir::new();
        std::fs::write(dir.path("log"), "from an earlier run\n").unwrap();
        let (mut one, mut two) = (
            LogFile::open(dir.path("log")).unwrap(),
            LogFile::open(dir.path("log")).unwrap(),
        );
        one.write(b"one\n").unwrap();
        two.write(b"two\n").unwrap();
        one.write(b"one again\n").unwrap();
        assert_eq!(dir.read("log"), "from an earlier run\none\ntwo\none again\n");
    }

    #[test]
    fn a_new_log_has_mode_0640() {
        let dir = TestDir::new();
        LogFile::open(dir.path("log")).unwrap();
        let mode = std::fs::metadata(dir.path("log")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn after_a_rotation_whole_lines_go_to_the_new_file() {
        let dir = TestDir::new();
        let mut log = LogFile::open(dir.path("log")).unwrap();
        log.write(b"begun").unwrap();
        std::fs::rename(dir.path("log"), dir.path("log.1")).unwrap();
        log.write(b" still").unwrap();
        log.write(b" ended\nnext\n").unwrap();
        log.write(b"more\n").unwrap();
        assert_eq!(dir.read("log.1"), "begun still ended\n");
        assert_eq!(dir.read("log"), "next\nmore\n");
    }

    #[test]
    fn a_line_without_an_end_continues_in_the_new_file() {
        let dir = TestDir::new();
        let mut log = LogFile::open(dir.path("log")).unwrap();
        log.write(b"begun").unwrap();
        std::fs::rename(dir.path("log"), dir.path("log.1")).unwrap();
        for _ in 0..40 {
            log.write(&[b'x'; 32 << 10]).unwrap();
        }
        assert_eq!(dir.read("log.1").len(), "begun".len() + MAX_LINE_REST);
        assert_eq!(dir.read("log").len(), 40 * (32 << 10) - MAX_LINE_REST);
    }

    #[test]
    fn the_time_of_each_line_can_be_read() {
        let dir = TestDir::new();
        let mut log = LogFile::open(dir.path("log")).unwrap();
        let before = jiff::Timestamp::now();
        log.write(b"one\n").unwrap();
        std::fs::rename(dir.path("log"), dir.path("log.1")).unwrap();
        log.write(b"two\n").unwrap();
        let view = View {
            timestamps: true,
            ..View::default()
        };
        let text = LogReader::open(&dir.path("log"), &view).unwrap().read_to_end().unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
        assert_eq!((lines[0].1, lines[1].1), ("one", "two"));
        for (time, _) in lines {
            let time: jiff::Timestamp = time.parse().unwrap();
            assert!(time.duration_since(before).as_millis_f64().abs() < 10_000.0, "{time}");
        }
    }

    #[test]
    fn a_replaced_file_is_noticed() {
        let dir = TestDir::new();
        let mut log = LogFile::open(dir.path("log")).unwrap();
        log.write(b"old\n").unwrap();
        std::fs::rename(dir.path("log"), dir.path("log.1")).unwrap();
        std::fs::write(dir.path("log"), "header\n").unwrap();
        log.write(b"new\n").unwrap();
        assert_eq!(dir.read("log.1"), "old\n");
        assert_eq!(dir.read("log"), "header\nnew\n");
    }

    #[test]
    fn a_write_after_the_directory_was_removed_does_not_fail() {
        let dir = TestDir::new();
        std::fs::create_dir(dir.path("logs")).unwrap();
        let mut log = LogFile::open(dir.path("logs/log")).unwrap();
        std::fs::remove_dir_all(dir.path("logs")).unwrap();
        log.write(b"lost\n").unwrap();
    }

    #[test]
    fn events_are_dated_lines() {
        let dir = TestDir::new();
        EventLog::open(dir.path("shim.log"), "shim").line("attach connected");
        let line = dir.read("shim.log");
        let (prefix, rest) = line.split_at(6);
        assert_eq!((prefix, &rest[26..]), ("shim: ", " attach connected\n"), "{line}");
        EventLog::open(dir.path("nowhere/shim.log"), "shim").line("ignored");
    }
}
