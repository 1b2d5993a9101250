//! Bind mounts as users write them: `source:destination[:options]` (`docs/spec/runtime.md` 5.4, 16.5).
//!
//! The daemon validates them when a container is created, the runtime again when it sets one up, both with this code
//! and the same [`MountPolicy`]. [`parse`] and [`Mount::from_config`] check the text only; [`Mount::open_source`] checks
//! the host and returns a descriptor, so that the object that was checked is the one that gets mounted. A bind mount
//! is always nosuid, nodev, private and recursive; `ro` and `noexec` are optional.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

pub use policy::MountPolicy;

mod policy;

/// Annotation of config.json with the [`MountPolicy`] as JSON text. Without it the runtime uses its own policy.
pub const POLICY_ANNOTATION: &str = "io.raind.mounts.policy";
/// Destinations in the container where nothing may be mounted. `/` itself is refused too.
const DENIED_DESTINATIONS: [&str; 4] = ["/proc", "/sys", "/dev", "/boot"];
const OPTIONS: [&str; 10] = [
    "bind", "rbind", "ro", "rw", "private", "rprivate", "nosuid", "nodev", "noexec", "exec",
];

/// Why a mount is refused. The texts are part of the API.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Not `source:destination[:options]`.
    #[error("invalid mount format: write source:destination[:options], as in /srv/data:/data:ro")]
    Format,
    /// Containers may not have this source; the reason.
    #[error("invalid mount source: {path}: {why}")]
    Source {
        /// The path as written.
        path: String,
        /// Why the path, or its target, is refused.
        why: String,
    },
    /// The destination is relative or denied.
    #[error("invalid mount destination: {0}")]
    Destination(String),
    /// An option that does not exist, or a type other than a bind mount.
    #[error("invalid mount type and options: {0}")]
    Options(String),
    /// The last component of the source is a symbolic link.
    #[error("source:{0} is symlink")]
    Symlink(String),
    /// The source cannot be accessed.
    #[error("stat {path}: {reason}")]
    Stat {
        /// The source.
        path: String,
        /// `no such file or directory`, …
        reason: String,
    },
}

/// A bind mount whose text is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path on the host, without `.`, `..` and double slashes.
    pub source: PathBuf,
    /// Absolute path in the container, likewise.
    pub destination: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
    /// Whether programs in it cannot be executed.
    pub no_exec: bool,
}

/// A valid source on this host. The descriptor (`O_PATH`) cannot come to refer to another object.
#[derive(Debug)]
pub struct Source {
    /// The file or directory.
    pub fd: OwnedFd,
    /// Whether it is a directory.
    pub directory: bool,
}

/// Parses `source:destination[:options]`, options separated by commas. A third colon belongs to the options.
pub fn parse(spec: &str) -> Result<Mount, MountError> {
    let mut parts = spec.splitn(3, ':');
    let (Some(source), Some(destination)) = (parts.next(), parts.next()) else {
        return Err(MountError::Format);
    };
    let options = parts.next().unwrap_or_default();
    new(
        source,
        destination,
        options.split(',').filter(|option| !option.is_empty()),
    )
}

impl Mount {
    /// Parses an entry of `mounts` in config.json. `kind` is its `type`.
    pub fn from_config(source: &str, destination: &str, kind: &str, options: &[String]) -> Result<Self, MountError> {
        if !matches!(kind, "" | "bind") {
            return Err(MountError::Options(format!("{kind} {}", options.join(","))));
        }
        new(source, destination, options.iter().map(String::as_str))
    }

    /// `type` and `options` of an entry in config.json. Without `ro` and `noexec` they are exactly those that the
    /// original accepts.
    pub fn to_config(&self, directory: bool) -> (&'static str, Vec<&'static str>) {
        let (kind, mut options) = match directory {
            true => ("", vec!["bind"]),
            false => ("bind", vec!["rbind", "rprivate"]),
        };
        options.extend(self.read_only.then_some("ro"));
        options.extend(self.no_exec.then_some("noexec"));
        (kind, options)
    }

    /// The same mount at the real path of its destination, after resolving the image's symbolic links.
    pub fn with_destination(self, destination: PathBuf) -> Result<Self, MountError> {
        match destination_denied(&destination) {
            true => Err(MountError::Destination(self.destination.display().to_string())),
            false => Ok(Self { destination, ..self }),
        }
    }

    /// Checks the path of the source against the policy.
    pub fn check_source(&self, policy: &MountPolicy) -> Result<(), MountError> {
        policy.judge(&self.source).map_err(|why| MountError::Source {
            path: self.source.display().to_string(),
            why,
        })
    }

    /// Opens the source and checks its real path: parents may be symbolic links to a denied directory.
    #[expect(clippy::disallowed_methods, reason = "the error names the file already")]
    pub fn open_source(&self, policy: &MountPolicy) -> Result<Source, MountError> {
        let text = || self.source.display().to_string();
        let refused = |why| MountError::Source { path: text(), why };
        self.check_source(policy)?;
        let stat_error = |errno: rustix::io::Errno| MountError::Stat {
            path: text(),
            reason: match errno {
                rustix::io::Errno::NOENT => "no such file or directory".to_owned(),
                other => other.to_string(),
            },
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.source, flags, Mode::empty()).map_err(stat_error)?;
        let stat = rustix::fs::fstat(&fd).map_err(stat_error)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Symlink {
            return Err(MountError::Symlink(text()));
        }
        let resolved =
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|e| MountError::Stat {
                path: text(),
                reason: e.to_string(),
            })?;
        if resolved != self.source {
            let leads = |why| refused(format!("it leads to {}: {why}", resolved.display()));
            policy.judge(&resolved).map_err(leads)?;
        }
        if file_type == FileType::Socket && stat.st_uid == 0 && !policy.names(&resolved) {
            return Err(refused(policy::ROOTS_SOCKET.to_owned()));
        }
        Ok(Source {
            fd,
            directory: file_type == FileType::Directory,
        })
    }
}

fn new<'a>(source: &str, destination: &str, options: impl Iterator<Item = &'a str>) -> Result<Mount, MountError> {
    let mount = Mount {
        source: clean(source).ok_or_else(|| MountError::Source {
            path: source.to_owned(),
            why: "it is not an absolute path".to_owned(),
        })?,
        destination: clean(destination)
            .filter(|path| !destination_denied(path))
            .ok_or_else(|| MountError::Destination(destination.to_owned()))?,
        read_only: false,
        no_exec: false,
    };
    options.into_iter().try_fold(mount, |mut mount, option| {
        match option {
            "ro" => mount.read_only = true,
            "rw" => mount.read_only = false,
            "noexec" => mount.no_exec = true,
            "exec" => mount.no_exec = false,
            known if OPTIONS.contains(&known) => {}
            unknown => return Err(MountError::Options(unknown.to_owned())),
        }
        Ok(mount)
    })
}

/// A path of a container, without `.`, `..` and double slashes; `None` if nothing can be mounted there.
pub fn destination(path: &str) -> Option<PathBuf> {
    clean(path).filter(|path| !destination_denied(path))
}

fn destination_denied(path: &Path) -> bool {
    path == Path::new("/") || DENIED_DESTINATIONS.iter().any(|denied| path.starts_with(denied))
}

/// An absolute path without `.` and `..` (`..` of the root is the root). `None` for a relative path, or one that no
/// file can have.
pub(super) fn clean(path: &str) -> Option<PathBuf> {
    if path.contains('\0') {
        return None;
    }
    let mut components = Path::new(path).components();
    if components.next() != Some(Component::RootDir) {
        return None;
    }
    let mut cleaned = PathBuf::from("/");
    for component in components {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(cleaned)
}

#[cfg(test)]
mod tests;
