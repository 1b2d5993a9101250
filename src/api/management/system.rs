//! `GET /v1/system/df` (`docs/spec/api.md` 7.20).

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Management;
use crate::api::time::rfc3339;
use crate::api::{ApiError, Success, SuccessBody, success};
use crate::image::{ImageSpace, ImagesSpace};
use crate::model::ContainerState;
use crate::workload::build::{BuildCacheKind, BuildCacheUsage as BuildCacheEntryUsage};
use crate::workload::container::ContainerSpace;
use crate::workload::disk::{BuildCacheSpace, DiskUsage, LogSpace, VolumeOwner, VolumeSpace};

/// What takes space on disk. All sizes are allocated blocks in bytes, each file once.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskUsageView {
    /// Images with their layers.
    images: ImagesUsage,
    /// Containers with their writable layers.
    containers: ContainersUsage,
    /// Volumes of bottles, pods and containers.
    volumes: VolumesUsage,
    /// Build cache.
    build_cache: BuildCacheUsage,
    /// Logs.
    logs: LogsUsage,
    /// All of that.
    size_bytes: u64,
    /// What `POST /v1/system/prune` with `all` would free, at least.
    reclaimable_bytes: u64,
}

/// Images.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImagesUsage {
    /// How many there are.
    count: usize,
    /// How many of them are used.
    used: usize,
    /// On disk, what images share counted once; with layers that are kept for containers only.
    size_bytes: u64,
    /// What would be free without those that are not used.
    reclaimable_bytes: u64,
    /// Each, by repository and reference.
    items: Vec<ImageUsageItem>,
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageUsageItem {
    /// Canonical string.
    image: String,
    /// Digest of the image configuration.
    id: String,
    /// When it was pulled or built.
    created_at: String,
    /// On disk, with what it shares.
    size_bytes: u64,
    /// What other images have too.
    shared_bytes: u64,
    /// What no other image has.
    own_bytes: u64,
    /// How many containers were created from it.
    containers: usize,
    /// Whether a container was created from it, or a pod, replica set or bottle names it.
    used: bool,
}

/// Containers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainersUsage {
    /// How many there are.
    count: usize,
    /// How many of them run.
    running: usize,
    /// Their writable layers.
    size_bytes: u64,
    /// What `POST /v1/containers/prune` would free, logs included.
    reclaimable_bytes: u64,
    /// Each, oldest first.
    items: Vec<ContainerUsageItem>,
}

/// A container.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerUsageItem {
    /// Id.
    container_id: String,
    /// Name.
    name: String,
    /// Its image, `<repository>:<reference>`.
    image: String,
    /// `creating`, `created`, `running` or `stopped`.
    state: String,
    /// When it was made.
    created_at: String,
    /// Its writable layer.
    size_bytes: u64,
    /// Its logs.
    log_bytes: u64,
}

/// Volumes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumesUsage {
    /// How many there are.
    count: usize,
    /// How many of them have an owner that exists.
    used: usize,
    /// On disk.
    size_bytes: u64,
    /// Those without an owner. No prune removes them: they hold data.
    unused_bytes: u64,
    /// Each, by owner and name.
    items: Vec<VolumeUsageItem>,
}

/// A volume.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeUsageItem {
    /// `bottle`, `pod` or `container`.
    owner_kind: &'static str,
    /// Name of the bottle, id of the pod or container.
    owner: String,
    /// Name; empty for all volumes of a container together.
    name: String,
    /// On disk.
    size_bytes: u64,
    /// Whether its owner exists: the volumes of a bottle outlive it.
    used: bool,
}

/// Build cache.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildCacheUsage {
    /// How many entries there are.
    count: usize,
    /// On disk, without what images and containers have too.
    size_bytes: u64,
    /// What `POST /v1/build/prune` would free.
    reclaimable_bytes: u64,
    /// Each, the least recently used first.
    items: Vec<BuildCacheItem>,
}

/// An entry of the build cache.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildCacheItem {
    /// Id.
    id: String,
    /// `step`: what a step did to the files of an image; `mount`: a directory of `RUN --mount=type=cache`.
    kind: &'static str,
    /// The instruction of a step, the id of a cache mount.
    description: String,
    /// When it was made.
    created_at: String,
    /// When a build last used it.
    last_used_at: String,
    /// How many builds have used it, without the one that made it.
    uses: u64,
    /// On disk.
    size_bytes: u64,
    /// Whether an image, a container or another entry has the same files: its removal frees nothing then.
    shared: bool,
    /// Whether a build uses it at the moment.
    in_use: bool,
}

/// Logs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogsUsage {
    /// All of them.
    size_bytes: u64,
    /// Output of containers. Goes with the containers.
    containers_bytes: u64,
    /// Logs of the daemon and the runtime.
    daemon_bytes: u64,
}

impl From<DiskUsage> for DiskUsageView {
    fn from(usage: DiskUsage) -> Self {
        let images = ImagesUsage::from(usage.images);
        let containers = ContainersUsage::from(usage.containers);
        let volumes = VolumesUsage::from(usage.volumes);
        let build_cache = BuildCacheUsage::from(usage.build_cache);
        let logs = LogsUsage::from(usage.logs);
        Self {
            size_bytes: images.size_bytes
                + containers.size_bytes
                + volumes.size_bytes
                + build_cache.size_bytes
                + logs.size_bytes,
            reclaimable_bytes: images.reclaimable_bytes + containers.reclaimable_bytes + build_cache.reclaimable_bytes,
            images,
            containers,
            volumes,
            build_cache,
            logs,
        }
    }
}

impl From<ImagesSpace> for ImagesUsage {
    fn from(space: ImagesSpace) -> Self {
        Self {
            count: space.images.len(),
            used: space.images.iter().filter(|image| image.is_used).count(),
            size_bytes: space.bytes,
            reclaimable_bytes: space.reclaimable_bytes,
            items: space.images.into_iter().map(ImageUsageItem::from).collect(),
        }
    }
}

impl From<ImageSpace> for ImageUsageItem {
    fn from(space: ImageSpace) -> Self {
        Self {
            image: space.image.id.clone(),
            id: space.image.config_digest.clone(),
            created_at: rfc3339(Some(space.image.created_at)),
            size_bytes: space.bytes,
            shared_bytes: space.shared_bytes,
            own_bytes: space.bytes - space.shared_bytes,
            containers: space.containers,
            used: space.is_used,
        }
    }
}

impl From<Vec<ContainerSpace>> for ContainersUsage {
    fn from(containers: Vec<ContainerSpace>) -> Self {
        let runs = |space: &&ContainerSpace| space.container.status.state == ContainerState::Running;
        Self {
            count: containers.len(),
            running: containers.iter().filter(runs).count(),
            size_bytes: containers.iter().map(|space| space.bytes).sum(),
            reclaimable_bytes: containers.iter().map(|space| space.reclaimable_bytes).sum(),
            items: containers.into_iter().map(ContainerUsageItem::from).collect(),
        }
    }
}

impl From<ContainerSpace> for ContainerUsageItem {
    fn from(space: ContainerSpace) -> Self {
        let container = space.container;
        Self {
            container_id: container.id.clone(),
            name: container.name.clone(),
            image: format!("{}:{}", container.spec.image.repository, container.spec.image.reference),
            state: container.status.state.to_string(),
            created_at: rfc3339(container.status.created_at),
            size_bytes: space.bytes,
            log_bytes: space.log_bytes,
        }
    }
}

impl From<Vec<VolumeSpace>> for VolumesUsage {
    fn from(volumes: Vec<VolumeSpace>) -> Self {
        Self {
            count: volumes.len(),
            used: volumes.iter().filter(|volume| volume.is_used).count(),
            size_bytes: volumes.iter().map(|volume| volume.bytes).sum(),
            unused_bytes: volumes.iter().filter(|volume| !volume.is_used).map(|v| v.bytes).sum(),
            items: volumes.into_iter().map(VolumeUsageItem::from).collect(),
        }
    }
}

impl From<VolumeSpace> for VolumeUsageItem {
    fn from(volume: VolumeSpace) -> Self {
        let (owner_kind, owner) = match volume.owner {
            VolumeOwner::Bottle(name) => ("bottle", name),
            VolumeOwner::Pod(id) => ("pod", id),
            VolumeOwner::Container(id) => ("container", id),
        };
        Self {
            owner_kind,
            owner,
            name: volume.name,
            size_bytes: volume.bytes,
            used: volume.is_used,
        }
    }
}

impl From<BuildCacheSpace> for BuildCacheUsage {
    fn from(space: BuildCacheSpace) -> Self {
        Self {
            count: space.entries.len(),
            size_bytes: space.bytes,
            reclaimable_bytes: space.reclaimable_bytes,
            items: space.entries.into_iter().map(BuildCacheItem::from).collect(),
        }
    }
}

impl From<BuildCacheEntryUsage> for BuildCacheItem {
    fn from(entry: BuildCacheEntryUsage) -> Self {
        Self {
            id: entry.id,
            kind: match entry.kind {
                BuildCacheKind::Step => "step",
                BuildCacheKind::Mount => "mount",
            },
            description: entry.description,
            created_at: rfc3339(Some(entry.created_at)),
            last_used_at: rfc3339(Some(entry.last_used_at)),
            uses: entry.uses,
            size_bytes: entry.size_bytes,
            shared: entry.shared,
            in_use: entry.in_use,
        }
    }
}

impl From<LogSpace> for LogsUsage {
    fn from(space: LogSpace) -> Self {
        Self {
            size_bytes: space.containers + space.daemon,
            containers_bytes: space.containers,
            daemon_bytes: space.daemon,
        }
    }
}

/// What takes space on disk, and what a prune would free
#[utoipa::path(get, path = "/v1/system/df", tag = "system",
    responses((status = 200, body = SuccessBody<DiskUsageView>)))]
pub async fn df(State(m): State<Management>) -> Result<Success<SuccessBody<DiskUsageView>>, ApiError> {
    Ok(success("retrieve disk usage success", m.disk.usage().await?.into()))
}
