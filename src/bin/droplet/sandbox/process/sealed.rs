//! Protects the runtime's binary from being overwritten through `/proc/<pid>/exe` (CVE-2019-5736).
//!
//! A container can get at the executable of a process that enters it: the image's program may be a `#!/proc/self/exe`
//! script, or a process of the container opens `/proc/<pid>/exe` before the program is executed. If the user namespace
//! maps 0 to 0, the container owns the file and could overwrite the runtime. So `create` and `exec` first call
//! [`reexec`]: it executes the same binary again, from a file that nobody can write.
//!
//! That file is the binary in an overlay of read-only layers, on a detached mount. The overlay has no upper layer, so
//! there is nothing to write to, and a remount changes nothing. Nothing is copied, and all monitors share one page
//! cache. Measured with a binary of 6.9 MB, this takes 1.1 ms, most of it for the second `execve`; a sealed copy in
//! memory takes 3.8 ms and 6.9 MB per monitor. A read-only bind mount would be as cheap, but with a file of a detached
//! mount and `CAP_SYS_ADMIN` in any user namespace a process can make that mount writable. A copy that the daemon keeps
//! would not protect callers without the daemon.
//!
//! If an overlay is not possible (inside a foreign user namespace, `docs/spec/runtime.md` 14.4, or on a file system
//! that cannot be a layer), the binary is copied to a memfd and sealed. If that fails too, the command fails: the
//! runtime never runs unprotected.

use std::ffi::{CStr, CString, OsString};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, open, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

const SELF: &str = "/proc/self/exe";
/// Any directory that always exists and contains no droplet.
const OTHER_LAYER: &[u8] = b"/dev";
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// Why the binary could not be protected.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Both ways failed.
    #[error("cannot protect the runtime's binary from the container: overlay: {overlay}; sealed copy: {copy}")]
    Protect {
        /// Error of the overlay.
        overlay: std::io::Error,
        /// Error of the sealed copy.
        copy: std::io::Error,
    },
    /// The protected file cannot be executed.
    #[error("cannot execute the protected binary: {0}")]
    Execute(#[source] std::io::Error),
}

/// Executes this program again from a file that cannot be written, with the same arguments and environment. Returns if
/// it already runs from such a file. Closes all descriptors except 0, 1 and 2, so that none of the caller's reaches a
/// container. Therefore call it before anything is opened.
pub fn reexec() -> Result<(), SealError> {
    close_inherited();
    if is_immutable(Path::new(SELF)) {
        return Ok(());
    }
    let file = overlay().and_then(require_immutable).or_else(|overlay| {
        sealed_copy()
            .and_then(require_immutable)
            .map_err(|copy| SealError::Protect { overlay, copy })
    })?;
    Err(SealError::Execute(execute(&file)))
}

/// Closes all descriptors except 0, 1 and 2.
#[allow(unsafe_code)]
fn close_inherited() {
    // SAFETY: this program has not opened anything yet, so no descriptor has an owner. A kernel without this call
    // (before 5.9) cannot run our containers anyway.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Returns whether `path` can never be opened for writing: it is a sealed memfd, or on a file system that cannot be
/// written. The file of a running, unprotected program returns `ETXTBSY`, which is only temporary.
fn is_immutable(path: &Path) -> bool {
    let is_sealed = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(fcntl_get_seals)
        .is_ok_and(|seals| seals.contains(SEALS));
    is_sealed || open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).is_err_and(|e| e == Errno::ROFS)
}

/// Fails if the file is not immutable. Without this check, an unexpected case would execute this program again and
/// again.
fn require_immutable(file: OwnedFd) -> std::io::Result<OwnedFd> {
    match is_immutable(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))) {
        true => Ok(file),
        false => Err(std::io::Error::other("it is still writable")),
    }
}

/// Opens this binary through an overlay of its directory.
fn overlay() -> std::io::Result<OwnedFd> {
    let exe = fs_err::read_link(SELF)?;
    let (Some(directory), Some(name)) = (exe.parent(), exe.file_name()) else {
        return Err(std::io::Error::other(format!("{} has no directory", exe.display())));
    };
    // An overlay without an upper layer needs two lower ones. The second is never used, because the first has the only
    // name that is looked up.
    let mut layers = escape_layer(directory.as_os_str().as_bytes());
    layers.push(b':');
    layers.extend(escape_layer(OTHER_LAYER));

    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "droplet")?;
    fsconfig_set_string(context.as_fd(), "lowerdir", layers)?;
    // Inode numbers do not matter. Without this option the kernel logs a line about them for every mount.
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

/// Escapes a path for `lowerdir`, where a colon separates the layers.
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

/// Makes an executable file in memory that nobody can write.
pub fn sealed_file(name: &CStr, content: &[u8]) -> std::io::Result<OwnedFd> {
    let mut memory = std::fs::File::from(executable_memory(name)?);
    memory.write_all(content)?;
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory.into())
}

fn executable_memory(name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the flag; they make every memfd executable.
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    }
}

/// Copies this binary to a sealed memfd.
fn sealed_copy() -> std::io::Result<OwnedFd> {
    let memory = executable_memory(c"droplet")?;
    let exe = fs_err::File::open(SELF)?;
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

/// Executes the file in this process. Returns only on failure.
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
    fn a_program_is_not_immutable_before_it_is_executed_again() {
        assert!(!is_immutable(Path::new(SELF)));
    }

    #[test]
    fn the_overlay_has_the_same_content_and_cannot_be_written() {
        let file = require_immutable(overlay().unwrap()).unwrap();
        assert_eq!(open_for_writing(&file).unwrap_err(), Errno::ROFS);
        let through = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(through == std::fs::read(SELF).unwrap());
    }

    #[test]
    fn the_copy_has_the_same_content_and_cannot_be_written() {
        let file = require_immutable(sealed_copy().unwrap()).unwrap();
        let writer = open_for_writing(&file).unwrap();
        assert_eq!(rustix::io::pwrite(&writer, b"x", 0).unwrap_err(), Errno::PERM);
        assert_eq!(rustix::fs::ftruncate(&writer, 0).unwrap_err(), Errno::PERM);
        let copied = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(copied == std::fs::read(SELF).unwrap());
    }

    #[test]
    fn a_writable_file_is_not_executed() {
        let plain = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(require_immutable(plain).is_err());
    }

    #[test]
    fn a_colon_in_a_layer_is_escaped() {
        assert_eq!(escape_layer(br"/a:b\c"), br"/a\:b\\c");
    }
}
