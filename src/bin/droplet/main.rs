//! `droplet`: the bundled low-level container runtime (`docs/spec/runtime.md`).
//!
//! Each verb runs in one short-lived process. Only `create` leaves a process behind: the monitor of the container. The
//! monitor is the parent of the container's init; it writes the log and records the exit. Nothing here needs a running
//! daemon.
//!
//! A module uses only modules further down in this list:
//!
//! - [`cli`]: finds the verb and runs it
//! - [`verbs`]: one file per verb
//! - [`monitor`]: the processes that stay with a container or an exec until it ends
//! - [`hooks`]: the OCI hooks
//! - [`sandbox`]: what isolates and limits a container: namespaces, root file system, cgroups, seccomp
//! - [`report`]: errors, output, the audit log
//! - [`container`]: the files and the lock of one container
//! - [`config`]: the content of `config.json`
//! - [`wait`]: waits for descriptors

#![warn(clippy::too_many_lines)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests lay out files and run tools"
    )
)]
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod config;
mod container;
mod hooks;
mod monitor;
mod report;
mod sandbox;
mod verbs;
mod wait;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
