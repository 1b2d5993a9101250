//! Volumes: those of bottles and pods, each a directory `<root>/<owner>/<name>`, and those of containers.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::DiskSettings;
use crate::base::space;
use crate::model::Snapshot;
use crate::workload::container::ContainerSpace;

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpace {
    /// What it belongs to.
    pub owner: VolumeOwner,
    /// Unique among the volumes of its owner.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether its owner exists. The volumes of a bottle outlive it.
    pub is_used: bool,
}

/// What a volume belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum VolumeOwner {
    /// A bottle, by name.
    Bottle(String),
    /// A pod, by id.
    Pod(String),
    /// A container, by id.
    Container(String),
}

/// The volumes of bottles and pods, by owner and name.
pub(super) fn measure(snapshot: &Snapshot, settings: &DiskSettings) -> io::Result<Vec<VolumeSpace>> {
    let bottles = snapshot.bottles();
    let used: HashSet<(&str, &str)> = bottles
        .iter()
        .flat_map(|bottle| bottle.volumes.iter().map(|volume| (&*bottle.name, &**volume)))
        .collect();
    let mut found = Vec::new();
    for bottle in names(&settings.volume_root)? {
        for volume in names(&settings.volume_root.join(&bottle))? {
            found.push(VolumeSpace {
                bytes: space::used(&settings.volume_root.join(&bottle).join(&volume))?,
                is_used: used.contains(&(&*bottle, &*volume)),
                owner: VolumeOwner::Bottle(bottle.clone()),
                name: volume,
            });
        }
    }
    for pod in names(&settings.pod_root)? {
        let directory = settings.pod_root.join(&pod).join("volumes");
        for volume in names(&directory)? {
            found.push(VolumeSpace {
                bytes: space::used(&directory.join(&volume))?,
                is_used: snapshot.pods().get(&pod).is_some(),
                owner: VolumeOwner::Pod(pod.clone()),
                name: volume,
            });
        }
    }
    found.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
    Ok(found)
}

/// The volumes of one container.
pub(super) fn of_container(container: &ContainerSpace) -> Option<VolumeSpace> {
    (container.volume_bytes > 0).then(|| VolumeSpace {
        owner: VolumeOwner::Container(container.container.id.clone()),
        name: String::new(),
        bytes: container.volume_bytes,
        is_used: true,
    })
}

/// The entries of a directory; none if it does not exist.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs_err::read_dir(directory) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries?,
    };
    let names: io::Result<Vec<OsString>> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
    // All names that we give are text.
    Ok(names?.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_a_bottle_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let settings = DiskSettings {
            volume_root: dir.path().join("volumes"),
            pod_root: dir.path().join("pods"),
            log_dirs: Vec::new(),
        };
        assert_eq!(measure(&Snapshot::default(), &settings).unwrap(), []);
        for path in ["volumes/blog/data", "pods/01pod/volumes/cache", "pods/01pod/other"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
            std::fs::write(dir.path().join(path).join("file"), vec![1; 50_000]).unwrap();
        }
        let found = measure(&Snapshot::default(), &settings).unwrap();
        let names: Vec<_> = found.iter().map(|volume| (&*volume.name, volume.is_used)).collect();
        assert_eq!(names, [("data", false), ("cache", false)]);
        assert!(
            found
                .iter()
                .all(|volume| volume.bytes > 50_000 && volume.bytes < 70_000)
        );
    }
}
