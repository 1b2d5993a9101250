//! `linux` of config.json.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::id_mapping::IdMapping;
use super::nullable;

/// `linux`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// Limits.
    #[serde(deserialize_with = "nullable")]
    pub resources: Resources,
    /// Absolute path of the cgroup; `/raind/<id>` if absent.
    #[serde(deserialize_with = "nullable")]
    pub cgroups_path: PathBuf,
    /// Namespaces to create or to join. The container shares all others with the host.
    #[serde(deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    /// User ids of a new user namespace; the identity mapping of 65535 ids if absent.
    #[serde(deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of a new user namespace; the identity mapping of 65535 ids if absent.
    #[serde(deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    /// System calls to deny.
    pub seccomp: Option<Seccomp>,
    /// AppArmor profile, where the original has it.
    #[serde(deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// Paths to mask, in addition to the built-in ones.
    #[serde(deserialize_with = "nullable")]
    pub masked_paths: Vec<String>,
    /// Paths to make read-only, in addition to the built-in ones.
    #[serde(deserialize_with = "nullable")]
    pub readonly_paths: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    #[serde(deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
}

/// `linux.resources`. An absent value, zero and a negative value mean no limit.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory limits.
    #[serde(deserialize_with = "nullable")]
    pub memory: Memory,
    /// CPU limits.
    #[serde(deserialize_with = "nullable")]
    pub cpu: Cpu,
    /// Limit of tasks.
    #[serde(deserialize_with = "nullable")]
    pub pids: Pids,
}

/// `linux.resources.memory`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Memory in bytes.
    pub limit: Option<i64>,
    /// Memory plus swap in bytes; -1 for no swap limit.
    pub swap: Option<i64>,
}

impl Memory {
    /// Returns the limit of memory plus swap, if memory is limited too and the value is valid.
    pub fn swap_limit(&self) -> Option<i64> {
        let limit = self.limit.filter(|limit| *limit > 0)?;
        self.swap.filter(|swap| *swap >= limit || *swap == -1)
    }
}

/// `linux.resources.cpu`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// CPU time per period, in microseconds.
    pub quota: Option<i64>,
    /// Length of a period, in microseconds.
    pub period: Option<u64>,
}

/// `linux.resources.pids`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Number of tasks; 512 if absent.
    pub limit: Option<i64>,
}

/// `linux.namespaces[]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Namespace {
    /// Type of the namespace.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// Path of an existing namespace to join.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

/// Type of a namespace, as in the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are those of the kernel")]
pub enum NamespaceKind {
    Mount,
    Network,
    Uts,
    Pid,
    Ipc,
    User,
    Cgroup,
    /// Any other type. It is ignored.
    #[serde(other)]
    Unknown,
}

/// `linux.seccomp`. Only deny rules are used; the default is to allow.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Seccomp {
    /// Default action, for the audit log only.
    #[serde(deserialize_with = "nullable")]
    pub default_action: String,
    /// Rules for system calls.
    #[serde(deserialize_with = "nullable")]
    pub syscalls: Vec<SyscallRule>,
}

/// `linux.seccomp.syscalls[]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SyscallRule {
    /// Action. Only `SCMP_ACT_ERRNO` is used.
    #[serde(deserialize_with = "nullable")]
    pub action: String,
    /// Names of system calls.
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    /// Error number of a denied call; `EPERM` if absent.
    #[serde(rename = "errnoRet")]
    pub errno_ret: Option<u16>,
}
