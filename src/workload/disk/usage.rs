//! The figures of `GET /v1/system/df`.

use std::io;
use std::path::PathBuf;

use super::volumes::VolumeSpace;
use super::{DiskError, DiskService, volumes};
use crate::base::space;
use crate::image::ImagesSpace;
use crate::ops::task::blocking;
use crate::workload::build::{BuildCacheFilter, BuildCacheUsage};
use crate::workload::container::ContainerSpace;

/// Everything that takes space.
#[derive(Debug, Clone, Default)]
pub struct DiskUsage {
    /// Images.
    pub images: ImagesSpace,
    /// Each container, oldest first.
    pub containers: Vec<ContainerSpace>,
    /// Each volume, by owner and name.
    pub volumes: Vec<VolumeSpace>,
    /// Build cache.
    pub build_cache: BuildCacheSpace,
    /// Logs.
    pub logs: LogSpace,
}

/// Space of the build cache.
#[derive(Debug, Clone, Default)]
pub struct BuildCacheSpace {
    /// Each entry, the least recently used first.
    pub entries: Vec<BuildCacheUsage>,
    /// Bytes on disk that neither images nor containers use.
    pub bytes: u64,
    /// What would be free if what no build uses at the moment were removed.
    pub reclaimable_bytes: u64,
}

/// Space of logs, in bytes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogSpace {
    /// Output of containers. Goes with the containers.
    pub containers: u64,
    /// Logs of the daemon and the runtime.
    pub daemon: u64,
}

impl DiskService {
    /// Measures everything.
    pub async fn usage(&self) -> Result<DiskUsage, DiskError> {
        let (images, containers, volumes, daemon_logs) = tokio::join!(
            self.images.space(),
            self.containers.space(),
            self.volumes(),
            self.daemon_logs()
        );
        let (images, containers, mut volumes) = (images?, containers?, volumes?);
        volumes.extend(containers.iter().flat_map(volumes::of_container));
        let logs = LogSpace {
            containers: containers.iter().map(|c| c.log_bytes).sum(),
            daemon: daemon_logs?,
        };
        Ok(DiskUsage {
            images,
            containers,
            volumes,
            build_cache: self.build_cache().await?,
            logs,
        })
    }

    async fn build_cache(&self) -> Result<BuildCacheSpace, DiskError> {
        let entries = self.builds.build_cache_usage();
        let free = self
            .builds
            .prune_build_cache(&BuildCacheFilter::default(), true)
            .await?;
        let in_use = entries
            .iter()
            .filter(|entry| entry.in_use)
            .map(|entry| entry.size_bytes);
        Ok(BuildCacheSpace {
            bytes: free.freed_bytes + in_use.sum::<u64>(),
            reclaimable_bytes: free.freed_bytes,
            entries,
        })
    }

    async fn volumes(&self) -> Result<Vec<VolumeSpace>, DiskError> {
        let (snapshot, settings) = (self.store.snapshot(), self.settings.clone());
        blocking(move || Ok(volumes::measure(&snapshot, &settings)?)).await
    }

    async fn daemon_logs(&self) -> Result<u64, DiskError> {
        let directories: Vec<PathBuf> = self.settings.log_dirs.clone();
        let used = move || {
            let sizes: io::Result<Vec<u64>> = directories.iter().map(|path| space::used(path)).collect();
            Ok(sizes?.iter().sum())
        };
        blocking(used).await
    }
}
