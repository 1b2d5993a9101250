//! A position in a log that moves forward.

use std::io;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::FileExt;

use super::generations::{Generation, Next, after, open_all};
use super::select;
use super::select::Selection;
use super::stamp::Stamps;
use super::times::Times;

/// Maximum number of bytes read at once, which timestamps may multiply.
const PIECE: u64 = 256 << 10;
const STAMPED_PIECE: u64 = 32 << 10;

/// The part of a log to read, and its form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct View {
    /// Where to begin.
    pub selection: Selection,
    /// Whether every line begins with its time: RFC 3339 with milliseconds, UTC, then a blank.
    pub timestamps: bool,
    /// Whether to continue with what is written later.
    pub follow: bool,
}

/// Reads a log from a position on, across all its files. All methods block on the disk.
#[derive(Debug)]
pub struct LogReader {
    log: PathBuf,
    timestamps: bool,
    end: End,
    /// `None` while there is no log.
    place: Option<FilePosition>,
}

/// Where a reader stops.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Never,
    At { inode: u64, offset: u64 },
    Now,
}

#[derive(Debug)]
struct FilePosition {
    generation: Generation,
    offset: u64,
    stamps: Option<Stamps>,
}

impl LogReader {
    /// The log does not need to exist (yet).
    pub fn open(log: &Path, view: &View) -> io::Result<Self> {
        let begin = select::begin(log, &view.selection)?;
        let end = match begin.files.last() {
            _ if view.follow => End::Never,
            Some(last) => End::At {
                inode: last.inode,
                offset: begin.size,
            },
            None => End::Now,
        };
        let mut reader = Self {
            log: log.to_owned(),
            timestamps: view.timestamps,
            end,
            place: None,
        };
        if let Some(first) = begin.files.into_iter().next() {
            reader.go_to(first, begin.offset);
        }
        Ok(reader)
    }

    /// The directory of the log.
    pub fn directory(&self) -> &Path {
        self.log.parent().unwrap_or(&self.log)
    }

    /// The next chunk; empty at the end, or, for a following reader, if there is nothing yet.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let Some(place) = &mut self.place else {
                let Some(first) = self.first()? else {
                    return Ok(Vec::new());
                };
                self.go_to(first, 0);
                continue;
            };
            let piece = place.read(&self.end)?;
            if !piece.is_empty() || self.end.is_in(place.generation.inode) {
                return Ok(piece);
            }
            match after(&self.log, &place.generation)? {
                Next::Nothing => return Ok(Vec::new()),
                Next::File(next) => {
                    // The writer has moved to the next file, so this one is complete.
                    let rest = place.read(&self.end)?;
                    if !rest.is_empty() {
                        return Ok(rest);
                    }
                    self.go_to(next, 0);
                }
                Next::Lost => return Err(self.overtaken()),
            }
        }
    }

    /// Everything that is left, for a reader that does not follow.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let piece = self.read()?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    }

    fn first(&self) -> io::Result<Option<Generation>> {
        if self.end == End::Now {
            return Ok(None);
        }
        Ok(open_all(&self.log)?.into_iter().next())
    }

    fn go_to(&mut self, generation: Generation, offset: u64) {
        let stamps = self.timestamps.then(|| {
            let before = self.place.as_ref().and_then(|place| place.stamps.as_ref());
            let at_line_start = before.is_none_or(|stamps| stamps.at_line_start);
            Stamps::new(Times::open(&self.log, generation.inode), at_line_start)
        });
        self.place = Some(FilePosition {
            generation,
            offset,
            stamps,
        });
    }

    fn overtaken(&self) -> io::Error {
        io::Error::other(format!(
            "{}: the file that was read has been deleted, and with it perhaps others that were not: the log grows \
             faster than it is read",
            self.log.display()
        ))
    }
}

impl End {
    fn is_in(&self, file: u64) -> bool {
        matches!(self, Self::At { inode, .. } if *inode == file)
    }
}

impl FilePosition {
    fn read(&mut self, end: &End) -> io::Result<Vec<u8>> {
        let mut size = self.generation.size()?;
        if let End::At { inode, offset } = end
            && *inode == self.generation.inode
        {
            size = size.min(*offset);
        }
        if size < self.offset {
            // The file was truncated; writers append, so its text starts over.
            self.offset = 0;
        }
        let most = if self.stamps.is_some() { STAMPED_PIECE } else { PIECE };
        let mut piece = vec![0; (size - self.offset).min(most) as usize];
        let read = self.generation.file.read_at(&mut piece, self.offset)?;
        piece.truncate(read);
        let offset = self.offset;
        self.offset += read as u64;
        match &mut self.stamps {
            Some(stamps) if read > 0 => stamps.apply(offset, &piece),
            _ => Ok(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::observe::logs::rotate;

    const FOLLOW: View = View {
        selection: Selection {
            lines: None,
            since: None,
        },
        timestamps: false,
        follow: true,
    };

    fn append(log: &Path, text: &str) {
        use std::io::Write;
        let mut file = std::fs::File::options().append(true).create(true).open(log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn read(reader: &mut LogReader) -> String {
        String::from_utf8(reader.read().unwrap()).unwrap()
    }

    #[test]
    fn one_that_follows_goes_through_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut reader = LogReader::open(&log, &FOLLOW).unwrap();
        assert_eq!(read(&mut reader), "");
        append(&log, "1\n");
        rotate(&log, 5).unwrap();
        append(&log, "2\n");
        assert_eq!(read(&mut reader), "1\n");
        rotate(&log, 5).unwrap();
        assert_eq!(read(&mut reader), "2\n");
        assert_eq!(read(&mut reader), "");
        append(&dir.path().join("log.1"), "end of 2\n");
        append(&log, "3\n");
        rotate(&log, 5).unwrap();
        append(&log, "4\n");
        assert_eq!(read(&mut reader), "end of 2\n");
        assert_eq!(read(&mut reader), "3\n");
        assert_eq!(read(&mut reader), "4\n");
        assert_eq!(read(&mut reader), "");
    }

    #[test]
    fn what_is_written_right_before_a_file_is_put_aside_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut reader = LogReader::open(&log, &FOLLOW).unwrap();
        // The writer may be this many lines ahead, each in a file of its own.
        let (ahead, done) = mpsc::sync_channel(10);
        let path = log.clone();
        let writer = std::thread::spawn(move || {
            for number in 0..1500 {
                append(&path, &format!("{number}\n"));
                rotate(&path, 40).unwrap();
                ahead.send(()).unwrap();
            }
        });
        let mut expected = 0..1500;
        while expected.start < expected.end {
            for line in read(&mut reader).lines() {
                assert_eq!(Some(line), expected.next().map(|number| number.to_string()).as_deref());
                done.recv().unwrap();
            }
        }
        writer.join().unwrap();
    }

    #[test]
    fn one_that_does_not_follow_stops_where_the_log_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let none = LogReader::open(&log, &View::default());
        append(&log, "1\n");
        rotate(&log, 5).unwrap();
        append(&log, "2\n");
        let mut reader = LogReader::open(&log, &View::default()).unwrap();
        append(&log, "later\n");
        rotate(&log, 5).unwrap();
        append(&log, "3\n");
        assert_eq!(reader.read_to_end().unwrap(), b"1\n2\n");
        assert_eq!(none.unwrap().read_to_end().unwrap(), b"", "there was no log");
    }

    #[test]
    fn one_that_is_too_slow_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        append(&log, "1\n");
        let mut reader = LogReader::open(&log, &FOLLOW).unwrap();
        for text in ["2\n", "3\n"] {
            rotate(&log, 1).unwrap();
            append(&log, text);
        }
        assert_eq!(read(&mut reader), "1\n", "it still holds that file");
        let error = reader.read().unwrap_err().to_string();
        assert!(error.contains("faster than it is read"), "{error}");
    }

    #[test]
    fn an_emptied_file_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        append(&log, "long text\n");
        let mut reader = LogReader::open(&log, &FOLLOW).unwrap();
        assert_eq!(read(&mut reader), "long text\n");
        std::fs::File::create(&log).unwrap();
        append(&log, "new\n");
        assert_eq!(read(&mut reader), "new\n");
    }

    #[test]
    fn pieces_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "\n".repeat(1 << 20)).unwrap();
        let mut reader = LogReader::open(&log, &View::default()).unwrap();
        assert_eq!(reader.read().unwrap().len() as u64, PIECE);
        let stamped = View {
            timestamps: true,
            ..View::default()
        };
        let mut reader = LogReader::open(&log, &stamped).unwrap();
        assert!(reader.read().unwrap().len() <= 1 << 20);
    }
}
