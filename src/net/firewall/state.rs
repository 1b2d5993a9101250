//! What the rules are about, as a value: the layer above computes it, this one knows chains and sets, not pods. Pure.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::FirewallSettings;
use crate::model::{End, Endpoint, PolicyChain, PolicyProtocol, PolicySettings, Protocol};
use crate::net::bridges::Uplink;

/// Everything that decides the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredRules {
    /// The interface out of this host. Without one the rules that name it are left out.
    pub uplink: Option<Uplink>,
    /// The bridges of all networks, in the order of their creation.
    pub bridges: Vec<Bridge>,
    /// All published ports, in the order of their containers.
    pub ports: Vec<PublishedPort>,
    /// All ports of services, in the order of their services.
    pub services: Vec<BalancedPort>,
    /// All interfaces of containers and pods.
    pub interfaces: Vec<End>,
    /// What holds where no policy of a user speaks.
    pub policy: PolicySettings,
    /// The policies of users that are in force and mean something, in the order of their addition.
    pub policies: Vec<ResolvedPolicy>,
    /// Ports and addresses.
    pub settings: FirewallSettings,
}

/// Source and destination of an East-West policy.
pub type Pair = (End, End);

/// A policy of a user with the interfaces that it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPolicy {
    /// Id of the policy.
    pub policy: String,
    /// Its chain, which says whether it allows or denies.
    pub chain: PolicyChain,
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

impl PublishedPort {
    /// Whether packets to that address of the host come here.
    pub fn is_at(&self, address: Ipv4Addr) -> bool {
        self.host_address.is_unspecified() || self.host_address == address
    }
}

impl DesiredRules {
    /// Every mapping of a port of the host to a port of a container: published ports, then the pods behind services.
    pub fn port_mappings(&self) -> Vec<PublishedPort> {
        let mappings = |port: &BalancedPort| {
            let mapping = |endpoint: &Endpoint| PublishedPort {
                bridge: endpoint.network.clone(),
                address: endpoint.address,
                host_address: self.settings.publish_address,
                host_port: port.host_port,
                container_port: port.target_port,
                protocol: port.protocol,
            };
            port.endpoints.iter().map(mapping).collect::<Vec<_>>()
        };
        self.ports
            .iter()
            .cloned()
            .chain(self.services.iter().flat_map(mappings))
            .collect()
    }

    /// The ends of all [`port_mappings`](Self::port_mappings), each once however many ports of the host lead there: what
    /// has to be let through (N-25). Of several the one that is the least narrow.
    pub fn destinations(&self) -> Vec<PublishedPort> {
        let mut seen = HashSet::new();
        let mut port_mappings = self.port_mappings();
        port_mappings.sort_by_key(|mapping| !mapping.host_address.is_unspecified());
        port_mappings.retain(|mapping| seen.insert((mapping.address, mapping.container_port, mapping.protocol)));
        port_mappings
    }
}
