//! End-to-end tests: the real daemon, runtime and hook agent in a lab.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

#[path = "../support/mod.rs"]
mod support;

mod lab;
mod replay;
