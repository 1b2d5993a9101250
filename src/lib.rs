//! Condenser: a high-level container runtime for one Linux host.
//!
//! Arrows point down only: `api` calls the domain services; they call `store`, `runtime`, `network` and `firewall`.
//! A domain module never sees an HTTP type, and everything is built once and passed in by `daemon`.
//!
//! - [`config`]: file < environment < flags, validated once
//! - [`daemon`]: builds every service, recovers, serves, shuts down
//! - [`api`]: HTTP only: routers, handlers, wire types, envelope, identity, OpenAPI
//! - [`store`]: the state: snapshots, transactions, SQLite
//! - [`image`]: references, registry pull, layer store and unpacking
//! - [`build`]: images from a build file
//! - [`container`]: create, start, stop, delete, exec, logs; recovery after a crash
//! - [`controller`]: the work queue and the reconcilers
//! - [`runtime`]: what the daemon and `bin/droplet` share, and the driver that starts it
//! - [`network`]: bridges, addresses, the uplink
//! - [`firewall`]: desired rules, rendered as a whole and applied at once
//! - [`events`]: what happened to objects, for clients that watch
//! - [`pod`]: pods and the sets that keep them alive
//! - [`apply`]: makes true what manifests say
//! - [`manifest`]: Kubernetes-style descriptions of pods, sets and services
//! - [`bottle`]: groups of containers that one file describes
//! - [`policy`]: what users allow and deny, staged and committed
//! - [`dns`]: the forwarder behind the containers' resolver
//! - [`import`]: takes over an installation of the original
//! - [`pki`]: CA, certificates, SPIFFE ids
//! - [`audit`]: one record per request
//! - [`metrics`]: what containers use and what the daemon does, in figures
//! - [`logfile`]: append-only files that rotate
//! - [`logs`]: reading, following and bounding the logs of containers
//! - [`hook_agent`]: what `condenser-hook-agent` does
//! - [`notify`]: what the service manager is told
//! - [`ports`]: published ports of the host, each held by a socket
//! - [`service`]: ports of the host, balanced over ready pods
//! - [`sockets`]: listening on a port that is about to be free
//! - [`time`]: times as others read them
//! - [`apparmor`]: the confinement profile

pub mod api;
pub mod apparmor;
pub mod apply;
pub mod audit;
pub mod bottle;
pub mod build;
pub mod config;
pub mod container;
pub mod controller;
pub mod daemon;
pub mod dns;
mod elf;
pub mod events;
pub mod firewall;
pub mod hook_agent;
pub mod image;
pub mod import;
pub mod log_filter;
pub mod logfile;
pub mod logs;
pub mod manifest;
pub mod metrics;
pub mod network;
pub mod notify;
pub mod pki;
pub mod pod;
pub mod policy;
pub mod ports;
pub mod runtime;
pub mod service;
pub mod sockets;
pub mod store;
pub mod time;
