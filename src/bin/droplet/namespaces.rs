//! Which namespaces a container gets, and joining existing ones (`docs/spec/runtime.md` 14.4, S9).
//!
//! A namespace file is opened once, checked, and from then on used by its descriptor: `/proc/<pid>` may mean another
//! process a moment later.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::config::{Config, NamespaceKind};

/// `NS_GET_USERNS` and `NS_GET_NSTYPE` of `ioctl_ns(2)`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Inode of the first user namespace of a machine (`PROC_USER_INIT_INO` of the kernel). Its map does not tell it: those of
/// containers are the same.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Why namespaces cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A container without it would work on the host itself.
    #[error("linux.namespaces: {0} is required")]
    Required(&'static str),
    /// The file cannot be opened or asked.
    #[error("{kind} namespace {}: {errno}", path.display())]
    Open {
        /// Which entry.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
        /// Reason.
        errno: rustix::io::Errno,
    },
    /// The file is a namespace of another type, or none at all.
    #[error("{} is not a {kind} namespace", path.display())]
    Type {
        /// Which entry.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// Joined mount, pid and cgroup namespaces are not part of the contract.
    #[error("linux.namespaces: joining a {0} namespace is not supported")]
    Unsupported(&'static str),
    /// sysfs could not be mounted, and nothing could be configured.
    #[error("the network namespace {} does not belong to the user namespace of the container", .0.display())]
    Owner(PathBuf),
}

/// Existing namespaces to join, opened and checked.
#[derive(Debug, Default)]
pub struct Joined(Vec<(NamespaceKind, OwnedFd)>);

impl Joined {
    /// The path by which this process and its children reach the opened namespace of this kind.
    pub fn path(&self, kind: NamespaceKind) -> Option<PathBuf> {
        let fd = self.get(kind)?.as_raw_fd();
        Some(PathBuf::from(format!("/proc/self/fd/{fd}")))
    }

    /// The opened namespace of this kind.
    pub fn get(&self, kind: NamespaceKind) -> Option<&OwnedFd> {
        self.0.iter().find(|(k, _)| *k == kind).map(|(_, fd)| fd)
    }
}

/// Opens what the configuration joins, and refuses what cannot work.
pub fn open(config: &Config) -> Result<Joined, NamespaceError> {
    require(config)?;
    let mut joined = Joined::default();
    for namespace in &config.linux.namespaces {
        let Some(path) = &namespace.path else {
            continue;
        };
        let (kind, flag) = joinable(namespace.kind)?;
        let failed = |errno| NamespaceError::Open {
            kind,
            path: path.clone(),
            errno,
        };
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        if namespace_type(&fd) != Some(flag) {
            return Err(NamespaceError::Type {
                kind,
                path: path.clone(),
            });
        }
        joined.0.push((namespace.kind, fd));
    }
    if let Some(network) = joined.get(NamespaceKind::Network) {
        let owner = user_namespace_of(network);
        let ours = match (joined.get(NamespaceKind::User), config.namespace(NamespaceKind::User)) {
            (Some(user), _) => same_file(user, owner.as_ref()),
            (None, Some(_)) => false,
            (None, None) => true,
        };
        if !ours {
            let path = config.namespace(NamespaceKind::Network).and_then(|n| n.path.clone());
            return Err(NamespaceError::Owner(path.unwrap_or_default()));
        }
    }
    Ok(joined)
}

/// Whether this process is in a user namespace other than the machine's first (the original's pod members, 14.4).
pub fn in_user_namespace() -> bool {
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| !is_initial(&namespace))
}

fn is_initial(namespace: &std::fs::Metadata) -> bool {
    namespace.ino() == INITIAL_USER_NAMESPACE
}

fn require(config: &Config) -> Result<(), NamespaceError> {
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

/// `CLONE_NEW…` flag of a namespace file; `None` when it is something else.
fn namespace_type(fd: &OwnedFd) -> Option<libc::c_int> {
    // SAFETY: the request takes no argument and only reads kernel state of the descriptor, which is open.
    let flag = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    (flag >= 0).then_some(flag)
}

/// The user namespace that owns a namespace.
fn user_namespace_of(fd: &OwnedFd) -> Option<OwnedFd> {
    // SAFETY: the request takes no argument; what it returns is a new descriptor that nobody else owns.
    let owner = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_USERNS as _) };
    // SAFETY: as above.
    (owner >= 0).then(|| unsafe { OwnedFd::from_raw_fd(owner) })
}

/// Whether both are the same file, as the same namespace.
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
        open(&config(namespaces)).unwrap_err().to_string()
    }

    const OWN: &str = r#"{"type":"mount"},{"type":"pid"},{"type":"user"}"#;

    #[test]
    fn mount_pid_and_user_are_required() {
        assert!(open(&config(&format!("[{OWN}]"))).is_ok());
        assert_eq!(message(r#"[{"type":"pid"}]"#), "linux.namespaces: mount is required");
        assert_eq!(
            message(r#"[{"type":"mount"},{"type":"pid"}]"#),
            "linux.namespaces: user is required"
        );
    }

    #[test]
    fn a_path_must_be_a_namespace_of_that_type() {
        let with = |entry: &str| message(&format!("[{OWN},{entry}]"));
        assert_eq!(
            with(r#"{"type":"network","path":"/proc/self/ns/uts"}"#),
            "/proc/self/ns/uts is not a network namespace"
        );
        assert_eq!(
            with(r#"{"type":"ipc","path":"/dev/null"}"#),
            "/dev/null is not a ipc namespace"
        );
        assert!(with(r#"{"type":"uts","path":"/proc/0/ns/uts"}"#).starts_with("uts namespace /proc/0/ns/uts: "));
        let joined = open(&config(&format!(
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
    fn a_user_namespace_with_every_id_is_not_the_first_one() {
        let mut child = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c", "echo ready; read end"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let of = |pid: &str| is_initial(&std::fs::metadata(format!("/proc/{pid}/ns/user")).unwrap());
        let (own, other) = (of("self"), of(&child.id().to_string()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!((own, other), (true, false));
    }
}
