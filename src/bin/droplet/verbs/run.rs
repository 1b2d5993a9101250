//! `run` (`docs/spec/runtime.md` 4.10): creates, starts and attaches to a container, waits for its end, and exits with
//! its status.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::arguments::Args;
use super::attach::AttachSession;
use super::create::{OPTIONS, create};
use super::start::start;
use crate::container::{Container, RuntimePaths};
use crate::monitor::run_end::ensure_finished;
use crate::report::audit::AuditLog;
use crate::report::failure::{Failure, Stage};
use crate::report::output;
use crate::wait::readable;

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<ExitCode, Failure> {
    let args = Args::parse(OPTIONS, arguments)?;
    let container = paths.container(args.id()?).stage("load_spec")?;
    let audit = AuditLog::open(&paths.root).stage("load_spec")?;
    let pid = create(&container, &audit, args.flag("tty"))?;
    match args.flag("print-pid") {
        true => output::print(format_args!(
            "create container success. ID: {} pid: {pid}",
            container.id
        )),
        false => output::print(format_args!("create container success. ID: {}", container.id)),
    }
    // Connect before the program can write anything.
    let session = args
        .flag("tty")
        .then(|| AttachSession::connect(&container))
        .transpose()?;
    start(&container, &audit)?;
    if let Some(signal) = session
        .map(AttachSession::forward)
        .transpose()
        .stage("attach")?
        .flatten()
    {
        return Ok(ExitCode::from(128 + signal));
    }
    wait(&container, &audit)
}

/// Waits for init to end. Returns its exit status.
fn wait(container: &Container, audit: &AuditLog) -> Result<ExitCode, Failure> {
    const WAIT: Duration = Duration::from_secs(3600);
    let state = container.state().stage("get_status")?;
    if let Some(init) = state.process().and_then(|process| process.pidfd()) {
        while !readable(&init, Instant::now() + WAIT) {}
    }
    ensure_finished(container, audit)?;
    let state = container.state().stage("get_status")?;
    let code = state.exit_code.and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
