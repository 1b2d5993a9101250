//! The runtime's `state.json` (`docs/spec/runtime.md` 3.1) and the exit recorded in it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::{Exit, ProcessId};

/// Status of a container according to the runtime, with the names of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is running.
    Creating,
    /// The container is set up; init waits for `start`.
    Created,
    /// Init was released.
    Running,
    /// Init has exited.
    Stopped,
}

/// The file; also the payload of hooks. The original runtime ignores keys that it does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeState {
    /// Always `1.3.0`.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// Status of the container.
    pub status: Status,
    /// Pid of init in the host's pid namespace; 0 in `creating` and `stopped`.
    #[serde(default)]
    pub pid: i32,
    /// Pid of the monitor of a container with a terminal; otherwise 0.
    #[serde(default)]
    pub shim_pid: i32,
    /// `root.path` of the configuration.
    #[serde(default)]
    pub rootfs: String,
    /// The container's directory.
    #[serde(default)]
    pub bundle: String,
    /// Exit status or 128 + signal number; -1 if unknown. Absent before the first exit.
    #[serde(default, rename = "exit_code", skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// `Completed`, `OOMKilled` or `Error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the run ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Out-of-memory counters of the cgroup at the end of the run, read before it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_events: Option<MemoryEvents>,
    /// Start time of init: field 22 of `/proc/<pid>/stat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_start_time: Option<u64>,
    /// Id of the boot in which `pid` is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// All annotations of the configuration.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// How often a cgroup ran out of memory (`memory.events` of cgroup v2; v1 counts only the kills).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryEvents {
    /// Number of times that memory ran out.
    pub oom: u64,
    /// Number of processes killed for it.
    pub oom_kill: u64,
}

/// Reason of an exit with status 0.
pub const REASON_COMPLETED: &str = "Completed";
/// Reason of any other exit.
pub const REASON_ERROR: &str = "Error";
/// Reason of an exit caused by the kernel's out-of-memory killer.
pub const REASON_OOM: &str = "OOMKilled";

impl RuntimeState {
    /// Reads the file. `Ok(None)` if it does not exist.
    pub fn read(path: &Path) -> std::io::Result<Option<Self>> {
        match fs_err::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Identity of init; `None` if there is none.
    pub fn process(&self) -> Option<ProcessId> {
        (self.pid > 0).then(|| ProcessId {
            pid: self.pid,
            start_time: self.pid_start_time.unwrap_or(0),
            boot_id: self.boot_id.clone().unwrap_or_default(),
        })
    }

    /// The exit of the run, if the runtime recorded it.
    pub fn exit(&self) -> Option<Exit> {
        self.exit_code.map(|code| Exit {
            code,
            reason: self.reason.clone().unwrap_or_default(),
            message: self.message.clone().unwrap_or_default(),
        })
    }
}
