//! Popular programs as their official images run them: entry points that start as root and drop to a user, databases
//! that are made at the first start, sockets in `/run`, logs that are links to `/dev/stdout`, stop signals, health checks.
//!
//! The root file systems come from Debian packages (`scripts/shapes.sh`, `tests/shapes/images`), everything else from the
//! real daemon: it pulls from a real registry, and the program is asked by a real client from the outside.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

#[path = "../support/mod.rs"]
mod support;

mod brokers;
mod databases;
mod languages;
mod shape;
mod web;
