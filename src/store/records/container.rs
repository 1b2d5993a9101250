use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A container, from the reservation of its name to the last step of its removal.
///
/// ```text
/// creating -> created -> running -> stopped -> (gone)
///    ^            \--------------------^  |
///    \------------------------------------/   restart
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// 12 characters of lower-case Crockford base32 (`contract/api.md` 4.1).
    pub id: String,
    /// Unique among all names and ids of containers.
    pub name: String,
    /// Pod that it is a member or the infra container of.
    pub pod_id: Option<String>,
    /// Bottle that manages it.
    pub bottle_id: Option<String>,
    /// Identity of its certificate, once one was issued.
    pub spiffe_id: Option<String>,
    /// Where it is in its life cycle.
    pub state: ContainerState,
    /// What the daemon is in the middle of. Recovery finishes or undoes it.
    pub operation: Option<Operation>,
    /// Its process, while there is one.
    pub process: Option<ProcessId>,
    /// How the last run ended. `None` before the first end and while it runs again.
    pub exit: Option<Exit>,
    /// Repository of its image as shown; always contains a `/`.
    pub image_repository: String,
    /// Tag or digest of its image.
    pub image_reference: String,
    /// Diff ids (`sha256:…`) of the layers its root file system stands on, bottom first. They stay while it lives.
    pub layers: Vec<String>,
    /// What runs in it.
    pub spec: ProcessSpec,
    /// Bind mounts as the client wrote them (`contract/api.md` 4.7).
    pub mounts: Vec<String>,
    /// Whether it has a pseudo-terminal.
    pub tty: bool,
    /// Its place in a network. `None` for members of a pod.
    pub attachment: Option<Attachment>,
    /// Published ports.
    pub forwards: Vec<Forward>,
    /// Whether the operation in progress may still have one certificate signed (`contract/security.md` S-04).
    pub certificate_due: bool,
    /// When its first `creating` began.
    pub creating_at: Option<Timestamp>,
    /// When the row was made, then when the runtime had created it.
    pub created_at: Option<Timestamp>,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last end.
    pub stopped_at: Option<Timestamp>,
}

/// The life cycle (`contract/api.md` 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// Reserved; the runtime has not finished.
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

/// The journal of a container: which operation of several steps is in progress.
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
    /// Port of the host.
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

impl Container {
    /// The interface of the container on the host: `rd_<id>`, 15 characters, the kernel's limit.
    pub fn veth(&self) -> String {
        format!("rd_{}", self.id)
    }
}
