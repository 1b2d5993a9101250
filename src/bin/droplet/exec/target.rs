//! The container that is entered, by descriptors of its init: they cannot come to mean another process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use condenser::model::ProcessId;
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, fstatfs, major, minor, open, openat2, stat};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::rootfs;

/// Namespaces by their names in `/proc/<pid>/ns`.
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
    /// Those that it does not share with this process.
    namespaces: ThreadNameSpaceType,
}

/// Why the container has no terminal to give.
#[derive(Debug, thiserror::Error)]
pub enum PtyError {
    /// Its `/dev/pts` is missing or has been replaced.
    #[error("/dev/pts/ptmx of the container is not a terminal multiplexer")]
    NotPtmx,
    /// It cannot be opened or used.
    #[error("cannot open a terminal of the container: {0}")]
    Open(#[from] Errno),
}

impl Target {
    /// Opens what belongs to this very process. `None` when it is gone.
    pub fn open(init: &ProcessId) -> std::io::Result<Option<Self>> {
        let Some(pidfd) = init.pidfd() else {
            return Ok(None);
        };
        let proc = PathBuf::from(format!("/proc/{}", init.pid));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(proc.join("root"), flags, Mode::empty());
        let namespaces = namespaces_beyond_ours(&proc);
        // Now it is known that it was this process's all the time.
        if !init.is_alive() {
            return Ok(None);
        }
        Ok(Some(Self {
            pidfd,
            root: root?,
            namespaces,
        }))
    }

    /// Home directory of a user, as the container's `/etc/passwd` has it now.
    pub fn home(&self, uid: u32) -> String {
        let root = PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()));
        rootfs::home(&root, uid)
    }

    /// Moves this process into all namespaces of the container at once; into its pid namespace go the children. The
    /// kernel enters the user namespace first and judges all others by the rights from before, so a network namespace
    /// made elsewhere is no obstacle.
    pub fn enter(&self) -> rustix::io::Result<()> {
        move_into_thread_name_spaces(self.pidfd.as_fd(), self.namespaces)
    }

    /// A new pseudo-terminal of the container: master and slave. The container decides what is at that path, so nothing
    /// but a multiplexer of a devpts is opened.
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
    /// All that [`Target::enter`] needs.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Namespaces of a process that this one is not in. Entering one's own user namespace is an error, hence the question.
fn namespaces_beyond_ours(proc: &Path) -> ThreadNameSpaceType {
    let identity = |proc: &Path, name| stat(proc.join("ns").join(name)).map(|s| (s.st_dev, s.st_ino));
    let mut namespaces = ThreadNameSpaceType::empty();
    for (name, flag) in NAMESPACES {
        // A kernel may be built without one of them.
        let theirs = identity(proc, name);
        namespaces.set(
            flag,
            theirs.is_ok() && theirs != identity(Path::new("/proc/self"), name),
        );
    }
    namespaces
}
