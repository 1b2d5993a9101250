//! The files of one log: `<log>`, then `<log>.1` (newest) and upwards. They may be renamed at any moment, so files
//! are identified by inode.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::File;

/// How often a file that moves while it is looked for is looked for again.
const ATTEMPTS: u32 = 100;

/// An open file of a log.
#[derive(Debug)]
pub(super) struct Generation {
    pub file: File,
    pub inode: u64,
}

impl Generation {
    /// `None` if there is no such file.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some(Self { file, inode }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn is_deleted(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }
}

/// The file after a given one.
#[derive(Debug)]
pub(super) enum Next {
    /// None yet: the file is the newest one, or the whole log was removed.
    Nothing,
    /// This one.
    File(Generation),
    /// Unknown: the file does not belong to the log any more.
    Lost,
}

/// Makes room for a new file: the current one becomes `.1`, older ones move up as far as there is no free number, and
/// those above `kept` go. A crash in the middle leaves a free number, which the next call uses.
pub fn rotate(path: &Path, kept: u32) -> io::Result<()> {
    if inode_of(path).is_none() {
        return Ok(());
    }
    let mut surplus = kept + 1;
    while remove_if_present(&aside(path, surplus))? {
        surplus += 1;
    }
    let free = (1..kept).find(|n| inode_of(&aside(path, *n)).is_none()).unwrap_or(kept);
    for n in (0..free).rev() {
        fs_err::rename(aside(path, n), aside(path, n + 1))?;
    }
    Ok(())
}

/// All files, oldest first.
pub(super) fn open_all(path: &Path) -> io::Result<Vec<Generation>> {
    let mut found: Vec<Generation> = Vec::new();
    for candidate in candidates(path) {
        if let Some(generation) = Generation::open(&candidate)? {
            // Skip a file that was renamed since the last step.
            if found.iter().all(|known| known.inode != generation.inode) {
                found.push(generation);
            }
        }
    }
    found.reverse();
    Ok(found)
}

/// The file after that one.
pub(super) fn after(path: &Path, current: &Generation) -> io::Result<Next> {
    for _ in 0..ATTEMPTS {
        // Files only move to higher numbers, and so does this search; what it misses has moved past its end meanwhile.
        let Some(place) = candidates(path).position(|candidate| inode_of(&candidate) == Some(current.inode)) else {
            if !current.is_deleted()? {
                continue;
            }
            let removed = open_all(path)?.is_empty();
            return Ok(if removed { Next::Nothing } else { Next::Lost });
        };
        let place = place as u32;
        let mut next = None;
        let mut at = place;
        while next.is_none() && at > 0 {
            at -= 1;
            next = Generation::open(&aside(path, at))?;
        }
        // Below a file that stays in place, a file can only move up to a number that was free. If none of those has
        // been taken meanwhile, nothing has moved past this search.
        let empty_since = if next.is_some() { at + 1 } else { 0 };
        let unmoved = (empty_since..place).all(|n| inode_of(&aside(path, n)).is_none());
        if unmoved && inode_of(&aside(path, place)) == Some(current.inode) {
            return Ok(next.map_or(Next::Nothing, Next::File));
        }
    }
    // It exists, but not here: somebody has moved the log away.
    Ok(Next::Nothing)
}

fn aside(path: &Path, n: u32) -> PathBuf {
    if n == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// The names that files may have, newest first, up to the highest number in the directory. Files move while one goes
/// through them, so the directory is listed again at its end.
fn candidates(path: &Path) -> impl Iterator<Item = PathBuf> {
    let mut known = None;
    (0..).map_while(move |n| {
        if known.is_none_or(|highest| n > highest) {
            known = highest_number(path).max(known);
        }
        known.is_some_and(|highest| n <= highest).then(|| aside(path, n))
    })
}

/// `None` if the log has no file.
fn highest_number(path: &Path) -> Option<u32> {
    let name = path.file_name()?;
    let entries = fs_err::read_dir(path.parent()?).ok()?;
    let number = |entry: io::Result<fs_err::DirEntry>| {
        let entry = entry.ok()?.file_name();
        let rest = entry.as_bytes().strip_prefix(name.as_bytes())?;
        match rest.strip_prefix(b".") {
            Some(digits) => str::from_utf8(digits).ok()?.parse().ok(),
            None => rest.is_empty().then_some(0),
        }
    };
    entries.filter_map(number).max()
}

fn inode_of(path: &Path) -> Option<u64> {
    fs_err::metadata(path).ok().map(|metadata| metadata.ino())
}

fn remove_if_present(path: &Path) -> io::Result<bool> {
    match fs_err::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<(String, String)> {
        let mut all: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let text = std::fs::read_to_string(entry.path()).unwrap();
                (entry.file_name().into_string().unwrap(), text)
            })
            .collect();
        all.sort();
        all
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
    }

    #[test]
    fn files_move_up_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for n in 1..=4 {
            std::fs::write(&log, n.to_string()).unwrap();
            rotate(&log, 2).unwrap();
        }
        assert_eq!(names(dir.path()), owned(&[("log.1", "4"), ("log.2", "3")]));
        rotate(&log, 2).unwrap();
        assert_eq!(names(dir.path()).len(), 2, "without a current file nothing moves");
        std::fs::write(&log, "5").unwrap();
        rotate(&log, 1).unwrap();
        assert_eq!(names(dir.path()), owned(&[("log.1", "5")]));
    }

    #[test]
    fn a_hole_of_an_earlier_crash_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for (name, text) in [("log", "5"), ("log.1", "4"), ("log.3", "2")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let text = |generation: &Generation| std::io::read_to_string(generation.file.try_clone().unwrap()).unwrap();
        let all = open_all(&log).unwrap();
        assert_eq!(all.iter().map(text).collect::<Vec<_>>(), ["2", "4", "5"]);
        let Next::File(next) = after(&log, &all[0]).unwrap() else {
            panic!("there is one")
        };
        assert_eq!(next.inode, all[1].inode);
        rotate(&log, 4).unwrap();
        let expected = owned(&[("log.1", "5"), ("log.2", "4"), ("log.3", "2")]);
        assert_eq!(names(dir.path()), expected);
    }

    #[test]
    fn numbers_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for name in ["log", "log.3", "log.7", "log.x", "logs", "other.9"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let all = open_all(&log).unwrap();
        assert_eq!(all.len(), 3);
        assert!(matches!(after(&log, &all[0]).unwrap(), Next::File(next) if next.inode == all[1].inode));
    }

    #[test]
    fn a_log_that_was_moved_away_goes_on_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "old").unwrap();
        let old = open_all(&log).unwrap().remove(0);
        std::fs::rename(&log, dir.path().join("elsewhere")).unwrap();
        assert!(matches!(after(&log, &old).unwrap(), Next::Nothing));
    }

    #[test]
    fn the_newest_has_no_next_until_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert!(open_all(&log).unwrap().is_empty());
        std::fs::write(&log, "old").unwrap();
        let old = open_all(&log).unwrap().remove(0);
        assert!(matches!(after(&log, &old).unwrap(), Next::Nothing));
        rotate(&log, 1).unwrap();
        assert!(matches!(after(&log, &old).unwrap(), Next::Nothing));
        std::fs::write(&log, "new").unwrap();
        assert!(matches!(after(&log, &old).unwrap(), Next::File(_)));
        rotate(&log, 1).unwrap();
        assert!(matches!(after(&log, &old).unwrap(), Next::Lost));
    }
}
