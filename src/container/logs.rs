//! The last lines of a container's log (`contract/api.md` 5.10).

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::{ContainerError, ContainerService};

/// Lines when the client does not say.
pub const DEFAULT_LINES: i64 = 100;
/// Most lines that are given out at once.
pub const MAX_LINES: usize = 5000;
/// How far back in the file lines are looked for, in bytes.
const WINDOW: u64 = 4 << 20;

impl ContainerService {
    /// Path of the log of a container.
    pub fn log_path(&self, parameter: &str) -> Result<std::path::PathBuf, ContainerError> {
        let container = self.find(parameter)?;
        Ok(self.dir(&container.id).log(container.tty))
    }

    /// The last `lines` lines as they are in the file. No file yet, or no line asked for: nothing.
    pub async fn tail_log(&self, parameter: &str, lines: i64) -> Result<Vec<u8>, ContainerError> {
        let path = self.log_path(parameter)?;
        let Ok(lines) = usize::try_from(lines) else {
            return Ok(Vec::new());
        };
        if lines > MAX_LINES {
            return Err(ContainerError::TooManyLines(MAX_LINES));
        }
        super::blocking(move || Ok(tail_file(&path, lines)?)).await
    }
}

/// The last `lines` lines of a file that may be growing; a missing file has none.
pub(crate) fn tail_file(path: &Path, lines: usize) -> std::io::Result<Vec<u8>> {
    let mut file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let size = file.metadata()?.len();
    // One byte more than the window: it tells whether the window begins at a line border.
    let start = size.saturating_sub(WINDOW + 1);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(WINDOW + 1).read_to_end(&mut bytes)?;
    Ok(last_lines(&bytes, start > 0, lines).to_vec())
}

/// The last `lines` lines of `bytes`. When `cut` is set, `bytes` is the end of something longer and its first line is
/// only trusted after a line break. A last line without line break counts.
fn last_lines(bytes: &[u8], cut: bool, lines: usize) -> &[u8] {
    if lines == 0 {
        return &[];
    }
    let begin = if cut {
        bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1)
    } else {
        0
    };
    let bytes = &bytes[begin..];
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let from = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, b)| **b == b'\n')
        .nth(lines - 1)
        .map_or(0, |(at, _)| at + 1);
    &bytes[from..]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"", false, 5, b"")]
    #[case(b"a\nb\nc\n", false, 2, b"b\nc\n")]
    #[case(b"a\nb\nc", false, 2, b"b\nc")]
    #[case(b"a\nb\n", false, 9, b"a\nb\n")]
    #[case(b"\n\n\n", false, 2, b"\n\n")]
    #[case(b"a\nb\n", false, 0, b"")]
    #[case(b"rest of a long line\nb\n", true, 9, b"b\n")]
    #[case(b"\nb\n", true, 9, b"b\n")]
    #[case(b"no border at all", true, 9, b"")]
    fn lines(#[case] bytes: &[u8], #[case] cut: bool, #[case] count: usize, #[case] expected: &[u8]) {
        assert_eq!(last_lines(bytes, cut, count), expected);
    }

    #[test]
    fn a_file_longer_than_the_window_starts_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(tail_file(&path, 10).unwrap().is_empty());
        let line = format!("{}\n", "x".repeat(99_999));
        std::fs::write(&path, line.repeat(50)).unwrap();
        let tail = tail_file(&path, MAX_LINES).unwrap();
        assert_eq!(tail.len() % line.len(), 0);
        assert!(tail.len() as u64 <= WINDOW && tail.len() as u64 > WINDOW - line.len() as u64);
    }
}
