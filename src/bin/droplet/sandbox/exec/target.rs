//! The container to enter. It is identified by descriptors of its init, which cannot refer to another process later.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use condenser::model::ProcessId;
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, fstatfs, major, minor, open, openat2, stat};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::sandbox::rootfs::passwd::home_directory;

/// The namespaces, by their names in `/proc/<pid>/ns`.
const NAMESPACES: [(&str, ThreadNameSpaceType); 8] = [
    ("user", ThreadNameSpaceType::USER),
    ("mnt", ThreadNameSpaceType::MOUNT),
    ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
    ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("pid", ThreadNameSpaceType::PROCESS_ID),
    ("net", ThreadNameSpaceType::NETWORK),
    ("time", ThreadNameSpaceType::TIME),
];
/// Device number of `/dev/ptmx` (Linux `admin-guide/devices`).
const PTMX: (u32, u32) = (5, 2);

/// The init of a running container.
#[derive(Debug)]
pub struct Target {
    pidfd: OwnedFd,
    root: OwnedFd,
    /// The namespaces that this process must enter.
    namespaces: ThreadNameSpaceType,
}

/// Why the container's terminal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PtyError {
    /// `/dev/pts` is missing or was replaced.
    #[error("/dev/pts/ptmx of the container is not a terminal multiplexer")]
    NotPtmx,
    /// It cannot be opened or used.
    #[error("cannot open a terminal of the container: {0}")]
    Open(#[from] Errno),
}

impl Target {
    /// Opens the init process. Returns `None` if it is gone.
    pub fn open(init: &ProcessId) -> std::io::Result<Option<Self>> {
        let Some(pidfd) = init.pidfd() else {
            return Ok(None);
        };
        let proc = PathBuf::from(format!("/proc/{}", init.pid));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(proc.join("root"), flags, Mode::empty());
        let namespaces = namespaces_beyond_ours(&proc);
        // Check after opening: so far everything belonged to this process.
        if !init.is_alive() {
            return Ok(None);
        }
        Ok(Some(Self {
            pidfd,
            root: root?,
            namespaces,
        }))
    }

    /// Returns the home directory of a user from the container's `/etc/passwd`.
    pub fn home(&self, uid: u32) -> String {
        let root = PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()));
        home_directory(&root, uid)
    }

    /// Moves this process into all namespaces of the container at once; only its children enter the pid namespace. The
    /// kernel enters the user namespace first but checks all others with the old credentials, so a network namespace of
    /// another owner is no problem.
    pub fn enter(&self) -> rustix::io::Result<()> {
        move_into_thread_name_spaces(self.pidfd.as_fd(), self.namespaces)
    }

    /// Opens a new pseudo-terminal of the container. Returns master and slave. The container controls that path, so
    /// this opens only a `ptmx` of a devpts.
    pub fn open_pty(&self) -> Result<(OwnedFd, OwnedFd), PtyError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let look = OFlags::PATH | OFlags::CLOEXEC;
        let found = openat2(&self.root, "dev/pts/ptmx", look, Mode::empty(), resolve)?;
        let device = fstat(&found)?.st_rdev;
        let on_devpts = fstatfs(&found)?.f_type == libc::DEVPTS_SUPER_MAGIC;
        if (major(device), minor(device)) != PTMX || !on_devpts {
            return Err(PtyError::NotPtmx);
        }
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = open(path, flags, Mode::empty())?;
        unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        Ok((master, slave))
    }
}

impl AsFd for Target {
    /// Returns the descriptor that [`Target::enter`] needs.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Returns the namespaces of a process that this one is not in. To enter one's own user namespace is an error.
fn namespaces_beyond_ours(proc: &Path) -> ThreadNameSpaceType {
    let identity = |proc: &Path, name| stat(proc.join("ns").join(name)).map(|s| (s.st_dev, s.st_ino));
    let mut namespaces = ThreadNameSpaceType::empty();
    for (name, flag) in NAMESPACES {
        // The kernel may be built without this namespace.
        let theirs = identity(proc, name);
        namespaces.set(
            flag,
            theirs.is_ok() && theirs != identity(Path::new("/proc/self"), name),
        );
    }
    namespaces
}
