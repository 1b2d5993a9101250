//! Finds and executes the container's program (`docs/spec/runtime.md` 9.9).
//!
//! This runs in the process that becomes the program, in the container's root and with its credentials. argv\[0\] stays
//! as configured.

use std::ffi::{CString, NulError};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

pub use condenser::runtime::refusal::{NOT_EXECUTABLE, NOT_FOUND};
use rustix::fs::{Access, AtFlags, CWD, accessat};

/// Search path if `process.env` has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why the program could not be executed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExecError {
    /// [`NOT_FOUND`] or [`NOT_EXECUTABLE`].
    pub status: i32,
    /// The message. It names the program.
    pub message: String,
}

/// A program with its arguments and environment, ready for `execve`.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    path: String,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Makes a program from its arguments; `args[0]` is its name. Fails if there is none or a text contains a NUL.
    pub fn new(args: &[String], env: &[String]) -> Result<Self, ExecError> {
        let invalid = |message: String| ExecError {
            status: NOT_EXECUTABLE,
            message,
        };
        let name = args
            .first()
            .ok_or_else(|| invalid("process.args is empty".into()))?
            .clone();
        let c_strings = |list: &[String]| {
            list.iter()
                .map(|s| CString::new(s.as_str()))
                .collect::<Result<_, NulError>>()
        };
        let nul_error = |_| invalid(format!("{name:?}: argument or environment contains a NUL"));
        Ok(Self {
            args: c_strings(args).map_err(nul_error)?,
            env: c_strings(env).map_err(nul_error)?,
            path: search_path(env).to_owned(),
            name,
        })
    }

    /// Returns the environment as `NAME=value` entries.
    pub fn environment(&self) -> &[CString] {
        &self.env
    }

    /// Executes the program. Returns only on failure.
    pub fn execute(&self) -> ExecError {
        let mut denied = None;
        for candidate in candidates(&self.name, &self.path) {
            // Skip directories and files without the execute bit, as shells do.
            if !candidate.is_file() {
                denied = denied.or(candidate.is_dir().then_some("is a directory"));
                continue;
            }
            if accessat(CWD, &candidate, Access::EXEC_OK, AtFlags::EACCESS).is_err() {
                denied = Some("permission denied");
                continue;
            }
            let Ok(path) = CString::new(candidate.as_os_str().as_bytes()) else {
                continue;
            };
            match nix::unistd::execve(&path, &self.args, &self.env) {
                Err(nix::errno::Errno::ENOENT) => {
                    return self.error(NOT_FOUND, "its interpreter or loader does not exist");
                }
                Err(nix::errno::Errno::EACCES) => denied = Some("permission denied"),
                Err(errno) => return self.error(NOT_EXECUTABLE, errno.desc()),
            }
        }
        match denied {
            Some(reason) => self.error(NOT_EXECUTABLE, reason),
            None if self.name.contains('/') => self.error(NOT_FOUND, "no such file or directory"),
            None => self.error(NOT_FOUND, "not found in PATH"),
        }
    }

    fn error(&self, status: i32, reason: &str) -> ExecError {
        ExecError {
            status,
            message: format!("{}: {reason}", self.name),
        }
    }
}

/// Returns the first `PATH` of the environment, unless it is empty.
fn search_path(env: &[String]) -> &str {
    let configured = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
    configured.filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH)
}

/// Returns the paths to try. An empty element of the search path is the working directory.
fn candidates(name: &str, path: &str) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![PathBuf::from(name)];
    }
    if name.is_empty() {
        return Vec::new();
    }
    let directory = |element: &str| PathBuf::from(if element.is_empty() { "." } else { element });
    path.split(':').map(|element| directory(element).join(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_name_is_searched_for_but_a_path_is_not() {
        assert_eq!(
            candidates("sh", "/a::/b"),
            [Path::new("/a/sh"), Path::new("./sh"), Path::new("/b/sh")]
        );
        assert_eq!(candidates("./sh", "/a"), [Path::new("./sh")]);
        assert_eq!(search_path(&strings(&["PATH=", "PATH=/x"])), DEFAULT_PATH);
        assert_eq!(search_path(&strings(&["A=1", "PATH=/x"])), "/x");
    }

    #[test]
    fn a_failure_names_the_program_and_has_the_exit_status_of_shells() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let execute = |name: &str| {
            let env = [format!("PATH={}:/nowhere", dir.path().display())];
            Program::new(&strings(&[name]), &env).unwrap().execute()
        };
        let write = |name: &str, text: &str, mode: u32| {
            std::fs::write(path(name), text).unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("plain", "", 0o644);
        write("script", "#!/no/such/shell\n", 0o755);
        write("garbage", "\u{1}", 0o755);
        std::fs::create_dir(path("dir")).unwrap();
        for (name, status, reason) in [
            ("none", NOT_FOUND, "not found in PATH"),
            ("/no/such/file", NOT_FOUND, "no such file or directory"),
            ("plain", NOT_EXECUTABLE, "permission denied"),
            ("script", NOT_FOUND, "its interpreter or loader does not exist"),
            ("garbage", NOT_EXECUTABLE, "Exec format error"),
            ("dir", NOT_EXECUTABLE, "is a directory"),
        ] {
            let error = execute(name);
            assert_eq!(
                error,
                ExecError {
                    status,
                    message: format!("{name}: {reason}")
                }
            );
        }
        assert!(Program::new(&[], &[]).is_err() && Program::new(&strings(&["a\0"]), &[]).is_err());
    }
}
