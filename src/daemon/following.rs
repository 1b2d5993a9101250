//! Background work of the daemon: listeners that follow the host's addresses, repair of the network, renewal and
//! reload of certificates.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::SHUTDOWN_LIMIT;
use crate::api::listener;
use crate::api::listener::BoundListener;
use crate::base::pki::Pki;
use crate::daemon::config::Config;
use crate::model::Kind;
use crate::net::HOOK_PORT;
use crate::net::bridges::{DEFAULT_NETWORK, NetworkService, Uplink};
use crate::observe::audit::AuditLog;
use crate::ops::conditions::{ConditionType, Conditions, Failure};
use crate::store::Store;

/// How often the kernel's links, addresses and rules are reconciled.
pub(super) const RESYNC: Duration = Duration::from_secs(5);
/// How often certificates are checked.
const RENEWAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Follows changes while the daemon runs: the host's addresses, drift of the network, expiring certificates.
pub(super) struct Following {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) networks: NetworkService,
    pub(super) conditions: Conditions,
    pub(super) serving: Serving,
    pub(super) hook_app: Router,
}

impl Following {
    pub(super) async fn run(self, stop: CancellationToken, tasks: TaskTracker) {
        let mut uplink = self.networks.uplink();
        let mut resync = tokio::time::interval(RESYNC);
        let mut renewal = tokio::time::interval(RENEWAL);
        // The error of the last repair; logged once.
        let mut trouble = None;
        let mut served: BTreeSet<IpAddr> = host_addresses(&self.store, uplink.borrow().as_ref())
            .into_iter()
            .collect();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = resync.tick() => {
                    let now = self.networks.repair().await.err().map(|error| Failure::new(error.reason(), &error));
                    if let Some(failure) = now.as_ref().filter(|_| now != trouble) {
                        tracing::error!(error = failure.message, "cannot repair the network");
                    }
                    self.note(now.as_ref());
                    trouble = now;
                }
                _ = renewal.tick() => self.renew(&host_addresses(&self.store, uplink.borrow().as_ref())),
                changed = uplink.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = uplink.borrow_and_update().clone();
                    tracing::info!(uplink = ?now, "the default route has changed");
                    let addresses = host_addresses(&self.store, now.as_ref());
                    self.renew(&addresses);
                    for address in hook_addresses(&self.config, &addresses) {
                        if served.insert(address.ip()) {
                            self.serve_hooks_on(address, &stop, &tasks).await;
                        }
                    }
                }
            }
        }
    }

    /// What clients can read of each network. What all networks need is the default network's.
    fn note(&self, trouble: Option<&Failure>) {
        let troubles = self.networks.troubles();
        let next = Timestamp::now().checked_add(RESYNC).ok();
        for network in self.store.snapshot().networks().iter() {
            let subject = (Kind::Network, &network.name[..]);
            let of_all = trouble.filter(|_| network.name == DEFAULT_NETWORK);
            match of_all.or_else(|| troubles.get(&network.name)) {
                Some(failure) => self.conditions.fail(subject, ConditionType::Reconciled, failure, next),
                None => self.conditions.succeed(subject, ConditionType::Reconciled),
            }
        }
    }

    fn renew(&self, addresses: &[IpAddr]) {
        // Reads and writes files, and may generate keys.
        let renewed = tokio::task::block_in_place(|| self.serving.pki.renew_due(addresses));
        if let Err(error) = renewed {
            tracing::error!(%error, "cannot renew certificates");
        }
    }

    async fn serve_hooks_on(&self, address: SocketAddr, stop: &CancellationToken, tasks: &TaskTracker) {
        match listener::bind(address).await {
            Ok(socket) => {
                tasks.spawn(
                    self.serving
                        .clone()
                        .serve(vec![socket], self.hook_app.clone(), stop.clone()),
                );
            }
            Err(error) => tracing::error!(%error, "cannot listen for hooks; hooks from this address will fail"),
        }
    }
}

/// Handles SIGHUP: loads certificates that the operator replaced, and creates log files again that were moved away.
/// Connections stay open. The configuration is not read again.
pub(super) struct Reload {
    pub(super) store: Store,
    pub(super) uplink: watch::Receiver<Option<Uplink>>,
    pub(super) serving: Serving,
}

impl Reload {
    pub(super) fn run(&self) {
        self.serving.audit.reopen();
        let addresses = host_addresses(&self.store, self.uplink.borrow().as_ref());
        match tokio::task::block_in_place(|| self.serving.pki.reload(&addresses)) {
            Ok(()) => tracing::info!("certificates and log files reloaded"),
            Err(error) => tracing::error!(%error, "cannot reload certificates; keeping the current ones"),
        }
    }
}

/// Everything that a listener needs besides its routes.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) pki: Arc<Pki>,
    pub(super) audit: AuditLog,
}

impl Serving {
    pub(super) async fn serve(self, sockets: Vec<BoundListener>, app: Router, stop: CancellationToken) {
        listener::serve(sockets, self.pki, app, self.audit, stop, SHUTDOWN_LIMIT).await;
    }
}

/// Addresses at which containers and their hooks reach the daemon, besides loopback.
pub(super) fn host_addresses(store: &Store, uplink: Option<&Uplink>) -> Vec<IpAddr> {
    let snapshot = store.snapshot();
    let gateways = snapshot.networks().iter().map(|network| network.gateway);
    uplink
        .map(|u| u.address)
        .into_iter()
        .chain(gateways)
        .map(IpAddr::V4)
        .collect()
}

/// The addresses of the hook listener: those of the configuration, otherwise loopback and every address that
/// containers use.
pub(super) fn hook_addresses(config: &Config, addresses: &[IpAddr]) -> Vec<SocketAddr> {
    if let Some(configured) = &config.hook_addresses {
        return configured.clone();
    }
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let all: BTreeSet<_> = addresses.iter().copied().chain([loopback]).collect();
    all.into_iter().map(|ip| SocketAddr::new(ip, HOOK_PORT)).collect()
}
