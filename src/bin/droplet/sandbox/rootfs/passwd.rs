//! Reads the image's `/etc/passwd`.

use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Maximum number of bytes that are read of a passwd file.
const MAX_PASSWD: u64 = 1 << 20;

/// Returns the home directory of a user from the image's `/etc/passwd`, or `/` if there is none (9.9).
pub fn home_directory(root: &Path, uid: u32) -> String {
    read_inside(root, "etc/passwd")
        .ok()
        .and_then(|passwd| find_home(&passwd, uid))
        .unwrap_or_else(|| "/".to_owned())
}

fn find_home(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (number, home) = (fields.get(2)?, fields.get(5)?);
        (number.parse() == Ok(uid) && home.starts_with('/')).then(|| (*home).to_owned())
    })
}

/// Reads a regular file of the image. Follows symbolic links, but never leaves `root`.
fn read_inside(root: &Path, path: &str) -> std::io::Result<String> {
    let directory = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Do not block: the image may have a FIFO there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = std::fs::File::from(rustix::fs::openat2(&directory, path, flags, Mode::empty(), inside)?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn the_home_directory_comes_from_the_image() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = dir.path().join("etc/passwd");
        assert_eq!(home_directory(dir.path(), 0), "/");
        std::fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv/www:\nodd:x:7:7::rel:\nbroken\n",
        )
        .unwrap();
        assert_eq!(home_directory(dir.path(), 0), "/root");
        assert_eq!(home_directory(dir.path(), 33), "/srv/www");
        assert_eq!(home_directory(dir.path(), 7), "/");
        assert_eq!(home_directory(dir.path(), 9), "/");
        std::fs::remove_file(&passwd).unwrap();
        symlink("/etc/passwd", &passwd).unwrap();
        assert_eq!(
            home_directory(dir.path(), 0),
            "/",
            "a link to itself inside the image, not the host's file"
        );
        std::fs::remove_file(&passwd).unwrap();
        rustix::fs::mkfifoat(CWD, &passwd, Mode::RWXU).unwrap();
        assert_eq!(home_directory(dir.path(), 0), "/");
    }
}
