//! The plan of a container: everything that `create` will do, checked before it changes anything.

use std::path::PathBuf;
use std::rc::Rc;

use condenser::runtime::mounts::{Mount, MountError, MountPolicy};
use condenser::runtime::tmpfs::{KIND as TMPFS, Tmpfs, TmpfsError};

use super::apparmor;
use super::cgroup::{self, CgroupError};
use super::namespaces::{self, Joined, NamespaceError};
use super::network::{self, NetworkError, NetworkPlan};
use super::process::program::{ExecError, Program};
use super::process::rlimits::{LimitError, Limits};
use super::seccomp::{FilterError, Filters};
use crate::config::{Config, ConfigError, ImageConfig};
use crate::container::Container;
use crate::report::failure::{HasExitStatus, refused_or_failed};

/// Why a configuration cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs, reason = "each is the error of a module")]
pub enum PlanError {
    Config(#[from] ConfigError),
    Mount(#[from] MountError),
    Tmpfs(#[from] TmpfsError),
    Namespace(#[from] NamespaceError),
    Network(#[from] NetworkError),
    Program(#[from] ExecError),
    Filter(#[from] FilterError),
    Cgroup(#[from] CgroupError),
    Apparmor(#[from] apparmor::ProfileNotLoaded),
    Limit(#[from] LimitError),
}

impl HasExitStatus for PlanError {
    fn exit_status(&self) -> i32 {
        refused_or_failed(matches!(self, Self::Mount(_) | Self::Tmpfs(_) | Self::Program(_)))
    }
}

/// A container to set up. The monitor inherits the plan when it is forked.
#[derive(Debug)]
pub struct Plan {
    /// The container.
    pub container: Container,
    /// Its configuration.
    pub config: Config,
    /// Layers of the root file system. `None` if `root.path` is a complete root file system.
    pub image: Option<ImageConfig>,
    /// The user's bind mounts.
    pub mounts: Vec<Mount>,
    /// MountPolicy for the sources of bind mounts.
    pub policy: MountPolicy,
    /// The user's tmpfs mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// Namespaces to join.
    pub joined: Joined,
    /// Network interfaces.
    pub network: NetworkPlan,
    /// Seccomp filters.
    pub filters: Rc<Filters>,
    /// Path of the cgroup in each hierarchy.
    pub cgroup: PathBuf,
    /// Whether the container gets a pseudo-terminal.
    pub tty: bool,
    /// Resource limits of its processes.
    pub limits: Limits,
    /// The AppArmor profile to apply. It is loaded.
    pub apparmor: Option<String>,
}

impl Plan {
    /// Makes the plan, and checks everything that can be checked without a change.
    pub fn new(container: &Container, config: Config, tty: bool) -> Result<Self, PlanError> {
        if !config.root.path.is_absolute() {
            let path = config.root.path.display();
            return Err(ConfigError::Invalid(format!("root.path {path:?} must be absolute")).into());
        }
        let net = config.net()?;
        let mounts = config.mounts.iter().filter(|mount| !mount.is_shm());
        let (tmpfs_mounts, mounts): (Vec<_>, Vec<_>) = mounts.partition(|m| m.kind == TMPFS);
        let tmpfs_mounts = tmpfs_mounts
            .into_iter()
            .map(|m| Tmpfs::from_config(&m.destination, &m.options))
            .collect::<Result<Vec<_>, _>>()?;
        let mounts = mounts
            .into_iter()
            .map(|m| Mount::from_config(&m.source, &m.destination, &m.kind, &m.options))
            .collect::<Result<Vec<_>, _>>()?;
        let policy = config.mount_policy()?;
        for mount in &mounts {
            mount.open_source(&policy)?;
        }
        Program::new(&config.process.args, &config.process.env)?;
        Ok(Self {
            image: config.image()?,
            mounts,
            policy,
            tmpfs: tmpfs_mounts,
            joined: namespaces::open_joined(&config)?,
            network: network::plan(&config, net.as_ref())?,
            filters: Rc::new(Filters::from_config(&config)?),
            cgroup: cgroup::path(&config, &container.id)?,
            tty,
            apparmor: apparmor::profile(&config)?,
            limits: Limits::from_config(&config)?,
            container: container.clone(),
            config,
        })
    }
}
