//! Rotates logs by renaming: the writer notices and continues in a new file.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::generations::rotate;
use super::times;

/// How much of each log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Size, its times included, at which a file is put aside, in bytes.
    pub max_bytes: u64,
    /// Number of rotated files to keep; at least 1.
    pub max_files: u32,
}

/// Puts aside every `*.log` in `directory` that has reached the limit. Returns how many bytes the longest of the others
/// is away from it. A log that cannot be renamed does not keep the others from it.
pub fn bound(directory: &Path, limits: &LogLimits) -> io::Result<u64> {
    let mut room = limits.max_bytes;
    let mut renamed = false;
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let Ok(metadata) = fs_err::metadata(&path) else {
            continue;
        };
        let size = metadata.len() + times::size_for(&path, metadata.ino());
        if size < limits.max_bytes {
            room = room.min(limits.max_bytes - size);
            continue;
        }
        match rotate(&path, limits.max_files) {
            Ok(()) => {
                tracing::debug!(log = %path.display(), size, "log rotated");
                renamed = true;
            }
            Err(error) => tracing::warn!(log = %path.display(), %error, "cannot rotate a log, which keeps growing"),
        }
    }
    if renamed {
        times::forget_removed(directory)?;
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_has_reached_the_limit_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits {
            max_bytes: 100,
            max_files: 2,
        };
        let write = |name: &str, size: usize| std::fs::write(dir.path().join(name), "x".repeat(size)).unwrap();
        let now = Timestamp::UNIX_EPOCH;
        write("short.log", 30);
        write("other.txt", 500);
        let text = "x".repeat(90);
        times::tests::write(&dir.path().join("timed.log"), &[(now, &text)]);
        for n in 1..=4 {
            write("long.log", 100 + n);
            assert_eq!(bound(dir.path(), &limits).unwrap(), 70);
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected = [
            "long.log.1",
            "long.log.2",
            "other.txt",
            "short.log",
            "timed.log.1",
            "times",
        ];
        assert_eq!(names, expected, "90 bytes and 16 of their time are over the limit");
        assert_eq!(std::fs::read_dir(dir.path().join("times")).unwrap().count(), 1);
        let newest = std::fs::read_to_string(dir.path().join("long.log.1")).unwrap();
        assert_eq!(newest.len(), 104);
    }

    #[test]
    fn a_directory_that_is_gone_is_an_error() {
        let limits = LogLimits {
            max_bytes: 1,
            max_files: 1,
        };
        bound(Path::new("/nonexistent"), &limits).unwrap_err();
    }
}
