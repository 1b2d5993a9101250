//! A log file of lines for external readers, rotated by size (`docs/spec/observability.md` 1).
//!
//! `<file>`, then `<file>.1` (newest) to `<file>.5` (oldest). A line never spans two files, and is never appended to
//! an incomplete line that a crash or a full disk left. Blocks on file access.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::observe::logs::rotate;

/// Size at which a file is rotated, in bytes.
pub const LIMIT: u64 = 50 * 1024 * 1024;
/// Number of rotated files to keep.
pub const KEPT: u32 = 5;

const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// An open log file.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    limit: u64,
    file: std::fs::File,
    size: u64,
    /// Whether the file ends with an incomplete line.
    torn: bool,
}

impl RotatingFile {
    /// Opens the file for appending; creates it and its directory if necessary.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let (file, size, torn) = open(path).map_err(|e| named(path, &e))?;
        Ok(Self {
            path: path.to_owned(),
            limit,
            file,
            size,
            torn,
        })
    }

    /// Appends one line, which must end with a line feed, and hands it to the kernel.
    pub fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let result = self.try_write(line);
        result.map_err(|e| named(&self.path, &e))
    }

    /// Waits until everything written is on disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| named(&self.path, &e))
    }

    /// Opens the file again, after an operator has moved it away or after an error.
    pub fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size, self.torn) = open(&self.path).map_err(|e| named(&self.path, &e))?;
        Ok(())
    }

    /// [`RotatingFile::reopen`] if the file was moved away or removed.
    pub fn follow_name(&mut self) -> io::Result<()> {
        let here = self.file.metadata().map_err(|e| named(&self.path, &e))?;
        match fs_err::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => Ok(()),
            _ => self.reopen(),
        }
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.limit {
            self.rotate()?;
        }
        if self.torn {
            self.file.write_all(b"\n")?;
            self.size += 1;
            self.torn = false;
        }
        // Until the write succeeds, it is unknown how much of the line was written.
        self.torn = true;
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        self.torn = false;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        rotate(&self.path, KEPT)?;
        (self.file, self.size, self.torn) = open(&self.path)?;
        Ok(())
    }
}

/// The file, its size, and whether it ends with an incomplete line.
#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
fn open(path: &Path) -> io::Result<(std::fs::File, u64, bool)> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)?;
    }
    let mut options = OpenOptions::new();
    options
        .read(true)
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path)?;
    let metadata = file.metadata()?;
    if metadata.permissions().mode() & 0o7777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    let size = metadata.len();
    let mut last = [b'\n'];
    if size > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok((file, size, last != [b'\n']))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path, name: &str) -> String {
        std::fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn files_move_up_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatingFile::with_limit(&dir.path().join("a.jsonl"), 10).unwrap();
        for n in 1..=13 {
            log.write_line(format!("{n:04}\n").as_bytes()).unwrap();
        }
        assert_eq!(read(dir.path(), "a.jsonl"), "0013\n");
        assert_eq!(read(dir.path(), "a.jsonl.1"), "0011\n0012\n");
        assert_eq!(read(dir.path(), "a.jsonl.5"), "0003\n0004\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 6);
    }

    #[test]
    fn the_size_of_an_existing_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "12345678\n").unwrap();
        RotatingFile::with_limit(&path, 10).unwrap().write_line(b"x\n").unwrap();
        assert_eq!(read(dir.path(), "a.jsonl"), "x\n");
    }

    #[test]
    fn a_line_over_the_limit_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatingFile::with_limit(&dir.path().join("a.jsonl"), 4).unwrap();
        log.write_line(b"0123456789\n").unwrap();
        assert_eq!(read(dir.path(), "a.jsonl"), "0123456789\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_torn_line_does_not_swallow_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "{\"half").unwrap();
        RotatingFile::open(&path).unwrap().write_line(b"{}\n").unwrap();
        assert_eq!(read(dir.path(), "a.jsonl"), "{\"half\n{}\n");
    }

    #[test]
    fn directories_and_files_are_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("var/log/a.jsonl");
        RotatingFile::open(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o640, 0o750));
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        RotatingFile::open(&path).unwrap();
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn a_link_is_not_followed_and_the_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("a.jsonl")).unwrap();
        let error = RotatingFile::open(&dir.path().join("a.jsonl")).unwrap_err();
        assert!(error.to_string().contains("a.jsonl: "), "{error}");
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let mut log = RotatingFile::open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        log.write_line(b"1\n").unwrap();
        log.reopen().unwrap();
        log.write_line(b"2\n").unwrap();
        log.follow_name().unwrap();
        log.write_line(b"3\n").unwrap();
        assert_eq!(
            (read(dir.path(), "moved"), read(dir.path(), "a.jsonl")),
            ("1\n".into(), "2\n3\n".into())
        );
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        log.follow_name().unwrap();
        log.write_line(b"4\n").unwrap();
        assert_eq!(read(dir.path(), "a.jsonl"), "4\n");
    }
}
