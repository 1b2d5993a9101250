//! Decides which directories and files of the host containers may mount (decision 11).

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// With the default configuration containers cannot mount these, nor anything in them: write access there gives root
/// privileges, and read access reveals root's secrets.
const SYSTEM: [&str; 26] = [
    "/bin",
    "/boot",
    "/dev",
    "/efi",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/sysroot",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/libx32",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/sbin",
    "/usr/sbin",
    "/usr/share/polkit-1",
    "/var",
];
/// Paths that the runtime refuses on its own, when no daemon provides a policy (`docs/spec/runtime.md` 5.4).
const OF_RUNTIME: [&str; 11] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/boot",
    "/root",
    "/bin",
    "/usr/bin",
    "/usr/local/bin",
    "/etc/raind",
];
/// Exceptions within denied directories: volumes of pods, of bottles and of containers.
const VOLUMES: [&str; 3] = [
    "/etc/raind/pod/*/volumes/*",
    "/etc/raind/volumes/*/*",
    "/etc/raind/container/*/volumes/*",
];

const OURS: &str = "it belongs to Condenser, or holds what does";
const SYSTEMS: &str = "it is, is in, or holds a directory of the system; name it in allowed_mount_prefixes of the \
                       configuration to let containers have it";
/// Why a socket is refused.
pub(super) const ROOTS_SOCKET: &str = "it is a socket of root; name it in allowed_mount_prefixes of the configuration to \
                                       let containers have it";

/// The allowed sources of bind mounts. The daemon writes the policy into config.json, so that the runtime, which
/// checks last, applies the same policy. Paths are absolute and clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPolicy {
    /// Refused, together with everything in them and with their parent directories.
    denied: Vec<PathBuf>,
    /// Allowed nevertheless, together with everything in them.
    #[serde(default)]
    allowed: Vec<PathBuf>,
    /// Directories of the daemon: always refused. A directory that contains one is refused unless it is allowed.
    #[serde(default)]
    closed: Vec<PathBuf>,
    /// Directories of the daemon that this container may mount. A `*` matches any one name.
    #[serde(default)]
    volumes: Vec<PathBuf>,
}

impl MountPolicy {
    /// The policy of a daemon: `allowed` is configured, `closed` are the daemon's own directories.
    pub fn of_daemon(allowed: &[PathBuf], closed: &[PathBuf]) -> Self {
        let mut closed = closed.to_vec();
        // The real paths of the same directories.
        closed.extend(closed.clone().iter().filter_map(|path| path.canonicalize().ok()));
        Self {
            denied: SYSTEM.map(PathBuf::from).to_vec(),
            allowed: allowed.to_vec(),
            closed,
            volumes: Vec::new(),
        }
    }

    /// The policy of a runtime without a daemon.
    pub fn of_runtime() -> Self {
        Self {
            denied: OF_RUNTIME.map(PathBuf::from).to_vec(),
            allowed: Vec::new(),
            closed: Vec::new(),
            volumes: VOLUMES.map(PathBuf::from).to_vec(),
        }
    }

    /// The same policy for a container with volumes in that directory.
    pub fn with_volumes(mut self, directory: &Path) -> Self {
        self.volumes.push(directory.join("*"));
        self
    }

    /// The same policy with these sources allowed. They were accepted when the container was created, so a newer
    /// version or a changed configuration must not keep it from starting again. Their targets are still checked.
    pub fn with_accepted(mut self, sources: impl IntoIterator<Item = PathBuf>) -> Self {
        self.allowed.extend(sources);
        self
    }

    /// Whether containers may mount that path; if not, the reason.
    pub fn judge(&self, path: &Path) -> Result<(), String> {
        if self.volumes.iter().any(|pattern| is_in(path, pattern)) {
            return Ok(());
        }
        if self.closed.iter().any(|closed| path.starts_with(closed)) {
            return Err(OURS.to_owned());
        }
        if self.names(path) {
            return Ok(());
        }
        let is_denied = |denied: &PathBuf| path.starts_with(denied) || denied.starts_with(path);
        if self.denied.iter().any(is_denied) {
            return Err(SYSTEMS.to_owned());
        }
        match self.closed.iter().any(|closed| closed.starts_with(path)) {
            true => Err(OURS.to_owned()),
            false => Ok(()),
        }
    }

    /// Whether the configuration allows that path by name, or it is a volume.
    pub(super) fn names(&self, path: &Path) -> bool {
        let mut volumes = self.volumes.iter();
        self.allowed.iter().any(|allowed| path.starts_with(allowed)) || volumes.any(|pattern| is_in(path, pattern))
    }
}

/// Whether `path` matches the pattern or is below a path that does.
fn is_in(path: &Path, pattern: &Path) -> bool {
    let any = Component::Normal("*".as_ref());
    let mut names = path.components();
    pattern
        .components()
        .all(|part| names.next().is_some_and(|name| part == any || part == name))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn judge(allowed: &[&str], path: &str) -> Result<(), String> {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        MountPolicy::of_daemon(&paths(allowed), &paths(&["/srv/condenser", "/run/raind"]))
            .with_volumes(Path::new("/srv/condenser/volumes/blog"))
            .judge(Path::new(path))
    }

    #[rstest]
    #[case("/srv/data")]
    #[case("/data")]
    #[case("/opt/app")]
    #[case("/mnt")]
    #[case("/usr/share/zoneinfo")]
    #[case("/process")]
    #[case("/homework")]
    #[case("/srv/condenser/volumes/blog/data")]
    #[case("/srv/condenser/volumes/blog/data/sub")]
    fn what_is_nobodys_power_may_be_mounted(#[case] path: &str) {
        judge(&[], path).unwrap();
    }

    #[rstest]
    #[case("/")]
    #[case("/etc")]
    #[case("/etc/passwd")]
    #[case("/var")]
    #[case("/var/lib/app")]
    #[case("/home/me")]
    #[case("/root")]
    #[case("/run/docker.sock")]
    #[case("/usr")]
    #[case("/usr/local")]
    #[case("/lib64/ld.so")]
    fn directories_of_the_system_have_to_be_allowed(#[case] path: &str) {
        let why = judge(&[], path).unwrap_err();
        assert!(why.contains("allowed_mount_prefixes") || path == "/", "{why}");
        judge(&[path], path).unwrap();
        judge(&["/etcetera"], path).unwrap_err();
    }

    #[rstest]
    #[case("/srv/condenser")]
    #[case("/srv/condenser/cert")]
    #[case("/srv/condenser/volumes")]
    #[case("/srv/condenser/volumes/blog")]
    #[case("/srv/condenser/volumes/other/data")]
    #[case("/run/raind/droplet")]
    fn what_is_ours_cannot_be_allowed(#[case] path: &str) {
        assert_eq!(judge(&["/", path], path).unwrap_err(), OURS);
    }

    #[test]
    fn what_holds_ours_has_to_be_allowed_by_name() {
        assert_eq!(judge(&[], "/srv").unwrap_err(), OURS);
        judge(&["/srv"], "/srv").unwrap();
    }

    #[test]
    fn the_runtime_alone_knows_the_volumes_of_a_default_installation() {
        let judge = |path: &str| MountPolicy::of_runtime().judge(Path::new(path));
        for path in [
            "/etc/raind/pod/01kh/volumes/data",
            "/etc/raind/pod/01kh/volumes/data/sub",
            "/etc/raind/volumes/blog/data",
            "/etc/raind/container/01abcdefghjk/volumes/0",
            "/home/me",
            "/var/lib/app",
        ] {
            judge(path).unwrap();
        }
        for path in [
            "/etc/raind/pod",
            "/etc/raind/pod/01kh/volumes",
            "/etc/raind/pod/01kh/other/data",
            "/etc/raind/volumes/blog",
            "/etc/raind/container/01abcdefghjk/volumes",
            "/etc/raind/container/01abcdefghjk/cert/x",
            "/proc/1",
            "/etc",
        ] {
            judge(path).unwrap_err();
        }
    }

    #[test]
    fn the_runtime_reads_what_the_daemon_writes() {
        let policy = MountPolicy::of_daemon(&["/data".into()], &["/srv/c".into()]).with_accepted(["/etc/app".into()]);
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<MountPolicy>(&text).unwrap(), policy);
        policy.judge(Path::new("/etc/app")).unwrap();
    }
}
