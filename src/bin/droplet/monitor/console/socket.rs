//! The Unix sockets of terminals (`docs/spec/runtime.md` 12.1, 12.6). A listening socket is removed when it is dropped.
//! If a path is longer than the 107 bytes of a socket address, the address uses a descriptor of the directory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};

use crate::container::files::remove_if_exists;

/// Maximum length of a path in a socket address.
const MAX_ADDRESS: usize = 107;
/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening stream socket with mode 0600. Dropping it removes its file, so a forked child must not drop it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    directory: PathBuf,
    name: String,
    alias: Option<String>,
}

impl Socket {
    /// Listens at `<directory>/<name>`. Replaces a socket that an earlier process left there.
    pub fn listen(directory: &Path, name: impl Into<String>) -> io::Result<Self> {
        let name = name.into();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file gets the mode of the socket: nobody else can connect at any time.
        fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
        remove_if_exists(&directory.join(&name))?;
        with_address(directory, &name, |address| bind(&fd, address))?;
        listen(&fd, BACKLOG)?;
        Ok(Self {
            fd,
            directory: directory.to_owned(),
            name,
            alias: None,
        })
    }

    /// Makes the symbolic link `<directory>/<alias>` point to this socket. Replaces an existing link.
    pub fn alias(&mut self, alias: impl Into<String>) -> io::Result<()> {
        let alias = alias.into();
        let temporary = self.directory.join(format!("{}.link", self.name));
        remove_if_exists(&temporary)?;
        fs_err::os::unix::fs::symlink(&self.name, &temporary)?;
        let _lock = self.lock_aliases()?;
        fs_err::rename(&temporary, self.directory.join(&alias))?;
        self.alias = Some(alias);
        Ok(())
    }

    /// Accepts the next connection, or returns `None` if none waits. The connection is non-blocking and close-on-exec.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(connection) => Ok(Some(connection)),
            Err(Errno::AGAIN | Errno::CONNABORTED) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Locks the aliases: while one session compares and removes a link, no other session may replace it.
    fn lock_aliases(&self) -> io::Result<OwnedFd> {
        let directory = open(&self.directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))?;
        Ok(directory)
    }

    fn remove(&self) -> io::Result<()> {
        remove_if_exists(&self.directory.join(&self.name))?;
        if let Some(alias) = &self.alias {
            let alias = self.directory.join(alias);
            let _lock = self.lock_aliases()?;
            if fs_err::read_link(&alias).is_ok_and(|target| target.as_os_str() == self.name.as_str()) {
                remove_if_exists(&alias)?;
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The error cannot be reported. The file is removed with the container's directory.
        let _ = self.remove();
    }
}

/// Connects to the socket `<directory>/<name>`.
pub fn connect(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    with_address(directory, name, |address| rustix::net::connect(&fd, address))?;
    Ok(fd)
}

/// Calls `operation` with the address of `<directory>/<name>`.
fn with_address<T>(
    directory: &Path,
    name: &str,
    operation: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>,
) -> io::Result<T> {
    let path = directory.join(name);
    if path.as_os_str().as_bytes().len() <= MAX_ADDRESS {
        return Ok(operation(&SocketAddrUnix::new(&path)?)?);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(directory, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    Ok(operation(&SocketAddrUnix::new(path)?)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_socket_belongs_to_its_owner_and_is_removed_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tty.sock");
        let socket = Socket::listen(dir.path(), "tty.sock").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert!(socket.accept().unwrap().is_none());
        let _client = connect(dir.path(), "tty.sock").unwrap();
        assert!(socket.accept().unwrap().is_some());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_leftover_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::mem::forget(Socket::listen(dir.path(), "tty.sock").unwrap());
        let socket = Socket::listen(dir.path(), "tty.sock").unwrap();
        let _client = connect(dir.path(), "tty.sock").unwrap();
        assert!(socket.accept().unwrap().is_some());
    }

    #[test]
    fn a_long_path_works() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let socket = Socket::listen(&deep, "tty.sock").unwrap();
        assert!(deep.join("tty.sock").exists());
        let _client = connect(&deep, "tty.sock").unwrap();
        assert!(socket.accept().unwrap().is_some());
    }

    #[test]
    fn the_alias_points_to_the_last_session_and_only_that_one_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = || std::fs::read_link(dir.path().join("exec_tty.sock")).ok();
        let session = |name: &str| {
            let mut socket = Socket::listen(dir.path(), name).unwrap();
            socket.alias("exec_tty.sock").unwrap();
            socket
        };
        let first = session("exec_tty.1.sock");
        let second = session("exec_tty.2.sock");
        assert_eq!(target(), Some("exec_tty.2.sock".into()));
        drop(first);
        assert_eq!(target(), Some("exec_tty.2.sock".into()));
        let _client = connect(dir.path(), "exec_tty.sock").unwrap();
        assert!(second.accept().unwrap().is_some());
        drop(second);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
