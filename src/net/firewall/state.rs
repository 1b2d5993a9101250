//! The inputs of the rules as a value: the layer above computes it, this one knows chains and sets, not pods. Pure.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::FirewallSettings;
use crate::model::{End, Endpoint, PolicyChain, PolicyProtocol, PolicySettings, Protocol};
use crate::net::bridges::Uplink;

/// All inputs of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredRules {
    /// The uplink. If there is none, the rules that name it are omitted.
    pub uplink: Option<Uplink>,
    /// The bridges of all networks, in order of creation.
    pub bridges: Vec<Bridge>,
    /// All published ports, in the order of their containers.
    pub ports: Vec<PublishedPort>,
    /// All ports of services, in the order of their services.
    pub services: Vec<BalancedPort>,
    /// All interfaces of containers and pods.
    pub interfaces: Vec<End>,
    /// The defaults where no user policy matches.
    pub policy: PolicySettings,
    /// The user policies that are in force and resolve, in order of addition.
    pub policies: Vec<ResolvedPolicy>,
    /// Ports and addresses.
    pub settings: FirewallSettings,
}

/// Source and destination of an East-West policy.
pub type Pair = (End, End);

/// A user policy with its resolved interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPolicy {
    /// Id of the policy.
    pub policy: String,
    /// Its chain, which says whether it allows or denies.
    pub chain: PolicyChain,
    /// East-West: pairs of source and destination.
    pub pairs: Vec<Pair>,
    /// North-South: sources.
    pub sources: Vec<End>,
    /// North-South: destination.
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
    /// Subnet of its containers.
    pub subnet: Ipv4Net,
    /// Its own address.
    pub gateway: Ipv4Addr,
}

/// A host port that is forwarded to a port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// Bridge of the container.
    pub bridge: String,
    /// Address of the container.
    pub address: Ipv4Addr,
    /// Host address; 0.0.0.0 for all.
    pub host_address: Ipv4Addr,
    /// Host port.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// A host port that is balanced over pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancedPort {
    /// Id of the service.
    pub service: String,
    /// Host port.
    pub host_port: u16,
    /// Pod port.
    pub target_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Session affinity in seconds; `None` for no affinity.
    pub affinity_seconds: Option<u32>,
    /// The ready pods.
    pub endpoints: Vec<Endpoint>,
}

impl PublishedPort {
    /// Whether it applies to packets to that host address.
    pub fn is_at(&self, address: Ipv4Addr) -> bool {
        self.host_address.is_unspecified() || self.host_address == address
    }
}

impl DesiredRules {
    /// Every mapping of a host port to a port of a container: published ports, then the pods behind services.
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

    /// The targets of all [`port_mappings`](Self::port_mappings), each once even if several host ports lead there: what
    /// must be accepted (N-25). If there are several mappings, the least restrictive one.
    pub fn destinations(&self) -> Vec<PublishedPort> {
        let mut seen = HashSet::new();
        let mut port_mappings = self.port_mappings();
        port_mappings.sort_by_key(|mapping| !mapping.host_address.is_unspecified());
        port_mappings.retain(|mapping| seen.insert((mapping.address, mapping.container_port, mapping.protocol)));
        port_mappings
    }
}
