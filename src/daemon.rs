//! Wiring: builds every service from the configuration, recovers, serves, shuts down.
//!
//! Order of a start, and why:
//! 1. What may fail without having touched the machine: root, directories, store, listeners on loopback.
//! 2. The network and the rules. They stand before the first container can start.
//! 3. Certificates (they carry the host's address), then the hook listener, which needs the bridges' addresses.
//! 4. Everything is bound. Hooks and certificates are served: recovery makes the runtime call back.
//! 5. Recovery, then the management API.
//!
//! A shutdown goes the other way. Containers keep running; their monitors do not need the daemon.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::listener::{self, BoundListener};
use crate::api::management::{self, Management};
use crate::api::{hooks, pki as pki_api};
use crate::apparmor::{self, Confinement};
use crate::audit::AuditLog;
use crate::config::Config;
use crate::container::{ContainerService, ContainerSettings, HookSettings, Services};
use crate::dns::Forwarder;
use crate::firewall::{Firewall, FirewallSettings};
use crate::image::{ImageService, ImageSettings};
use crate::network::{NetworkService, NetworkSettings, Uplink};
use crate::pki::Pki;
use crate::runtime::dir::{DEFAULT_ROOT, RUNTIME_RUN_DIR};
use crate::runtime::droplet::Droplet;
use crate::store::Store;

/// How long operations in progress may take to finish at a shutdown. What is not finished then, recovery undoes.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps the error of the part it names")]
pub enum DaemonError {
    #[error("must be run as root: it makes namespaces, mounts and firewall rules (try sudo)")]
    NotRoot,
    #[error("cannot make the directory {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error("cannot listen for {purpose} on {address}: {source}")]
    Listen { purpose: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("cannot receive signals: {0}")]
    Signal(std::io::Error),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("image store: {0}")]
    Image(#[from] crate::image::ImageError),
    #[error("network: {0}")]
    Network(#[from] crate::network::NetworkError),
    #[error("firewall: {0}")]
    Firewall(#[from] crate::firewall::FirewallError),
    #[error("dns: {0}")]
    Dns(#[from] crate::dns::DnsError),
    #[error("certificates: {0}")]
    Pki(#[from] crate::pki::PkiError),
    #[error("audit log: {0}")]
    Audit(std::io::Error),
    #[error("recovery: {0}")]
    Recovery(#[from] crate::container::ContainerError),
}
