//! The bundled runtime, end to end: the real binary, real namespaces, cgroups and mounts (`contract/runtime.md` 17.7).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod failures;
mod isolation;
mod lifecycle;
mod mounts;
mod pods;
mod sandbox;
