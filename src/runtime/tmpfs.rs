//! tmpfs mounts as users write them, `destination[:options]` (`docker run --tmpfs`), and as config.json stores them:
//! mounts of type `tmpfs` (OCI runtime specification, mounts).
//!
//! The daemon validates them when a container is created, the runtime again when it sets one up, both with this code.
//! All are nosuid and nodev. Those of users are noexec without `exec`, and start with a copy of the image's content
//! at the destination without `notmpcopyup`, as in podman.

use std::path::{Path, PathBuf};

use super::mounts::clean;

/// `type` in config.json.
pub const KIND: &str = "tmpfs";
/// Writable directories of a container with a read-only root file system, by default.
const SCRATCH: [&str; 3] = ["/run", "/tmp", "/var/tmp"];
/// Destinations where nothing may be mounted; `/` neither.
const DENIED: [&str; 3] = ["/proc", "/sys", "/dev"];
/// The exception.
const SHM: &str = "/dev/shm";
/// Largest mode: permissions, setuid, setgid and sticky bits.
const MAX_MODE: u32 = 0o7777;

/// Why a tmpfs is refused. The text is part of the API.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid tmpfs {0:?}: {1}")]
pub struct TmpfsError(String, String);

/// A tmpfs mount. Fields that are `None` follow the image's directory at the destination, otherwise the kernel's
/// default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute path in the container, without `.`, `..` and double slashes.
    pub destination: PathBuf,
    /// Maximum size in the kernel's notation: a number with `k`, `m`, `g` or `%`. Half of the memory if not set.
    pub size: Option<String>,
    /// Maximum number of inodes.
    pub inodes: Option<u64>,
    /// Mode of its root directory.
    pub mode: Option<u32>,
    /// Owner of its root directory, a uid inside the container.
    pub uid: Option<u32>,
    /// Group of its root directory, likewise.
    pub gid: Option<u32>,
    /// Whether the container may not write to it.
    pub read_only: bool,
    /// Whether programs in it can be executed.
    pub exec: bool,
    /// Whether it starts with a copy of the image's content at the destination.
    pub copy_up: bool,
}

/// Parses `destination[:options]`, options separated by commas.
pub fn parse(text: &str) -> Result<Tmpfs, TmpfsError> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let tmpfs = Tmpfs {
        exec: false,
        copy_up: true,
        ..new(destination).map_err(|problem| TmpfsError(text.to_owned(), problem))?
    };
    let options = options.split(',').filter(|option| !option.is_empty());
    tmpfs
        .with(options)
        .map_err(|problem| TmpfsError(text.to_owned(), problem))
}

/// The default tmpfs mounts of a container with a read-only root file system, except where `others` are mounted.
pub fn scratch(others: &[&Path]) -> Vec<Tmpfs> {
    let free = SCRATCH.into_iter().map(Path::new).filter(|path| !others.contains(path));
    free.map(|path| Tmpfs {
        exec: true,
        copy_up: true,
        ..at(path.to_owned())
    })
    .collect()
}

impl Tmpfs {
    /// Parses an entry of `mounts` in config.json.
    pub fn from_config(destination: &str, options: &[String]) -> Result<Self, TmpfsError> {
        let refused = |problem| TmpfsError(destination.to_owned(), problem);
        let tmpfs = Self {
            exec: true,
            ..new(destination).map_err(refused)?
        };
        tmpfs.with(options.iter().map(String::as_str)).map_err(refused)
    }

    /// `options` of an entry in config.json.
    pub fn to_config(&self) -> Vec<String> {
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
        options.extend((!self.exec).then(|| "noexec".to_owned()));
        options.extend(self.read_only.then(|| "ro".to_owned()));
        options.extend(self.copy_up.then(|| "tmpcopyup".to_owned()));
        options.extend(self.size.as_ref().map(|size| format!("size={size}")));
        options.extend(self.inodes.map(|inodes| format!("nr_inodes={inodes}")));
        options.extend(self.mode.map(|mode| format!("mode={mode:o}")));
        options.extend(self.uid.map(|uid| format!("uid={uid}")));
        options.extend(self.gid.map(|gid| format!("gid={gid}")));
        options
    }

    /// The same mount at the real path of its destination, after resolving the image's symbolic links.
    pub fn with_destination(self, destination: PathBuf) -> Result<Self, TmpfsError> {
        match denied(&destination) {
            true => Err(TmpfsError(
                self.destination.display().to_string(),
                format!("it leads to {}, where nothing may be mounted", destination.display()),
            )),
            false => Ok(Self { destination, ..self }),
        }
    }

    fn with<'a>(mut self, options: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        for option in options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let invalid = || format!("{option:?} is not understood");
            let number = || value.parse::<u32>().map_err(|_| invalid());
            match (name, value) {
                ("rw", "") => self.read_only = false,
                ("ro", "") => self.read_only = true,
                ("exec", "") => self.exec = true,
                ("noexec", "") => self.exec = false,
                ("tmpcopyup", "") => self.copy_up = true,
                ("notmpcopyup", "") => self.copy_up = false,
                ("nosuid" | "nodev" | "private" | "rprivate", "") => {}
                ("suid" | "dev", "") => return Err(format!("{option} is not possible; it is always no{option}")),
                ("size", size) if is_size(size) => self.size = Some(size.to_owned()),
                ("nr_inodes", _) => self.inodes = Some(value.parse().map_err(|_| invalid())?),
                ("uid", _) => self.uid = Some(number()?),
                ("gid", _) => self.gid = Some(number()?),
                ("mode", _) => {
                    let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= MAX_MODE);
                    self.mode = Some(mode.ok_or_else(invalid)?);
                }
                _ => return Err(invalid()),
            }
        }
        Ok(self)
    }
}

/// Whether the text is a size in the kernel's notation.
fn is_size(text: &str) -> bool {
    let digits = text.trim_end_matches(['k', 'm', 'g', 'K', 'M', 'G', '%']);
    text.len() - digits.len() <= 1 && (1..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

fn new(destination: &str) -> Result<Tmpfs, String> {
    match clean(destination) {
        None => Err("its place is not an absolute path".to_owned()),
        Some(path) if denied(&path) => Err("nothing may be mounted there".to_owned()),
        Some(path) => Ok(at(path)),
    }
}

fn at(destination: PathBuf) -> Tmpfs {
    Tmpfs {
        destination,
        size: None,
        inodes: None,
        mode: None,
        uid: None,
        gid: None,
        read_only: false,
        exec: false,
        copy_up: false,
    }
}

fn denied(path: &Path) -> bool {
    path == Path::new("/") || !path.starts_with(SHM) && DENIED.iter().any(|denied| path.starts_with(denied))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_text_is_a_place_and_options() {
        let plain = parse("/run").unwrap();
        assert_eq!(plain.destination, Path::new("/run"));
        assert!(plain.copy_up && !plain.exec && !plain.read_only && plain.size.is_none());
        let all =
            parse("/a//b/.:rw,exec,ro,size=64m,nr_inodes=9,mode=1777,uid=7,gid=8,nosuid,nodev,notmpcopyup").unwrap();
        assert_eq!(all.destination, Path::new("/a/b"));
        assert!(all.exec && all.read_only && !all.copy_up);
        assert_eq!(
            (all.size.as_deref(), all.inodes, all.mode),
            (Some("64m"), Some(9), Some(0o1777))
        );
        assert_eq!((all.uid, all.gid), (Some(7), Some(8)));
        parse("/dev/shm:size=50%").unwrap();
    }

    #[rstest]
    #[case("run", "its place is not an absolute path")]
    #[case("", "its place is not an absolute path")]
    #[case("/", "nothing may be mounted there")]
    #[case("/a/..", "nothing may be mounted there")]
    #[case("/proc/x", "nothing may be mounted there")]
    #[case("/dev", "nothing may be mounted there")]
    #[case("/run:size=x", "\"size=x\" is not understood")]
    #[case("/run:size=", "\"size=\" is not understood")]
    #[case("/run:size=1mm", "\"size=1mm\" is not understood")]
    #[case("/run:mode=0999", "\"mode=0999\" is not understood")]
    #[case("/run:mode=10000", "\"mode=10000\" is not understood")]
    #[case("/run:uid=-1", "\"uid=-1\" is not understood")]
    #[case("/run:bind", "\"bind\" is not understood")]
    #[case("/run:ro=1", "\"ro=1\" is not understood")]
    #[case("/run:suid", "suid is not possible; it is always nosuid")]
    fn what_cannot_be_is_refused(#[case] text: &str, #[case] problem: &str) {
        assert_eq!(message(text), format!("invalid tmpfs {text:?}: {problem}"));
    }

    #[test]
    fn config_entries_say_the_same() {
        for text in [
            "/run",
            "/run:exec,notmpcopyup,size=1g",
            "/x:ro,mode=755,uid=1,gid=2,nr_inodes=3",
        ] {
            let tmpfs = parse(text).unwrap();
            let place = tmpfs.destination.display().to_string();
            assert_eq!(Tmpfs::from_config(&place, &tmpfs.to_config()).unwrap(), tmpfs, "{text}");
        }
        let plain = Tmpfs::from_config("/run", &[]).unwrap();
        assert!(plain.exec && !plain.copy_up, "as the specification has it");
        assert!(Tmpfs::from_config("/sys/x", &[]).is_err());
    }

    #[test]
    fn a_read_only_root_has_places_to_write() {
        let places = |others: &[&str]| -> Vec<PathBuf> {
            let others: Vec<&Path> = others.iter().map(Path::new).collect();
            scratch(&others).into_iter().map(|tmpfs| tmpfs.destination).collect()
        };
        assert_eq!(places(&[]), ["/run", "/tmp", "/var/tmp"].map(PathBuf::from));
        assert_eq!(places(&["/tmp", "/run/x"]), ["/run", "/var/tmp"].map(PathBuf::from));
    }

    #[test]
    fn a_link_of_the_image_leads_to_no_denied_place() {
        let tmpfs = parse("/data").unwrap();
        assert!(tmpfs.clone().with_destination("/proc/x".into()).is_err());
        assert_eq!(
            tmpfs.with_destination("/run".into()).unwrap().destination,
            Path::new("/run")
        );
    }
}
