use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Begins the ids of containers that run a step of a build.
const BUILD_PREFIX: &str = "build-";

/// A container, from the reservation of its name to the last step of its removal.
///
/// ```text
/// creating -> created -> running -> stopped -> (gone)
///    ^            \--------------------^  |
///    \------------------------------------/   restart
/// ```
/// Where a field belongs: what was asked for and would make the same container again is its [`spec`](ContainerSpec); what
/// became of that is its [`status`](ContainerStatus); what the daemon must know to go on, and no client is told as such,
/// is its [`journal`](Journal).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// 12 characters of lower-case Crockford base32, for a build step with `build-` before them (`docs/spec/api.md`
    /// 4.1).
    pub id: String,
    /// Unique among all names and ids of containers.
    pub name: String,
    /// What it is, and of what. For life.
    pub role: Role,
    /// What was asked for.
    pub spec: ContainerSpec,
    /// What became of it.
    pub status: ContainerStatus,
    /// What the daemon is in the middle of, and what it was told.
    pub journal: Journal,
}

/// What a container is, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A container of its own.
    Alone,
    /// It holds the namespaces, the address and the ports of a pod.
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
    /// It runs a step of a build.
    Build,
}

/// What was asked for, with what the image and the defaults say where the request does not. It changes only when a pod
/// publishes other ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// What its root file system stands on.
    pub image: ContainerImage,
    /// What runs in it.
    pub process: ProcessSpec,
    /// Whether it has a pseudo-terminal.
    pub tty: bool,
    /// Limits and other choices of the client.
    #[serde(default)]
    pub options: ContainerOptions,
    /// Bind mounts as the client wrote them (`docs/spec/api.md` 4.7).
    pub mounts: Vec<String>,
    /// Published ports.
    pub forwards: Vec<Forward>,
}

/// The image of a container, as it was when the container was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerImage {
    /// Repository as shown; always contains a `/`.
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
    /// Diff ids (`sha256:…`) of the layers, bottom first. They stay while the container lives.
    pub layers: Vec<String>,
}

/// What became of what was asked for, as clients see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Where it is in its life cycle.
    pub state: ContainerState,
    /// Its process, while there is one.
    pub process: Option<ProcessId>,
    /// How the last run ended. `None` before the first end and while it runs again.
    pub exit: Option<Exit>,
    /// Its place in a network. `None` for members of a pod.
    pub attachment: Option<Attachment>,
    /// Identity of its certificate, once one was issued.
    pub spiffe_id: Option<String>,
    /// How its health check goes. `None` without one, and while it does not run.
    #[serde(default)]
    pub health: Option<Health>,
    /// How its readiness check goes. `None` without one, and while it does not run.
    #[serde(default)]
    pub readiness: Option<Health>,
    /// What its health check says while it does not succeed, and what it said last when that ended the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_failure: Option<CheckFailure>,
    /// The same of its readiness check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_failure: Option<CheckFailure>,
    /// Since when its readiness check succeeds.
    #[serde(default)]
    pub ready_at: Option<Timestamp>,
    /// How often the restart policy has started it again since a user did.
    #[serde(default)]
    pub restarts: u32,
    /// When its first `creating` began.
    pub creating_at: Option<Timestamp>,
    /// When the row was made, then when the runtime had created it.
    pub created_at: Option<Timestamp>,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last end.
    pub stopped_at: Option<Timestamp>,
}

/// What the daemon must know to go on after any end of its own, and what it was told to do or leave.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Journal {
    /// What the daemon is in the middle of. Recovery finishes or undoes it.
    pub operation: Option<Operation>,
    /// Whether the operation in progress may still have one certificate signed (`docs/spec/security.md` S-04).
    pub certificate_due: bool,
    /// Whether a start is at work on it, so that its ports are published before its program runs.
    #[serde(default)]
    pub starting: bool,
    /// Whether a user stopped it, or made it in a pod and has not started it yet; then no policy starts it.
    #[serde(default)]
    pub stopped_by_user: bool,
    /// Those of its restarts that no run of some length has followed yet.
    #[serde(default)]
    pub retries: Retries,
    /// The infra process whose namespaces its process shares since it was created last. `None` for all but members of
    /// a pod.
    #[serde(default)]
    pub joined: Option<ProcessId>,
}

/// The life cycle (`docs/spec/api.md` 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// Reserved; the runtime has not finished.
    #[default]
    Creating,
    /// Set up; the process waits for the start.
    Created,
    /// The process runs.
    Running,
    /// The process ended.
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
    /// First creation. After a crash everything of it is undone, the row included.
    Create,
    /// A stopped container is created again. After a crash it is stopped, with all that it owns.
    Restart,
    /// Removal. After a crash it is finished.
    Delete,
}

/// A process that cannot be confused with a later one of the same number.
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
    /// Exit status, 128 + signal number, or -1 when nobody knows.
    pub code: i32,
    /// `Completed`, `Error` or `OOMKilled`.
    pub reason: String,
    /// Free text; may be empty.
    pub message: String,
}

/// The process of a container: `process` of the OCI runtime specification, as far as it is settled at creation.
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

/// Restarts in a row, from which the delay of the next one follows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retries {
    /// How many there were.
    pub in_a_row: u32,
    /// When the last one was tried, whatever came of it.
    pub last: Option<Timestamp>,
}

/// What a client may choose beyond the contract's defaults. `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerOptions {
    /// Host name; the container's id when not set.
    pub hostname: Option<String>,
    /// Free words for clients.
    pub labels: BTreeMap<String, String>,
    /// Most memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Most memory and swap together, in bytes; -1 for as much swap as the host has. Not set: no swap.
    pub memory_swap: Option<i64>,
    /// Most processor time, in thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Most processes and threads.
    pub pids: Option<u32>,
    /// The capabilities (`CAP_…`) instead of the default set.
    pub capabilities: Option<Vec<String>>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: Option<u64>,
    /// Resource limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Whether a small init is its first process and the program the second.
    pub init: bool,
    /// Whether a read-only container has `/run`, `/tmp` and `/var/tmp` in memory.
    pub read_only_tmpfs: Option<bool>,
    /// File systems in memory as the client wrote them: `destination[:options]`.
    pub tmpfs: Vec<String>,
    /// Signal that asks it to end, as a name with `SIG`.
    pub stop_signal: Option<String>,
    /// How long it may take to end before it is killed, in seconds.
    pub stop_seconds: Option<u32>,
    /// Whether it is started again when it ends.
    pub restart: RestartPolicy,
    /// How to find out whether it works.
    pub health_check: Option<HealthCheck>,
    /// Whether an unhealthy container is ended, so that its restart policy takes over (a liveness probe).
    #[serde(default)]
    pub end_unhealthy: bool,
    /// Whether it must not run as root, also where only the image says who it runs as.
    #[serde(default)]
    pub not_root: bool,
    /// How to find out whether a service may send it clients.
    #[serde(default)]
    pub readiness_check: Option<HealthCheck>,
}

/// A resource limit of a process (`getrlimit(2)`). `u64::MAX` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Which one, as the kernel names it (`RLIMIT_NOFILE`).
    pub resource: String,
    /// What a process gets.
    pub soft: u64,
    /// What it may raise that to.
    pub hard: u64,
}

/// What happens when a container ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// It is started again unless its exit status was 0.
    OnFailure {
        /// At most that often in a row; 0 for any number.
        max_retries: u32,
    },
    /// It is started again, also after a restart of the daemon or the host.
    Always,
}

/// A health check. Times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// From the end of a try to the next one.
    pub interval: u32,
    /// How long a try may take.
    pub timeout: u32,
    /// How many failures in a row make it unhealthy.
    pub retries: u32,
    /// How many successes in a row make it healthy.
    pub successes: u32,
    /// How long after a start failures do not count.
    pub start_period: u32,
    /// From the end of a try to the next one in that time; one second, or the interval if that is shorter, when not set.
    #[serde(default)]
    pub start_interval: Option<u32>,
}

/// One way of asking a container whether it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A command in the container succeeds.
    Exec(Vec<String>),
    /// A TCP port of the container accepts connections.
    Tcp(u16),
    /// A GET of this path, at this port of the container, is answered with a status from 200 to 399.
    Http {
        /// Path and query.
        path: String,
        /// TCP port.
        port: u16,
    },
}

/// What the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing yet.
    Starting,
    /// The last try succeeded.
    Healthy,
    /// Too many tries in a row failed.
    Unhealthy,
}

/// What a check says that does not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckFailure {
    /// Why the last try failed, and the end of what it put out or was answered.
    pub output: String,
    /// Since when tries fail.
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
    /// Address of the host that it is published at; 0.0.0.0 for all of them, `None` for the configured one
    /// (`publish_address`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<Ipv4Addr>,
    /// Port of the host; in a request 0 for any that is free.
    pub host_port: u16,
    /// Port of the container.
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
    /// Whether `other` is what this one asks for.
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
    /// The pod that it is the infra container or a member of.
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
    /// A container of which nothing is there yet, and that nothing is at work on.
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

    /// The row that its first creation begins with.
    pub fn being_created(mut self, now: Timestamp) -> Self {
        self.status.creating_at = Some(now);
        self.status.created_at = Some(now);
        self.journal.operation = Some(Operation::Create);
        self.journal.certificate_due = true;
        self
    }

    /// Whether its ports lead to it: from shortly before its program runs until it has ended.
    pub fn is_published(&self) -> bool {
        let runs = self.journal.starting || self.status.state == ContainerState::Running;
        runs && self.journal.operation != Some(Operation::Delete)
    }

    /// The interface of the container on the host: `rd_` and the twelve characters of the id, 15 in all, the kernel's
    /// limit.
    pub fn veth(&self) -> String {
        format!("rd_{}", self.id.strip_prefix(BUILD_PREFIX).unwrap_or(&self.id))
    }

    /// Whether it runs a step of a build.
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
