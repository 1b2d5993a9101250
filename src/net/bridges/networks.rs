//! The service: start, repair, and the operations for other modules.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;

use super::bridge::{BridgeLink, is_ours};
use super::netlink::{Link, Netlink, Port, Seen};
use super::sysctl::Sysctl;
use super::uplink::UplinkWatch;
use super::{BridgeFiltering, DEFAULT_NETWORK, DNS_LINK, NetworkError, NetworkSettings, Uplink, ipam};
use crate::model::names::is_network_name;
use crate::model::{Container, ContainerState, Network, Snapshot, by_creation};
use crate::ops::conditions::Failure;
use crate::store::Store;

/// Prefix of the host end of every container's veth pair.
const VETH_PREFIX: &str = "rd_";

/// The networks of this host. Clones share it.
#[derive(Clone)]
pub struct NetworkService(Arc<Inner>);

struct Inner {
    settings: NetworkSettings,
    store: Store,
    netlink: Arc<Netlink>,
    sysctl: Sysctl,
    uplink: Arc<UplinkWatch>,
    filtering: watch::Sender<BridgeFiltering>,
    /// Locked while bridges are created or deleted, so that a repair does not recreate a bridge that is being
    /// deleted.
    changing: Mutex<()>,
    /// The networks that the last repair failed for, and the reasons.
    troubles: std::sync::Mutex<BTreeMap<String, Failure>>,
    _follower: AbortOnDropHandle<()>,
}

impl NetworkService {
    /// Sets the kernel parameters, stores the default network if there is no network, creates or repairs every bridge
    /// and starts following the uplink, which may be absent (`docs/spec/network.md` 3, N-02, N-03).
    ///
    /// Fails if the host cannot forward packets, or the default network or the DNS link cannot be created. Errors of
    /// other networks are logged, and [`NetworkService::repair`] tries again.
    pub async fn start(settings: NetworkSettings, store: Store) -> Result<Self, NetworkError> {
        let netlink = Arc::new(Netlink::connect()?);
        let uplink = Arc::new(UplinkWatch::new(netlink.clone()).await?);
        let service = Self(Arc::new(Inner {
            _follower: uplink.follow()?,
            settings,
            store,
            netlink,
            sysctl: Sysctl::new(),
            uplink,
            filtering: watch::Sender::new(BridgeFiltering::Enabled),
            changing: Mutex::new(()),
            troubles: std::sync::Mutex::default(),
        }));
        if service.0.store.snapshot().networks().is_empty() {
            service.reserve(DEFAULT_NETWORK).await?;
        }
        let mut made = Vec::new();
        service.reconcile(&mut made).await?;
        tracing::info!(?made, "networks are in place");
        Ok(service)
    }

    /// The uplink and its changes; `None` while there is no IPv4 default route.
    pub fn uplink(&self) -> watch::Receiver<Option<Uplink>> {
        self.0.uplink.subscribe()
    }

    /// Whether traffic between containers of one network is filtered, as of the last repair.
    pub fn filtering(&self) -> BridgeFiltering {
        self.0.filtering.borrow().clone()
    }

    /// Reconciles kernel parameters, bridges, addresses, up state and attached ports; deletes bridges of ours without
    /// a network. Logs one line per change that others had made, none if there was none. Continues after errors:
    /// returns the first error of forwarding, the default network or the DNS link, and logs others when they first
    /// occur.
    pub async fn repair(&self) -> Result<(), NetworkError> {
        let mut changes = Vec::new();
        let result = self.reconcile(&mut changes).await;
        for what in changes {
            tracing::warn!(what, "reverted an external change of the network");
        }
        result
    }

    async fn reconcile(&self, changes: &mut Vec<String>) -> Result<(), NetworkError> {
        let _changing = self.0.changing.lock().await;
        let mut result = self.0.sysctl.enable_forwarding().await.map(|done| changes.extend(done));
        let (filtering, written) = self.0.sysctl.filter_bridged_traffic().await;
        changes.extend(written);
        self.note_filtering(filtering);
        let mut seen = self.0.netlink.look().await?;
        let mut troubles = BTreeMap::new();
        let mut is_changed = false;
        let mut note = |name: &str, outcome: Result<Vec<String>, NetworkError>| match outcome {
            Ok(done) if done.is_empty() => Ok(()),
            Ok(done) => {
                is_changed = true;
                changes.push(format!("{name}: {}", done.join(", ")));
                Ok(())
            }
            Err(error) => Err(error),
        };
        let dns = BridgeLink::of_dns().ensure(&self.0.netlink, &seen).await;
        result = result.and(note(DNS_LINK, dns));
        for network in in_order(&self.0.store.snapshot()) {
            match note(&network.name, self.ensure(&network, &seen).await) {
                Err(error) if network.name == DEFAULT_NETWORK => result = result.and(Err(error)),
                Err(error) => drop(troubles.insert(network.name.clone(), Failure::new(error.reason(), &error))),
                Ok(()) => {}
            }
        }
        self.log_troubles(troubles);
        if is_changed {
            seen = self.0.netlink.look().await?;
        }
        for outcome in [
            self.remove_strays(&seen).await,
            self.reattach_ports(&seen, changes).await,
            self.0.uplink.look().await,
        ] {
            if let Err(error) = outcome {
                tracing::warn!(%error, "networks were repaired only partially");
            }
        }
        result
    }

    /// The networks that the last repair could not put right, and why; the default network and what all need are what
    /// [`NetworkService::repair`] returns.
    pub fn troubles(&self) -> BTreeMap<String, Failure> {
        self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs networks that are newly broken, and those that are repaired.
    fn log_troubles(&self, troubles: BTreeMap<String, Failure>) {
        let mut known = self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        for (network, error) in troubles
            .iter()
            .filter(|(network, error)| known.get(*network) != Some(error))
        {
            tracing::error!(network, error = error.message, "cannot repair a network");
        }
        for network in known.keys().filter(|network| !troubles.contains_key(*network)) {
            tracing::info!(network, "network repaired");
        }
        *known = troubles;
    }

    /// Reserves the lowest free block and creates the bridge. The caller updates the firewall.
    ///
    /// Errors: [`NetworkError::BadName`], [`NetworkError::Exists`] (a network or any interface of the host),
    /// [`NetworkError::NoSubnet`]; a failed attempt leaves nothing behind.
    pub async fn create(&self, name: &str) -> Result<Arc<Network>, NetworkError> {
        if !is_network_name(name) {
            return Err(NetworkError::BadName(name.to_owned()));
        }
        let _changing = self.0.changing.lock().await;
        if self.0.netlink.link(name).await?.is_some() {
            return Err(NetworkError::Exists(name.to_owned()));
        }
        let network = self.reserve(name).await?;
        let made = async { self.ensure(&network, &self.0.netlink.look().await?).await };
        if let Err(error) = made.await {
            let name = name.to_owned();
            let undo: Result<_, NetworkError> = self.0.store.transact(move |t| Ok(t.remove::<Network>(&name))).await;
            if let Err(undo) = undo {
                tracing::error!(network = %network.name, error = %undo, "cannot roll back a network without a bridge");
            }
            return Err(error);
        }
        tracing::info!(network = %network.name, subnet = %network.subnet, "network created");
        Ok(network)
    }

    /// Removes a network without containers, then its bridge. A missing bridge is not an error; one that cannot be
    /// deleted now is deleted by a later repair. The caller updates the firewall.
    ///
    /// Errors: [`NetworkError::Default`], [`NetworkError::NotFound`], [`NetworkError::InUse`].
    pub async fn delete(&self, name: &str) -> Result<(), NetworkError> {
        if name == DEFAULT_NETWORK {
            return Err(NetworkError::Default(name.to_owned()));
        }
        let _changing = self.0.changing.lock().await;
        let target = name.to_owned();
        self.0
            .store
            .transact(move |t| {
                let is_attached =
                    |c: &Arc<Container>| c.status.attachment.as_ref().is_some_and(|a| a.network == target);
                if t.snapshot().containers().iter().any(is_attached) {
                    return Err(NetworkError::InUse(target));
                }
                t.remove::<Network>(&target)
                    .map(drop)
                    .ok_or(NetworkError::NotFound(target))
            })
            .await?;
        if let Err(error) = self.delete_bridge(name).await {
            tracing::warn!(network = name, %error, "cannot delete the bridge of a deleted network; retrying later");
        }
        tracing::info!(network = name, "network deleted");
        Ok(())
    }

    /// Prepares the host end of a container's veth pair after the low-level runtime has attached it: hairpin mode, so
    /// that the container can reach itself through a published port (N-15), and isolation if traffic between ports
    /// cannot be filtered (N-02).
    pub async fn container_attached(&self, veth: &str) -> Result<(), NetworkError> {
        match self.veth(veth).await? {
            Some(link) => self.0.netlink.set_port(&link, self.wanted_port()).await,
            None => Err(NetworkError::NoLink(veth.to_owned())),
        }
    }

    /// Deletes the host end of a veth pair that a container left behind, if it exists.
    pub async fn remove_stray_link(&self, veth: &str) -> Result<(), NetworkError> {
        let Some(link) = self.veth(veth).await? else {
            return Ok(());
        };
        match self.0.netlink.delete(&link).await {
            // The kernel deletes it together with the other end's namespace.
            Err(_) if self.veth(veth).await?.is_none() => Ok(()),
            result => result,
        }
    }

    /// Names of the host ends of all containers' veth pairs, including those of unknown containers.
    pub async fn links(&self) -> Result<Vec<String>, NetworkError> {
        let all = self.0.netlink.links().await?;
        Ok(all
            .into_iter()
            .filter(|link| link.is_veth && link.name.starts_with(VETH_PREFIX))
            .map(|link| link.name)
            .collect())
    }

    async fn veth(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        if !name.starts_with(VETH_PREFIX) {
            return Err(NetworkError::NoLink(name.to_owned()));
        }
        self.0.netlink.link(name).await
    }

    async fn reserve(&self, name: &str) -> Result<Arc<Network>, NetworkError> {
        let runtime = self.0.settings.runtime_subnet;
        let reserved = self.conflicting_routes().await?;
        let name = name.to_owned();
        self.0
            .store
            .transact(move |t| {
                if t.get::<Network>(&name).is_some() {
                    return Err(NetworkError::Exists(name));
                }
                let subnet =
                    ipam::next_subnet(t.snapshot(), runtime, &reserved).ok_or(NetworkError::NoSubnet(runtime))?;
                Ok(t.put(Network {
                    name,
                    subnet,
                    gateway: ipam::gateway(subnet),
                    created_at: Timestamp::now(),
                })?)
            })
            .await
    }

    /// Blocks that the host already routes elsewhere (N-09). A route wider than the runtime subnet is not a conflict:
    /// the bridge's own route is more specific, and such wide routes (10.0.0.0/8 into a company network) are common.
    async fn conflicting_routes(&self) -> Result<Vec<Ipv4Net>, NetworkError> {
        let snapshot = self.0.store.snapshot();
        let links = self.0.netlink.links().await?;
        let is_own = |index| {
            links.iter().any(|l| {
                let known =
                    [DEFAULT_NETWORK, DNS_LINK].contains(&&*l.name) || snapshot.networks().get(&l.name).is_some();
                l.index == index && l.is_bridge && (known || is_ours(l))
            })
        };
        let narrow = self.0.settings.runtime_subnet.prefix_len();
        let routes = self.0.netlink.routes().await?;
        Ok(routes
            .into_iter()
            .filter(|r| r.destination.prefix_len() >= narrow && !is_own(r.link))
            .map(|r| r.destination)
            .collect())
    }

    /// Returns the changes.
    async fn ensure(&self, network: &Network, seen: &Seen) -> Result<Vec<String>, NetworkError> {
        let mut done = BridgeLink::of(network).ensure(&self.0.netlink, seen).await?;
        done.extend(self.0.sysctl.prepare_bridge(&network.name).await?);
        Ok(done)
    }

    async fn delete_bridge(&self, name: &str) -> Result<(), NetworkError> {
        match self.0.netlink.link(name).await? {
            Some(link) if link.is_bridge => self.0.netlink.delete(&link).await,
            _ => Ok(()),
        }
    }

    async fn remove_strays(&self, seen: &Seen) -> Result<(), NetworkError> {
        let snapshot = self.0.store.snapshot();
        for link in &seen.links {
            if is_ours(link) && link.name != DNS_LINK && snapshot.networks().get(&link.name).is_none() {
                self.0.netlink.delete(link).await?;
                tracing::info!(network = %link.name, "bridge of a deleted network removed");
            }
        }
        Ok(())
    }

    /// Attaches ports again that a bridge lost when it was deleted and created again. Skips containers that are being
    /// created: their ports are not ready yet.
    async fn reattach_ports(&self, seen: &Seen, changes: &mut Vec<String>) -> Result<(), NetworkError> {
        let ports: HashMap<&str, &Link> = seen.links.iter().map(|link| (&*link.name, link)).collect();
        let snapshot = self.0.store.snapshot();
        let is_created = |c: &&Arc<Container>| c.status.state != ContainerState::Creating;
        for container in snapshot.containers().iter().filter(is_created) {
            let Some(attachment) = &container.status.attachment else {
                continue;
            };
            let (Some(veth), Some(bridge)) = (ports.get(&*container.veth()), ports.get(&*attachment.network)) else {
                continue;
            };
            let is_attached = veth.controller == Some(bridge.index);
            if is_attached && veth.port == self.wanted_port() {
                continue;
            }
            if !is_attached {
                self.0.netlink.set_controller(veth, bridge).await?;
            }
            self.0.netlink.set_port(veth, self.wanted_port()).await?;
            changes.push(format!("{}: port of {}", veth.name, bridge.name));
        }
        Ok(())
    }

    fn wanted_port(&self) -> Port {
        let filtered = *self.0.filtering.borrow() == BridgeFiltering::Enabled;
        Port {
            hairpin: true,
            isolated: !filtered && !self.0.settings.allow_unfiltered_bridges,
        }
    }

    fn note_filtering(&self, now: BridgeFiltering) {
        self.0.filtering.send_if_modified(|before| {
            let changed = *before != now;
            match &now {
                BridgeFiltering::Unavailable(reason) if changed => {
                    let isolated = !self.0.settings.allow_unfiltered_bridges;
                    tracing::error!(%reason, isolated, "traffic between containers of one network is not filtered");
                }
                BridgeFiltering::Enabled if changed => tracing::info!("bridged traffic is filtered"),
                _ => {}
            }
            *before = now;
            changed
        });
    }
}

/// All networks in the order of creation, which is the order of listings and rules.
pub(crate) fn in_order(snapshot: &Snapshot) -> Vec<Arc<Network>> {
    by_creation(snapshot.networks().iter().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_names() {
        for good in ["a", "raind1", "my_net.1-x", "0", "abcdefghijklmno"] {
            assert!(is_network_name(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "a b",
            "a/b",
            "abcdefghijklmnop",
            "é",
            "a\n",
            "a+",
            "all",
        ] {
            assert!(!is_network_name(bad), "{bad}");
        }
    }
}
