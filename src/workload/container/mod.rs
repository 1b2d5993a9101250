//! Containers: from a request to a process, and back.
//!
//! ```text
//! creating -> created -> running -> stopped -> (gone)
//!    ^            \--------------------^  |
//!    \------------------------------------/   restart
//! ```
//!
//! This module owns the row, the directory and the life cycle of every container. An operation of several steps first
//! records itself in the row ([`Operation`](crate::model::Operation)), the journal from which
//! [`recover`](ContainerService::recover) undoes or finishes it after a crash. One lock per container serializes
//! operations; hooks never take it, because they run inside the operation that holds it. Operations run in their own
//! tasks: a client that disconnects does not interrupt them.
//!
//! This module never starts processes (`runtime` does), writes rules (`firewall` does), or speaks HTTP.

mod attach;
mod bottle;
mod build;
mod bundle;
mod cgroup;
mod create;
mod delete;
mod error;
mod exec;
mod export;
mod freeze;
mod health;
mod hooks;
mod hosts;
mod logs;
mod membership;
mod options;
mod part;
mod pod;
mod ports;
mod publish;
mod pull;
mod recover;
mod request;
mod resources;
mod restart;
mod restart_policy;
mod rotation;
mod space;
mod spec;
mod start;
mod stop;
mod transitions;
mod volumes;
mod watch;

use futures_util::future::BoxFuture;
use std::path::PathBuf;
use std::sync::Arc;

use crate::image::ImageService;
use crate::model::{Claim, Container, Snapshot, by_creation};
use crate::net::bridges::NetworkService;
use crate::net::enforcement::Firewall;
use crate::net::ports::HostPorts;
use crate::observe::logs::{LogLimits, Watcher};
use crate::observe::metrics::{Activity, Verb};
use crate::ops::conditions::Conditions;
use crate::ops::lock::KeyedLocks;
use crate::ops::task;
use crate::ops::task::Operations;
use crate::runtime::Runtime;
use crate::runtime::apparmor::{AppArmor, Confinement};
use crate::runtime::dir::ContainerDir;
use crate::runtime::mounts::MountPolicy;
use crate::store::Store;

pub use attach::Terminal;
pub use build::{BuildStep, StepEnd, StepMount, StepNetwork};
pub use error::ContainerError;
pub use exec::ExecRequest;
pub use export::CommitOptions;
pub use health::Prober;
pub use logs::{DEFAULT_LINES, LogRequest, MAX_LINES};
pub(crate) use options::check as check_options;
pub use options::{HealthCheckRequest, OptionsRequest, RestartRequest};
pub use part::{BottlePart, PodPart, PodRole};
pub use ports::{Published, are_published, parse_ports};
pub use pull::pull_policy_of;
pub use recover::{SWEEPS, Sweeper};
pub use restart::Restarter;
pub use restart_policy::{DELAYS, next_start};
pub use space::ContainerSpace;
pub use spec::HookSettings;
pub(crate) use transitions::unseen_exit;

/// Maximum number of clients of one terminal, a limit of the runtime (`docs/spec/runtime.md` 12.6).
pub const MAX_CLIENTS: usize = 16;
/// Reason for the end of a run that exceeded its memory limit.
pub const OOM_KILLED: &str = "OOMKilled";
/// Shortest id prefix that clients may use.
const MIN_PREFIX: usize = 4;

/// The service's settings.
#[derive(Debug, Clone)]
pub struct ContainerSettings {
    /// Directory of the container directories.
    pub root: PathBuf,
    /// Directory of the pods' own directories.
    pub pod_root: PathBuf,
    /// Directory of the volumes of bottles.
    pub volume_root: PathBuf,
    /// Which paths of the host containers may mount.
    pub mount_policy: MountPolicy,
    /// Volatile directory of the runtime, searched for leftovers.
    pub runtime_run_dir: PathBuf,
    /// Default network of containers.
    pub default_network: String,
    /// TCP ports of the host that the daemon itself needs and containers cannot publish.
    pub reserved_ports: Vec<u16>,
    /// Whether processes run as the user that the image names.
    pub run_as_image_user: bool,
    /// The confinement of containers, where the kernel supports it.
    pub apparmor: Arc<AppArmor>,
    /// Whether to refuse containers without confinement.
    pub require_apparmor: bool,
    /// How hooks reach the daemon.
    pub hooks: HookSettings,
    /// How much of each log is kept.
    pub log_limits: LogLimits,
    /// Whether [`PullPolicy::Latest`](crate::model::PullPolicy::Latest) means `Always`; else it means `IfNotPresent`.
    pub pull_latest: bool,
}

/// The services that this one uses.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Services {
    pub store: Store,
    pub images: ImageService,
    pub networks: NetworkService,
    pub firewall: Firewall,
    pub ports: HostPorts,
    pub runtime: Arc<dyn Runtime>,
    pub activity: Activity,
    pub watcher: Watcher,
    pub conditions: Conditions,
}

/// All operations on containers. Clones share one service.
#[derive(Clone)]
pub struct ContainerService(Arc<Inner>);

struct Inner {
    services: Services,
    settings: ContainerSettings,
    locks: KeyedLocks,
    operations: Operations,
    watched: watch::Watched,
    clients: Arc<attach::Clients>,
}

impl ContainerService {
    /// Creates a service over the others. It does nothing before [`ContainerService::recover`].
    pub fn new(settings: ContainerSettings, services: Services) -> Self {
        Self(Arc::new(Inner {
            services,
            settings,
            locks: KeyedLocks::default(),
            operations: Operations::default(),
            watched: watch::Watched::default(),
            clients: Arc::default(),
        }))
    }

    /// All containers by creation time, then id.
    pub fn list(&self) -> Vec<Arc<Container>> {
        list(&self.snapshot())
    }

    /// The container with that name, else id, else unique id prefix of at least four characters.
    pub fn find(&self, parameter: &str) -> Result<Arc<Container>, ContainerError> {
        find_in(&self.snapshot(), parameter)
    }

    /// Waits until no operation is in progress. New ones are still accepted: close the listeners first.
    pub async fn finish_operations(&self) {
        self.0.operations.finish().await;
    }

    /// Whether AppArmor confines containers started now; an error if it is required but unavailable.
    async fn confinement(&self) -> Result<bool, ContainerError> {
        match self.0.settings.apparmor.confine().await {
            Confinement::Confined => Ok(true),
            Confinement::Unconfined(reason) if self.0.settings.require_apparmor => {
                Err(ContainerError::Unconfined(reason))
            }
            Confinement::Unconfined(_) => Ok(false),
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.services.store.snapshot()
    }

    fn dir(&self, id: &str) -> ContainerDir {
        ContainerDir::new(&self.0.settings.root, id)
    }

    /// Runs an operation to its end, even if the caller is dropped, and counts it.
    fn detached<T: Send + 'static>(
        &self,
        verb: Verb,
        operation: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, ContainerError>> {
        let activity = self.0.services.activity.clone();
        let operation = async move { activity.observe(verb, operation).await };
        self.0.operations.run(operation)
    }

    /// Changes one row. If the row is gone, returns [`ContainerError::NotFound`].
    async fn update<T: Send + 'static>(
        &self,
        id: &str,
        change: impl FnOnce(&mut Container) -> Result<T, ContainerError> + Send + 'static,
    ) -> Result<T, ContainerError> {
        let id = id.to_owned();
        let update = self.0.services.store.transact(move |t| {
            let mut row = t
                .get::<Container>(&id)
                .map(|c| Container::clone(&c))
                .ok_or(ContainerError::NotFound(id))?;
            let before = row.clone();
            let value = change(&mut row)?;
            if row != before {
                t.put(row).map_err(|taken| ContainerError::taken(taken, t.snapshot()))?;
            }
            Ok(value)
        });
        update.await
    }
}

/// All containers by creation time, then id.
pub fn list(snapshot: &Snapshot) -> Vec<Arc<Container>> {
    by_creation(snapshot.containers().iter().cloned())
}

fn find_in(snapshot: &Snapshot, parameter: &str) -> Result<Arc<Container>, ContainerError> {
    let containers = snapshot.containers();
    if let Some(holder) = snapshot.holder(&Claim::ContainerName(parameter.to_owned()))
        && let Some(container) = containers.get(&holder.id)
    {
        return Ok(container.clone());
    }
    if parameter.len() >= MIN_PREFIX {
        let mut matches = containers.with_prefix(parameter);
        if let Some(first) = matches.next() {
            return match matches.next() {
                None => Ok(first.clone()),
                Some(_) => Err(ContainerError::Ambiguous(parameter.to_owned())),
            };
        }
    }
    Err(ContainerError::NotFound(parameter.to_owned()))
}

/// Refuses operations reserved for the container's bottle. `phrase` and `word` are those of the client's command line.
fn refuse_managed(
    container: &Container,
    parameter: &str,
    phrase: &'static str,
    word: &'static str,
) -> Result<(), ContainerError> {
    match container.role.bottle() {
        None => Ok(()),
        Some(bottle) => {
            let (container, bottle) = (parameter.to_owned(), bottle.to_owned());
            Err(ContainerError::ManagedByBottle {
                phrase,
                container,
                bottle,
                word,
            })
        }
    }
}

/// Runs blocking file access outside the executor.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContainerError> + Send + 'static,
) -> Result<T, ContainerError> {
    task::blocking(work).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;

    #[tokio::test]
    async fn a_parameter_is_a_name_then_an_id_then_a_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        store
            .transact(|t| {
                for (id, name) in [
                    ("01kg2cnf0ytv", "web"),
                    ("01kg2cnf0xxx", "db"),
                    ("01kh00000000", "01kg"),
                ] {
                    t.put(container(id, name)).unwrap();
                }
                Ok::<_, ContainerError>(())
            })
            .await
            .unwrap();
        let snapshot = store.snapshot();
        let found = |p: &str| find_in(&snapshot, p).map(|c| c.id.clone()).map_err(|e| e.to_string());
        assert_eq!(found("web").unwrap(), "01kg2cnf0ytv");
        assert_eq!(found("01kg2cnf0xxx").unwrap(), "01kg2cnf0xxx");
        assert_eq!(found("01kg").unwrap(), "01kh00000000", "a name wins over a prefix");
        assert_eq!(found("01kg2cnf0y").unwrap(), "01kg2cnf0ytv");
        assert_eq!(
            found("01kg2").unwrap_err(),
            "container: 01kg2 is ambiguous; give more of the id, or the name"
        );
        assert_eq!(
            found("01k").unwrap_err(),
            "container: 01k not found",
            "too short for a prefix"
        );
        assert_eq!(found("nope").unwrap_err(), "container: nope not found");
    }

    #[test]
    fn a_bottle_keeps_its_containers_to_itself() {
        let mut c = container("a", "blog-db");
        refuse_managed(&c, "a", "operation", "start").unwrap();
        c.role = crate::model::Role::Service { bottle: "b1".into() };
        assert_eq!(
            refuse_managed(&c, "blog-db", "delete operation", "rm")
                .unwrap_err()
                .to_string(),
            "direct delete operation of container: blog-db is not supported as it's managed by bottle: b1.\nuse \
             'raind bottle rm <bottle-id|bottle-name>'"
        );
    }
}
