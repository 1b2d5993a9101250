//! The bundled runtime, end to end: the real binary, real namespaces, cgroups and mounts (`docs/spec/runtime.md` 3, 4).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod failures;
mod isolation;
mod lifecycle;
mod mounts;
mod pods;
#[path = "../support/mod.rs"]
mod support;
