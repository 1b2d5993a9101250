//! Writes and removes files.

use std::io::Write;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;

/// Replaces a file atomically: a reader sees the old or the new content, never a part of it.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    // One temporary name per process is enough: every writer of the file holds the container's lock.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let write_and_rename = || {
        let mut file = fs_err::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        fs_err::rename(&temporary, path)
    };
    write_and_rename().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// Removes a file. Succeeds if it does not exist.
pub fn remove_if_exists(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
