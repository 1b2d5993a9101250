//! Condenser: a high-level container runtime for one Linux host.
//!
//! The modules, top to bottom. A module uses those below it and never one above it; `tests/layers.rs` checks that.
//! `docs/architecture.md` says what each one owns and why the boundaries are where they are.
//!
//! - [`daemon`]: builds every service, recovers, serves, shuts down; the configuration
//! - [`api`]: HTTP only: listeners, identity, handlers, wire types, OpenAPI
//! - [`workload`]: containers, pods, replica sets, services, bottles, builds, manifests
//! - [`net`]: bridges, host ports, packet filter, policies, DNS
//! - [`image`]: references, registries, layers, unpacking
//! - [`observe`]: audit, events, logs, metrics
//! - [`runtime`]: the contract with the low-level runtime, and the driver that starts it
//! - [`ops`]: controllers and per-key locks
//! - [`store`]: makes the state durable
//! - [`model`]: the state as a value, and pure functions over it
//! - [`base`]: code that knows nothing of Condenser: certificates, sockets, ELF, time

#![warn(clippy::too_many_lines)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests lay out files and run tools"
    )
)]

pub mod api;
pub mod base;
pub mod daemon;
pub mod image;
pub mod model;
pub mod net;
pub mod observe;
pub mod ops;
pub mod runtime;
pub mod store;
pub mod workload;
