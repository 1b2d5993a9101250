//! What takes space on disk, and what a prune may remove (`docs/spec/api.md` 7.20 and 7.21).
//!
//! Each kind of object is measured by the service that owns it; this module adds them up, and measures what has no service:
//! volumes and logs. Nothing is locked meanwhile: the figures are those of the moment at which each part was looked at.
//!
//! A prune removes only what nothing uses. The owner of each kind decides that again at the moment of the removal.

mod usage;
mod volumes;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use crate::image::{ImagePrune, ImageService};
use crate::ops::prune::{PruneFilter, Pruned, PrunedObject};
use crate::ops::task::Unfinished;
use crate::store::Store;
use crate::workload::build::{BuildCacheFilter, BuildError, BuildService};
use crate::workload::container::{ContainerError, ContainerService};

pub use self::usage::{BuildCacheSpace, DiskUsage, LogSpace};
pub use self::volumes::{VolumeOwner, VolumeSpace};

/// Where to look for what has no service of its own.
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// Directory of the volumes of bottles.
    pub volume_root: PathBuf,
    /// Directory of the pods' own directories.
    pub pod_root: PathBuf,
    /// Directories of the daemon's and the runtime's logs.
    pub log_dirs: Vec<PathBuf>,
}

/// The service. Clones share everything.
#[derive(Clone)]
pub struct DiskService {
    settings: DiskSettings,
    store: Store,
    images: ImageService,
    containers: ContainerService,
    builds: BuildService,
}

/// Which build cache to remove.
#[derive(Debug, Clone, Default)]
pub struct BuildPrune {
    /// Only what no build has used since.
    pub before: Option<Timestamp>,
    /// Only as much, least recently used first, as leaves this many bytes.
    pub keep_bytes: Option<u64>,
}

/// Why the disk cannot be measured or cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Images.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// Containers.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Build cache.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Files of volumes or logs cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Work ended without a result: a defect.
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}

/// What a prune of everything has removed or would remove.
#[derive(Debug, Clone, Default)]
pub struct PrunedSystem {
    /// Stopped containers.
    pub containers: Pruned,
    /// Images that nothing uses.
    pub images: Pruned,
    /// Build cache.
    pub build_cache: Pruned,
}

impl DiskService {
    /// A service over the others.
    pub fn new(
        settings: DiskSettings,
        store: Store,
        images: ImageService,
        containers: ContainerService,
        builds: BuildService,
    ) -> Self {
        Self {
            settings,
            store,
            images,
            containers,
            builds,
        }
    }

    /// Removes stopped containers.
    pub async fn prune_containers(&self, filter: PruneFilter, dry_run: bool) -> Result<Pruned, DiskError> {
        Ok(self.containers.prune(filter, dry_run).await?)
    }

    /// Removes images that nothing uses.
    pub async fn prune_images(&self, request: ImagePrune, dry_run: bool) -> Result<Pruned, DiskError> {
        Ok(self.images.prune(request, dry_run).await?)
    }

    /// Removes build cache that no build uses at the moment.
    pub async fn prune_build_cache(&self, request: BuildPrune, dry_run: bool) -> Result<Pruned, DiskError> {
        let age = |before: Timestamp| Duration::try_from(Timestamp::now().duration_since(before)).unwrap_or_default();
        let filter = BuildCacheFilter {
            kind: None,
            unused_for: request.before.map(age),
            keep_bytes: request.keep_bytes,
        };
        let known = self.builds.build_cache_usage();
        let pruned = self.builds.prune_build_cache(&filter, dry_run).await?;
        let objects = pruned.entries.into_iter().map(|id| {
            let entry = known.iter().find(|entry| entry.id == id);
            PrunedObject {
                name: entry.map(|entry| entry.description.clone()).unwrap_or_default(),
                bytes: entry.filter(|entry| !entry.shared).map_or(0, |entry| entry.size_bytes),
                id,
            }
        });
        Ok(Pruned {
            removed: objects.collect(),
            failed: Vec::new(),
            bytes_freed: pruned.freed_bytes,
        })
    }

    /// Removes stopped containers, then images that nothing uses by then, then build cache. In a dry run the images of
    /// containers that would be removed count as used.
    pub async fn prune(&self, request: ImagePrune, dry_run: bool) -> Result<PrunedSystem, DiskError> {
        let containers = self.prune_containers(request.filter.clone(), dry_run).await?;
        let of_builds = BuildPrune {
            before: request.filter.before,
            keep_bytes: None,
        };
        // Build cache has no labels, so none of it has the wanted ones.
        let has_cache = request.filter.labels.is_empty();
        let images = self.prune_images(request, dry_run).await?;
        let build_cache = match has_cache {
            true => self.prune_build_cache(of_builds, dry_run).await?,
            false => Pruned::default(),
        };
        Ok(PrunedSystem {
            containers,
            images,
            build_cache,
        })
    }
}
