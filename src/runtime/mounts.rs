//! Bind mounts as users write them: `source:destination[:options]` (`contract/runtime.md` 5.4, 16.5).
//!
//! The daemon checks them when a container is created, the runtime again when it sets one up, both with this code.
//! [`parse`] and [`Mount::from_config`] look at the text alone; [`Mount::open_source`] looks at the host. Whatever the
//! options say, a bind mount is nosuid, nodev, noexec, private and recursive: all that can be chosen is `ro`.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

/// Sources below which (and which themselves) nothing may be bound. `/` itself is refused too.
const DENIED_SOURCES: [&str; 11] = [
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
/// Where pods have their volumes, of all that is denied the one thing that containers may have.
const PODS: &str = "/etc/raind/pod";
/// Where bottles have theirs: likewise.
const VOLUMES: &str = "/etc/raind/volumes";
/// Places in the container that nothing may be bound to. `/` itself is refused too.
const DENIED_DESTINATIONS: [&str; 4] = ["/proc", "/sys", "/dev", "/boot"];
const OPTIONS: [&str; 9] = [
    "bind", "rbind", "ro", "rw", "private", "rprivate", "nosuid", "nodev", "noexec",
];

/// Why a mount is refused. The texts are part of the API.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Not `source:destination[:options]`.
    #[error("invalid mount format")]
    Format,
    /// The source is relative or, itself or what it resolves to, on the list of denied sources.
    #[error("invalid mount source: {0}")]
    Source(String),
    /// The destination is relative or on the list of denied destinations.
    #[error("invalid mount destination: {0}")]
    Destination(String),
    /// An option that does not exist, or a type other than a bind mount.
    #[error("invalid mount type and options: {0}")]
    Options(String),
    /// The last component of the source is a symbolic link.
    #[error("source:{0} is symlink")]
    Symlink(String),
    /// The source cannot be looked at.
    #[error("stat {path}: {reason}")]
    Stat {
        /// The source.
        path: String,
        /// `no such file or directory`, …
        reason: String,
    },
}

/// A bind mount whose text is acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path on the host, without `.`, `..` and doubled slashes.
    pub source: PathBuf,
    /// Absolute path in the container, likewise.
    pub destination: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

/// A source on this host that may be bound. The descriptor (`O_PATH`) cannot come to mean anything else.
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
    /// The same from an entry of `mounts` in config.json. `kind` is its `type`.
    pub fn from_config(source: &str, destination: &str, kind: &str, options: &[String]) -> Result<Self, MountError> {
        if !matches!(kind, "" | "bind") {
            return Err(MountError::Options(format!("{kind} {}", options.join(","))));
        }
        new(source, destination, options.iter().map(String::as_str))
    }

    /// `type` and `options` of an entry in config.json. Without `ro` they are exactly what the original accepts.
    pub fn to_config(&self, directory: bool) -> (&'static str, Vec<&'static str>) {
        let (kind, mut options) = match directory {
            true => ("", vec!["bind"]),
            false => ("bind", vec!["rbind", "rprivate"]),
        };
        options.extend(self.read_only.then_some("ro"));
        (kind, options)
    }

    /// The same mount where its destination really is once the image's symbolic links are followed.
    pub fn with_destination(self, destination: PathBuf) -> Result<Self, MountError> {
        match destination_denied(&destination) {
            true => Err(MountError::Destination(self.destination.display().to_string())),
            false => Ok(Self { destination, ..self }),
        }
    }

    /// Opens the source and checks what it really is: parents may be symbolic links that lead to a denied place.
    /// `also_denied` adds to the built-in list.
    pub fn open_source(&self, also_denied: &[PathBuf]) -> Result<Source, MountError> {
        let text = || self.source.display().to_string();
        let stat_error = |errno: rustix::io::Errno| MountError::Stat {
            path: text(),
            reason: match errno {
                rustix::io::Errno::NOENT => "no such file or directory".to_owned(),
                other => other.to_string(),
            },
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.source, flags, Mode::empty()).map_err(stat_error)?;
        let file_type = FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(stat_error)?.st_mode);
        if file_type == FileType::Symlink {
            return Err(MountError::Symlink(text()));
        }
        let resolved =
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|e| MountError::Stat {
                path: text(),
                reason: e.to_string(),
            })?;
        let mut also_denied = also_denied.iter().map(PathBuf::as_path);
        if source_denied(&resolved) || also_denied.any(|d| resolved.starts_with(d) || self.source.starts_with(d)) {
            return Err(MountError::Source(text()));
        }
        Ok(Source {
            fd,
            directory: file_type == FileType::Directory,
        })
    }
}

fn new<'a>(source: &str, destination: &str, options: impl Iterator<Item = &'a str>) -> Result<Mount, MountError> {
    let mount = Mount {
        source: clean(source)
            .filter(|path| !source_denied(path))
            .ok_or_else(|| MountError::Source(source.to_owned()))?,
        destination: clean(destination)
            .filter(|path| !destination_denied(path))
            .ok_or_else(|| MountError::Destination(destination.to_owned()))?,
        read_only: false,
    };
    options.into_iter().try_fold(mount, |mount, option| {
        if !OPTIONS.contains(&option) {
            return Err(MountError::Options(option.to_owned()));
        }
        Ok(match option {
            "ro" => Mount {
                read_only: true,
                ..mount
            },
            "rw" => Mount {
                read_only: false,
                ..mount
            },
            _ => mount,
        })
    })
}

fn source_denied(path: &Path) -> bool {
    let is_volume = is_pod_volume(path) || is_bottle_volume(path);
    path == Path::new("/") || !is_volume && DENIED_SOURCES.iter().any(|denied| path.starts_with(denied))
}

/// `<pods>/<id>/volumes/<name>` and what is in it. The daemon lets a container have only those of its own pod.
fn is_pod_volume(path: &Path) -> bool {
    let Ok(rest) = path.strip_prefix(PODS) else {
        return false;
    };
    let mut parts = rest.components();
    parts.next().is_some() && parts.next() == Some(Component::Normal("volumes".as_ref())) && parts.next().is_some()
}

/// `<volumes>/<bottle>/<name>` and what is in it. The daemon lets a container have only those of its own bottle.
fn is_bottle_volume(path: &Path) -> bool {
    path.strip_prefix(VOLUMES)
        .is_ok_and(|rest| rest.components().count() >= 2)
}

fn destination_denied(path: &Path) -> bool {
    path == Path::new("/") || DENIED_DESTINATIONS.iter().any(|denied| path.starts_with(denied))
}

/// An absolute path without `.` and `..` (which the root is its own parent of). `None` for a relative one, or one that
/// no file can have.
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
mod tests {
    use rstest::rstest;

    use super::*;

    fn message(spec: &str) -> String {
        parse(spec).unwrap_err().to_string()
    }

    #[test]
    fn a_mount_string_is_source_destination_and_options() {
        let mount = parse("/srv//data/.:/data/../d").unwrap();
        assert_eq!(mount.source, Path::new("/srv/data"));
        assert_eq!(mount.destination, Path::new("/d"));
        assert!(!mount.read_only);
        assert!(parse("/srv:/d:ro,nosuid").unwrap().read_only);
        assert!(!parse("/srv:/d:ro,rw").unwrap().read_only, "the last one wins");
        assert!(parse("/srv:/d:").is_ok());
        assert_eq!(message("/srv"), "invalid mount format");
        assert_eq!(message("/srv:/d:ro:x"), "invalid mount type and options: ro:x");
        assert_eq!(message("/srv:/d:suid"), "invalid mount type and options: suid");
    }

    #[rstest]
    #[case("/")]
    #[case("/proc/1")]
    #[case("/srv/../etc/raind/cert")]
    #[case("//run")]
    #[case("/usr/local/bin/x")]
    #[case("/srv/../..")]
    #[case("data")]
    #[case("./data")]
    #[case("")]
    #[case("/a\0b")]
    fn sources_on_the_list_are_refused(#[case] source: &str) {
        assert_eq!(
            message(&format!("{source}:/d")),
            format!("invalid mount source: {source}")
        );
    }

    #[rstest]
    #[case("/")]
    #[case("/a/..")]
    #[case("/dev/shm")]
    #[case("..")]
    #[case("data")]
    fn destinations_on_the_list_are_refused(#[case] destination: &str) {
        let expected = format!("invalid mount destination: {destination}");
        assert_eq!(message(&format!("/srv:{destination}")), expected);
    }

    #[test]
    fn volumes_of_pods_are_the_exception() {
        parse("/etc/raind/pod/01kh/volumes/data:/d").unwrap();
        parse("/etc/raind/pod/01kh/volumes/data/sub:/d").unwrap();
        for source in [
            "pod",
            "pod/01kh",
            "pod/01kh/volumes",
            "pod/01kh/other/data",
            "pod/a/volumes/../..",
        ] {
            parse(&format!("/etc/raind/{source}:/d")).unwrap_err();
        }
    }

    #[test]
    fn volumes_of_bottles_are_another() {
        parse("/etc/raind/volumes/blog/data:/d").unwrap();
        parse("/etc/raind/volumes/blog/data/sub:/d").unwrap();
        for source in [
            "volumes",
            "volumes/blog",
            "volumes/blog/..",
            "volumes/blog/x/../../../cert/a",
        ] {
            parse(&format!("/etc/raind/{source}:/d")).unwrap_err();
        }
    }

    #[test]
    fn names_that_only_begin_like_a_denied_one_are_fine() {
        for spec in [
            "/process:/sysroot",
            "/rooted:/developer",
            "/usr/binary:/runtime",
            "/etc:/etc",
        ] {
            parse(spec).unwrap();
        }
    }

    #[test]
    fn config_entries_have_the_forms_of_the_original() {
        let mount = parse("/srv:/d").unwrap();
        assert_eq!(mount.to_config(true), ("", vec!["bind"]));
        assert_eq!(mount.to_config(false), ("bind", vec!["rbind", "rprivate"]));
        let read_only = parse("/srv:/d:ro").unwrap();
        assert_eq!(read_only.to_config(true), ("", vec!["bind", "ro"]));
        let options = read_only
            .to_config(true)
            .1
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        assert_eq!(Mount::from_config("/srv", "/d", "", &options).unwrap(), read_only);
        assert!(Mount::from_config("/srv", "/d", "tmpfs", &[]).is_err());
    }

    #[test]
    fn a_source_is_judged_by_what_it_resolves_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let open = |source: PathBuf, also: &[PathBuf]| {
            parse(&format!("{}:/d", source.display()))
                .unwrap()
                .open_source(also)
                .map(|s| s.directory)
        };
        std::fs::create_dir_all(path("data/sub")).unwrap();
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("/proc", path("link")).unwrap();
        assert!(open(path("data"), &[]).unwrap());
        assert!(!open(path("file"), &[]).unwrap());
        let refused = |source: PathBuf, also: &[PathBuf]| open(source, also).unwrap_err().to_string();
        let link = path("link").display().to_string();
        assert_eq!(refused(path("link"), &[]), format!("source:{link} is symlink"));
        assert_eq!(
            refused(path("link/self"), &[]),
            format!("source:{link}/self is symlink")
        );
        assert_eq!(
            refused(path("link/sys"), &[]),
            format!("invalid mount source: {link}/sys")
        );
        let none = path("none").display().to_string();
        assert_eq!(
            refused(path("none"), &[]),
            format!("stat {none}: no such file or directory")
        );
        assert!(refused(path("data/sub"), &[path("data")]).starts_with("invalid mount source: "));
    }
}
