//! Checks the namespaces of a container, and opens those it joins (`docs/spec/runtime.md` 14.4, S9).
//!
//! A namespace file is opened once and checked; later steps use its descriptor. A path in `/proc/<pid>` could mean
//! another process by then.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::config::{Config, NamespaceKind};

/// Requests of `ioctl_ns(2)`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Inode of the initial user namespace (`PROC_USER_INIT_INO` in the kernel). The id mappings do not identify it: a
/// container may have the same ones.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Why the namespaces cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Without this namespace, the container would change the host itself.
    #[error("linux.namespaces: {0} is required")]
    Required(&'static str),
    /// The file cannot be opened.
    #[error("{kind} namespace {}: {errno}", path.display())]
    Open {
        /// Type of the namespace.
        kind: &'static str,
        /// Path of the namespace.
        path: PathBuf,
        /// Reason.
        errno: rustix::io::Errno,
    },
    /// The file is not a namespace of this type.
    #[error("{} is not a {kind} namespace", path.display())]
    Type {
        /// Type of the namespace.
        kind: &'static str,
        /// Path of the namespace.
        path: PathBuf,
    },
    /// The contract has no joined mount, pid and cgroup namespaces.
    #[error("linux.namespaces: joining a {0} namespace is not supported")]
    Unsupported(&'static str),
    /// The container could neither mount sysfs nor configure the network.
    #[error("the network namespace {} does not belong to the user namespace of the container", .0.display())]
    Owner(PathBuf),
}

/// The namespaces to join, opened and checked.
#[derive(Debug, Default)]
pub struct Joined(Vec<(NamespaceKind, OwnedFd)>);

impl Joined {
    /// Returns a path to the opened namespace that works in this process and its children.
    pub fn path(&self, kind: NamespaceKind) -> Option<PathBuf> {
        let fd = self.get(kind)?.as_raw_fd();
        Some(PathBuf::from(format!("/proc/self/fd/{fd}")))
    }

    /// Returns the opened namespace of this type.
    pub fn get(&self, kind: NamespaceKind) -> Option<&OwnedFd> {
        self.0.iter().find(|(k, _)| *k == kind).map(|(_, fd)| fd)
    }
}

/// Opens the namespaces to join, and refuses combinations that cannot work.
pub fn open_joined(config: &Config) -> Result<Joined, NamespaceError> {
    check_required(config)?;
    let mut joined = Joined::default();
    for namespace in &config.linux.namespaces {
        let Some(path) = &namespace.path else {
            continue;
        };
        let (kind, flag) = joinable(namespace.kind)?;
        let to_error = |errno| NamespaceError::Open {
            kind,
            path: path.clone(),
            errno,
        };
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(to_error)?;
        if namespace_type(&fd) != Some(flag) {
            return Err(NamespaceError::Type {
                kind,
                path: path.clone(),
            });
        }
        joined.0.push((namespace.kind, fd));
    }
    check_network_owner(config, &joined)?;
    Ok(joined)
}

/// A joined network namespace must belong to the container's user namespace.
fn check_network_owner(config: &Config, joined: &Joined) -> Result<(), NamespaceError> {
    let Some(network) = joined.get(NamespaceKind::Network) else {
        return Ok(());
    };
    let is_owner = match (joined.get(NamespaceKind::User), config.namespace(NamespaceKind::User)) {
        (Some(user), _) => same_file(user, user_namespace_of(network).as_ref()),
        (None, Some(_)) => false,
        (None, None) => true,
    };
    if is_owner {
        return Ok(());
    }
    let path = config.namespace(NamespaceKind::Network).and_then(|n| n.path.clone());
    Err(NamespaceError::Owner(path.unwrap_or_default()))
}

/// Returns whether this process is in a user namespace other than the initial one (the original's pod members, 14.4).
pub fn in_user_namespace() -> bool {
    fs_err::metadata("/proc/self/ns/user").is_ok_and(|namespace| !is_initial(&namespace))
}

fn is_initial(namespace: &std::fs::Metadata) -> bool {
    namespace.ino() == INITIAL_USER_NAMESPACE
}

fn check_required(config: &Config) -> Result<(), NamespaceError> {
    for (kind, name) in [(NamespaceKind::Mount, "mount"), (NamespaceKind::Pid, "pid")] {
        config.namespace(kind).ok_or(NamespaceError::Required(name))?;
    }
    match config.namespace(NamespaceKind::User) {
        None if !in_user_namespace() => Err(NamespaceError::Required("user")),
        _ => Ok(()),
    }
}

fn joinable(kind: NamespaceKind) -> Result<(&'static str, libc::c_int), NamespaceError> {
    match kind {
        NamespaceKind::User => Ok(("user", libc::CLONE_NEWUSER)),
        NamespaceKind::Network => Ok(("network", libc::CLONE_NEWNET)),
        NamespaceKind::Ipc => Ok(("ipc", libc::CLONE_NEWIPC)),
        NamespaceKind::Uts => Ok(("uts", libc::CLONE_NEWUTS)),
        NamespaceKind::Mount => Err(NamespaceError::Unsupported("mount")),
        NamespaceKind::Pid => Err(NamespaceError::Unsupported("pid")),
        NamespaceKind::Cgroup => Err(NamespaceError::Unsupported("cgroup")),
        NamespaceKind::Unknown => Err(NamespaceError::Unsupported("unknown")),
    }
}

/// Returns the `CLONE_NEW…` flag of a namespace file, or `None` for another file.
fn namespace_type(fd: &OwnedFd) -> Option<libc::c_int> {
    // SAFETY: the request takes no argument and only reads kernel state of the descriptor, which is open.
    let flag = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    (flag >= 0).then_some(flag)
}

/// Opens the user namespace that owns a namespace.
fn user_namespace_of(fd: &OwnedFd) -> Option<OwnedFd> {
    // SAFETY: the request takes no argument; it returns a new descriptor that nobody else owns.
    let owner = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_USERNS as _) };
    // SAFETY: as above.
    (owner >= 0).then(|| unsafe { OwnedFd::from_raw_fd(owner) })
}

/// Returns whether both descriptors refer to the same file or namespace.
pub fn same_file(a: &impl AsFd, b: Option<&OwnedFd>) -> bool {
    let identity = |fd: rustix::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).ok().map(|s| (s.st_dev, s.st_ino));
    b.is_some_and(|b| identity(a.as_fd()) == identity(b.as_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(namespaces: &str) -> Config {
        let text = format!(r#"{{"linux":{{"namespaces":{namespaces}}}}}"#);
        Config::parse(text.as_bytes(), std::path::Path::new("config.json")).unwrap()
    }

    fn message(namespaces: &str) -> String {
        open_joined(&config(namespaces)).unwrap_err().to_string()
    }

    const OWN: &str = r#"{"type":"mount"},{"type":"pid"},{"type":"user"}"#;

    #[test]
    fn mount_pid_and_user_namespaces_are_required() {
        assert!(open_joined(&config(&format!("[{OWN}]"))).is_ok());
        assert_eq!(message(r#"[{"type":"pid"}]"#), "linux.namespaces: mount is required");
        assert_eq!(
            message(r#"[{"type":"mount"},{"type":"pid"}]"#),
            "linux.namespaces: user is required"
        );
    }

    #[test]
    fn a_path_must_be_a_namespace_of_its_type() {
        let error_with = |entry: &str| message(&format!("[{OWN},{entry}]"));
        assert_eq!(
            error_with(r#"{"type":"network","path":"/proc/self/ns/uts"}"#),
            "/proc/self/ns/uts is not a network namespace"
        );
        assert_eq!(
            error_with(r#"{"type":"ipc","path":"/dev/null"}"#),
            "/dev/null is not a ipc namespace"
        );
        assert!(error_with(r#"{"type":"uts","path":"/proc/0/ns/uts"}"#).starts_with("uts namespace /proc/0/ns/uts: "));
        let joined = open_joined(&config(&format!(
            r#"[{OWN},{{"type":"uts","path":"/proc/self/ns/uts"}}]"#
        )))
        .unwrap();
        assert!(joined.path(NamespaceKind::Uts).unwrap().starts_with("/proc/self/fd"));
    }

    #[test]
    fn a_foreign_network_namespace_cannot_be_joined_with_a_new_user_namespace() {
        let error = message(&format!(r#"[{OWN},{{"type":"network","path":"/proc/self/ns/net"}}]"#));
        assert!(error.contains("does not belong to the user namespace"), "{error}");
    }

    #[test]
    fn a_user_namespace_that_maps_every_id_is_not_the_initial_one() {
        let mut child = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c", "echo ready; read end"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let is_initial_of = |pid: &str| is_initial(&std::fs::metadata(format!("/proc/{pid}/ns/user")).unwrap());
        let (own, other) = (is_initial_of("self"), is_initial_of(&child.id().to_string()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!((own, other), (true, false));
    }
}
