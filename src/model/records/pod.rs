use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ContainerRequest, HealthCheck, RestartPolicy};

/// A pod: containers that share the network, IPC, UTS and user namespaces of its infra container.
///
/// Its containers are the rows whose role names its id (`docs/spec/api.md` 4.2). The state that clients see is computed
/// from them, never stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// ULID in lower case, for life.
    pub id: String,
    /// Unique among the pods of the namespace, for life.
    pub name: String,
    /// Namespace of its name.
    pub namespace: String,
    /// Identity that a client may choose; else a ULID.
    pub uid: String,
    /// Replica set that made it.
    pub owner: Option<String>,
    /// What it consists of. A replica set's pods hold the template of the time they were made.
    pub template: PodTemplate,
    /// What it is meant to be. Controllers work towards it.
    pub goal: PodGoal,
    /// When it was made.
    pub created_at: Timestamp,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last stop.
    pub stopped_at: Option<Timestamp>,
    /// Why the last try to make it what it is meant to be failed; `None` after one that did not.
    #[serde(default)]
    pub problem: Option<PodProblem>,
    /// Of a pod that is being removed: the pod that gets its name in the transaction that forgets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<Box<Pod>>,
}

/// Why a pod is not what it is meant to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodProblem {
    /// One word, as the kubelet has it: `ErrImagePull`, `CreateContainerError`, …
    pub reason: String,
    /// A sentence, with the words of whoever refused.
    pub message: String,
}

/// What a pod is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodGoal {
    /// Nobody started it yet.
    Created,
    /// All its containers run.
    Running,
    /// A user stopped it: no controller starts it.
    Stopped,
    /// It is being removed. After a crash the removal is finished.
    Removed,
}

impl std::fmt::Display for PodGoal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
        })
    }
}

/// What pods are made from. Never changed: a new version has a new id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodTemplate {
    /// ULID in lower case.
    pub id: String,
    /// Labels of every pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of every pod.
    pub annotations: BTreeMap<String, String>,
    /// What runs in it.
    pub spec: PodSpec,
}

/// What runs in a pod (Kubernetes `PodSpec`, as far as it is supported).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PodSpec {
    /// Host name; the pod's name when not set.
    pub hostname: Option<String>,
    /// What happens when a member ends by itself.
    pub restart: RestartPolicy,
    /// The members, in the order of their start.
    pub containers: Vec<PodContainer>,
    /// What members may mount by name.
    pub volumes: Vec<Volume>,
}

/// One member of a pod as it was asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PodContainer {
    /// Unique in the pod.
    pub name: String,
    /// What it is.
    pub request: ContainerRequest,
    /// Volumes of the pod, mounted after the mounts of the request.
    pub volume_mounts: Vec<VolumeMount>,
}

/// When an image is pulled before a container is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PullPolicy {
    /// When it is not there.
    #[default]
    IfNotPresent,
    /// Every time.
    Always,
    /// Never: an absent image is an error.
    Never,
    /// Nobody said, and the tag is `latest`: every time, unless the configuration says otherwise
    /// (`pull_policy_latest`).
    Latest,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique in the pod.
    pub name: String,
    /// Where its files are.
    pub source: VolumeSource,
}

/// Where the files of a volume are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeSource {
    /// A directory or file of the host.
    HostPath(String),
    /// A directory of the pod's own, which goes away with it.
    EmptyDir,
}

/// A volume at its place in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
    /// Whether the container cannot write to it.
    pub read_only: bool,
}

/// A set of pods that are kept alive from one template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaSet {
    /// ULID in lower case, for life.
    pub id: String,
    /// The name that is shown and that its pods' names begin with (`docs/spec/api.md` 11.3).
    pub name: String,
    /// What identifies it for re-apply and delete: `metadata.name` of its manifest. Unique in the namespace.
    pub manifest_name: String,
    /// Namespace of the set and of its pods.
    pub namespace: String,
    /// How many pods there shall be.
    pub replicas: u32,
    /// Labels that a pod without an owner must have to be adopted. Never empty.
    pub selector: BTreeMap<String, String>,
    /// What its pods are made from. Pods with another template id are replaced.
    pub template: PodTemplate,
    /// How pods of an old template are replaced.
    pub update: UpdateStrategy,
    /// Bounds of [`UpdateStrategy::Rolling`].
    #[serde(default)]
    pub rollout: Rollout,
    /// Whether it is being removed, with its pods. After a crash the removal is finished.
    pub removing: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How the pods of an old template are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateStrategy {
    /// All at once (a `ReplicaSet`).
    Replace,
    /// Step by step, within the bounds of its [`Rollout`] (a `Deployment`).
    Rolling,
}

/// Within which bounds pods are replaced (Kubernetes `RollingUpdateDeployment`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How many of the wanted pods may be unavailable; a share is rounded down.
    pub max_unavailable: Share,
    /// How many pods there may be beyond the wanted ones; a share is rounded up.
    pub max_surge: Share,
    /// For how many seconds a pod must have been ready before it counts as available.
    pub min_ready_seconds: u32,
}

/// A number of pods, or a part of the wanted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(u32),
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_unavailable: Share::Percent(25),
            max_surge: Share::Percent(25),
            min_ready_seconds: 0,
        }
    }
}

impl Rollout {
    /// How many of `replicas` pods must be available, and how many pods there may be, both numbers of pods. One of them
    /// always differs from `replicas`, or nothing could be replaced.
    pub fn bounds(&self, replicas: usize) -> (usize, usize) {
        let (unavailable, surge) = (
            self.max_unavailable.of(replicas, false),
            self.max_surge.of(replicas, true),
        );
        let unavailable = if unavailable + surge == 0 { 1 } else { unavailable };
        (replicas.saturating_sub(unavailable), replicas + surge)
    }
}

impl Share {
    fn of(self, replicas: usize, up: bool) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) if up => (replicas * percent as usize).div_ceil(100),
            Self::Percent(percent) => replicas * percent as usize / 100,
        }
    }
}

/// A service: ports of the host, balanced over the ready pods that a selector finds in its namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// ULID in lower case, for life.
    pub id: String,
    /// Unique among the services of the namespace.
    pub name: String,
    /// Namespace of its name and of its pods.
    pub namespace: String,
    /// Labels of its pods. Empty matches none.
    pub selector: BTreeMap<String, String>,
    /// Its ports; no host port and protocol twice.
    pub ports: Vec<ServicePort>,
    /// For how many seconds a client stays with one pod; `None` for no affinity.
    pub affinity_seconds: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Port of the host.
    pub port: u16,
    /// Port of the pods.
    pub target_port: u16,
    /// Transport protocol.
    pub protocol: super::Protocol,
    /// The protocol as the client wrote it, for showing.
    pub written_protocol: String,
}

impl Pod {
    /// The pod that has the name for longer: this one, or, when it is being removed, what comes in its place.
    pub fn standing(&self) -> Option<&Pod> {
        match self.goal {
            PodGoal::Removed => self.successor.as_deref(),
            PodGoal::Created | PodGoal::Running | PodGoal::Stopped => Some(self),
        }
    }
}

impl PodContainer {
    /// The check that makes it ready, if there is one.
    pub fn readiness(&self) -> Option<&HealthCheck> {
        self.request.options.readiness_check.as_ref()
    }
}
