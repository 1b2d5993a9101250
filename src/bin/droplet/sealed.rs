//! The executable that runs cannot be written through `/proc/<pid>/exe` (CVE-2019-5736).
//!
//! A process that enters a container can be made to hand out its own executable: the image's program is replaced by a
//! `#!/proc/self/exe` script, or `/proc/<pid>/exe` is opened while it has not executed the program yet. With a user
//! namespace that maps 0 to 0 the container then owns the file and overwrites the runtime. So `create` and `exec` call
//! [`reexec`] first of all: it executes the same binary again from a file that nobody can write, whoever opens it.
//!
//! That file is the binary seen through an overlay of read-only layers on a mount that is in no mount namespace. The
//! overlay has no upper layer, so there is nothing a write could go to and nothing a remount could change; nothing is
//! copied, and all monitors share the page cache of the one file. Measured with a binary of 6.9 MB: 1.1 ms more than a
//! plain start, most of it the second `execve`; a sealed copy in memory takes 3.8 ms and keeps 6.9 MB per monitor. A
//! read-only bind mount would be as cheap, but who has a file of a detached mount and `CAP_SYS_ADMIN` in any user
//! namespace can make that mount writable. A copy kept by the daemon would not protect who calls `droplet` without it.
//!
//! Where an overlay is not to be had (inside a foreign user namespace, `docs/spec/runtime.md` 14.4, or on a file system
//! that cannot be a layer) the binary is copied to a memfd, which is then sealed. If that fails too, the command fails:
//! it never runs unprotected.

use std::ffi::{CStr, CString, OsString};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, open, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

const SELF: &str = "/proc/self/exe";
/// Any directory that is always there and has no droplet.
const OTHER_LAYER: &[u8] = b"/dev";
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// Why the executable could not be protected.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Neither way worked.
    #[error("cannot protect the runtime's binary from the container: overlay: {overlay}; sealed copy: {copy}")]
    Protect {
        /// What the overlay said.
        overlay: std::io::Error,
        /// What the copy said.
        copy: std::io::Error,
    },
    /// The protected file was made but does not run.
    #[error("cannot execute the protected binary: {0}")]
    Execute(#[source] std::io::Error),
}

/// Executes this program again, arguments and environment unchanged, from a file that cannot be written; returns when it
/// already runs from one. Descriptors other than 0, 1 and 2 do not survive, so that nothing of the caller's gets near a
/// container; hence this must be called before anything is opened.
pub fn reexec() -> Result<(), SealError> {
    close_inherited();
    if is_immutable(Path::new(SELF)) {
        return Ok(());
    }
    let file = overlay().and_then(checked).or_else(|overlay| {
        copy()
            .and_then(checked)
            .map_err(|copy| SealError::Protect { overlay, copy })
    })?;
    Err(SealError::Execute(execute(&file)))
}

/// Closes every descriptor but 0, 1 and 2.
#[allow(unsafe_code)]
fn close_inherited() {
    // SAFETY: called before this program has opened anything, so no owner of a descriptor is betrayed. A kernel without
    // the call (before 5.9) cannot run a container of ours anyway.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Whether opening `path` for writing can never succeed: a sealed memfd, or a file that has nowhere to write to. The
/// file behind a running, unprotected program answers `ETXTBSY`, that is: not now.
fn is_immutable(path: &Path) -> bool {
    let sealed = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(fcntl_get_seals)
        .is_ok_and(|seals| seals.contains(SEALS));
    sealed || open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).is_err_and(|e| e == Errno::ROFS)
}

/// The same test for what is about to be executed. Without it a surprise here would end in an endless chain of
/// re-executions.
fn checked(file: OwnedFd) -> std::io::Result<OwnedFd> {
    match is_immutable(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))) {
        true => Ok(file),
        false => Err(std::io::Error::other("it is still writable")),
    }
}

/// This binary through an overlay of its directory.
fn overlay() -> std::io::Result<OwnedFd> {
    let exe = std::fs::read_link(SELF)?;
    let (Some(directory), Some(name)) = (exe.parent(), exe.file_name()) else {
        return Err(std::io::Error::other(format!("{} has no directory", exe.display())));
    };
    // An overlay without upper layer must have two lower ones. The second is never reached, because the first has the
    // one name that is looked up.
    let mut layers = escape_layer(directory.as_os_str().as_bytes());
    layers.push(b':');
    layers.extend(escape_layer(OTHER_LAYER));

    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "droplet")?;
    fsconfig_set_string(context.as_fd(), "lowerdir", layers)?;
    // Inode numbers do not matter here; without this the kernel logs a line about them for every mount.
    fsconfig_set_string(context.as_fd(), "xino", "off")?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(mount, name, flags, Mode::empty())?)
}

/// `lowerdir` is a list: a colon in a path would end it.
fn escape_layer(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for &byte in path {
        if matches!(byte, b'\\' | b':') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// A small program in memory that nobody can write.
pub fn file(name: &CStr, content: &[u8]) -> std::io::Result<OwnedFd> {
    let mut memory = std::fs::File::from(executable_memory(name)?);
    memory.write_all(content)?;
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory.into())
}

fn executable_memory(name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::EXEC) {
        // A kernel before 6.3 does not know the flag, and makes every memfd executable.
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    }
}

/// A copy of this binary in memory, sealed.
fn copy() -> std::io::Result<OwnedFd> {
    let memory = executable_memory(c"droplet")?;
    let exe = std::fs::File::open(SELF)?;
    let size = exe.metadata()?.len();
    let mut copied = 0;
    while copied < size {
        let chunk = usize::try_from(size - copied).unwrap_or(usize::MAX);
        match rustix::fs::sendfile(&memory, &exe, None, chunk)? {
            0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            n => copied += n as u64,
        }
    }
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// Replaces this process. Returns only on failure.
fn execute(file: &OwnedFd) -> std::io::Error {
    let arguments: Result<Vec<_>, _> = std::env::args_os().map(into_c_string).collect();
    let environment: Result<Vec<_>, _> = std::env::vars_os()
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            into_c_string(variable)
        })
        .collect();
    match (arguments, environment) {
        (Ok(arguments), Ok(environment)) => {
            let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
            match nix::unistd::execveat(file, c"", &arguments, &environment, flags) {
                Ok(never) => match never {},
                Err(errno) => errno.into(),
            }
        }
        (Err(e), _) | (_, Err(e)) => e.into(),
    }
}

fn into_c_string(s: OsString) -> Result<CString, std::ffi::NulError> {
    CString::new(s.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_for_writing(file: &OwnedFd) -> rustix::io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }

    #[test]
    fn a_program_runs_unprotected_until_it_is_executed_again() {
        assert!(!is_immutable(Path::new(SELF)));
    }

    #[test]
    fn the_overlay_shows_the_same_bytes_and_takes_no_write() {
        let file = checked(overlay().unwrap()).unwrap();
        assert_eq!(open_for_writing(&file).unwrap_err(), Errno::ROFS);
        let through = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(through == std::fs::read(SELF).unwrap());
    }

    #[test]
    fn the_copy_has_the_same_bytes_and_takes_no_write() {
        let file = checked(copy().unwrap()).unwrap();
        let writer = open_for_writing(&file).unwrap();
        assert_eq!(rustix::io::pwrite(&writer, b"x", 0).unwrap_err(), Errno::PERM);
        assert_eq!(rustix::fs::ftruncate(&writer, 0).unwrap_err(), Errno::PERM);
        let copied = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(copied == std::fs::read(SELF).unwrap());
    }

    #[test]
    fn a_file_that_can_be_written_is_not_executed() {
        let plain = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(checked(plain).is_err());
    }

    #[test]
    fn a_colon_does_not_end_a_layer() {
        assert_eq!(escape_layer(br"/a:b\c"), br"/a\:b\\c");
    }
}
