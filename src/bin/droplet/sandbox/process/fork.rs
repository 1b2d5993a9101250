//! Forks this process.

use rustix::io::Errno;
use rustix::process::Pid;

/// Forks. Returns `None` in the child, and the child's pid in the parent.
pub fn fork() -> rustix::io::Result<Option<Pid>> {
    // SAFETY: `droplet` has one thread, so the child may do everything that the parent may do.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Child) => Ok(None),
        Ok(nix::unistd::ForkResult::Parent { child }) => Ok(Pid::from_raw(child.as_raw())),
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
    }
}

/// Forks a child of this process's parent. Returns `None` in the child, and the child's pid in this process.
pub fn fork_sibling() -> rustix::io::Result<Option<Pid>> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without a stack and without shared memory this is a `fork`, which is safe with one thread (see above).
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Pid::from_raw(pid as i32)),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
    }
}
