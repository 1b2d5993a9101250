//! `hooks` of config.json.

use std::path::PathBuf;

use serde::Deserialize;

use super::nullable;

/// `hooks`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the names are those of the configuration; section 6.3 says when each runs"
)]
pub struct Hooks {
    #[serde(deserialize_with = "nullable")]
    pub create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "nullable")]
    pub create_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable")]
    pub start_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable")]
    pub poststart: Vec<Hook>,
    #[serde(deserialize_with = "nullable")]
    pub stop_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable")]
    pub poststop: Vec<Hook>,
}

/// `hooks.*[]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Arguments. [`Config::hook_argv0`](super::Config::hook_argv0) tells whether they include argv\[0\].
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// Complete environment.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Time-out in seconds.
    pub timeout: Option<u64>,
}
