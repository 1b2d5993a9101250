use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Prefix of the ids of containers that run a build step.
const BUILD_PREFIX: &str = "build-";

/// A container, from the reservation of its name to the last step of its removal.
///
/// ```text
/// creating -> created -> running -> stopped -> (gone)
///    ^            \--------------------^  |
///    \------------------------------------/   restart
/// ```
/// Where a field belongs: the [`spec`](ContainerSpec) holds what was requested and would create the same container
/// again; the [`status`](ContainerStatus) holds the observed state; the [`journal`](Journal) holds what the daemon
/// needs to resume its work and clients do not see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// 12 characters of lower-case Crockford base32, with the prefix `build-` for a build step (`docs/spec/api.md`
    /// 4.1).
    pub id: String,
    /// Unique among all names and ids of containers.
    pub name: String,
    /// What the container is part of; never changes.
    pub role: Role,
    /// The requested configuration.
    pub spec: ContainerSpec,
    /// The observed state.
    pub status: ContainerStatus,
    /// The operation in progress and other internal state.
    pub journal: Journal,
}

/// What a container is part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A standalone container.
    Alone,
    /// The infra container: it holds the namespaces, the address and the ports of a pod.
    Infra {
        /// Id of the pod.
        pod: String,
    },
    /// It joins the namespaces of a pod's infra container.
    Member {
        /// Id of the pod.
        pod: String,
    },
    /// The container of a service of a bottle, which manages it.
    Service {
        /// Id of the bottle.
        bottle: String,
    },
    /// It runs a build step.
    Build,
}

/// The requested configuration, completed from the image and the defaults. It changes only when a pod publishes other
/// ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The image it was created from.
    pub image: ContainerImage,
    /// Its process.
    pub process: ProcessSpec,
    /// Whether it has a pseudo-terminal.
    pub tty: bool,
    /// Limits and other options.
    #[serde(default)]
    pub options: ContainerOptions,
    /// Bind mounts as the client wrote them (`docs/spec/api.md` 4.7).
    pub mounts: Vec<String>,
    /// Published ports.
    pub forwards: Vec<Forward>,
    /// What it takes over from its image.
    #[serde(default)]
    pub inherited: Inherited,
}

/// Settings of the image, as of the container's creation, that the request does not replace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inherited {
    /// Paths in the container at which it has an anonymous volume. The place in this list names the volume's directory.
    pub volumes: Vec<String>,
    /// Ports that the image exposes: `80/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// Annotations of the image that the runtime gets.
    pub annotations: BTreeMap<String, String>,
}

/// The image of a container, as of the container's creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerImage {
    /// Repository as displayed; always contains a `/`.
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
    /// Diff ids (`sha256:…`) of the layers, bottom first. These layers are kept as long as the container exists.
    pub layers: Vec<String>,
}

/// The observed state, as clients see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Where it is in its life cycle.
    pub state: ContainerState,
    /// Its process, while it runs.
    pub process: Option<ProcessId>,
    /// How the last run ended. `None` before the first exit and while it runs again.
    pub exit: Option<Exit>,
    /// Its network and address. `None` for members of a pod.
    pub attachment: Option<Attachment>,
    /// Identity in its certificate, once one was issued.
    pub spiffe_id: Option<String>,
    /// Health status. `None` if there is no health check or the container does not run.
    #[serde(default)]
    pub health: Option<Health>,
    /// Readiness status. `None` if there is no readiness check or the container does not run.
    #[serde(default)]
    pub readiness: Option<Health>,
    /// The last failure of its health check: the current one, or the one that ended the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_failure: Option<CheckFailure>,
    /// The same for its readiness check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_failure: Option<CheckFailure>,
    /// Since when its readiness check has succeeded.
    #[serde(default)]
    pub ready_at: Option<Timestamp>,
    /// How often the restart policy has restarted it since a user last started it.
    #[serde(default)]
    pub restarts: u32,
    /// When its first `creating` began.
    pub creating_at: Option<Timestamp>,
    /// When the row was inserted, later when the runtime created the container.
    pub created_at: Option<Timestamp>,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last end.
    pub stopped_at: Option<Timestamp>,
}

/// Internal state that must survive a crash of the daemon.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Journal {
    /// The operation in progress. Recovery finishes or undoes it.
    pub operation: Option<Operation>,
    /// Whether the operation in progress may still have one certificate signed (`docs/spec/security.md` S-04).
    pub certificate_due: bool,
    /// Whether a start is in progress: its ports are published before its program runs.
    #[serde(default)]
    pub starting: bool,
    /// Whether a user stopped it, or created it in a pod and has not started it yet; if so, no policy starts it.
    #[serde(default)]
    pub stopped_by_user: bool,
    /// Restarts since the last long run.
    #[serde(default)]
    pub retries: Retries,
    /// The infra process whose namespaces its process joined when it was last created. Only members of a pod have one.
    #[serde(default)]
    pub joined: Option<ProcessId>,
}

/// The life cycle (`docs/spec/api.md` 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// Reserved; the runtime has not created it yet.
    #[default]
    Creating,
    /// Created; the process waits for the start.
    Created,
    /// The process runs.
    Running,
    /// The process has exited.
    Stopped,
}

impl std::fmt::Display for ContainerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

/// An operation of several steps that is in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// First creation. After a crash all of it is undone, including the row.
    Create,
    /// A stopped container is created again. After a crash it is stopped and keeps all that it owns.
    Restart,
    /// Removal. After a crash it is finished.
    Delete,
}

/// A process, identified so that a later one with the same pid is not mistaken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the host's pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot; 0 when unknown.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`; empty when unknown.
    pub boot_id: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, 128 + signal number, or -1 if unknown.
    pub code: i32,
    /// `Completed`, `Error` or `OOMKilled`.
    pub reason: String,
    /// Free text; may be empty.
    pub message: String,
}

/// The process of a container: `process` of the OCI runtime specification, as far as it is fixed at creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Argument vector, never empty.
    pub args: Vec<String>,
    /// `KEY=VALUE` entries: the image's, then the client's, then presets.
    pub env: Vec<String>,
    /// Working directory inside the container.
    pub cwd: String,
    /// Numeric user id inside the container.
    pub uid: u32,
    /// Numeric primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Consecutive restarts, from which the delay before the next one is computed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retries {
    /// The number of restarts.
    pub in_a_row: u32,
    /// When the last one was attempted, successful or not.
    pub last: Option<Timestamp>,
}

/// What a client may choose beyond the contract's defaults. `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerOptions {
    /// Host name; defaults to the container's id.
    pub hostname: Option<String>,
    /// Labels: the image's, and those of the request, which win.
    pub labels: BTreeMap<String, String>,
    /// Memory limit, in bytes.
    pub memory_bytes: Option<u64>,
    /// Limit of memory and swap together, in bytes; -1 for unlimited swap. Not set: no swap.
    pub memory_swap: Option<i64>,
    /// CPU limit, in thousandths of a CPU.
    pub cpu_millis: Option<u32>,
    /// Limit of processes and threads.
    pub pids: Option<u32>,
    /// The capabilities (`CAP_…`) that replace the default set.
    pub capabilities: Option<Vec<String>>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: Option<u64>,
    /// Resource limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Whether a small init runs as pid 1 and the program as its child.
    pub init: bool,
    /// Whether a read-only container has `/run`, `/tmp` and `/var/tmp` as tmpfs.
    pub read_only_tmpfs: Option<bool>,
    /// tmpfs mounts as the client wrote them: `destination[:options]`.
    pub tmpfs: Vec<String>,
    /// Stop signal, as a name with `SIG`.
    pub stop_signal: Option<String>,
    /// Grace period before it is killed, in seconds.
    pub stop_seconds: Option<u32>,
    /// Restart policy.
    pub restart: RestartPolicy,
    /// Health check.
    pub health_check: Option<HealthCheck>,
    /// Whether an unhealthy container is stopped so that its restart policy applies (a liveness probe).
    #[serde(default)]
    pub end_unhealthy: bool,
    /// Whether it must not run as root, even if only the image sets the user.
    #[serde(default)]
    pub not_root: bool,
    /// Readiness check: whether services may send it clients.
    #[serde(default)]
    pub readiness_check: Option<HealthCheck>,
}

/// A resource limit of a process (`getrlimit(2)`). `u64::MAX` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The limit, as the kernel names it (`RLIMIT_NOFILE`).
    pub resource: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What to do when a container exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// It is started again unless its exit status was 0.
    OnFailure {
        /// Limit of consecutive restarts; 0 for no limit.
        max_retries: u32,
    },
    /// It is restarted, also after a restart of the daemon or the host.
    Always,
}

/// A health check. Times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The probe.
    pub probe: Probe,
    /// From the end of a probe to the next one.
    pub interval: u32,
    /// Timeout of a probe.
    pub timeout: u32,
    /// Consecutive failures that make it unhealthy.
    pub retries: u32,
    /// Consecutive successes that make it healthy.
    pub successes: u32,
    /// Start period: failures do not count for this long after a start.
    pub start_period: u32,
    /// Interval during the start period; defaults to one second, or to the normal interval if that is shorter.
    #[serde(default)]
    pub start_interval: Option<u32>,
}

/// One kind of probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A command in the container succeeds.
    Exec(Vec<String>),
    /// A TCP port of the container accepts connections.
    Tcp(u16),
    /// A GET of this path, at this port of the container, returns a status from 200 to 399.
    Http {
        /// Path and query.
        path: String,
        /// TCP port.
        port: u16,
    },
}

/// Health status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No result yet.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// Too many consecutive probes failed.
    Unhealthy,
}

/// A failing check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckFailure {
    /// Why the last probe failed, and the end of its output or response.
    pub output: String,
    /// Since when probes have failed.
    pub since: Timestamp,
}

/// An address in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the network, which is the name of its bridge.
    pub network: String,
    /// Address of the container.
    pub address: Ipv4Addr,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Host address that it is published at; 0.0.0.0 for all addresses, `None` for the configured one
    /// (`publish_address`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<Ipv4Addr>,
    /// Host port; 0 in a request for any free one.
    pub host_port: u16,
    /// Container port.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Forward {
    /// Whether `other` satisfies this request.
    pub fn allows(&self, other: &Self) -> bool {
        let host_port = match self.host_port {
            0 => other.host_port,
            wanted => wanted,
        };
        *other
            == Self {
                host_port,
                ..self.clone()
            }
    }
}

impl Role {
    /// The pod of which it is the infra container or a member.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Infra { pod } | Self::Member { pod } => Some(pod),
            Self::Alone | Self::Service { .. } | Self::Build => None,
        }
    }

    /// The bottle that manages it.
    pub fn bottle(&self) -> Option<&str> {
        match self {
            Self::Service { bottle } => Some(bottle),
            Self::Alone | Self::Infra { .. } | Self::Member { .. } | Self::Build => None,
        }
    }
}

impl Container {
    /// A row for a container that does not exist yet, without an operation in progress.
    pub fn new(id: String, name: String, role: Role, spec: ContainerSpec) -> Self {
        Self {
            id,
            name,
            role,
            spec,
            status: ContainerStatus::default(),
            journal: Journal::default(),
        }
    }

    /// The row that its first creation starts with.
    pub fn being_created(mut self, now: Timestamp) -> Self {
        self.status.creating_at = Some(now);
        self.status.created_at = Some(now);
        self.journal.operation = Some(Operation::Create);
        self.journal.certificate_due = true;
        self
    }

    /// Whether its ports are forwarded: from shortly before its program runs until it has exited.
    pub fn is_published(&self) -> bool {
        let runs = self.journal.starting || self.status.state == ContainerState::Running;
        runs && self.journal.operation != Some(Operation::Delete)
    }

    /// The container's interface on the host: `rd_` and the twelve characters of the id, 15 in all, the kernel's limit.
    pub fn veth(&self) -> String {
        format!("rd_{}", self.id.strip_prefix(BUILD_PREFIX).unwrap_or(&self.id))
    }

    /// Whether it runs a build step.
    pub fn is_build(&self) -> bool {
        self.role == Role::Build
    }

    /// Whether it holds the namespaces of a pod.
    pub fn is_infra(&self) -> bool {
        matches!(self.role, Role::Infra { .. })
    }

    /// Whether it joins the namespaces of a pod's infra container.
    pub fn is_member(&self) -> bool {
        matches!(self.role, Role::Member { .. })
    }
}

#[cfg(test)]
mod tests {
    use crate::model::fixtures::container;

    #[test]
    fn the_name_of_an_interface_has_at_most_fifteen_characters() {
        assert_eq!(container("01kg2cnf0ytv", "web").veth(), "rd_01kg2cnf0ytv");
        assert_eq!(container("build-01kg2cnf0ytv", "x").veth(), "rd_01kg2cnf0ytv");
    }
}
