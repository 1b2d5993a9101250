//! `droplet`: the bundled low-level container runtime (`docs/spec/runtime.md`).
//!
//! One short-lived process per verb. `create` leaves one process behind, the container's monitor, which is the parent
//! of its init, keeps its log and records its end. Nothing here needs the daemon to be alive.
//!
//! A verb is a module with `run(&Site, &[String])`, which gets what follows its name on the command line.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod apparmor;
mod attach;
mod audit;
mod bundle;
mod cgroup;
mod cgroup_view;
mod cli;
mod clock;
mod config;
mod console;
mod container;
mod create;
mod credentials;
mod delete;
mod exec;
mod executor;
mod failure;
mod finish;
mod frames;
mod hooks;
mod init;
mod kill;
mod limits;
mod list;
mod lock;
mod logfile;
mod made;
mod monitor;
mod namespaces;
mod network;
mod output;
mod place;
mod plan;
mod program;
mod record;
mod report;
mod rootfs;
mod run;
mod scratch;
mod sealed;
mod seccomp;
mod seccomp_i386;
mod shm;
mod signals;
mod socket;
mod spec;
mod start;
mod supervisor;
mod syscalls;
mod words;

use std::process::ExitCode;

use container::Site;
use failure::{Failure, Stage};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    let site = Site::from_environment();
    let (verb, rest) = match words.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("help", &[][..]),
    };
    match dispatch(&site, verb, rest) {
        Some(Ok(code)) => code,
        Some(Err(failure)) => {
            if failure.is_usage() {
                output::print_text(format_args!("Incorrect Usage: {failure}\n\n{}", cli::HELP));
            }
            // One line, the last: who started this reads it.
            output::complain(failure.message.replace(['\n', '\r'], " "));
            ExitCode::from(u8::try_from(failure.status).unwrap_or(1))
        }
        None => {
            output::complain(format_args!("No help topic for '{verb}'"));
            ExitCode::from(3)
        }
    }
}

/// Runs a verb. `None` when there is no such verb.
fn dispatch(site: &Site, verb: &str, rest: &[String]) -> Option<Result<ExitCode, Failure>> {
    let result = match verb {
        "create" => sealed(|| create::run(site, rest)),
        "run" => return Some(sealed(|| Ok(())).and_then(|()| run::run(site, rest))),
        "start" => start::run(site, rest),
        "kill" => kill::run(site, rest),
        "delete" => delete::run(site, rest),
        "exec" => sealed(|| exec::run(site, rest)),
        "attach" => return Some(attach::run(site, rest)),
        "spec" => spec::run(rest),
        "state" => list::state(site, rest),
        "list" => list::list(site, rest),
        "help" | "--help" | "-h" | "-help" => {
            output::print_text(cli::HELP);
            Ok(())
        }
        verb if verb.starts_with('-') => {
            let option = verb.trim_start_matches('-');
            Err(Failure::usage(format!("flag provided but not defined: -{option}")))
        }
        _ => return None,
    };
    Some(result.map(|()| ExitCode::SUCCESS))
}

/// Runs a verb from a binary that a container cannot overwrite.
fn sealed(verb: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    sealed::reexec().stage("load_spec")?;
    // libcontainer would hand descriptors of this many to the container.
    // SAFETY: no other thread exists that could read the environment meanwhile.
    unsafe { std::env::remove_var("LISTEN_FDS") };
    verb()
}
