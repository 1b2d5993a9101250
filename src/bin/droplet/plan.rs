//! What `create` is going to do, decided and checked before anything is changed.

use std::path::PathBuf;
use std::rc::Rc;

use condenser::runtime::mounts::{Mount, MountError, Policy};
use condenser::runtime::tmpfs;
use condenser::runtime::tmpfs::{Tmpfs, TmpfsError};

use crate::apparmor;
use crate::cgroup::{self, CgroupError};
use crate::config::{Config, ConfigError, ImageConfig};
use crate::container::Container;
use crate::failure::{Blame, refused_if};
use crate::limits::{LimitError, Limits};
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
    Tmpfs(#[from] TmpfsError),
    Namespace(#[from] NamespaceError),
    Network(#[from] NetworkError),
    Program(#[from] ExecError),
    Filter(#[from] FilterError),
    Cgroup(#[from] CgroupError),
    Unconfined(#[from] apparmor::Unconfined),
    Limit(#[from] LimitError),
}

impl Blame for PlanError {
    fn status(&self) -> i32 {
        refused_if(matches!(self, Self::Mount(_) | Self::Tmpfs(_) | Self::Program(_)))
    }
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
    /// Which sources they may have.
    pub policy: Policy,
    /// File systems in memory.
    pub scratch: Vec<Tmpfs>,
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
    /// Resource limits of its processes.
    pub limits: Limits,
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
        let mounts = config.mounts.iter().filter(|mount| !mount.is_shm());
        let (scratch, mounts): (Vec<_>, Vec<_>) = mounts.partition(|m| m.kind == tmpfs::KIND);
        let scratch = scratch
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
            scratch,
            joined: namespaces::open(&config)?,
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
