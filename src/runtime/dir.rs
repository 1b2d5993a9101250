//! Paths of one container directory (`docs/spec/runtime.md` 2.1).

use std::path::{Path, PathBuf};

/// The environment variable that overrides [`DEFAULT_ROOT`] for runtime and hook agent (`docs/spec/runtime.md` 2.3).
pub const ROOT_ENV: &str = "RAIND_ROOT_DIR";
/// Default directory of the container directories.
pub const DEFAULT_ROOT: &str = "/etc/raind/container";
/// Directory of the runtime's own volatile data, with one directory per container.
pub const RUNTIME_RUN_DIR: &str = "/run/raind/droplet";

/// The directory of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDir(PathBuf);

impl ContainerDir {
    /// `<root>/<id>`. The id must have passed [`valid_id`].
    pub fn new(root: &Path, id: &str) -> Self {
        Self(root.join(id))
    }

    /// The directory itself, which is also the OCI bundle.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// OCI runtime configuration, written by the daemon.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// Runtime state ([`super::state::RuntimeState`]), replaced atomically by the runtime.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Mount point of the overlay. Empty on the host: the mount exists in the monitor's mount namespace.
    pub fn merged(&self) -> PathBuf {
        self.0.join("merged")
    }

    /// Upper directory of the overlay.
    pub fn diff(&self) -> PathBuf {
        self.0.join("diff")
    }

    /// Work directory of the overlay.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// Volumes of the container alone.
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// `hosts`, `hostname` and `resolv.conf` of the container.
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }

    /// Key and certificate of the container.
    pub fn cert(&self) -> PathBuf {
        self.0.join("cert")
    }

    /// Logs.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Output of the container: `console.log` with a terminal, otherwise `init.log`.
    pub fn log(&self, tty: bool) -> PathBuf {
        self.logs().join(if tty { "console.log" } else { "init.log" })
    }

    /// Output of `exec` processes without a terminal.
    pub fn exec_log(&self) -> PathBuf {
        self.logs().join("exec.log")
    }

    /// Attach socket of a container with a terminal.
    pub fn tty_socket(&self) -> PathBuf {
        self.0.join("tty.sock")
    }

    /// An anonymous volume, by its place in the row.
    pub fn volume(&self, n: usize) -> PathBuf {
        self.volumes().join(n.to_string())
    }
}

/// Whether `id` is safe as a path component and an interface name: `^[a-z0-9][a-z0-9-]{0,62}$`.
pub fn valid_id(id: &str) -> bool {
    let bytes = id.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0] != b'-'
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::valid_id;

    #[test]
    fn ids_cannot_leave_the_directory() {
        for good in ["a", "01m856fs771d", "build-01m856fs771d"] {
            assert!(valid_id(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "A", "a_b", "a\0", &"a".repeat(64)] {
            assert!(!valid_id(bad), "{bad}");
        }
    }
}
