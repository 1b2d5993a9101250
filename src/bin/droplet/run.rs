//! `run` (`docs/spec/runtime.md` 4.10): create, start, attach to a terminal, wait; the container's exit status is ours.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::attach::Attached;
use crate::audit::AuditLog;
use crate::cli::Args;
use crate::container::{Container, Site};
use crate::create::{OPTIONS, create};
use crate::failure::{Failure, Stage};
use crate::finish::{readable, settle};
use crate::output;
use crate::start::start;

/// Runs the verb.
pub fn run(site: &Site, words: &[String]) -> Result<ExitCode, Failure> {
    let args = Args::parse(OPTIONS, words)?;
    let container = site.container(args.id()?).stage("load_spec")?;
    let audit = AuditLog::open(&site.root).stage("load_spec")?;
    let pid = create(&container, &audit, args.flag("tty"))?;
    match args.flag("print-pid") {
        true => output::print(format_args!(
            "create container success. ID: {} pid: {pid}",
            container.id
        )),
        false => output::print(format_args!("create container success. ID: {}", container.id)),
    }
    // Connected before the program can write anything.
    let attached = args.flag("tty").then(|| Attached::connect(&container)).transpose()?;
    start(&container, &audit)?;
    if let Some(signal) = attached.map(Attached::forward).transpose().stage("attach")?.flatten() {
        return Ok(ExitCode::from(128 + signal));
    }
    wait(&container, &audit)
}

fn wait(container: &Container, audit: &AuditLog) -> Result<ExitCode, Failure> {
    const LONG: Duration = Duration::from_secs(3600);
    let state = container.state().stage("get_status")?;
    if let Some(init) = state.process().and_then(|process| process.pidfd()) {
        while !readable(&init, Instant::now() + LONG) {}
    }
    settle(container, audit)?;
    let state = container.state().stage("get_status")?;
    let code = state.exit_code.and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
