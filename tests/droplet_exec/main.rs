//! `droplet exec`, `attach` and what protects the runtime from a container, end to end: the real binary, real containers
//! (`docs/spec/runtime.md` 12, 16.3).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod attach;
mod exec;
mod process;
mod protection;
#[allow(
    dead_code,
    reason = "shared with the tests of the life cycle, which use other parts of it"
)]
#[path = "../droplet_lifecycle/sandbox.rs"]
mod sandbox;
mod spec;
mod terminal;
mod viewer;
mod wait;
