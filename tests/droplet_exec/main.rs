//! `droplet exec`, `attach` and what protects the runtime from a container, end to end: the real binary, real containers
//! (`docs/spec/runtime.md` 12, 16.3).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod attach;
mod exec;
mod process;
mod protection;
mod spec;
#[path = "../support/mod.rs"]
mod support;
mod terminal;
mod viewer;
mod wait;
