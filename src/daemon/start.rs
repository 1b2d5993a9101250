//! The stages of a start, in order. Each is a function; `docs/architecture.md` explains the order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::broadcast;
use utoipa_axum::router::OpenApiRouter;

use super::following::{Following, Reload, Serving, hook_addresses, host_addresses};
use super::{Daemon, DaemonError, Running, copies, directories, settings};
use crate::api::identity::Role;
use crate::api::listener::BoundListener;
use crate::api::management::{Management, Sessions};
use crate::api::{hooks, listener, management, openapi, pki as pki_api, query, routing};
use crate::base::pki::Pki;
use crate::daemon::config::Config;
use crate::daemon::notify::ServiceManager;
use crate::image::ImageService;
use crate::model::Commit;
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
use crate::ops::conditions::Conditions;
use crate::ops::controller;
use crate::ops::controller::{Backoff, Queue, Reconcile};
use crate::ops::task::Operations;
use crate::runtime::apparmor::{AppArmor, Confinement};
use crate::runtime::droplet::Droplet;
use crate::store::Store;
use crate::workload::apply::Applier;
use crate::workload::balancer::ServiceRegistry;
use crate::workload::bottle::{BottleParts, Bottles};
use crate::workload::build::BuildService;
use crate::workload::container::{ContainerService, DELAYS, Prober, Restarter, SWEEPS, Services, Sweeper};
use crate::workload::disk::DiskService;
use crate::workload::pod::{PodController, PodService};
use crate::workload::replica_set::{ReplicaSets, SetController};
use crate::workload::{conditions, import};

/// How many containers the restart policies start in parallel.
const RESTARTS_AT_ONCE: usize = 4;
/// Back-off of a pod that cannot be reconciled.
const POD_BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(60),
};
/// Back-off of a replica set whose rows cannot be written.
const SET_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(200),
    most: Duration::from_secs(5),
};
/// How many replica sets are reconciled in parallel. Each one is a single transaction.
const SET_WORKERS: usize = 2;
/// How many pods are reconciled in parallel: enough that a few that pull images do not delay the others.
const POD_WORKERS: usize = 8;
/// Dependencies that the services of all modules share.
struct Foundation {
    store: Store,
    images: ImageService,
    events: Events,
    audit: AuditLog,
    activity: Activity,
    sampler: Sampler,
    conditions: Conditions,
}

/// Sockets that do not need our networks.
struct EarlySockets {
    management: BoundListener,
    ca: BoundListener,
}

/// The network and its packet filter.
struct Networking {
    networks: NetworkService,
    firewall: Firewall,
    ports: HostPorts,
}

/// The recovered services.
struct Workloads {
    containers: ContainerService,
    bottles: Bottles,
    pods: PodService,
    policies: PolicyService,
}

impl Daemon {
    pub(super) async fn start(mut config: Config, manager: &ServiceManager) -> Result<Self, DaemonError> {
        manager.starting("opening the state store").await;
        let (foundation, sockets, commits) = open_state(&mut config).await?;
        manager.starting("preparing networks and rules").await;
        let (network, dns) = prepare_network(&config, &foundation, &sockets.ca).await?;
        let (serving, hook_sockets) = bind_hooks(&config, &foundation, &network).await?;
        let (containers, watcher) = make_containers(&config, &foundation, &network).await;

        let support = Running::default();
        support.spawn(|stop| dns.run(stop));
        support.spawn(|stop| foundation.events.clone().run(commits, stop));
        support.spawn(|stop| watcher.run(stop));
        let hook_app = serve_runtime(&support, &serving, &containers, sockets.ca, hook_sockets);
        // Before containers are recovered, because recovery changes their states.
        let (firewall, store) = (network.firewall.clone(), foundation.store.clone());
        let (conditions, events) = (foundation.conditions.clone(), foundation.events.clone());
        support.spawn(|stop| firewall.follow(store.clone(), conditions.clone(), stop));
        support.spawn(|stop| conditions::tell(store, conditions, events, stop));
        let workloads = recover(&config, &foundation, &network, containers, manager).await?;
        keep_up(&support, &config, &foundation, &workloads, &network, &serving, hook_app);

        let (management, sets, applier) =
            serve_management(&config, &foundation, &network, &workloads, &serving, sockets.management);
        let controllers = start_controllers(&foundation, network.ports, &workloads, &sets);
        let reload = Reload {
            store: foundation.store,
            uplink: network.networks.uplink(),
            serving,
        };
        Ok(Self {
            containers: workloads.containers,
            bottles: workloads.bottles,
            pods: workloads.pods,
            sets,
            applier,
            audit: foundation.audit,
            management,
            controllers,
            support,
            reload,
            config,
        })
    }
}

/// Steps that may fail without having changed the machine: directories, store, loopback listeners. This also imports an
/// installation of the original daemon, after binding the listeners: if a port is in use, nothing is imported.
async fn open_state(
    config: &mut Config,
) -> Result<(Foundation, EarlySockets, broadcast::Receiver<Arc<Commit>>), DaemonError> {
    directories::prepare(config)?;
    copies::restore(config);
    let store = Store::open(&config.database())?;
    // From here on, so that it includes recovery.
    let commits = store.subscribe();
    let sockets = EarlySockets {
        management: listen("the management API", config.management_address).await?,
        ca: listen("certificate requests", config.ca_address).await?,
    };
    let audit = AuditLog::open(&config.log_dir, &host_name()).map_err(DaemonError::Audit)?;
    let activity = Activity::default();
    let images = ImageService::new(settings::image(config), store.clone(), activity.clone())?;
    if let Some(import) = import::run(&settings::import_places(config), &store, &images).await? {
        config.follow(import.runtime_subnet, &import.dns_upstreams);
    }
    let foundation = Foundation {
        store,
        images,
        events: Events::new(events::KEPT),
        audit,
        activity,
        sampler: Sampler::new(config.container_root())?,
        conditions: Conditions::default(),
    };
    Ok((foundation, sockets, commits))
}

/// Bridges and rules, which must exist before the first container starts, and the socket of the resolver.
async fn prepare_network(
    config: &Config,
    foundation: &Foundation,
    ca_socket: &BoundListener,
) -> Result<(Networking, Forwarder), DaemonError> {
    let store = &foundation.store;
    let network_settings = NetworkSettings {
        runtime_subnet: config.runtime_subnet,
        allow_unfiltered_bridges: config.allow_unfiltered_bridges,
    };
    let networks = NetworkService::start(network_settings, store.clone()).await?;
    let rules = settings::firewall(config, ca_socket);
    let network = Networking {
        firewall: Firewall::start(store.clone(), networks.uplink(), rules).await?,
        ports: HostPorts::new(store.clone(), foundation.conditions.clone(), config.publish_address),
        networks,
    };
    let dns_address = SocketAddr::from((DNS_ADDRESS, DNS_PORT));
    let dns = Forwarder::bind(dns_address, config.dns_upstreams.clone(), config.runtime_subnet).await?;
    Ok((network, dns))
}

/// Certificates, which contain the host's address, then the sockets for hooks, which need the bridges' addresses.
async fn bind_hooks(
    config: &Config,
    foundation: &Foundation,
    network: &Networking,
) -> Result<(Serving, Vec<BoundListener>), DaemonError> {
    let uplink = network.networks.uplink().borrow().clone();
    let addresses = host_addresses(&foundation.store, uplink.as_ref());
    let pki = Arc::new(Pki::load_or_create(&config.cert_dir(), &addresses)?);
    let mut sockets = Vec::new();
    for address in hook_addresses(config, &addresses) {
        sockets.push(listen("runtime hooks", address).await?);
    }
    let audit = foundation.audit.clone();
    Ok((Serving { pki, audit }, sockets))
}

/// The container service, its confinement, and the followers of its logs.
async fn make_containers(
    config: &Config,
    foundation: &Foundation,
    network: &Networking,
) -> (ContainerService, Watcher) {
    let apparmor = Arc::new(AppArmor::new(&config.root_dir));
    match apparmor.confine().await {
        Confinement::Confined => tracing::info!("containers are confined by AppArmor"),
        Confinement::Unconfined(reason) => tracing::warn!(reason, "containers run without AppArmor"),
    }
    let watcher = Watcher::open();
    let services = Services {
        store: foundation.store.clone(),
        images: foundation.images.clone(),
        networks: network.networks.clone(),
        firewall: network.firewall.clone(),
        ports: network.ports.clone(),
        runtime: Arc::new(Droplet::new(config.droplet.clone(), config.container_root())),
        activity: foundation.activity.clone(),
        watcher: watcher.clone(),
        conditions: foundation.conditions.clone(),
    };
    (
        ContainerService::new(settings::container(config, apparmor), services),
        watcher,
    )
}

/// Serves certificates and hooks, because recovery makes the runtime call back. Returns the hook application, for
/// addresses that are added later.
fn serve_runtime(
    support: &Running,
    serving: &Serving,
    containers: &ContainerService,
    ca_socket: BoundListener,
    hook_sockets: Vec<BoundListener>,
) -> Router {
    let audit = &serving.audit;
    let signing = pki_api::Signing {
        containers: containers.clone(),
        pki: serving.pki.clone(),
    };
    let ca_app = routing::app(plain(pki_api::routes(), signing), Role::Droplet, audit.clone());
    support.spawn(|stop| serving.clone().serve(vec![ca_socket], ca_app, stop));
    let hook_routes = plain(hooks::routes(), containers.clone());
    let hook_app = routing::app(hook_routes, Role::Container, audit.clone());
    support.spawn(|stop| serving.clone().serve(hook_sockets, hook_app.clone(), stop));
    hook_app
}

/// Reconciles what an earlier run left with its rows.
async fn recover(
    config: &Config,
    foundation: &Foundation,
    network: &Networking,
    containers: ContainerService,
    manager: &ServiceManager,
) -> Result<Workloads, DaemonError> {
    let store = &foundation.store;
    manager.starting("recovering images").await;
    foundation.images.recover().await?;
    let known = store.snapshot().containers().iter().count();
    manager.starting(&format!("recovering {known} containers")).await;
    containers.recover().await?;
    network.ports.keep();
    manager.starting("recovering pods and bottles").await;
    let policies = PolicyService::new(store.clone(), network.firewall.clone());
    let bottles = Bottles::new(BottleParts {
        store: store.clone(),
        containers: containers.clone(),
        networks: Networks::new(network.networks.clone(), network.firewall.clone()),
        policies: policies.clone(),
        conditions: foundation.conditions.clone(),
        volume_root: config.volume_root(),
    });
    bottles.recover().await;
    let pods = PodService::new(settings::pod(config), store.clone(), containers.clone());
    pods.recover().await?;
    Ok(Workloads {
        containers,
        bottles,
        pods,
        policies,
    })
}

/// Background work: metrics, log rotation, drift of the network, certificate renewal.
fn keep_up(
    support: &Running,
    config: &Config,
    foundation: &Foundation,
    workloads: &Workloads,
    network: &Networking,
    serving: &Serving,
    hook_app: Router,
) {
    let (sampler, store) = (foundation.sampler.clone(), foundation.store.clone());
    let log = MetricsLog::open(&config.log_dir);
    support.spawn(|stop| sampler.run(store, log, stop));
    support.spawn(|stop| workloads.containers.clone().bound_logs(stop));
    let following = Following {
        config: config.clone(),
        store: foundation.store.clone(),
        networks: network.networks.clone(),
        conditions: foundation.conditions.clone(),
        serving: serving.clone(),
        hook_app,
    };
    support.spawn(|stop| following.run(stop, support.tasks.clone()));
}

/// The management API, and the services that only it uses.
fn serve_management(
    config: &Config,
    foundation: &Foundation,
    network: &Networking,
    workloads: &Workloads,
    serving: &Serving,
    socket: BoundListener,
) -> (Running, ReplicaSets, Applier) {
    let (store, containers) = (&foundation.store, &workloads.containers);
    let running = Running::default();
    let sets = ReplicaSets::new(store.clone(), workloads.pods.clone());
    let services = ServiceRegistry::new(store.clone(), network.ports.clone(), settings::reserved_ports(config));
    let applier = Applier {
        store: store.clone(),
        pods: workloads.pods.clone(),
        sets: sets.clone(),
        services: services.clone(),
        operations: Operations::default(),
    };
    let (images, activity) = (foundation.images.clone(), foundation.activity.clone());
    let builds = BuildService::new(
        settings::build(config),
        images.clone(),
        containers.clone(),
        activity.clone(),
    );
    let management = Management {
        store: store.clone(),
        containers: containers.clone(),
        bottles: workloads.bottles.clone(),
        pods: workloads.pods.clone(),
        services,
        sets: sets.clone(),
        applier: applier.clone(),
        disk: DiskService::new(
            settings::disk(config),
            store.clone(),
            images.clone(),
            containers.clone(),
            builds.clone(),
        ),
        builds,
        images,
        networks: Networks::new(network.networks.clone(), network.firewall.clone()),
        policies: workloads.policies.clone(),
        sampler: foundation.sampler.clone(),
        activity,
        events: foundation.events.clone(),
        conditions: foundation.conditions.clone(),
        sessions: Sessions {
            stop: running.stop.clone(),
            tasks: running.tasks.clone(),
        },
        cached: Default::default(),
        allowed_origins: config.allowed_origins.clone().into(),
    };
    let routes = query::checked(plain(management::routes(), management), &openapi::document());
    let app = routing::app(routes, Role::Cli, serving.audit.clone());
    running.spawn(|stop| serving.clone().serve(vec![socket], app, stop));
    (running, sets, applier)
}

/// The controllers.
fn start_controllers(foundation: &Foundation, ports: HostPorts, workloads: &Workloads, sets: &ReplicaSets) -> Running {
    let controllers = Controllers {
        store: foundation.store.clone(),
        conditions: foundation.conditions.clone(),
        running: Running::default(),
    };
    let containers = &workloads.containers;
    controllers.start(Restarter(containers.clone()), DELAYS, RESTARTS_AT_ONCE);
    controllers.start(Prober::new(containers.clone()), DELAYS, 1);
    controllers.start(Sweeper(containers.clone()), SWEEPS, 1);
    controllers.start(ports, DELAYS, 1);
    controllers.start(PodController::new(workloads.pods.clone()), POD_BACKOFF, POD_WORKERS);
    controllers.start(SetController::new(sets.clone()), SET_BACKOFF, SET_WORKERS);
    controllers.running
}

struct Controllers {
    store: Store,
    conditions: Conditions,
    running: Running,
}

impl Controllers {
    /// Reconciles up to `workers` keys in parallel; a failed key is retried with `backoff`.
    fn start<R: Reconcile>(&self, reconciler: R, backoff: Backoff, workers: usize) {
        let queue = Arc::new(Queue::new(backoff));
        let (store, conditions) = (self.store.clone(), self.conditions.clone());
        self.running
            .spawn(|stop| controller::run(reconciler.into(), queue, workers, store, conditions, stop));
    }
}

/// Routes without their OpenAPI description.
fn plain<S: Clone + Send + Sync + 'static>(routes: OpenApiRouter<S>, state: S) -> Router {
    routes.split_for_parts().0.with_state(state)
}

async fn listen(purpose: &'static str, address: SocketAddr) -> Result<BoundListener, DaemonError> {
    listener::bind(address)
        .await
        .map_err(|source| DaemonError::Listen { purpose, source })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
