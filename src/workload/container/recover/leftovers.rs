//! Leftovers: objects on this machine that carry a container's id but belong to no row.
//!
//! These are directories, volatile files of the runtime, host ends of veth pairs, cgroups, and mounts inside container
//! directories. They are recognized by the form of the id and by their location; nothing else is touched. Addresses,
//! names and ports cannot be left over, because they are part of the row, nor can rules, because they are always
//! rendered from all rows.
//!
//! The scan reads the machine first and the rows second, and repeats both under the lock of the id: a row is written
//! before anything of its container is created and removed last, so an object without a row has no owner.
//!
//! An interface's owner is looked up in the rows ([`Container::veth`](crate::model::Container::veth)), not derived from
//! its name: that of a build contains only a part of its id.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use crate::model::names::is_container_id;
use crate::workload::container::{ContainerError, ContainerService, blocking, cgroup};

/// Suffix after the id in the name of the runtime's lock: often all that a killed runtime leaves.
const LOCK_SUFFIX: &str = ".lock";

/// Leftovers by container id.
type Leftovers = BTreeMap<String, Found>;

/// The leftovers of one container.
#[derive(Debug, Default)]
struct Found {
    /// For the log.
    kinds: Vec<&'static str>,
    /// Host ends of veth pairs, by name.
    links: Vec<String>,
}

/// Prefix before the id in the name of an interface.
const LINK_PREFIX: &str = "rd_";

impl ContainerService {
    /// Removes everything that belongs to no row, with one log line per id. Returns whether all of it could be removed.
    pub(super) async fn remove_leftovers(&self) -> bool {
        let found = match self.leftovers().await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "cannot look for leftovers of containers");
                return false;
            }
        };
        let mut is_clean = true;
        for id in found.into_keys() {
            // An operation is in progress on it.
            let Some(_lock) = self.0.locks.try_lock(&id) else {
                continue;
            };
            // A removal that was in progress during the first scan has finished.
            let Ok(Some(found)) = self.leftovers().await.map(|mut now| now.remove(&id)) else {
                continue;
            };
            tracing::warn!(
                container.id = %id, found = found.kinds.join(", "),
                "removing what is left of a container without a record"
            );
            if let Err(error) = self.remove_leftover(&id, &found.links).await {
                tracing::error!(container.id = %id, %error, "leftovers of a container could not be removed");
                is_clean = false;
            }
        }
        is_clean
    }

    /// Everything that carries an id but has no row.
    async fn leftovers(&self) -> Result<Leftovers, ContainerError> {
        let links = self.0.services.networks.links().await?;
        let (root, volatile) = (self.0.settings.root.clone(), self.0.settings.runtime_run_dir.clone());
        let mut found = blocking(move || Ok(on_disk(&root, &volatile)?)).await?;
        let snapshot = self.snapshot();
        let owned: HashSet<String> = snapshot.containers().iter().map(|row| row.veth()).collect();
        for link in links.into_iter().filter(|link| !owned.contains(link)) {
            if let Some(thing) = link
                .strip_prefix(LINK_PREFIX)
                .and_then(|id| note(&mut found, id, "interface"))
            {
                thing.links.push(link.clone());
            }
        }
        found.retain(|id, _| snapshot.containers().get(id).is_none());
        Ok(found)
    }

    async fn remove_leftover(&self, id: &str, links: &[String]) -> Result<(), ContainerError> {
        self.forget_in_runtime(id, "delete container failed").await?;
        for link in links {
            self.0.services.networks.remove_stray_link(link).await?;
        }
        cgroup::remove(id).await?;
        let (directory, id) = (self.dir(id).path().to_owned(), id.to_owned());
        blocking(move || {
            cgroup::remove_everywhere(&id)?;
            Ok(remove_directory(&directory)?)
        })
        .await
    }
}

fn on_disk(root: &Path, volatile: &Path) -> std::io::Result<Leftovers> {
    let mut found = Leftovers::new();
    let mut in_directory = |directory: &Path, kind| -> std::io::Result<()> {
        for name in names_in(directory)? {
            note(&mut found, name.strip_suffix(LOCK_SUFFIX).unwrap_or(&name), kind);
        }
        Ok(())
    };
    in_directory(root, "directory")?;
    in_directory(volatile, "files of the runtime")?;
    for parent in cgroup::parents() {
        in_directory(&parent, "cgroup")?;
    }
    for mount in mounts_below(root)? {
        let below = mount
            .strip_prefix(root)
            .ok()
            .and_then(|below| below.iter().next()?.to_str());
        if let Some(id) = below {
            note(&mut found, id, "mount");
        }
    }
    Ok(found)
}

fn note<'a>(found: &'a mut Leftovers, id: &str, kind: &'static str) -> Option<&'a mut Found> {
    if !looks_like_id(id) {
        return None;
    }
    let thing = found.entry(id.to_owned()).or_default();
    if !thing.kinds.contains(&kind) {
        thing.kinds.push(kind);
    }
    Some(thing)
}

/// Removes a directory recursively. Mounts in it belong to somebody else: they are unmounted, and their files stay.
pub fn remove_directory(directory: &Path) -> std::io::Result<()> {
    for mount in mounts_below(directory)?.iter().rev() {
        unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|e| std::io::Error::new(e.kind(), format!("cannot unmount {}: {e}", mount.display())))?;
    }
    match fs_err::remove_dir_all(directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Mount points below a directory, in mount order.
fn mounts_below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let text = fs_err::read("/proc/self/mountinfo")?;
    let points = text.split(|byte| *byte == b'\n').filter_map(mount_point);
    Ok(points
        .filter(|point| point != directory && point.starts_with(directory))
        .collect())
}

/// The fifth field of a line; blanks and backslashes in it are octal escapes (proc(5)).
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .filter(|digits| digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(digits) if byte == b'\\' => {
                path.push(
                    digits
                        .iter()
                        .fold(0, |value: u8, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = &after[3..];
            }
            _ => {
                path.push(byte);
                rest = after;
            }
        }
    }
    Some(std::ffi::OsString::from_vec(path).into())
}

/// Whether a name has a form that only we use: a container id, with or without the prefix of a build.
fn looks_like_id(name: &str) -> bool {
    let id = name.strip_prefix("build-").unwrap_or(name);
    is_container_id(id)
}

fn names_in(directory: &Path) -> std::io::Result<Vec<String>> {
    match fs_err::read_dir(directory) {
        Ok(entries) => entries
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_ids_are_ours() {
        for ours in ["01kg2cnf0ytv", "build-01kg2cnf0ytv"] {
            assert!(looks_like_id(ours), "{ours}");
        }
        for other in [
            "",
            "lost+found",
            "01kg2cnf0yt",
            "01kg2cnf0yto",
            "01KG2CNF0YTV",
            "my-container",
            "_monitors",
        ] {
            assert!(!looks_like_id(other), "{other}");
        }
    }

    #[test]
    fn mount_points_are_unescaped() {
        let point = |line: &str| mount_point(line.as_bytes());
        assert_eq!(
            point(r"36 35 98:0 /root /mnt/a\040b\134c\011 rw,noatime - ext3 /dev/root rw"),
            Some("/mnt/a b\\c\t".into())
        );
        assert_eq!(point(r"36 35 98:0 / /mnt\04 rw"), Some("/mnt\\04".into()));
        assert_eq!(point(""), None);
    }

    #[test]
    fn directories_are_noted_by_their_id() {
        let dir = tempfile::tempdir().unwrap();
        let (root, volatile) = (dir.path().join("root"), dir.path().join("run"));
        for made in [
            "root/01kg2cnf0ytv",
            "root/other",
            "run/01kg2cnf0ytv",
            "run/01kg2cnf0aaa",
        ] {
            std::fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        let found = on_disk(&root, &volatile).unwrap();
        assert_eq!(found["01kg2cnf0ytv"].kinds, ["directory", "files of the runtime"]);
        assert_eq!(found["01kg2cnf0aaa"].kinds, ["files of the runtime"]);
        assert!(!found.contains_key("other"));
    }
}
