//! What takes space on disk, and what a prune may remove (`docs/spec/api.md` 7.20 and 7.21).
//!
//! Each kind of object is measured by the service that owns it; this module adds them up, and measures what has no service:
//! volumes and logs. Nothing is locked meanwhile: the figures are those of the moment at which each part was looked at.
//!
//! A prune removes only what nothing uses. The owner of each kind decides that again at the moment of the removal.

mod usage;
mod volumes;

use std::path::PathBuf;

use crate::image::{ImagePrune, ImageService};
use crate::ops::prune::{PruneFilter, Pruned};
use crate::ops::task::Unfinished;
use crate::store::Store;
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
    pub fn new(settings: DiskSettings, store: Store, images: ImageService, containers: ContainerService) -> Self {
        Self {
            settings,
            store,
            images,
            containers,
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

    /// Removes stopped containers, then images that nothing uses by then, then build cache. In a dry run the images of
    /// containers that would be removed count as used.
    pub async fn prune(&self, request: ImagePrune, dry_run: bool) -> Result<PrunedSystem, DiskError> {
        let containers = self.prune_containers(request.filter.clone(), dry_run).await?;
        let images = self.prune_images(request, dry_run).await?;
        Ok(PrunedSystem {
            containers,
            images,
            build_cache: Pruned::default(),
        })
    }
}
