//! Wiring: builds every service from the configuration, recovers, serves, shuts down.
//!
//! `docs/architecture.md` explains the order of a start and of a shutdown; the stages are the functions of `start` and
//! of [`Daemon::shut_down`]. Containers keep running after a shutdown; their monitors do not need the daemon.

pub mod config;
mod copies;
mod directories;
mod following;
pub mod log_filter;
pub mod notify;
mod settings;
mod start;

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::following::Reload;
use crate::daemon::config::Config;
use crate::daemon::notify::ServiceManager;
use crate::observe::audit::AuditLog;
use crate::workload::apply::Applier;
use crate::workload::bottle::Bottles;
use crate::workload::container::ContainerService;
use crate::workload::pod::PodService;
use crate::workload::replica_set::ReplicaSets;

/// How long a shutdown waits for operations in progress. Recovery undoes those that have not finished by then.
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
    Signal(#[source] std::io::Error),
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
    Audit(#[source] std::io::Error),
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
    bottles: Bottles,
    pods: PodService,
    sets: ReplicaSets,
    applier: Applier,
    audit: AuditLog,
    /// The management API, which begins operations.
    management: Running,
    /// The controllers, which begin operations too.
    controllers: Running,
    /// Services that operations in progress still need: hooks, certificates, DNS, periodic work.
    support: Running,
    reload: Reload,
    config: Config,
}

impl Daemon {
    /// First stop accepting requests, then finish those in progress, then stop the rest.
    async fn shut_down(self) {
        let finish = async {
            self.stop_asking().await;
            self.finish_operations().await;
            self.support.end().await;
        };
        if tokio::time::timeout(SHUTDOWN_LIMIT, finish).await.is_err() {
            tracing::warn!("some operations did not finish in time; the next start undoes or finishes them");
        }
        self.audit.flush().await;
        // Last, because operations in progress still change it.
        self.note_for_copies().await;
    }

    /// Clients and controllers begin no new operations.
    async fn stop_asking(&self) {
        self.management.end().await;
        self.controllers.end().await;
    }

    /// Finishes operations in progress, callers before callees.
    async fn finish_operations(&self) {
        self.bottles.finish_operations().await;
        self.applier.finish_operations().await;
        self.sets.finish_operations().await;
        self.pods.finish_operations().await;
        self.containers.finish_operations().await;
    }

    /// Records the metadata that a plain copy of the state would lose in a file beside it.
    async fn note_for_copies(self) {
        let noted = tokio::task::spawn_blocking(move || copies::record_metadata(&self.config)).await;
        if let Err(error) = noted {
            tracing::warn!(%error, "nothing was noted for copies of the state");
        }
    }
}

/// Tasks that are stopped together.
#[derive(Default)]
struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Spawns a task that runs until it is told to stop.
    fn spawn<F>(&self, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(run(self.stop.clone()));
    }

    async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
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
