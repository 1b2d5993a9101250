//! `process` of config.json.

use std::path::PathBuf;

use serde::Deserialize;

use super::nullable;

/// `process`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    /// Whether the process has a pseudo-terminal. Absent in files of the original, which only knows `create -t`.
    pub terminal: Option<bool>,
    /// Working directory.
    #[serde(deserialize_with = "nullable")]
    pub cwd: PathBuf,
    /// Environment, `NAME=value`.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Program and arguments.
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// User; root if absent.
    #[serde(deserialize_with = "nullable")]
    pub user: User,
    /// Capability sets. An absent set is empty.
    #[serde(deserialize_with = "nullable")]
    pub capabilities: Capabilities,
    /// Resource limits.
    #[serde(deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    /// AppArmor profile, where OCI has it.
    #[serde(deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// `/proc/<pid>/oom_score_adj`; 0 if absent.
    #[serde(deserialize_with = "nullable")]
    pub oom_score_adj: i32,
}

/// `process.user`, with ids inside the container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask; 022 if absent.
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities`. Names begin with `CAP_`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, serde::Serialize)]
#[serde(default)]
pub struct Capabilities {
    /// Bounding set.
    #[serde(deserialize_with = "nullable")]
    pub bounding: Vec<String>,
    /// Effective set.
    #[serde(deserialize_with = "nullable")]
    pub effective: Vec<String>,
    /// Permitted set.
    #[serde(deserialize_with = "nullable")]
    pub permitted: Vec<String>,
    /// Inheritable set.
    #[serde(deserialize_with = "nullable")]
    pub inheritable: Vec<String>,
    /// Ambient set.
    #[serde(deserialize_with = "nullable")]
    pub ambient: Vec<String>,
}

/// `process.rlimits[]`.
#[derive(Debug, Clone, PartialEq, Deserialize, serde::Serialize)]
pub struct Rlimit {
    /// Name, such as `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}
