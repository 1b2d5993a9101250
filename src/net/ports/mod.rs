//! Published ports of the host, each reserved by a socket, so that nobody takes a port that is in use ([decision
//! 12](../../docs/decisions/0012-who-holds-a-published-port.md)).
//!
//! Packets to a published port are translated before they reach a socket, so the kernel would let a host program and
//! a container use the same port, and the container would win. Therefore each port is bound before it is published,
//! which fails if it is in use, and stays bound for as long as it is published. The rows determine which ports are
//! held ([`HostPorts::keep`]): those of running containers and those of services. After a restart the daemon binds
//! them again.
//!
//! This module never accepts a connection (see [`socket`]), writes a rule, or reserves a port among our own records
//! (the store does).

mod owner;
mod socket;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::{Change, Forward, Kind, Protocol, Service, Snapshot};
use crate::ops::controller::{Outcome, Reconcile};
use crate::store::Store;

/// Maximum number of ports requested from the kernel until one is free among our own records.
const TRIES: usize = 64;

/// A port of the host at one of its addresses, or at all of them (0.0.0.0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// Address and number.
    pub at: SocketAddrV4,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.at, self.protocol)
    }
}

/// Why a port of the host is not available.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A host program uses the port.
    #[error("port {port}/{protocol} is already used by {holder}")]
    Taken {
        /// Its number.
        port: u16,
        /// Transport protocol.
        protocol: Protocol,
        /// The program, as far as known.
        holder: String,
    },
    /// No interface of the host has the address.
    #[error("{0} is not an address of this host")]
    NoAddress(Ipv4Addr),
    /// No port is free.
    #[error("no {0} port of the host is free")]
    NoneFree(Protocol),
    /// The kernel refuses for another reason, such as a lack of descriptors.
    #[error("cannot hold port {port}: {source}")]
    Kernel {
        /// The port.
        port: HostPort,
        /// Error of the system.
        source: io::Error,
    },
}

/// The ports that this daemon holds. Clones share them.
#[derive(Clone)]
pub struct HostPorts(Arc<Inner>);

struct Inner {
    store: Store,
    default: Ipv4Addr,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    sockets: HashMap<HostPort, OwnedFd>,
    /// Ports that should be held but cannot be, and the reason; logged once.
    missing: BTreeMap<HostPort, String>,
}

impl HostPorts {
    /// Holds no port yet. `default` is the address of ports without one.
    pub fn new(store: Store, default: Ipv4Addr) -> Self {
        Self(Arc::new(Inner {
            store,
            default,
            held: Mutex::default(),
        }))
    }

    /// Checks whether these ports are available now. For a port that we hold, the rows decide.
    pub fn check(&self, forwards: &[Forward]) -> Result<(), PortError> {
        let held = self.held();
        let wanted = forwards.iter().filter(|forward| forward.host_port != 0);
        wanted.map(|forward| self.port_of(forward)).try_for_each(|port| {
            // Released at once; two concurrent checks would see each other's socket.
            held.bind(port).map(drop)
        })
    }

    /// Holds all of these ports or none. The next [`HostPorts::keep`] releases those that no row publishes.
    pub fn hold(&self, forwards: &[Forward]) -> Result<(), PortError> {
        let ports: Vec<_> = forwards.iter().map(|forward| self.port_of(forward)).collect();
        self.hold_all(&ports)
    }

    /// The same for the ports of a service.
    pub fn hold_for_service(&self, ports: &[crate::model::ServicePort]) -> Result<(), PortError> {
        let ports: Vec<_> = ports
            .iter()
            .map(|port| self.service_port(port.port, port.protocol))
            .collect();
        self.hold_all(&ports)
    }

    fn hold_all(&self, ports: &[HostPort]) -> Result<(), PortError> {
        if ports.is_empty() {
            return Ok(());
        }
        // Release ports that a container has just given up, so that they do not conflict with the next one.
        self.keep();
        let mut held = self.held();
        let mut new = Vec::new();
        for port in ports {
            if let Some(socket) = held.bind(*port)? {
                new.push((*port, socket));
            }
        }
        held.sockets.extend(new);
        Ok(())
    }

    /// Assigns a number to each port of `wanted` without one: that of the same port in `before`, otherwise a free
    /// one.
    pub fn assign(
        &self,
        snapshot: &Snapshot,
        mut wanted: Vec<Forward>,
        before: &[Forward],
    ) -> Result<Vec<Forward>, PortError> {
        let mut known: Vec<&Forward> = before.iter().filter(|known| !wanted.contains(known)).collect();
        // Kept until the end, so that the kernel does not choose the same port twice.
        let mut taken = Vec::new();
        for forward in wanted.iter_mut().filter(|forward| forward.host_port == 0) {
            if let Some(at) = known.iter().position(|known| forward.allows(known)) {
                forward.host_port = known.swap_remove(at).host_port;
                continue;
            }
            forward.host_port = self.free(snapshot, forward, &mut taken)?;
        }
        Ok(wanted)
    }

    fn free(&self, snapshot: &Snapshot, forward: &Forward, taken: &mut Vec<OwnedFd>) -> Result<u16, PortError> {
        for _ in 0..TRIES {
            let any = self.port_of(forward);
            let (number, socket) = socket::any(any).map_err(|source| refusal(any, source))?;
            taken.push(socket);
            let candidate = Forward {
                host_port: number,
                ..forward.clone()
            };
            if snapshot.rivals(&candidate.claim()).next().is_none() {
                return Ok(number);
            }
        }
        Err(PortError::NoneFree(forward.protocol))
    }

    /// Reconciles the held ports with the rows. A port that cannot be held is logged once, and again once it is held.
    pub fn keep(&self) {
        let mut held = self.held();
        // Read under the lock, so that no later caller works on an older snapshot.
        let wanted = self.wanted(&self.0.store.snapshot());
        held.sockets.retain(|port, _| wanted.contains_key(port));
        for (port, owner) in &wanted {
            if held.sockets.contains_key(port) {
                continue;
            }
            match held.bind(*port) {
                Ok(socket) => {
                    held.sockets.extend(socket.map(|socket| (*port, socket)));
                    if held.missing.remove(port).is_some() {
                        tracing::info!(%port, owner, "published port reserved again");
                    }
                }
                Err(error) => held.log_missing(*port, owner, &error),
            }
        }
        let gone: BTreeSet<_> = held
            .missing
            .keys()
            .filter(|port| !wanted.contains_key(port))
            .copied()
            .collect();
        held.missing.retain(|port, _| !gone.contains(port));
    }

    /// Every published port and its owner.
    fn wanted(&self, snapshot: &Snapshot) -> BTreeMap<HostPort, String> {
        let containers = snapshot.containers().iter().filter(|row| row.is_published());
        let published = containers.flat_map(|row| {
            let owner = format!("container {}", row.name);
            row.spec
                .forwards
                .iter()
                .map(move |forward| (self.port_of(forward), owner.clone()))
        });
        let service_ports = |service: &Arc<Service>| {
            let owner = format!("service {}/{}", service.namespace, service.name);
            let port = |p: &crate::model::ServicePort| (self.service_port(p.port, p.protocol), owner.clone());
            service.ports.iter().map(port).collect::<Vec<_>>()
        };
        let services = snapshot.services().iter().flat_map(service_ports);
        published.chain(services).collect()
    }

    fn port_of(&self, forward: &Forward) -> HostPort {
        let address = forward.host_address.unwrap_or(self.0.default);
        HostPort {
            at: SocketAddrV4::new(address, forward.host_port),
            protocol: forward.protocol,
        }
    }

    fn service_port(&self, port: u16, protocol: Protocol) -> HostPort {
        HostPort {
            at: SocketAddrV4::new(self.0.default, port),
            protocol,
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Binds a port. `None` if we hold it, at this address or at an overlapping one: then the rows decide.
    fn bind(&self, port: HostPort) -> Result<Option<OwnedFd>, PortError> {
        if self.sockets.contains_key(&port) {
            return Ok(None);
        }
        match socket::hold(port) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && self.overlaps(port) => Ok(None),
            Err(error) => Err(refusal(port, error)),
        }
    }

    fn overlaps(&self, port: HostPort) -> bool {
        let is_same = |other: &&HostPort| (other.at.port(), other.protocol) == (port.at.port(), port.protocol);
        let is_unspecified_port = |port: &HostPort| port.at.ip().is_unspecified();
        self.sockets
            .keys()
            .filter(is_same)
            .any(|other| is_unspecified_port(other) || is_unspecified_port(&port) || other.at == port.at)
    }

    fn log_missing(&mut self, port: HostPort, owner: &str, error: &PortError) {
        let reason = error.to_string();
        if self.missing.get(&port) == Some(&reason) {
            return;
        }
        tracing::warn!(
            %port, owner, reason,
            "cannot reserve a published port; it stays published, and the program that uses it may be unreachable"
        );
        self.missing.insert(port, reason);
    }
}

fn refusal(port: HostPort, source: io::Error) -> PortError {
    match source.kind() {
        io::ErrorKind::AddrInUse => PortError::Taken {
            port: port.at.port(),
            protocol: port.protocol,
            holder: owner::of(port),
        },
        io::ErrorKind::AddrNotAvailable => PortError::NoAddress(*port.at.ip()),
        _ => PortError::Kernel { port, source },
    }
}

/// Keeps the held ports in step with the rows, also when a container exits.
impl Reconcile for HostPorts {
    type Key = &'static str;

    fn concerned(&self, change: &Change, _: &Snapshot) -> Vec<Self::Key> {
        match change.kind {
            Kind::Container | Kind::Service => vec!["host ports"],
            _ => Vec::new(),
        }
    }

    fn all(&self, _: &Snapshot) -> Vec<Self::Key> {
        vec!["host ports"]
    }

    async fn reconcile(&self, _: &Self::Key) -> Outcome {
        self.keep();
        Outcome::Done
    }
}

#[cfg(test)]
mod tests;
