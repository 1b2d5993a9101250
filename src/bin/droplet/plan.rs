//! What `create` is going to do, decided and checked before anything is changed.

use std::path::PathBuf;
use std::rc::Rc;

use condenser::runtime::mounts::{Mount, MountError};

use crate::cgroup::{self, CgroupError};
use crate::config::{Config, ConfigError, ImageConfig};
use crate::container::Container;
use crate::namespaces::{self, Joined, NamespaceError};
use crate::network::{self, NetworkError};
use crate::program::{ExecError, Program};
use crate::seccomp::{FilterError, Filters};

/// Why a configuration cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs, reason = "each is the error of a module")]
pub enum PlanError {
    Config(#[from] ConfigError),
    Mount(#[from] MountError),
    Namespace(#[from] NamespaceError),
    Network(#[from] NetworkError),
    Program(#[from] ExecError),
    Filter(#[from] FilterError),
    Cgroup(#[from] CgroupError),
}

/// A container to be set up. Survives the fork into the monitor.
#[derive(Debug)]
pub struct Plan {
    /// Which.
    pub container: Container,
    /// Its configuration.
    pub config: Config,
    /// Layers of the root file system; `None` when `root.path` is one already.
    pub image: Option<ImageConfig>,
    /// The user's bind mounts.
    pub mounts: Vec<Mount>,
    /// Namespaces to join.
    pub joined: Joined,
    /// Interfaces.
    pub network: network::Plan,
    /// System calls that are refused.
    pub filters: Rc<Filters>,
    /// Path of its cgroup below each hierarchy.
    pub cgroup: PathBuf,
    /// Whether it gets a pseudo-terminal.
    pub tty: bool,
    /// The AppArmor profile to apply, which is loaded.
    pub apparmor: Option<String>,
}

impl Plan {
    /// Checks everything that can be checked by looking.
    pub fn new(container: &Container, config: Config, tty: bool) -> Result<Self, PlanError> {
        if !config.root.path.is_absolute() {
            let path = config.root.path.display();
            return Err(ConfigError::Invalid(format!("root.path {path:?} must be absolute")).into());
        }
        let net = config.net()?;
        let entries = config.mounts.iter();
        let mounts = entries
            .map(|m| Mount::from_config(&m.source, &m.destination, &m.kind, &m.options))
            .collect::<Result<Vec<_>, _>>()?;
        for mount in &mounts {
            mount.open_source(&[])?;
        }
        Program::new(&config.process.args, &config.process.env)?;
        Ok(Self {
            image: config.image()?,
            mounts,
            joined: namespaces::open(&config)?,
            network: network::plan(&config, net.as_ref())?,
            filters: Rc::new(Filters::from_config(&config)?),
            cgroup: cgroup::path(&config, &container.id)?,
            tty,
            apparmor: config
                .apparmor_profile()
                .filter(|profile| apparmor_loaded(profile))
                .map(str::to_owned),
            container: container.clone(),
            config,
        })
    }
}

/// A profile that is not loaded, on a kernel that may have no AppArmor at all, is left out (S2). Whether a container
/// may run unconfined is decided by the daemon.
fn apparmor_loaded(profile: &str) -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    read("/sys/module/apparmor/parameters/enabled").starts_with('Y')
        && lists_profile(&read("/sys/kernel/security/apparmor/profiles"), profile)
}

/// The kernel's list has lines like `raind-default (enforce)`.
fn lists_profile(profiles: &str, profile: &str) -> bool {
    profiles
        .lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_loaded_when_the_kernel_lists_it() {
        let profiles = "raind-default (enforce)\n/usr/sbin/a b (complain)\n";
        assert!(lists_profile(profiles, "raind-default") && lists_profile(profiles, "/usr/sbin/a b"));
        assert!(!lists_profile(profiles, "raind") && !lists_profile("", "raind-default"));
    }
}
