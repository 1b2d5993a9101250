//! What the rules are about, taken from a snapshot. Pure.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::FirewallSettings;
use crate::network::{Uplink, in_order};
use crate::policy::{Directory, End, block, settings as policy_settings};
use crate::service::{self, Endpoint};
use crate::store::{
    Chain, Policy, PolicyProtocol, PolicySettings, PolicyStage, Protocol, Service, ServicePort, Snapshot,
};

/// Everything that decides the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirewallState {
    /// The interface out of this host. Without one the rules that name it are left out.
    pub uplink: Option<Uplink>,
    /// The bridges of all networks, in the order of their creation.
    pub bridges: Vec<Bridge>,
    /// All published ports, in the order of their containers.
    pub ports: Vec<PublishedPort>,
    /// All ports of services, in the order of their services.
    pub services: Vec<BalancedPort>,
    /// All interfaces of containers and pods.
    pub guests: Vec<End>,
    /// What holds where no policy of a user speaks.
    pub policy: PolicySettings,
    /// The policies of users that are in force and mean something, in the order of their addition.
    pub permits: Vec<Permit>,
    /// Ports and addresses.
    pub settings: FirewallSettings,
}

/// Source and destination of an East-West policy.
pub type Pair = (End, End);

/// A policy of a user with the interfaces that it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// Id of the policy.
    pub policy: String,
    /// Its chain, which says whether it allows or denies.
    pub chain: Chain,
    /// East-West: who may talk to whom.
    pub pairs: Vec<Pair>,
    /// North-South: from whom.
    pub sources: Vec<End>,
    /// North-South: to where.
    pub block: Option<Ipv4Net>,
    /// `None` for any.
    pub protocol: Option<PolicyProtocol>,
    /// Destination port; `None` for any.
    pub dport: Option<u16>,
}

impl Permit {
    /// `None` while an end of the policy means nothing.
    fn of(policy: &Policy, directory: &Directory<'_>) -> Option<Self> {
        let sources = directory.resolve(&policy.source).ok()?;
        let (mut pairs, mut from, mut to) = (Vec::new(), Vec::new(), None);
        if policy.chain == Chain::RaindEw {
            let destinations = directory.resolve(&policy.destination).ok()?;
            for source in &sources {
                // Nobody talks to itself through the bridge.
                let others = destinations.iter().filter(|d| d.veth != source.veth);
                pairs.extend(others.map(|d| (source.clone(), d.clone())));
            }
        } else {
            from = sources;
            to = Some(block(&policy.destination)?);
        }
        Some(Self {
            policy: policy.id.clone(),
            chain: policy.chain,
            pairs,
            sources: from,
            block: to,
            protocol: policy.protocol,
            dport: policy.dport,
        })
    }
}

/// The bridge of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Addresses of its containers.
    pub subnet: Ipv4Net,
    /// Its own address.
    pub gateway: Ipv4Addr,
}

/// A port of the host that leads to a port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// Bridge that the container is on.
    pub bridge: String,
    /// Address of the container.
    pub address: Ipv4Addr,
    /// Address of the host; 0.0.0.0 for all.
    pub host_address: Ipv4Addr,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// A port of the host that is balanced over pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancedPort {
    /// Id of the service.
    pub service: String,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the pods.
    pub target_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// For how many seconds a client stays with one pod; `None` for no affinity.
    pub affinity_seconds: Option<u32>,
    /// The pods that are ready.
    pub endpoints: Vec<Endpoint>,
}

impl BalancedPort {
    fn all(snapshot: &Snapshot) -> Vec<Self> {
        let of = |(service, endpoints): (Arc<Service>, Vec<Endpoint>)| {
            let port = |p: &ServicePort| Self {
                service: service.id.clone(),
                host_port: p.port,
                target_port: p.target_port,
                protocol: p.protocol,
                affinity_seconds: service.affinity_seconds,
                endpoints: endpoints.clone(),
            };
            service.ports.iter().map(port).collect::<Vec<_>>()
        };
        service::all(snapshot).into_iter().flat_map(of).collect()
    }
}

impl PublishedPort {
    /// Whether packets to that address of the host come here.
    pub fn is_at(&self, address: Ipv4Addr) -> bool {
        self.host_address.is_unspecified() || self.host_address == address
    }
}

impl FirewallState {
    /// What the rules should be about, as of the snapshot.
    ///
    /// A container publishes its ports while it runs ([`Container::is_published`](crate::store::Container::is_published)).
    pub fn compute(snapshot: &Snapshot, uplink: Option<&Uplink>, settings: &FirewallSettings) -> Self {
        let bridges = in_order(snapshot)
            .iter()
            .map(|n| Bridge {
                name: n.name.clone(),
                subnet: n.subnet,
                gateway: n.gateway,
            })
            .collect();
        let ports = snapshot
            .containers()
            .iter()
            .filter(|c| c.is_published())
            .filter_map(|c| Some((c.attachment.as_ref()?, &c.forwards)))
            .flat_map(|(attachment, forwards)| {
                forwards.iter().map(|f| PublishedPort {
                    bridge: attachment.network.clone(),
                    address: attachment.address,
                    host_address: f.host_address.unwrap_or(settings.publish_address),
                    host_port: f.host_port,
                    container_port: f.container_port,
                    protocol: f.protocol,
                })
            })
            .collect();
        let directory = Directory::new(snapshot);
        let in_force = snapshot.policies().iter().filter(|p| p.stage != PolicyStage::Added);
        Self {
            uplink: uplink.cloned(),
            bridges,
            ports,
            guests: directory.ends(),
            policy: policy_settings(snapshot),
            permits: in_force.filter_map(|p| Permit::of(p, &directory)).collect(),
            services: BalancedPort::all(snapshot),
            settings: settings.clone(),
        }
    }

    /// Every way from a port of the host to a container: published ports, then the pods behind services.
    pub fn ways(&self) -> Vec<PublishedPort> {
        let of = |port: &BalancedPort| {
            let way = |endpoint: &Endpoint| PublishedPort {
                bridge: endpoint.network.clone(),
                address: endpoint.address,
                host_address: self.settings.publish_address,
                host_port: port.host_port,
                container_port: port.target_port,
                protocol: port.protocol,
            };
            port.endpoints.iter().map(way).collect::<Vec<_>>()
        };
        self.ports
            .iter()
            .cloned()
            .chain(self.services.iter().flat_map(of))
            .collect()
    }

    /// The ends of all [`ways`](Self::ways), each once however many ports of the host lead there: what has to be let
    /// through (N-25). Of several the one that is the least narrow.
    pub fn destinations(&self) -> Vec<PublishedPort> {
        let mut seen = HashSet::new();
        let mut ways = self.ways();
        ways.sort_by_key(|way| !way.host_address.is_unspecified());
        ways.retain(|way| seen.insert((way.address, way.container_port, way.protocol)));
        ways
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::tests::{container, network};
    use crate::store::{ContainerState, Operation};

    #[test]
    fn ports_are_published_while_their_container_runs() {
        let ports = |state, starting, operation| {
            let snapshot = Snapshot::build(|t| {
                t.put(network("raind0", "10.166.0.0/24")).unwrap();
                let mut c = container("a", "web").address("10.166.0.1").forward(80).in_state(state);
                (c.operation, c.starting) = (operation, starting);
                t.put(c).unwrap();
                // A member of a pod: no address of its own.
                t.put(container("b", "member").forward(81).in_state(ContainerState::Running))
                    .unwrap();
            });
            FirewallState::compute(&snapshot, None, &FirewallSettings::default())
                .ports
                .len()
        };
        use ContainerState::{Created, Creating, Running, Stopped};
        assert_eq!(
            [Creating, Created, Running, Stopped].map(|s| ports(s, false, None)),
            [0, 0, 1, 0]
        );
        assert_eq!([Creating, Created].map(|s| ports(s, true, None)), [1, 1]);
        assert_eq!(ports(Creating, true, Some(Operation::Restart)), 1);
        assert_eq!(ports(Running, false, Some(Operation::Delete)), 0);
    }
}
