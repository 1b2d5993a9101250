//! `droplet`: the bundled low-level container runtime (`contract/runtime.md`).
//!
//! One short-lived process per verb. `create` leaves one process behind, the container's monitor, which is the parent
//! of its init, keeps its log and records its end. Nothing here needs the daemon to be alive.
//!
//! A verb is a module with `run(&Site, &[String])`, which gets what follows its name on the command line.

mod apparmor;
mod attach;
mod audit;
mod bundle;
mod cgroup;
mod cli;
mod config;
mod console;
mod container;
mod credentials;
mod exec;
mod failure;
mod frames;
mod hooks;
mod lock;
mod logfile;
mod namespaces;
mod network;
mod program;
mod report;
mod rootfs;
mod sealed;
mod seccomp;
mod socket;
mod spec;
mod syscalls;
mod words;

use std::process::ExitCode;

use container::Site;
use failure::Failure;

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
                print!("Incorrect Usage: {failure}\n\n{}", cli::HELP);
            }
            eprintln!("{failure}");
            ExitCode::from(1)
        }
        None => {
            eprintln!("No help topic for '{verb}'");
            ExitCode::from(3)
        }
    }
}

/// Runs a verb. `None` when there is no such verb.
fn dispatch(site: &Site, verb: &str, rest: &[String]) -> Option<Result<ExitCode, Failure>> {
    match verb {
        "help" | "--help" | "-h" | "-help" => {
            print!("{}", cli::HELP);
            Some(Ok(ExitCode::SUCCESS))
        }
        "exec" => Some(exec::run(site, rest)),
        "attach" => Some(attach::run(site, rest)),
        "spec" => Some(spec::run(site, rest)),
        verb if verb.starts_with('-') => Some(Err(Failure::usage(format!(
            "flag provided but not defined: {}",
            verb.trim_start_matches('-')
        )))),
        _ => None,
    }
}
