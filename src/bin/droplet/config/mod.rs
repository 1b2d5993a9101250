//! Reads `config.json` (`docs/spec/runtime.md` 5).
//!
//! The reader is lenient: it accepts files of the original (no `process.user`, `null` lists, hook arguments without
//! argv\[0\]) and files of our daemon. libcontainer never gets this file, but a bundle derived from it.
//!
//! `create` copies the file; later verbs read the copy, so an edit between two verbs has no effect (X12).

mod annotations;
mod hooks;
pub mod id_mapping;
mod linux;
mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use condenser::runtime::defaults::{ANNOTATION_CONFINED, ANNOTATION_INIT};
use condenser::runtime::mounts::{MountPolicy, POLICY_ANNOTATION};
use serde::{Deserialize, Deserializer};

pub use annotations::{
    ANNOTATION_HOOK_ARGS, ANNOTATION_IMAGE, ANNOTATION_NET, ANNOTATION_VERSION, ImageConfig, NetConfig,
};
pub use hooks::{Hook, Hooks};
use linux::Namespace;
pub use linux::{Linux, NamespaceKind, Resources};
pub use process::{Capabilities, Process, Rlimit, User};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read. The error names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// The file is not JSON of the expected shape.
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
        /// Key of the annotation.
        name: &'static str,
        /// Position and reason.
        source: serde_json::Error,
    },
    /// A required field is missing or has an invalid value.
    #[error("config.json: {0}")]
    Invalid(String),
}

/// The content of `config.json`. Unknown keys are ignored; `null` means absent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The root file system.
    pub root: Root,
    /// The user's mounts, in order.
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<MountEntry>,
    /// The program and its settings.
    pub process: Process,
    /// Host name in a new UTS namespace.
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    /// Isolation and limits.
    pub linux: Linux,
    /// Programs to run during the life cycle.
    #[serde(deserialize_with = "nullable")]
    pub hooks: Hooks,
    /// Annotations of the daemon. They are copied into `state.json`.
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// `root`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Mount point of the overlay (or, without an image annotation, the root file system itself).
    pub path: PathBuf,
    /// Whether the root file system is read-only.
    #[serde(deserialize_with = "nullable")]
    pub readonly: bool,
}

/// `mounts[]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct MountEntry {
    /// Path in the container.
    pub destination: String,
    /// Type: `""`, `bind` or `tmpfs`.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// Path on the host.
    pub source: String,
    /// Mount options.
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<String>,
}

impl MountEntry {
    /// Returns whether this is `/dev/shm`, to set its size.
    pub fn is_shm(&self) -> bool {
        self.kind == "tmpfs" && self.source == "shm" && self.destination == "/dev/shm"
    }
}

impl Config {
    /// Parses the text of the file at `path`. The path is only for error messages.
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

    /// Returns the network annotation, or `None` if there is none.
    pub fn net(&self) -> Result<Option<NetConfig>, ConfigError> {
        self.annotation(ANNOTATION_NET)
    }

    /// Returns the image annotation, or `None` if there is none. Without it, `root.path` is a complete root file
    /// system.
    pub fn image(&self) -> Result<Option<ImageConfig>, ConfigError> {
        self.annotation(ANNOTATION_IMAGE)
    }

    /// Returns the policy for the sources of bind mounts.
    pub fn mount_policy(&self) -> Result<MountPolicy, ConfigError> {
        Ok(self
            .annotation(POLICY_ANNOTATION)?
            .unwrap_or_else(MountPolicy::of_runtime))
    }

    /// Returns the namespace of this type, if it is listed.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|n| n.kind == kind)
    }

    /// Returns whether hook arguments begin with argv\[0\], as in OCI (6.2, rule 3). In files of the original they do
    /// not.
    pub fn hook_argv0(&self) -> bool {
        let argv0 = self.annotations.get(ANNOTATION_HOOK_ARGS).is_some_and(|v| v == "argv0");
        argv0 || self.annotations.get(ANNOTATION_VERSION).is_none_or(|v| v != "0.1.0")
    }

    /// Returns the configured AppArmor profile, from either place.
    pub fn apparmor_profile(&self) -> Option<&str> {
        [&self.process.apparmor_profile, &self.linux.apparmor_profile]
            .into_iter()
            .map(|profile| profile.trim())
            .find(|profile| !profile.is_empty())
    }

    /// Returns whether the program runs under a small init process.
    pub fn wants_supervisor(&self) -> bool {
        self.annotations.get(ANNOTATION_INIT).is_some_and(|v| v == "true")
    }

    /// Returns whether the container must not run without its AppArmor profile.
    pub fn requires_apparmor(&self) -> bool {
        self.annotations.get(ANNOTATION_CONFINED).is_some_and(|v| v == "true")
    }

    /// Returns the size of `/dev/shm`, if it is not the default.
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

/// Deserializes `null` as the default value.
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
    fn a_file_of_the_original_is_accepted() {
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
    fn the_annotation_tells_whether_hook_arguments_include_argv0() {
        assert!(parse(r#"{"annotations":{}}"#).hook_argv0(), "plain OCI");
        let ours = r#"{"annotations":{"io.raind.runtime.annotation.version":"0.1.0","io.raind.hooks.args":"argv0"}}"#;
        assert!(parse(ours).hook_argv0());
    }

    #[test]
    fn an_invalid_annotation_is_named() {
        let config = parse(r#"{"annotations":{"io.raind.net.config":"{"}}"#);
        let error = config.net().unwrap_err().to_string();
        assert!(error.starts_with("annotation io.raind.net.config: "), "{error}");
    }
}
