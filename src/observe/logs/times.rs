//! The times at which a log was written.
//!
//! Logs are raw bytes, so the writer stores the times beside them: `times/<inode of the log file>` has entries of 16
//! bytes, each the size of the log before a write and the time of that write. The entry is written before its text,
//! so no text is older than the last entry before it; of writes within one millisecond only the first has an entry.
//! The file is named by inode because log files are renamed. It is created empty together with its log, so that a
//! reused inode number causes no confusion.
//!
//! Without the file (a log of another runtime, a restored backup) times are unknown, and nothing else is lost.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::{FileExt, OpenOptionsExt};
use jiff::Timestamp;

/// Name of the directory, beside the logs.
pub const DIRECTORY: &str = "times";
/// Writes that are closer together than this share an entry.
const RESOLUTION_MICROS: i64 = 1000;
const ENTRY: usize = 16;
/// Entries read at once.
const BLOCK: u64 = 256;

/// Size of a log file, and when it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u64,
    /// Microseconds since 1970.
    time: i64,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        let (offset, time) = bytes.split_at_mut(8);
        offset.copy_from_slice(&self.offset.to_le_bytes());
        time.copy_from_slice(&self.time.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY]) -> Self {
        let (mut offset, mut time) = ([0; 8], [0; 8]);
        offset.copy_from_slice(&bytes[..8]);
        time.copy_from_slice(&bytes[8..]);
        Self {
            offset: u64::from_le_bytes(offset),
            time: i64::from_le_bytes(time),
        }
    }
}

/// The writing side, for the writer of the log.
#[derive(Debug)]
pub struct TimesWriter {
    file: fs_err::File,
    /// Time of the last entry.
    last: i64,
}

impl TimesWriter {
    /// For the log file with this path and metadata, which has just been opened.
    pub fn open(log: &Path, metadata: &std::fs::Metadata) -> io::Result<Self> {
        let path = path_for(log, metadata.ino());
        if let Some(directory) = path.parent()
            && let Err(e) = std::fs::DirBuilder::new().mode(0o750).create(directory)
            && e.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(e);
        }
        let mut options = fs_err::OpenOptions::new();
        options.append(true).create(true).mode(0o640);
        let file = options.open(&path)?;
        if metadata.len() == 0 || !file.metadata()?.len().is_multiple_of(ENTRY as u64) {
            file.set_len(0)?;
        }
        Ok(Self { file, last: i64::MIN })
    }

    /// Call this before appending to the log; `size` returns its current size.
    pub fn note(&mut self, size: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        self.note_at(Timestamp::now().as_microsecond(), size)
    }

    fn note_at(&mut self, time: i64, size: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        // Record times even after the clock was set back.
        if time.abs_diff(self.last) < RESOLUTION_MICROS as u64 {
            return Ok(());
        }
        let entry = Entry { offset: size()?, time };
        self.file.write_all(&entry.to_bytes())?;
        self.last = time;
        Ok(())
    }
}

/// The reading side, for one file of a log.
#[derive(Debug)]
pub(super) struct Times {
    file: fs_err::File,
    /// Number of entries.
    len: u64,
    /// The entries from `first` on that have been read.
    block: Vec<Entry>,
    first: u64,
    /// The entry of the last answer.
    at: u64,
}

impl Times {
    /// `None` if the times of this log file are unknown.
    pub fn open(log: &Path, inode: u64) -> Option<Self> {
        let file = fs_err::File::open(path_for(log, inode)).ok()?;
        let mut times = Self {
            file,
            len: 0,
            block: Vec::new(),
            first: 0,
            at: 0,
        };
        times.refresh().ok()?;
        Some(times)
    }

    /// Updates the number of entries.
    pub fn refresh(&mut self) -> io::Result<()> {
        self.len = self.file.metadata()?.len() / ENTRY as u64;
        Ok(())
    }

    /// When the text at `offset` was written. Cheap for increasing offsets.
    pub fn at(&mut self, offset: u64) -> io::Result<Option<Timestamp>> {
        let known = self.entry(self.at)?.is_some_and(|entry| entry.offset <= offset);
        if !known {
            self.at = self.partition(|entry| entry.offset <= offset)?.saturating_sub(1);
        }
        while self.entry(self.at + 1)?.is_some_and(|next| next.offset <= offset) {
            self.at += 1;
        }
        let entry = self.entry(self.at)?.filter(|entry| entry.offset <= offset);
        Ok(entry.and_then(|entry| Timestamp::from_microsecond(entry.time).ok()))
    }

    /// The offset up to which the log was written before `time`; `None` if that is all of it.
    pub fn offset_at(&mut self, time: Timestamp) -> io::Result<Option<u64>> {
        let time = time.as_microsecond();
        let index = self.partition(|entry| entry.time < time)?;
        Ok(self.entry(index)?.map(|entry| entry.offset))
    }

    /// Index of the first entry for which `before` does not hold.
    fn partition(&mut self, before: impl Fn(&Entry) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(middle)? {
                Some(entry) if before(&entry) => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn entry(&mut self, index: u64) -> io::Result<Option<Entry>> {
        if index >= self.len {
            return Ok(None);
        }
        let held = |times: &Self| {
            let place = index.checked_sub(times.first)?;
            times.block.get(usize::try_from(place).ok()?).copied()
        };
        if let Some(entry) = held(self) {
            return Ok(Some(entry));
        }
        let count = BLOCK.min(self.len - index);
        let mut bytes = vec![0; count as usize * ENTRY];
        self.file.read_exact_at(&mut bytes, index * ENTRY as u64)?;
        self.block = bytes.as_chunks().0.iter().map(Entry::from_bytes).collect();
        self.first = index;
        Ok(held(self))
    }
}

/// Size of the times file of a log file, in bytes.
pub(super) fn size_for(log: &Path, inode: u64) -> u64 {
    fs_err::metadata(path_for(log, inode)).map_or(0, |metadata| metadata.len())
}

/// Removes the times files whose log files are gone from a directory of logs.
pub(super) fn forget_removed(logs: &Path) -> io::Result<()> {
    // In this order: a log is created before its times, so every times file seen here has its log, unless that was
    // removed.
    let times: Vec<_> = match fs_err::read_dir(logs.join(DIRECTORY)) {
        Ok(entries) => entries.collect::<Result<_, _>>()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut present = std::collections::HashSet::new();
    for entry in fs_err::read_dir(logs)? {
        present.insert(entry?.ino());
    }
    for entry in times {
        let inode = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if inode.is_none_or(|inode: u64| !present.contains(&inode)) {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn path_for(log: &Path, inode: u64) -> PathBuf {
    log.with_file_name(DIRECTORY).join(inode.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes a log with its times.
    pub fn write(log: &Path, pieces: &[(Timestamp, &str)]) {
        let mut file = std::fs::File::options().append(true).create(true).open(log).unwrap();
        let mut times = TimesWriter::open(log, &file.metadata().unwrap()).unwrap();
        for (time, text) in pieces {
            let size = || Ok(file.metadata()?.len());
            times.note_at(time.as_microsecond(), size).unwrap();
            (&file).write_all(text.as_bytes()).unwrap();
        }
        file.flush().unwrap();
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn inode(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn every_byte_has_the_time_of_its_write() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        write(&log, &[(at(1), "abc"), (at(5), "d"), (at(9), "ef")]);
        let mut times = Times::open(&log, inode(&log)).unwrap();
        let all: Vec<_> = (0..7)
            .map(|offset| times.at(offset).unwrap().unwrap().as_millisecond())
            .collect();
        assert_eq!(all, [1, 1, 1, 5, 9, 9, 9]);
        assert_eq!(times.at(0).unwrap(), Some(at(1)), "also backwards");
        write(&log, &[(at(20), "g")]);
        assert_eq!(times.at(6).unwrap(), Some(at(9)));
        times.refresh().unwrap();
        assert_eq!(times.at(6).unwrap(), Some(at(20)));
    }

    #[test]
    fn more_entries_than_a_block_are_found_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let pieces: Vec<_> = (0..2000).map(|n| (at(n * 2), "x")).collect();
        write(&log, &pieces);
        let mut times = Times::open(&log, inode(&log)).unwrap();
        for n in [0, 1999, 3, 1000, 255, 256, 257, 1, 1998] {
            assert_eq!(times.at(n).unwrap(), Some(at(n as i64 * 2)));
            assert_eq!(times.offset_at(at(n as i64 * 2)).unwrap(), Some(n));
        }
        assert_eq!(times.offset_at(at(4000)).unwrap(), None);
    }

    #[test]
    fn writes_within_a_millisecond_share_an_entry() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let micros = |n| Timestamp::from_microsecond(n).unwrap();
        write(
            &log,
            &[
                (micros(100), "a"),
                (micros(900), "b"),
                (micros(1100), "c"),
                (micros(50), "clock set back"),
            ],
        );
        assert_eq!(size_for(&log, inode(&log)), 3 * ENTRY as u64);
    }

    #[test]
    fn what_was_written_before_the_first_entry_has_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "of another runtime\n").unwrap();
        assert!(Times::open(&log, inode(&log)).is_none());
        write(&log, &[(at(1), "ours\n")]);
        let mut times = Times::open(&log, inode(&log)).unwrap();
        assert_eq!((times.at(3).unwrap(), times.at(19).unwrap()), (None, Some(at(1))));
    }

    #[test]
    fn an_inode_that_is_used_again_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        write(&log, &[(at(1), "a"), (at(2), "b")]);
        std::fs::write(&log, "").unwrap();
        write(&log, &[(at(3), "c")]);
        let mut times = Times::open(&log, inode(&log)).unwrap();
        assert_eq!(times.at(0).unwrap(), Some(at(3)));
        assert_eq!(times.len, 1);
    }

    #[test]
    fn times_go_with_their_log() {
        let dir = tempfile::tempdir().unwrap();
        let (log, gone) = (dir.path().join("log"), dir.path().join("gone"));
        forget_removed(dir.path()).unwrap();
        for path in [&log, &gone] {
            write(path, &[(at(1), "a")]);
        }
        let removed = inode(&gone);
        std::fs::remove_file(&gone).unwrap();
        forget_removed(dir.path()).unwrap();
        assert!(Times::open(&gone, removed).is_none());
        assert!(Times::open(&log, inode(&log)).is_some());
    }
}
