//! Ports of the host that are published, held by a socket each, so that nobody takes what somebody else has
//! ([decision 12](../../docs/decisions/0012-who-holds-a-published-port.md)).
//!
//! Packets to a published port are translated before they could reach a socket, so the kernel would let a program of the
//! host and a container have the same port, and the container would win. Therefore each port is bound before it is
//! published, which fails when anybody has it, and stays bound as long as it is. What is held follows from the rows
//! ([`HostPorts::keep`]): the ports of containers that run, and those of services. A daemon that starts again holds them
//! again.
//!
//! What this module never does: accept a connection (see [`socket`]), write a rule, or reserve a port among our own
//! records (the store does).

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

/// How many ports the kernel is asked for until one is free among our own records.
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

/// Why a port of the host cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A program of the host has it.
    #[error("port {port}/{protocol} is already used by {holder}")]
    Taken {
        /// Its number.
        port: u16,
        /// Transport protocol.
        protocol: Protocol,
        /// The program, as far as it is known.
        holder: String,
    },
    /// No interface of the host has the address.
    #[error("{0} is not an address of this host")]
    NoAddress(Ipv4Addr),
    /// No port is free.
    #[error("no {0} port of the host is free")]
    NoneFree(Protocol),
    /// The kernel refuses for another reason, as when there are no descriptors left.
    #[error("cannot hold port {port}: {source}")]
    Kernel {
        /// The port.
        port: HostPort,
        /// What it said.
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
    /// What should be held and is not, and who has it; told once.
    missing: BTreeMap<HostPort, String>,
}

impl HostPorts {
    /// Holds nothing yet. `default` is the address of ports that name none.
    pub fn new(store: Store, default: Ipv4Addr) -> Self {
        Self(Arc::new(Inner {
            store,
            default,
            held: Mutex::default(),
        }))
    }

    /// Asks the kernel whether these ports could be had now. One that we hold ourselves is a matter of the rows.
    pub fn check(&self, forwards: &[Forward]) -> Result<(), PortError> {
        let held = self.held();
        let wanted = forwards.iter().filter(|forward| forward.host_port != 0);
        wanted.map(|forward| self.port_of(forward)).try_for_each(|port| {
            // Gone again at once; two looks at a time would see each other.
            held.take(port).map(drop)
        })
    }

    /// Holds all of these ports or none. Those that no row publishes are let go of by the next [`HostPorts::keep`].
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
        // What a container gave up a moment ago must not be in the way of the next one.
        self.keep();
        let mut held = self.held();
        let mut new = Vec::new();
        for port in ports {
            if let Some(socket) = held.take(*port)? {
                new.push((*port, socket));
            }
        }
        held.sockets.extend(new);
        Ok(())
    }

    /// Gives a number to each of `wanted` that has none: that of the same port in `before`, else one that is free.
    pub fn assign(
        &self,
        snapshot: &Snapshot,
        mut wanted: Vec<Forward>,
        before: &[Forward],
    ) -> Result<Vec<Forward>, PortError> {
        let mut known: Vec<&Forward> = before.iter().filter(|known| !wanted.contains(known)).collect();
        // Until the end, so that the kernel names each once.
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

    /// Holds what the rows say, and nothing else. What cannot be held is told when it is first seen, and again when it can.
    pub fn keep(&self) {
        let mut held = self.held();
        // Looked at under the lock: nobody who comes later has an older view.
        let wanted = self.wanted(&self.0.store.snapshot());
        held.sockets.retain(|port, _| wanted.contains_key(port));
        for (port, owner) in &wanted {
            if held.sockets.contains_key(port) {
                continue;
            }
            match held.take(*port) {
                Ok(socket) => {
                    held.sockets.extend(socket.map(|socket| (*port, socket)));
                    if held.missing.remove(port).is_some() {
                        tracing::info!(%port, owner, "a published port is held again");
                    }
                }
                Err(error) => held.tell(*port, owner, &error),
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

    /// Every port that is published, and whose it is.
    fn wanted(&self, snapshot: &Snapshot) -> BTreeMap<HostPort, String> {
        let containers = snapshot.containers().iter().filter(|row| row.is_published());
        let published = containers.flat_map(|row| {
            let owner = format!("container {}", row.name);
            row.spec
                .forwards
                .iter()
                .map(move |forward| (self.port_of(forward), owner.clone()))
        });
        let of_service = |service: &Arc<Service>| {
            let owner = format!("service {}/{}", service.namespace, service.name);
            let port = |p: &crate::model::ServicePort| (self.service_port(p.port, p.protocol), owner.clone());
            service.ports.iter().map(port).collect::<Vec<_>>()
        };
        let services = snapshot.services().iter().flat_map(of_service);
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
    /// Takes a port. `None` when it is held by us, at this address or at others that include it: then the rows decide.
    fn take(&self, port: HostPort) -> Result<Option<OwnedFd>, PortError> {
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
        let is_any = |port: &HostPort| port.at.ip().is_unspecified();
        self.sockets
            .keys()
            .filter(is_same)
            .any(|other| is_any(other) || is_any(&port) || other.at == port.at)
    }

    fn tell(&mut self, port: HostPort, owner: &str, error: &PortError) {
        let reason = error.to_string();
        if self.missing.get(&port) == Some(&reason) {
            return;
        }
        tracing::warn!(
            %port, owner, reason,
            "a published port cannot be held; its owner goes on with it, and whoever else has it may not be reached"
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

/// Keeps what is held up with the rows, also of what ends by itself.
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
