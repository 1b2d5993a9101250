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
    /// ULID in lower case; never changes.
    pub id: String,
    /// Unique among the pods of the namespace; never changes.
    pub name: String,
    /// Namespace of the name.
    pub namespace: String,
    /// UID, which a client may choose; a ULID by default.
    pub uid: String,
    /// The replica set that created it.
    pub owner: Option<String>,
    /// The pod spec. Pods of a replica set keep the template they were created from.
    pub template: PodTemplate,
    /// Desired state, which controllers reconcile towards.
    pub goal: PodGoal,
    /// Creation time.
    pub created_at: Timestamp,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last stop.
    pub stopped_at: Option<Timestamp>,
    /// Why the last reconciliation failed; `None` if it succeeded.
    #[serde(default)]
    pub problem: Option<PodProblem>,
    /// For a pod that is being removed: the pod that takes its name in the transaction that deletes this row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<Box<Pod>>,
}

/// Why a pod is not in its desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodProblem {
    /// One word, as the kubelet uses it: `ErrImagePull`, `CreateContainerError`, …
    pub reason: String,
    /// A sentence that quotes the underlying error.
    pub message: String,
}

/// Desired state of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodGoal {
    /// Never started.
    Created,
    /// All its containers run.
    Running,
    /// Stopped by a user: no controller starts it.
    Stopped,
    /// Being removed. After a crash the removal is finished.
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

/// The template that pods are created from. Immutable: a new version has a new id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodTemplate {
    /// ULID in lower case.
    pub id: String,
    /// Labels of every pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of every pod.
    pub annotations: BTreeMap<String, String>,
    /// Spec of the pods.
    pub spec: PodSpec,
}

/// Spec of a pod (Kubernetes `PodSpec`, as far as it is supported).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PodSpec {
    /// Host name; defaults to the pod's name.
    pub hostname: Option<String>,
    /// What to do when a member exits.
    pub restart: RestartPolicy,
    /// The members, in start order.
    pub containers: Vec<PodContainer>,
    /// Volumes that members may mount by name.
    pub volumes: Vec<Volume>,
}

/// One member of a pod as it was asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PodContainer {
    /// Unique within the pod.
    pub name: String,
    /// What it is.
    pub request: ContainerRequest,
    /// Volumes of the pod, mounted after the mounts of the request.
    pub volume_mounts: Vec<VolumeMount>,
}

/// When to pull an image before a container is created from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PullPolicy {
    /// If it is not present.
    #[default]
    IfNotPresent,
    /// Always.
    Always,
    /// Never: a missing image is an error.
    Never,
    /// No policy was given and the tag is `latest`: always, unless the configuration overrides it
    /// (`pull_policy_latest`).
    Latest,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique within the pod.
    pub name: String,
    /// Where its files come from.
    pub source: VolumeSource,
}

/// Where the files of a volume come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeSource {
    /// A directory or file of the host.
    HostPath(String),
    /// A directory that belongs to the pod and is removed with it.
    EmptyDir,
}

/// A volume mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// A set of pods that are kept running from one template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaSet {
    /// ULID in lower case; never changes.
    pub id: String,
    /// The display name, which is also the prefix of its pods' names (`docs/spec/api.md` 11.3).
    pub name: String,
    /// Identity for re-apply and delete: `metadata.name` of its manifest. Unique within the namespace.
    pub manifest_name: String,
    /// Namespace of the set and of its pods.
    pub namespace: String,
    /// Desired number of pods.
    pub replicas: u32,
    /// Labels that an unowned pod must have to be adopted. Never empty.
    pub selector: BTreeMap<String, String>,
    /// The current template. Pods with another template id are replaced.
    pub template: PodTemplate,
    /// How to replace pods of an old template.
    pub update: UpdateStrategy,
    /// Bounds of [`UpdateStrategy::Rolling`].
    #[serde(default)]
    pub rollout: Rollout,
    /// Whether it and its pods are being removed. After a crash the removal is finished.
    pub removing: bool,
    /// Creation time.
    pub created_at: Timestamp,
}

/// How to replace pods of an old template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateStrategy {
    /// All at once (a `ReplicaSet`).
    Replace,
    /// Step by step, within the bounds of its [`Rollout`] (a `Deployment`).
    Rolling,
}

/// Limits on replacing pods (Kubernetes `RollingUpdateDeployment`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How many of the desired pods may be unavailable; a percentage is rounded down.
    pub max_unavailable: Share,
    /// How many pods may exist beyond the desired number; a percentage is rounded up.
    pub max_surge: Share,
    /// For how many seconds a pod must be ready before it counts as available.
    pub min_ready_seconds: u32,
}

/// A number of pods, or a percentage of the desired number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// An absolute number.
    Count(u32),
    /// A percentage.
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
    /// The minimum of available pods and the maximum of existing pods, for `replicas` desired ones. At least one of
    /// them differs from `replicas`, or nothing could be replaced.
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

/// A service: host ports that are balanced over the ready pods that a selector matches in its namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// ULID in lower case; never changes.
    pub id: String,
    /// Unique among the services of the namespace.
    pub name: String,
    /// Namespace of the service and its pods.
    pub namespace: String,
    /// Label selector for its pods. Empty matches none.
    pub selector: BTreeMap<String, String>,
    /// Its ports; each host port and protocol occurs once.
    pub ports: Vec<ServicePort>,
    /// Session affinity in seconds; `None` for no affinity.
    pub affinity_seconds: Option<u32>,
    /// Creation time.
    pub created_at: Timestamp,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Host port.
    pub port: u16,
    /// Pod port.
    pub target_port: u16,
    /// Transport protocol.
    pub protocol: super::Protocol,
    /// The protocol as the client wrote it, for display.
    pub written_protocol: String,
}

impl Pod {
    /// The pod that will keep the name: this one or, if it is being removed, its successor.
    pub fn standing(&self) -> Option<&Pod> {
        match self.goal {
            PodGoal::Removed => self.successor.as_deref(),
            PodGoal::Created | PodGoal::Running | PodGoal::Stopped => Some(self),
        }
    }
}

impl PodContainer {
    /// Its readiness check, if there is one.
    pub fn readiness(&self) -> Option<&HealthCheck> {
        self.request.options.readiness_check.as_ref()
    }
}
