//! Configuration: built-in defaults < file < environment < flags.
//!
//! [`Settings`] is one layer in which every value is optional; the same struct is the command line (with its
//! environment variables) and the TOML file, so a value can never exist in one and be missing from the other.
//! [`Config`] is the validated result of all layers. It is built once in `main` and passed down; nothing reads it
//! globally.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::image::{ImageRef, Registries, RegistryEntries};
use crate::net::{DEFAULT_SUBNET, HOOK_PORT};
use crate::observe::logs::LogLimits;

/// Path of the configuration file if `--config` is not given. The file need not exist.
pub const DEFAULT_FILE: &str = "/etc/raind/condenser.toml";

/// One layer of configuration. `None` defers to the layer below.
#[derive(Debug, Default, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Directory of state, images, containers and certificates [default: /etc/raind]
    #[arg(long, env = "CONDENSER_ROOT_DIR", value_name = "DIR")]
    pub root_dir: Option<PathBuf>,
    /// Directory of the log files that others read (audit, netflow, DNS, metrics) [default: /var/log/raind]
    #[arg(long, env = "CONDENSER_LOG_DIR", value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Directory of volatile files [default: /run/raind]
    #[arg(long, env = "CONDENSER_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Format of the daemon's own log on standard error: text or json [default: text]
    #[arg(long, env = "CONDENSER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Filter of the daemon's own log, as in `info,condenser::image=debug` [default: info]
    #[arg(long, env = "CONDENSER_LOG_LEVEL", value_name = "FILTER")]
    pub log_level: Option<String>,
    /// Address of the management API [default: 127.0.0.1:7755]
    #[arg(long, env = "CONDENSER_MANAGEMENT_ADDRESS", value_name = "ADDR:PORT")]
    pub management_address: Option<SocketAddr>,
    /// Addresses of the hook listener [default: port 7756 of loopback, the host's address and the bridges]
    #[arg(
        long,
        env = "CONDENSER_HOOK_ADDRESSES",
        value_name = "ADDR:PORT",
        value_delimiter = ','
    )]
    pub hook_addresses: Option<Vec<SocketAddr>>,
    /// Address of the certificate listener [default: 127.0.0.1:7757]
    #[arg(long, env = "CONDENSER_CA_ADDRESS", value_name = "ADDR:PORT")]
    pub ca_address: Option<SocketAddr>,
    /// The low-level runtime [default: `droplet` beside this program, else on the PATH]
    #[arg(long, env = "CONDENSER_DROPLET", value_name = "PATH")]
    pub droplet: Option<PathBuf>,
    /// The hook agent [default: beside this program, else /usr/local/bin/condenser-hook-agent]
    #[arg(long, env = "CONDENSER_HOOK_AGENT", value_name = "PATH")]
    pub hook_agent: Option<PathBuf>,
    /// Run container processes as the user that the image names [default: true]
    #[arg(long, env = "CONDENSER_RUN_AS_IMAGE_USER", value_name = "BOOL")]
    pub run_as_image_user: Option<bool>,
    /// Refuse to create containers without AppArmor confinement [default: false]
    #[arg(long, env = "CONDENSER_REQUIRE_APPARMOR", value_name = "BOOL")]
    pub require_apparmor: Option<bool>,
    /// Network that all container networks are allocated from, at most a /24 [default: 10.166.0.0/16]
    #[arg(long, env = "CONDENSER_RUNTIME_SUBNET", value_name = "CIDR")]
    pub runtime_subnet: Option<Ipv4Net>,
    /// Servers to which DNS queries of containers are forwarded [default: 8.8.8.8,1.1.1.1]
    #[arg(
        long,
        env = "CONDENSER_DNS_UPSTREAMS",
        value_name = "IP[:PORT]",
        value_delimiter = ','
    )]
    pub dns_upstreams: Option<Vec<String>>,
    /// Host address of published ports without one [default: 0.0.0.0, all addresses]
    #[arg(long, env = "CONDENSER_PUBLISH_ADDRESS", value_name = "IP")]
    pub publish_address: Option<Ipv4Addr>,
    /// Leave bridge ports connected if their traffic cannot be filtered, so that containers of one network can
    /// reach each other; otherwise such ports are isolated [default: false]
    #[arg(long, env = "CONDENSER_ALLOW_UNFILTERED_BRIDGES", value_name = "BOOL")]
    pub allow_unfiltered_bridges: Option<bool>,
    /// Registries (`host[:port]`) reached over plain HTTP [default: none]
    #[arg(
        long,
        env = "CONDENSER_INSECURE_REGISTRIES",
        value_name = "HOST[:PORT]",
        value_delimiter = ','
    )]
    pub insecure_registries: Option<Vec<String>>,
    /// Registries with mirrors, a CA file or plain HTTP, as in `{host = "docker.io", mirrors = ["https://mirror:5000"]}`;
    /// `[[registry]]` in the file [default: none]
    #[arg(long, env = "CONDENSER_REGISTRY", value_name = "TABLE[,TABLE]")]
    pub registry: Option<RegistryEntries>,
    /// File with credentials for registries [default: config.json in $DOCKER_CONFIG or /root/.docker, then
    /// /run/containers/0/auth.json]
    #[arg(long, env = "CONDENSER_REGISTRY_CREDENTIALS", value_name = "FILE")]
    pub registry_credentials: Option<PathBuf>,
    /// Maximum unpacked size of one image layer, in bytes [default: 64 GiB]
    #[arg(long, env = "CONDENSER_MAX_LAYER_BYTES", value_name = "BYTES")]
    pub max_layer_bytes: Option<u64>,
    /// Maximum number of entries of one image layer [default: 2000000]
    #[arg(long, env = "CONDENSER_MAX_LAYER_ENTRIES", value_name = "N")]
    pub max_layer_entries: Option<u64>,
    /// Maximum number of bytes that one byte of a compressed layer may unpack to, 0 for no limit [default: 200]
    #[arg(long, env = "CONDENSER_MAX_LAYER_RATIO", value_name = "N")]
    pub max_layer_ratio: Option<u64>,
    /// Unpacked size of an image layer from which max_layer_ratio applies, in bytes [default: 4 GiB]
    #[arg(long, env = "CONDENSER_LAYER_RATIO_FROM", value_name = "BYTES")]
    pub layer_ratio_from: Option<u64>,
    /// Image of the containers that hold the namespaces of pods [default: built in, nothing is pulled]
    #[arg(long, env = "CONDENSER_INFRA_IMAGE", value_name = "IMAGE")]
    pub infra_image: Option<String>,
    /// Pull policy of containers without imagePullPolicy, for images with the tag latest or without a tag: Always, or
    /// IfNotPresent to work without the registry [default: Always]
    #[arg(long, env = "CONDENSER_PULL_POLICY_LATEST", value_name = "POLICY")]
    pub pull_policy_latest: Option<PullLatest>,
    /// Maximum context size of an image build, in bytes of the archive [default: 2 GiB]
    #[arg(long, env = "CONDENSER_MAX_CONTEXT_BYTES", value_name = "BYTES")]
    pub max_context_bytes: Option<u64>,
    /// Maximum number of entries of the context of an image build [default: 200000]
    #[arg(long, env = "CONDENSER_MAX_CONTEXT_ENTRIES", value_name = "N")]
    pub max_context_entries: Option<u64>,
    /// Time limit of one RUN of an image build, in seconds [default: 600]
    #[arg(long, env = "CONDENSER_BUILD_STEP_SECONDS", value_name = "N")]
    pub build_step_seconds: Option<u64>,
    /// Maximum size of the files that one image build makes, in bytes [default: 20 GiB]
    #[arg(long, env = "CONDENSER_MAX_BUILD_BYTES", value_name = "BYTES")]
    pub max_build_bytes: Option<u64>,
    /// Size up to which results of build steps are kept, in bytes; 0 keeps none [default: 10 GiB]
    #[arg(long, env = "CONDENSER_BUILD_CACHE_BYTES", value_name = "BYTES")]
    pub build_cache_bytes: Option<u64>,
    /// Size up to which cache mounts of builds are kept, in bytes; 0 keeps none [default: 10 GiB]
    #[arg(long, env = "CONDENSER_BUILD_CACHE_MOUNT_BYTES", value_name = "BYTES")]
    pub build_cache_mount_bytes: Option<u64>,
    /// Size at which a container log is rotated, in bytes [default: 64 MiB]
    #[arg(long, env = "CONDENSER_LOG_MAX_BYTES", value_name = "BYTES")]
    pub log_max_bytes: Option<u64>,
    /// Number of rotated files to keep per container log [default: 4]
    #[arg(long, env = "CONDENSER_LOG_MAX_FILES", value_name = "N")]
    pub log_max_files: Option<u32>,
    /// System directories (`/etc`, `/var`, `/home`, …) with their content, and sockets of root, that containers may mount,
    /// by their real paths [default: none]
    #[arg(
        long,
        env = "CONDENSER_ALLOWED_MOUNT_PREFIXES",
        value_name = "PATH",
        value_delimiter = ','
    )]
    pub allowed_mount_prefixes: Option<Vec<PathBuf>>,
    /// Values of `Origin` that may attach to terminals, in addition to the API's own address [default: none]
    #[arg(
        long,
        env = "CONDENSER_ALLOWED_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub allowed_origins: Option<Vec<String>>,
}

/// Format of the daemon's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// When pods pull an image with a mutable tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
pub enum PullLatest {
    /// For every new container.
    #[default]
    #[value(name = "Always")]
    Always,
    /// If the image is not present.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
}

/// The validated configuration of one daemon. Field meanings and defaults: [`Settings`].
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Config {
    pub root_dir: PathBuf,
    pub log_dir: PathBuf,
    pub run_dir: PathBuf,
    pub log_format: LogFormat,
    pub log_level: String,
    pub management_address: SocketAddr,
    pub hook_addresses: Option<Vec<SocketAddr>>,
    pub ca_address: SocketAddr,
    pub droplet: PathBuf,
    pub hook_agent: PathBuf,
    pub run_as_image_user: bool,
    pub require_apparmor: bool,
    pub runtime_subnet: Ipv4Net,
    pub dns_upstreams: Vec<SocketAddr>,
    pub publish_address: Ipv4Addr,
    pub allow_unfiltered_bridges: bool,
    pub registries: Registries,
    pub registry_credentials: Vec<PathBuf>,
    pub max_layer_bytes: u64,
    pub max_layer_entries: u64,
    pub max_layer_ratio: u64,
    pub layer_ratio_from: u64,
    pub infra_image: Option<String>,
    pub pull_policy_latest: PullLatest,
    pub max_context_bytes: u64,
    pub max_context_entries: u64,
    pub build_step_seconds: u64,
    pub max_build_bytes: u64,
    pub build_cache_bytes: u64,
    pub build_cache_mount_bytes: u64,
    pub log_limits: LogLimits,
    pub allowed_mount_prefixes: Vec<PathBuf>,
    pub allowed_origins: Vec<String>,
}

/// Why a configuration is refused. The message quotes the value and tells how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named with `--config` cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an invalid field.
    #[error("the configuration file {path} is wrong: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        message: String,
    },
    /// A value is invalid.
    #[error("{name}: {message}")]
    Invalid {
        /// Name of the setting in the file.
        name: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

impl Settings {
    /// Reads a layer from a TOML file.
    #[expect(clippy::disallowed_methods, reason = "the error names the file already")]
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|e: toml::de::Error| {
            // The error's own text has several lines and quotes the source.
            let line = e
                .span()
                .map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let message = format!("line {line}: {}", e.message().replace('\n', " "));
            ConfigError::Parse {
                path: path.to_owned(),
                message,
            }
        })
    }

    /// This layer on top of `below`.
    fn over(self, below: Self) -> Self {
        macro_rules! layer { ($($field:ident),* $(,)?) => { Self { $($field: self.$field.or(below.$field)),* } } }
        layer!(
            root_dir,
            log_dir,
            run_dir,
            log_format,
            log_level,
            management_address,
            hook_addresses,
            ca_address,
            droplet,
            hook_agent,
            run_as_image_user,
            require_apparmor,
            runtime_subnet,
            dns_upstreams,
            publish_address,
            allow_unfiltered_bridges,
            insecure_registries,
            registry,
            registry_credentials,
            max_layer_bytes,
            max_layer_entries,
            max_layer_ratio,
            layer_ratio_from,
            infra_image,
            pull_policy_latest,
            max_context_bytes,
            max_context_entries,
            build_step_seconds,
            max_build_bytes,
            build_cache_bytes,
            build_cache_mount_bytes,
            log_max_bytes,
            log_max_files,
            allowed_mount_prefixes,
            allowed_origins,
        )
    }
}

impl Config {
    /// Combines flags and environment (`top`) with the file. `file` is given by the user; otherwise [`DEFAULT_FILE`]
    /// is read if it exists.
    pub fn load(top: Settings, file: Option<&Path>) -> Result<Self, ConfigError> {
        let below = match file {
            Some(path) => Settings::from_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => Settings::from_file(Path::new(DEFAULT_FILE))?,
            None => Settings::default(),
        };
        Self::from_settings(top.over(below))
    }

    /// Fills in the defaults and validates.
    pub fn from_settings(s: Settings) -> Result<Self, ConfigError> {
        let config = Self {
            root_dir: absolute("root_dir", s.root_dir, "/etc/raind")?,
            log_dir: absolute("log_dir", s.log_dir, "/var/log/raind")?,
            run_dir: absolute("run_dir", s.run_dir, "/run/raind")?,
            log_format: s.log_format.unwrap_or_default(),
            log_level: s.log_level.unwrap_or_else(|| "info".into()),
            management_address: s
                .management_address
                .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 7755))),
            hook_addresses: s.hook_addresses,
            ca_address: s.ca_address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 7757))),
            droplet: s
                .droplet
                .unwrap_or_else(|| sibling("droplet").unwrap_or_else(|| "droplet".into())),
            hook_agent: s.hook_agent.unwrap_or_else(|| {
                sibling("condenser-hook-agent").unwrap_or_else(|| "/usr/local/bin/condenser-hook-agent".into())
            }),
            run_as_image_user: s.run_as_image_user.unwrap_or(true),
            require_apparmor: s.require_apparmor.unwrap_or(false),
            runtime_subnet: s.runtime_subnet.unwrap_or(DEFAULT_SUBNET).trunc(),
            dns_upstreams: upstreams(s.dns_upstreams)?,
            publish_address: s.publish_address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            allow_unfiltered_bridges: s.allow_unfiltered_bridges.unwrap_or(false),
            registries: registries(s.registry, s.insecure_registries)?,
            registry_credentials: credential_files(s.registry_credentials, std::env::var_os("DOCKER_CONFIG"))?,
            max_layer_bytes: s.max_layer_bytes.unwrap_or(64 << 30),
            max_layer_entries: s.max_layer_entries.unwrap_or(2_000_000),
            max_layer_ratio: s.max_layer_ratio.unwrap_or(200),
            layer_ratio_from: s.layer_ratio_from.unwrap_or(4 << 30),
            infra_image: infra_image(s.infra_image)?,
            pull_policy_latest: s.pull_policy_latest.unwrap_or_default(),
            max_context_bytes: s.max_context_bytes.unwrap_or(2 << 30),
            max_context_entries: s.max_context_entries.unwrap_or(200_000),
            build_step_seconds: s.build_step_seconds.unwrap_or(600),
            max_build_bytes: s.max_build_bytes.unwrap_or(20 << 30),
            build_cache_bytes: s.build_cache_bytes.unwrap_or(10 << 30),
            build_cache_mount_bytes: s.build_cache_mount_bytes.unwrap_or(10 << 30),
            log_limits: log_limits(s.log_max_bytes, s.log_max_files)?,
            allowed_mount_prefixes: prefixes(s.allowed_mount_prefixes.unwrap_or_default())?,
            allowed_origins: s.allowed_origins.unwrap_or_default(),
        };
        if config.runtime_subnet.prefix_len() > 24 {
            return Err(ConfigError::Invalid {
                name: "runtime_subnet",
                message: format!("{} is smaller than a /24; name a /24 or larger", config.runtime_subnet),
            });
        }
        if config.hook_addresses.as_ref().is_some_and(Vec::is_empty) {
            return Err(ConfigError::Invalid {
                name: "hook_addresses",
                message: "at least one address is needed".into(),
            });
        }
        Ok(config)
    }

    /// `<root>/container`: one directory per container, shared with the low-level runtime (`RAIND_ROOT_DIR`).
    pub fn container_root(&self) -> PathBuf {
        self.root_dir.join("container")
    }

    /// `<root>/image`: the content-addressed image store.
    pub fn image_root(&self) -> PathBuf {
        self.root_dir.join("image")
    }

    /// `<root>/pod`: one directory per pod that has volumes of its own.
    pub fn pod_root(&self) -> PathBuf {
        self.root_dir.join("pod")
    }

    /// `<root>/volumes`: one directory per bottle that has volumes.
    pub fn volume_root(&self) -> PathBuf {
        self.root_dir.join("volumes")
    }

    /// `<root>/cert`: certificates and keys (`docs/spec/security.md` 2).
    pub fn cert_dir(&self) -> PathBuf {
        self.root_dir.join("cert")
    }

    /// Adopts the settings of the original where this configuration has its defaults. Ignores a subnet without
    /// networks.
    pub fn follow(&mut self, subnet: Option<Ipv4Net>, upstreams: &[SocketAddr]) {
        if let Some(subnet) = subnet.filter(|s| s.prefix_len() <= 24 && self.runtime_subnet == DEFAULT_SUBNET) {
            self.runtime_subnet = subnet;
        }
        if !upstreams.is_empty() && self.dns_upstreams == default_upstreams() {
            self.dns_upstreams = upstreams.to_vec();
        }
    }

    /// `<root>/store/condenser.db`: the state database.
    pub fn database(&self) -> PathBuf {
        self.root_dir.join("store/condenser.db")
    }

    /// Port of the hook listener.
    pub fn hook_port(&self) -> u16 {
        self.hook_addresses
            .as_ref()
            .and_then(|a| a.first())
            .map_or(HOOK_PORT, SocketAddr::port)
    }
}

fn absolute(name: &'static str, value: Option<PathBuf>, default: &str) -> Result<PathBuf, ConfigError> {
    let path = value.unwrap_or_else(|| default.into());
    // Overlay mount options use `:` and `,` as separators, also within a path.
    let text = path.to_string_lossy();
    if !path.is_absolute() || text.contains([':', ',', '\n']) {
        let message = format!(
            "{} is not an absolute path without ':', ',' and line breaks",
            path.display()
        );
        return Err(ConfigError::Invalid { name, message });
    }
    Ok(path)
}

/// Clean absolute paths. Relative paths and paths with `..` are refused.
fn prefixes(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, ConfigError> {
    let is_plain = |path: &PathBuf| {
        let mut parts = path.components();
        parts.next() == Some(Component::RootDir) && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    if let Some(path) = paths.iter().find(|path| !is_plain(path)) {
        return Err(ConfigError::Invalid {
            name: "allowed_mount_prefixes",
            message: format!("{} is not an absolute path without '..'", path.display()),
        });
    }
    // Iterating over components removes trailing and double slashes.
    Ok(paths.iter().map(|path| path.components().collect()).collect())
}

fn registries(entries: Option<RegistryEntries>, insecure: Option<Vec<String>>) -> Result<Registries, ConfigError> {
    Registries::new(entries.unwrap_or_default(), &insecure.unwrap_or_default()).map_err(|message| {
        ConfigError::Invalid {
            name: "registry",
            message,
        }
    })
}

/// The configured file, otherwise those of the usual tools.
fn credential_files(named: Option<PathBuf>, docker: Option<OsString>) -> Result<Vec<PathBuf>, ConfigError> {
    if named.is_some() {
        return Ok(vec![absolute("registry_credentials", named, "")?]);
    }
    let docker = docker.filter(|directory| !directory.is_empty());
    let docker = docker.map_or_else(|| "/root/.docker".into(), PathBuf::from);
    Ok(vec![docker.join("config.json"), "/run/containers/0/auth.json".into()])
}

fn infra_image(value: Option<String>) -> Result<Option<String>, ConfigError> {
    let Some(text) = value.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    ImageRef::parse(&text).map_err(|e| ConfigError::Invalid {
        name: "infra_image",
        message: e.to_string(),
    })?;
    Ok(Some(text))
}

/// A file that is too small would be put aside all the time.
fn log_limits(max_bytes: Option<u64>, max_files: Option<u32>) -> Result<LogLimits, ConfigError> {
    let limits = LogLimits {
        max_bytes: max_bytes.unwrap_or(64 << 20),
        max_files: max_files.unwrap_or(4),
    };
    if limits.max_bytes < 64 << 10 {
        return Err(ConfigError::Invalid {
            name: "log_max_bytes",
            message: format!("{} is too small; name at least 65536", limits.max_bytes),
        });
    }
    if !(1..=1000).contains(&limits.max_files) {
        return Err(ConfigError::Invalid {
            name: "log_max_files",
            message: format!("{} is not between 1 and 1000", limits.max_files),
        });
    }
    Ok(limits)
}

fn default_upstreams() -> Vec<SocketAddr> {
    [[8, 8, 8, 8], [1, 1, 1, 1]].map(|ip| SocketAddr::from((ip, 53))).into()
}

fn upstreams(value: Option<Vec<String>>) -> Result<Vec<SocketAddr>, ConfigError> {
    let Some(given) = value else {
        return Ok(default_upstreams());
    };
    given
        .iter()
        .map(|text| {
            text.parse::<SocketAddr>()
                .or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53)))
                .map_err(|_| ConfigError::Invalid {
                    name: "dns_upstreams",
                    message: format!("{text:?} is not an IP address[:port]"),
                })
        })
        .collect()
}

/// A program with that name in the directory of the running executable.
fn sibling(name: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.join(name);
    path.is_file().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_original_was_told_gives_way_to_what_we_are_told() {
        let (subnet, upstreams) = ("10.9.0.0/16".parse().unwrap(), [SocketAddr::from(([9, 9, 9, 9], 53))]);
        let mut config = Config::from_settings(Settings::default()).unwrap();
        config.follow(Some("10.9.0.0/28".parse().unwrap()), &[]);
        assert_eq!(config.runtime_subnet, DEFAULT_SUBNET);
        config.follow(Some(subnet), &upstreams);
        assert_eq!(
            (config.runtime_subnet, &config.dns_upstreams[..]),
            (subnet, &upstreams[..])
        );
        let mut config = Config::from_settings(Settings {
            runtime_subnet: Some("10.8.0.0/16".parse().unwrap()),
            dns_upstreams: Some(vec!["7.7.7.7".into()]),
            ..Settings::default()
        })
        .unwrap();
        config.follow(Some(subnet), &upstreams);
        assert_eq!(config.runtime_subnet.to_string(), "10.8.0.0/16");
        assert_eq!(config.dns_upstreams[0].to_string(), "7.7.7.7:53");
    }

    #[test]
    fn no_value_is_needed() {
        let config = Config::from_settings(Settings::default()).unwrap();
        assert_eq!(config.container_root(), Path::new("/etc/raind/container"));
        assert_eq!(config.management_address.to_string(), "127.0.0.1:7755");
        assert_eq!(config.dns_upstreams[0].to_string(), "8.8.8.8:53");
    }

    #[test]
    fn credentials_are_looked_for_where_they_usually_are() {
        let files = |named: Option<&str>, docker: Option<&str>| {
            credential_files(named.map(Into::into), docker.map(Into::into)).unwrap()
        };
        let podman = PathBuf::from("/run/containers/0/auth.json");
        assert_eq!(
            files(None, None),
            [PathBuf::from("/root/.docker/config.json"), podman.clone()]
        );
        assert_eq!(files(None, Some("/d")), [PathBuf::from("/d/config.json"), podman]);
        assert_eq!(files(Some("/c.json"), Some("/d")), [PathBuf::from("/c.json")]);
        credential_files(Some("c.json".into()), None).unwrap_err();
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file: Settings = toml::from_str("root_dir = '/a'\nlog_dir = '/b'").unwrap();
        let flags = Settings {
            root_dir: Some("/c".into()),
            ..Settings::default()
        };
        let config = Config::from_settings(flags.over(file)).unwrap();
        assert_eq!((config.root_dir, config.log_dir), ("/c".into(), "/b".into()));
    }

    #[test]
    fn an_unknown_key_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "log_dir = '/b'\nrot_dir = '/a'\n").unwrap();
        let error = Settings::from_file(&path).unwrap_err().to_string();
        assert!(
            error.contains("c.toml is wrong: line 2: unknown field `rot_dir`"),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        let bad = [
            Settings {
                root_dir: Some("relative".into()),
                ..Settings::default()
            },
            Settings {
                root_dir: Some("/a:b".into()),
                ..Settings::default()
            },
            Settings {
                runtime_subnet: Some("10.0.0.0/25".parse().unwrap()),
                ..Settings::default()
            },
            Settings {
                dns_upstreams: Some(vec!["resolver".into()]),
                ..Settings::default()
            },
            Settings {
                hook_addresses: Some(vec![]),
                ..Settings::default()
            },
            Settings {
                log_max_bytes: Some(65_535),
                ..Settings::default()
            },
            Settings {
                infra_image: Some("a/../b".into()),
                ..Settings::default()
            },
            Settings {
                log_max_files: Some(0),
                ..Settings::default()
            },
        ];
        for settings in bad {
            Config::from_settings(settings).unwrap_err();
        }
    }
}
