//! `config.json` as this runtime reads it (`docs/spec/runtime.md` 5).
//!
//! The reader is lenient: files of the original (no `process.user`, `null` lists, hook arguments without argv\[0\]) and
//! of our daemon mean the same here. What libcontainer gets is derived from it (`bundle`), never the file itself.
//!
//! `create` keeps a private copy of the file; later verbs read that copy, so that an edit between two verbs has no
//! effect (X12).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use condenser::runtime::defaults::{ANNOTATION_CONFINED, ANNOTATION_INIT};
use condenser::runtime::mounts::{POLICY_ANNOTATION, Policy};
use serde::{Deserialize, Deserializer};

/// Annotation with the version of the `io.raind.*` annotations.
pub const ANNOTATION_VERSION: &str = "io.raind.runtime.annotation.version";
/// Annotation that says how hook arguments are meant (6.2).
pub const ANNOTATION_HOOK_ARGS: &str = "io.raind.hooks.args";
/// Annotation that holds [`NetConfig`] as JSON text.
pub const ANNOTATION_NET: &str = "io.raind.net.config";
/// Annotation that holds [`ImageConfig`] as JSON text.
pub const ANNOTATION_IMAGE: &str = "io.raind.image.config";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read; the error names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// It is not JSON of the expected shape.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// An annotation is not JSON of the expected shape.
    #[error("annotation {name}: {source}")]
    Annotation {
        /// Its key.
        name: &'static str,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// A required field is missing or has an impossible value.
    #[error("config.json: {0}")]
    Invalid(String),
}

/// The file. Unknown keys are ignored, `null` means absent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where the root file system is.
    pub root: Root,
    /// Bind mounts of the user, in order.
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<MountEntry>,
    /// What runs.
    pub process: Process,
    /// Host name of a new uts namespace.
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    /// Isolation and limits.
    pub linux: Linux,
    /// Programs to run at points of the life cycle.
    #[serde(deserialize_with = "nullable")]
    pub hooks: Hooks,
    /// Free text of the daemon; carried into `state.json`.
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// `root`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Mount point of the overlay (or, without an image annotation, the root file system itself).
    pub path: PathBuf,
    /// Whether the container may not write to it.
    #[serde(deserialize_with = "nullable")]
    pub readonly: bool,
}

/// `mounts[]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct MountEntry {
    /// Path in the container.
    pub destination: String,
    /// `""` or `bind`.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// Path on the host.
    pub source: String,
    /// Mount options.
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<String>,
}

impl MountEntry {
    /// Whether it is the shared memory of the container, which has a size of its own.
    pub fn is_shm(&self) -> bool {
        self.kind == "tmpfs" && self.source == "shm" && self.destination == "/dev/shm"
    }
}

/// `process`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    /// Whether it has a pseudo-terminal. Absent in files of the original, which only knows `create -t`.
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
    /// Who runs it; root when absent.
    #[serde(deserialize_with = "nullable")]
    pub user: User,
    /// Capability sets. A missing set is empty.
    #[serde(deserialize_with = "nullable")]
    pub capabilities: Capabilities,
    /// Resource limits.
    #[serde(deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    /// AppArmor profile (OCI place).
    #[serde(deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// `/proc/<pid>/oom_score_adj`; 0 when absent.
    #[serde(deserialize_with = "nullable")]
    pub oom_score_adj: i32,
}

/// `process.user`. Ids are those inside the container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask; 022 when absent.
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities`, names with `CAP_`.
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
    /// `RLIMIT_…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// `linux`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// Limits.
    #[serde(deserialize_with = "nullable")]
    pub resources: Resources,
    /// Absolute path of the cgroup; `/raind/<id>` when absent.
    #[serde(deserialize_with = "nullable")]
    pub cgroups_path: PathBuf,
    /// Namespaces to make or to join. What is not listed is shared with the host.
    #[serde(deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    /// User ids of a new user namespace; identity of 65535 when absent.
    #[serde(deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of a new user namespace; identity of 65535 when absent.
    #[serde(deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    /// System calls to refuse.
    pub seccomp: Option<Seccomp>,
    /// AppArmor profile (place of the original).
    #[serde(deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// Paths to hide, in addition to the built-in ones.
    #[serde(deserialize_with = "nullable")]
    pub masked_paths: Vec<String>,
    /// Paths to make read-only, in addition to the built-in ones.
    #[serde(deserialize_with = "nullable")]
    pub readonly_paths: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    #[serde(deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
}

/// `linux.resources`. Missing or not positive means no limit.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory.
    #[serde(deserialize_with = "nullable")]
    pub memory: Memory,
    /// Processor time.
    #[serde(deserialize_with = "nullable")]
    pub cpu: Cpu,
    /// Number of tasks.
    #[serde(deserialize_with = "nullable")]
    pub pids: Pids,
}

/// `linux.resources.memory`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Bytes.
    pub limit: Option<i64>,
    /// Memory and swap together, in bytes; -1 for no limit of swap.
    pub swap: Option<i64>,
}

impl Memory {
    /// Memory and swap together, where both are limited and fit.
    pub fn swap_limit(&self) -> Option<i64> {
        let limit = self.limit.filter(|limit| *limit > 0)?;
        self.swap.filter(|swap| *swap >= limit || *swap == -1)
    }
}

/// `linux.resources.cpu`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Microseconds of processor time per period.
    pub quota: Option<i64>,
    /// Microseconds.
    pub period: Option<u64>,
}

/// `linux.resources.pids`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Tasks; 512 when absent.
    pub limit: Option<i64>,
}

/// `linux.namespaces[]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Namespace {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// An existing one to join.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

/// Type of a namespace, in the words of the OCI runtime specification.
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
    /// Ignored.
    #[serde(other)]
    Unknown,
}

/// `linux.uidMappings[]`, `linux.gidMappings[]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// `linux.seccomp`. Only deny rules count; the default is to allow.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Seccomp {
    /// For the audit log.
    #[serde(deserialize_with = "nullable")]
    pub default_action: String,
    /// Rules.
    #[serde(deserialize_with = "nullable")]
    pub syscalls: Vec<SyscallRule>,
}

/// `linux.seccomp.syscalls[]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SyscallRule {
    /// Only `SCMP_ACT_ERRNO` is used.
    #[serde(deserialize_with = "nullable")]
    pub action: String,
    /// System calls.
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    /// Error number that the calls fail with; `EPERM` when absent.
    #[serde(rename = "errnoRet")]
    pub errno_ret: Option<u16>,
}

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
    /// Program, absolute.
    pub path: PathBuf,
    /// Arguments; whether they contain argv\[0\] says [`Config::hook_argv0`].
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// Complete environment.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u64>,
}

/// Content of [`ANNOTATION_NET`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetConfig {
    /// Bridge of the host end.
    #[serde(deserialize_with = "nullable")]
    pub bridge_interface: String,
    /// The veth pair.
    #[serde(deserialize_with = "nullable")]
    pub interface: NetInterface,
}

/// `interface` of [`NetConfig`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetInterface {
    /// Name of the host end.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Addresses.
    #[serde(deserialize_with = "nullable")]
    pub ipv4: Ipv4,
}

/// `interface.ipv4` of [`NetConfig`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Ipv4 {
    /// Address with prefix length, or empty.
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    /// Next hop of the default route, or empty.
    #[serde(deserialize_with = "nullable")]
    pub gateway: String,
}

/// Content of [`ANNOTATION_IMAGE`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageConfig {
    /// Always `overlay`.
    #[serde(deserialize_with = "nullable")]
    pub rootfs_type: String,
    /// Lower directories, topmost first.
    #[serde(deserialize_with = "nullable")]
    pub image_layer: Vec<PathBuf>,
    /// Upper directory.
    #[serde(deserialize_with = "nullable")]
    pub upper_dir: PathBuf,
    /// Work directory.
    #[serde(deserialize_with = "nullable")]
    pub work_dir: PathBuf,
}

impl Config {
    /// Parses the text of the file at `path` (which is only named in errors).
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = serde_json::from_slice(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })?;
        config.linux.namespaces.retain(|n| n.kind != NamespaceKind::Unknown);
        for namespace in &mut config.linux.namespaces {
            namespace.path.take_if(|path| path.as_os_str().is_empty());
        }
        Ok(config)
    }

    /// The network annotation; `None` when there is none.
    pub fn net(&self) -> Result<Option<NetConfig>, ConfigError> {
        self.annotation(ANNOTATION_NET)
    }

    /// The image annotation; `None` when there is none, and then `root.path` is a ready root file system.
    pub fn image(&self) -> Result<Option<ImageConfig>, ConfigError> {
        self.annotation(ANNOTATION_IMAGE)
    }

    /// Which sources its bind mounts may have.
    pub fn mount_policy(&self) -> Result<Policy, ConfigError> {
        Ok(self.annotation(POLICY_ANNOTATION)?.unwrap_or_else(Policy::of_runtime))
    }

    /// The namespace of this kind, if it is listed.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|n| n.kind == kind)
    }

    /// Whether hook arguments begin with argv\[0\], as OCI says (6.2, rule 3). The original leaves it out.
    pub fn hook_argv0(&self) -> bool {
        let argv0 = self.annotations.get(ANNOTATION_HOOK_ARGS).is_some_and(|v| v == "argv0");
        argv0 || self.annotations.get(ANNOTATION_VERSION).is_none_or(|v| v != "0.1.0")
    }

    /// The AppArmor profile that is asked for, wherever it is written.
    pub fn apparmor_profile(&self) -> Option<&str> {
        [&self.process.apparmor_profile, &self.linux.apparmor_profile]
            .into_iter()
            .map(|profile| profile.trim())
            .find(|profile| !profile.is_empty())
    }

    /// Whether a small init goes before the program.
    pub fn wants_init(&self) -> bool {
        self.annotations.get(ANNOTATION_INIT).is_some_and(|v| v == "true")
    }

    /// Whether the container may not run without its AppArmor profile.
    pub fn must_be_confined(&self) -> bool {
        self.annotations.get(ANNOTATION_CONFINED).is_some_and(|v| v == "true")
    }

    /// Size of `/dev/shm`, if it is not to have the usual one.
    pub fn shm_size(&self) -> Option<&str> {
        let shm = self.mounts.iter().find(|mount| mount.is_shm())?;
        shm.options.iter().find_map(|option| option.strip_prefix("size="))
    }

    fn annotation<'a, T: Deserialize<'a>>(&'a self, name: &'static str) -> Result<Option<T>, ConfigError> {
        self.annotations
            .get(name)
            .map(|text| serde_json::from_str(text).map_err(|source| ConfigError::Annotation { name, source }))
            .transpose()
    }
}

/// `null` is the same as absent.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text.as_bytes(), Path::new("config.json")).unwrap()
    }

    #[test]
    fn a_file_of_the_original_is_understood() {
        let config = parse(
            r#"{"root":{"path":"/r"},"mounts":null,"process":{"cwd":"/","args":["sh"],"env":null,
                "capabilities":{"bounding":["CAP_CHOWN"],"inheritable":null}},
                "linux":{"namespaces":[{"type":"mount"},{"type":"time"},{"type":"user","path":""}],"seccomp":null},
                "hooks":null,"annotations":{"io.raind.runtime.annotation.version":"0.1.0",
                "io.raind.net.config":"{\"interface\":{\"name\":\"rd_x\",\"dns\":{\"servers\":null}}}"}}"#,
        );
        assert_eq!(config.process.user, User::default());
        assert_eq!(config.process.capabilities.bounding, ["CAP_CHOWN"]);
        assert_eq!(config.linux.namespaces.len(), 2, "unknown namespaces are ignored");
        assert_eq!(config.namespace(NamespaceKind::User).unwrap().path, None);
        assert_eq!(config.net().unwrap().unwrap().interface.name, "rd_x");
        assert_eq!(config.image().unwrap(), None);
        assert!(!config.hook_argv0());
    }

    #[test]
    fn the_annotation_decides_what_hook_arguments_mean() {
        assert!(parse(r#"{"annotations":{}}"#).hook_argv0(), "plain OCI");
        let ours = r#"{"annotations":{"io.raind.runtime.annotation.version":"0.1.0","io.raind.hooks.args":"argv0"}}"#;
        assert!(parse(ours).hook_argv0());
    }

    #[test]
    fn an_unusable_annotation_is_named() {
        let config = parse(r#"{"annotations":{"io.raind.net.config":"{"}}"#);
        let error = config.net().unwrap_err().to_string();
        assert!(error.starts_with("annotation io.raind.net.config: "), "{error}");
    }
}
