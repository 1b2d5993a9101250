//! Finds the process that has the state store locked.

use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The process that holds a lock on a database: `process 4711 (/usr/local/bin/condenser)`. `None` if no process does
/// any more. Call it only when a start is refused: closing the file releases this process' own locks on it (POSIX).
pub(super) fn of(database: &Path) -> Option<String> {
    let file = fs_err::File::open(database).ok()?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        // `l_len` 0: to the end of the file.
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).ok()?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return None;
    }
    Some(describe(lock.l_pid))
}

fn describe(pid: i32) -> String {
    // The kernel reports no pid for processes of other pid namespaces.
    if pid <= 0 {
        return "a process of another pid namespace".to_owned();
    }
    match fs_err::read_link(format!("/proc/{pid}/exe")) {
        Ok(program) => format!("process {pid} ({})", program.display()),
        Err(_) => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The opposite case, a lock of another process, is in `tests/e2e/fresh.rs`.
    #[test]
    fn a_free_file_has_no_holder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(of(file.path()), None);
    }

    #[test]
    fn a_holder_is_named_by_number_and_program() {
        let pid = std::process::id();
        let program = std::env::current_exe().unwrap();
        let said = describe(i32::try_from(pid).unwrap());
        assert_eq!(said, format!("process {pid} ({})", program.display()));
        assert_eq!(describe(0), "a process of another pid namespace");
    }
}
