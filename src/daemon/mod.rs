//! Wiring: builds every service from the configuration, recovers, serves, shuts down.
//!
//! Order of the start, and why:
//! 1. Everything that may fail before the machine is changed: root, directories, store, listeners on loopback.
//!    An installation of the original is migrated here, once its port is known to be free: it does not run.
//! 2. The network and the rules, which must exist before the first container starts.
//! 3. Certificates (they contain the host's address), then the hook listener, which needs the bridges' addresses.
//! 4. Everything is bound. Hooks and certificates are served: recovery makes the runtime call back.
//! 5. Recovery, then the management API and the controllers.
//!
//! A shutdown is the reverse. Containers keep running; their monitors do not need the daemon.

pub mod config;
mod copies;
mod directories;
mod following;
pub mod log_filter;
pub mod notify;
mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa_axum::router::OpenApiRouter;

use self::following::{Following, Reload, Serving, hook_addresses, host_addresses};
use crate::api::identity::Role;
use crate::api::listener::BoundListener;
use crate::api::management::{Management, Sessions};
use crate::api::{hooks, listener, management, openapi, pki as pki_api, query, routing};
use crate::base::pki::Pki;
use crate::daemon::config::Config;
use crate::daemon::notify::ServiceManager;
use crate::image::ImageService;
use crate::net::bridges::{DNS_ADDRESS, DNS_PORT, NetworkService, NetworkSettings};
use crate::net::dns::Forwarder;
use crate::net::enforcement::{Firewall, Networks};
use crate::net::policy::PolicyService;
use crate::net::ports::HostPorts;
use crate::observe::audit::AuditLog;
use crate::observe::events;
use crate::observe::events::Events;
use crate::observe::logs::Watcher;
use crate::observe::metrics::{Activity, MetricsLog, Sampler};
use crate::ops::controller;
use crate::ops::controller::{Backoff, Queue, Reconcile};
use crate::runtime::apparmor::{AppArmor, Confinement};
use crate::runtime::droplet::Droplet;
use crate::store::Store;
use crate::workload::apply::Applier;
use crate::workload::balancer::ServiceRegistry;
use crate::workload::bottle::{BottleParts, BottleService};
use crate::workload::build::BuildService;
use crate::workload::container::{ContainerService, DELAYS, Prober, Restarter, SWEEPS, Services, Sweeper};
use crate::workload::import;
use crate::workload::pod::{PodController, PodService};
use crate::workload::replica_set::{ReplicaSets, SetController};

/// Maximum number of concurrent restarts by restart policies.
const RESTARTS_AT_ONCE: usize = 4;
/// Backoff of a pod that fails.
const POD_BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(60),
};
/// Backoff of a replica set whose rows cannot be written.
const SET_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(200),
    most: Duration::from_secs(5),
};
/// Maximum number of replica sets reconciled at once. Each is one transaction.
const SET_WORKERS: usize = 2;
/// Maximum number of pods reconciled at once: enough that a few that pull images do not block the others.
const POD_WORKERS: usize = 8;
/// How long a shutdown waits for operations in progress. Recovery undoes those that do not finish.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps the error of the part it names")]
pub enum DaemonError {
    #[error("must be run as root: it makes namespaces, mounts and firewall rules (try sudo)")]
    NotRoot,
    #[error("cannot make the directory {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error("{purpose}: {source}")]
    Listen {
        purpose: &'static str,
        source: std::io::Error,
    },
    #[error("cannot receive signals: {0}")]
    Signal(std::io::Error),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Import(#[from] crate::workload::import::ImportError),
    #[error("image store: {0}")]
    Image(#[from] crate::image::ImageError),
    #[error("network: {0}")]
    Network(#[from] crate::net::bridges::NetworkError),
    #[error("firewall: {0}")]
    Firewall(#[from] crate::net::firewall::FirewallError),
    #[error("dns: {0}")]
    Dns(#[from] crate::net::dns::DnsError),
    #[error("certificates: {0}")]
    Pki(#[from] crate::base::pki::PkiError),
    #[error("audit log: {0}")]
    Audit(std::io::Error),
    #[error("cgroups: {0}")]
    Cgroups(#[from] crate::observe::metrics::GroupError),
    #[error("recovery: {0}")]
    Recovery(#[from] crate::workload::container::ContainerError),
    #[error("recovery of pods: {0}")]
    Pods(#[from] crate::workload::pod::PodError),
}

/// Runs until SIGTERM or SIGINT; SIGHUP triggers a [`Reload`]. Returns an error only if the daemon could not start.
pub async fn run(config: Config, manager: ServiceManager) -> Result<(), DaemonError> {
    let mut signals = Signals::listen()?;
    let started = std::time::Instant::now();
    let status = format!("serving on {}", config.management_address);
    let daemon = Daemon::start(config, &manager).await?;
    tracing::info!(elapsed_ms = started.elapsed().as_millis() as u64, "ready");
    manager.ready(&status).await;
    let over = CancellationToken::new();
    let serving = async {
        let signal = loop {
            match signals.next().await {
                HANGUP => {
                    manager.reloading().await;
                    daemon.reload.run();
                    manager.ready(&status).await;
                }
                signal => break signal,
            }
        };
        over.cancel();
        signal
    };
    let alive = || async { daemon.reload.store.check().await.map_err(|e| e.to_string()) };
    let (signal, ()) = tokio::join!(serving, manager.watch(alive, over.clone()));
    tracing::info!(signal, "shutting down; containers keep running");
    manager
        .stopping("finishing operations in progress; containers keep running")
        .await;
    daemon.shut_down().await;
    Ok(())
}

struct Daemon {
    containers: ContainerService,
    bottles: BottleService,
    pods: PodService,
    sets: ReplicaSets,
    applier: Applier,
    audit: AuditLog,
    /// Stops everything that starts operations: the management API and the controllers.
    management: (CancellationToken, TaskTracker),
    /// Stops the controllers.
    controllers: (CancellationToken, TaskTracker),
    /// Stops everything that operations in progress still need: hooks, certificates, DNS, periodic work.
    support: (CancellationToken, TaskTracker),
    reload: Reload,
    config: Config,
}

impl Daemon {
    async fn start(mut config: Config, manager: &ServiceManager) -> Result<Self, DaemonError> {
        manager.starting("opening the state store").await;
        directories::prepare(&config)?;
        copies::restore(&config);
        let store = Store::open(&config.database())?;
        let events = Events::new(events::KEPT);
        // Subscribe now, so that the changes of recovery are included.
        let commits = store.subscribe();
        let management_socket = listen("the management API", config.management_address).await?;
        let ca_socket = listen("certificate requests", config.ca_address).await?;
        let audit = AuditLog::open(&config.log_dir, &host_name()).map_err(DaemonError::Audit)?;
        let activity = Activity::default();
        let images = ImageService::new(settings::image(&config), store.clone(), activity.clone())?;
        if let Some(import) = import::run(&settings::import_places(&config), &store, &images).await? {
            config.follow(import.runtime_subnet, &import.dns_upstreams);
        }
        let sampler = Sampler::new(config.container_root())?;

        manager.starting("preparing networks and rules").await;
        let networks = NetworkService::start(
            NetworkSettings {
                runtime_subnet: config.runtime_subnet,
                allow_unfiltered_bridges: config.allow_unfiltered_bridges,
            },
            store.clone(),
        )
        .await?;
        let firewall = Firewall::start(
            store.clone(),
            networks.uplink(),
            settings::firewall(&config, &ca_socket),
        )
        .await?;
        let ports = HostPorts::new(store.clone(), config.publish_address);
        let dns_address = SocketAddr::from((DNS_ADDRESS, DNS_PORT));
        let dns = Forwarder::bind(dns_address, config.dns_upstreams.clone(), config.runtime_subnet).await?;

        let uplink = networks.uplink().borrow().clone();
        let addresses = host_addresses(&store, uplink.as_ref());
        let pki = Arc::new(Pki::load_or_create(&config.cert_dir(), &addresses)?);
        let mut hook_sockets = Vec::new();
        for address in hook_addresses(&config, &addresses) {
            hook_sockets.push(listen("runtime hooks", address).await?);
        }

        let apparmor = Arc::new(AppArmor::new(&config.root_dir));
        match apparmor.confine().await {
            Confinement::Confined => tracing::info!("containers are confined by AppArmor"),
            Confinement::Unconfined(reason) => tracing::warn!(reason, "containers run without AppArmor"),
        }
        let watcher = Watcher::open();
        let containers = ContainerService::new(
            settings::container(&config, apparmor),
            Services {
                store: store.clone(),
                images: images.clone(),
                networks: networks.clone(),
                firewall: firewall.clone(),
                ports: ports.clone(),
                runtime: Arc::new(Droplet::new(config.droplet.clone(), config.container_root())),
                activity: activity.clone(),
                watcher: watcher.clone(),
            },
        );

        let serving = Serving {
            pki,
            audit: audit.clone(),
        };
        let support = (CancellationToken::new(), TaskTracker::new());
        let (stop, tasks) = &support;
        tasks.spawn(dns.run(stop.clone()));
        tasks.spawn(events.clone().run(commits, stop.clone()));
        tasks.spawn(watcher.run(stop.clone()));
        let signing = pki_api::Signing {
            containers: containers.clone(),
            pki: serving.pki.clone(),
        };
        let ca_app = routing::app(plain(pki_api::routes(), signing), Role::Droplet, audit.clone());
        tasks.spawn(serving.clone().serve(vec![ca_socket], ca_app, stop.clone()));
        let hook_app = routing::app(
            plain(hooks::routes(), containers.clone()),
            Role::Container,
            audit.clone(),
        );
        tasks.spawn(serving.clone().serve(hook_sockets, hook_app.clone(), stop.clone()));

        // Before containers are recovered, because that changes their states.
        tasks.spawn(firewall.clone().follow(store.clone(), stop.clone()));
        manager.starting("recovering images").await;
        images.recover().await?;
        let known = store.snapshot().containers().iter().count();
        manager.starting(&format!("recovering {known} containers")).await;
        containers.recover().await?;
        ports.keep();
        manager.starting("recovering pods and bottles").await;
        let policies = PolicyService::new(store.clone(), firewall.clone());
        let bottles = BottleService::new(BottleParts {
            store: store.clone(),
            containers: containers.clone(),
            networks: Networks::new(networks.clone(), firewall.clone()),
            policies: policies.clone(),
            volume_root: config.volume_root(),
        });
        bottles.recover().await;
        let pods = PodService::new(settings::pod(&config), store.clone(), containers.clone());
        pods.recover().await?;
        let metrics_log = MetricsLog::open(&config.log_dir);
        tasks.spawn(sampler.clone().run(store.clone(), metrics_log, stop.clone()));
        tasks.spawn(containers.clone().bound_logs(stop.clone()));

        let reserved_ports = settings::reserved_ports(&config);
        let builds = BuildService::new(
            settings::build(&config),
            images.clone(),
            containers.clone(),
            activity.clone(),
        );
        let allowed_origins = config.allowed_origins.clone().into();
        let daemon_config = config.clone();
        let following = Following {
            config,
            store: store.clone(),
            networks: networks.clone(),
            serving: serving.clone(),
            hook_app,
        };
        tasks.spawn(following.run(stop.clone(), tasks.clone()));

        let reload = Reload {
            store: store.clone(),
            uplink: networks.uplink(),
            serving: serving.clone(),
        };
        let management = (CancellationToken::new(), TaskTracker::new());
        let daemon_store = store.clone();
        let sets = ReplicaSets::new(store.clone(), pods.clone());
        let services = ServiceRegistry::new(store.clone(), ports.clone(), reserved_ports);
        let applier = Applier {
            store: store.clone(),
            pods: pods.clone(),
            sets: sets.clone(),
            services: services.clone(),
            operations: TaskTracker::new(),
        };
        let services = Management {
            store,
            containers: containers.clone(),
            bottles: bottles.clone(),
            pods: pods.clone(),
            services,
            sets: sets.clone(),
            applier: applier.clone(),
            images,
            networks: Networks::new(networks, firewall),
            policies,
            builds,
            sampler,
            activity,
            events,
            sessions: Sessions {
                stop: management.0.clone(),
                tasks: management.1.clone(),
            },
            kept: Default::default(),
            allowed_origins,
        };
        let routes = query::checked(plain(management::routes(), services), &openapi::document());
        let app = routing::app(routes, Role::Cli, audit.clone());
        management
            .1
            .spawn(serving.serve(vec![management_socket], app, management.0.clone()));
        let controllers = Controllers::new(daemon_store);
        controllers.start(Restarter(containers.clone()), DELAYS, RESTARTS_AT_ONCE);
        controllers.start(Prober::new(containers.clone()), DELAYS, 1);
        controllers.start(Sweeper(containers.clone()), SWEEPS, 1);
        controllers.start(ports, DELAYS, 1);
        controllers.start(PodController::new(pods.clone()), POD_BACKOFF, POD_WORKERS);
        controllers.start(SetController::new(sets.clone()), SET_BACKOFF, SET_WORKERS);
        Ok(Self {
            containers,
            bottles,
            pods,
            sets,
            applier,
            audit,
            management,
            controllers: controllers.tasks,
            support,
            reload,
            config: daemon_config,
        })
    }

    /// First refuses new requests, then finishes those in progress, then stops the rest.
    async fn shut_down(self) {
        let Self {
            containers,
            bottles,
            pods,
            sets,
            applier,
            audit,
            management,
            controllers,
            support,
            reload: _,
            config,
        } = self;
        let finish = async {
            end(management).await;
            end(controllers).await;
            bottles.finish_operations().await;
            applier.finish_operations().await;
            sets.finish_operations().await;
            pods.finish_operations().await;
            containers.finish_operations().await;
            end(support).await;
        };
        if tokio::time::timeout(SHUTDOWN_LIMIT, finish).await.is_err() {
            tracing::warn!("some operations did not finish in time; the next start undoes or finishes them");
        }
        audit.flush().await;
        // Last, because operations in progress change the state.
        let recorded = tokio::task::spawn_blocking(move || copies::record_metadata(&config)).await;
        if let Err(error) = recorded {
            tracing::warn!(%error, "cannot record metadata for copies of the state");
        }
    }
}

/// The reconcilers.
struct Controllers {
    store: Store,
    tasks: (CancellationToken, TaskTracker),
}

impl Controllers {
    fn new(store: Store) -> Self {
        Self {
            store,
            tasks: (CancellationToken::new(), TaskTracker::new()),
        }
    }

    /// Reconciles up to `workers` keys at the same time; a failed key is retried after `backoff`.
    fn start<R: Reconcile>(&self, reconciler: R, backoff: Backoff, workers: usize) {
        let (stop, tasks) = &self.tasks;
        let queue = Arc::new(Queue::new(backoff));
        let controller = controller::run(reconciler.into(), queue, workers, self.store.clone(), stop.clone());
        tasks.spawn(controller);
    }
}

/// Routes without their OpenAPI description.
fn plain<S: Clone + Send + Sync + 'static>(routes: OpenApiRouter<S>, state: S) -> Router {
    routes.split_for_parts().0.with_state(state)
}

async fn end((token, tasks): (CancellationToken, TaskTracker)) {
    token.cancel();
    tasks.close();
    tasks.wait().await;
}

const HANGUP: &str = "SIGHUP";

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, DaemonError> {
        let listen = |kind| signal(kind).map_err(DaemonError::Signal);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => HANGUP,
        }
    }
}

async fn listen(purpose: &'static str, address: SocketAddr) -> Result<BoundListener, DaemonError> {
    listener::bind(address)
        .await
        .map_err(|source| DaemonError::Listen { purpose, source })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
