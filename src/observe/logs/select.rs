//! Finds the position where reading a log begins.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fs_err::os::unix::fs::FileExt;
use jiff::Timestamp;

use super::generations::{Generation, open_all};
use super::times::Times;

/// How far back lines are counted, in bytes over all files.
const WINDOW: u64 = 4 << 20;
const BLOCK: usize = 64 << 10;

/// The part of a log to read. The default is all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only that many lines from the end, within the last 4 MiB.
    pub lines: Option<usize>,
    /// Only lines written at this time or later. A file without times is included as a whole if it was modified
    /// since.
    pub since: Option<Timestamp>,
}

/// The files of a log from a position on. The position is the beginning of a line.
pub(super) struct Begin {
    /// Oldest first; reading begins in the first one. Empty if there is no log.
    pub files: Vec<Generation>,
    pub offset: u64,
    /// Size of the last file.
    pub size: u64,
}

/// Finds the position.
pub(super) fn begin(log: &Path, selection: &Selection) -> io::Result<Begin> {
    let mut files = open_all(log)?;
    let sizes: Vec<u64> = files.iter().map(Generation::size).collect::<io::Result<_>>()?;
    let mut place = (0, 0);
    if let Some(since) = selection.since {
        place = written_since(log, &files, &sizes, since)?;
    }
    if let Some(lines) = selection.lines {
        place = place.max(last_lines(&files, &sizes, lines)?);
    }
    let (first, offset) = place;
    files.drain(..first);
    Ok(Begin {
        files,
        offset,
        size: sizes.last().copied().unwrap_or(0),
    })
}

/// File and offset of the first line that was written at `since` or later.
fn written_since(log: &Path, files: &[Generation], sizes: &[u64], since: Timestamp) -> io::Result<(usize, u64)> {
    for (n, generation) in files.iter().enumerate() {
        let written = match Times::open(log, generation.inode) {
            Some(mut times) => times.offset_at(since)?.map(|offset| offset.min(sizes[n])),
            None => (generation.file.metadata()?.mtime() >= since.as_second()).then_some(0),
        };
        if let Some(offset) = written {
            return Ok((n, line_start(generation, offset, sizes[n])?));
        }
    }
    Ok(end_of(sizes))
}

/// The first beginning of a line at or after `offset`.
fn line_start(generation: &Generation, offset: u64, size: u64) -> io::Result<u64> {
    let mut at = offset.saturating_sub(1);
    if offset == 0 {
        return Ok(0);
    }
    let mut block = vec![0; BLOCK];
    while at < size {
        let read = generation.file.read_at(&mut block, at)?;
        if read == 0 {
            break;
        }
        if let Some(newline) = block[..read].iter().position(|byte| *byte == b'\n') {
            return Ok(at + newline as u64 + 1);
        }
        at += read as u64;
    }
    Ok(size)
}

/// File and offset of the last `lines` lines. A last line without a line feed counts.
fn last_lines(files: &[Generation], sizes: &[u64], lines: usize) -> io::Result<(usize, u64)> {
    let mut earliest = end_of(sizes);
    if lines == 0 {
        return Ok(earliest);
    }
    // The line feed of the last line does not begin a line.
    let last = sizes.iter().rposition(|size| *size > 0).map(|n| (n, sizes[n]));
    let mut found = 0;
    // One byte more than the window, to tell whether the window begins at a line.
    let mut left = WINDOW + 1;
    let mut block = vec![0; BLOCK];
    for n in (0..files.len()).rev() {
        let mut end = sizes[n];
        while end > 0 && left > 0 {
            let length = end.min(left).min(BLOCK as u64);
            let block = &mut block[..length as usize];
            files[n].file.read_exact_at(block, end - length)?;
            for (place, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let start = (n, end - length + place as u64 + 1);
                if Some(start) != last {
                    found += 1;
                }
                earliest = start;
                if found == lines {
                    return Ok(earliest);
                }
            }
            end -= length;
            left -= length;
        }
    }
    // A line that the window cuts is omitted.
    Ok(if left > 0 { (0, 0) } else { earliest })
}

fn end_of(sizes: &[u64]) -> (usize, u64) {
    match sizes.len().checked_sub(1) {
        Some(last) => (last, sizes[last]),
        None => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The text from the position on.
    fn rest(log: &Path, selection: &Selection) -> String {
        let Begin { files, offset, .. } = begin(log, selection).unwrap();
        let text: String = files
            .iter()
            .map(|generation| std::io::read_to_string(generation.file.try_clone().unwrap()).unwrap())
            .collect();
        text[offset as usize..].to_owned()
    }

    fn last(log: &Path, lines: usize) -> String {
        let selection = Selection {
            lines: Some(lines),
            since: None,
        };
        rest(log, &selection)
    }

    #[rstest]
    #[case(&[""], 5, "")]
    #[case(&["a\nb\nc\n"], 2, "b\nc\n")]
    #[case(&["a\nb\nc"], 2, "b\nc")]
    #[case(&["a\nb\n"], 9, "a\nb\n")]
    #[case(&["\n\n\n"], 2, "\n\n")]
    #[case(&["a\nb\n"], 0, "")]
    #[case(&["a\nb\n", "c\n"], 1, "c\n")]
    #[case(&["a\nb\n", "c\n"], 2, "b\nc\n")]
    #[case(&["a\nb\n", "c\n", "d\n"], 9, "a\nb\nc\nd\n")]
    #[case(&["a\nb\n", ""], 1, "b\n")]
    #[case(&["a\nb\n", "c"], 2, "b\nc")]
    #[case(&["torn", " line\nc\n"], 2, "torn line\nc\n")]
    fn lines_are_counted_over_all_files(#[case] texts: &[&str], #[case] lines: usize, #[case] expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for text in texts {
            super::super::rotate(&log, 9).unwrap();
            std::fs::write(&log, text).unwrap();
        }
        assert_eq!(last(&log, lines), expected);
    }

    #[test]
    fn a_log_longer_than_the_window_starts_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last(&log, 10), "");
        let line = format!("{}\n", "x".repeat(99_999));
        std::fs::write(dir.path().join("log.1"), line.repeat(30)).unwrap();
        std::fs::write(&log, line.repeat(20)).unwrap();
        let tail = last(&log, 5000);
        assert_eq!(tail.len() % line.len(), 0);
        assert!(tail.len() as u64 <= WINDOW && tail.len() as u64 > WINDOW - line.len() as u64);
        std::fs::write(&log, "x".repeat(5 << 20)).unwrap();
        assert_eq!(last(&log, 1), "", "a line that is longer than the window is left out");
    }

    #[rstest]
    #[case(0, "one\ntwo\nthree\nfour\n")]
    #[case(1001, "two\nthree\nfour\n")]
    #[case(2000, "two\nthree\nfour\n")]
    #[case(2001, "three\nfour\n")]
    #[case(3000, "three\nfour\n")]
    #[case(4000, "four\n")]
    #[case(4001, "")]
    fn lines_are_found_by_their_time(#[case] millis: i64, #[case] expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        super::super::times::tests::write(&log, &[(at(1), "one\n"), (at(2), "two\n")]);
        super::super::rotate(&log, 1).unwrap();
        super::super::times::tests::write(&log, &[(at(3), "thr"), (at(3), "ee\n"), (at(4), "four\n")]);
        let since = Timestamp::from_millisecond(millis).unwrap();
        let mut selection = Selection {
            lines: None,
            since: Some(since),
        };
        assert_eq!(rest(&log, &selection), expected);
        selection.lines = Some(1);
        assert_eq!(rest(&log, &selection), if expected.is_empty() { "" } else { "four\n" });
    }

    #[test]
    fn a_line_that_was_begun_before_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        super::super::times::tests::write(&log, &[(at(1), "one\nbeg"), (at(2), "un\ntwo\n")]);
        let selection = Selection {
            lines: None,
            since: Some(at(2)),
        };
        assert_eq!(rest(&log, &selection), "two\n");
    }

    #[test]
    fn without_times_the_time_of_the_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "text\n").unwrap();
        let since = |offset: i64| Selection {
            lines: None,
            since: Some(Timestamp::now() + jiff::SignedDuration::from_secs(offset)),
        };
        assert_eq!(rest(&log, &since(-3600)), "text\n");
        assert_eq!(rest(&log, &since(3600)), "");
    }
}
