//! `start` (`docs/spec/runtime.md` 4.3): tells init to execute the program, and waits until init did or failed.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use condenser::runtime::state::Status;
use fs_err::os::unix::fs::OpenOptionsExt;
use libcontainer::notify_socket::NotifySocket;

use super::arguments::Args;
use crate::config::Config;
use crate::container::files::remove_if_exists;
use crate::container::{Container, RuntimePaths, render, status_name};
use crate::hooks::{Hooks, Phase};
use crate::monitor::run_end::ensure_finished;
use crate::report::audit::{AuditLog, Event, Record};
use crate::report::failure::{Failure, HasExitStatus, Stage};
use crate::report::outcome_pipe::{OutcomeReader, StartError};
use crate::sandbox::init::{EXEC_FIFO, notify_socket};

/// Time limit for init to execute the program.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[], arguments)?;
    let container = paths.container(args.id()?).stage("check_status")?;
    let audit = AuditLog::open(&paths.root).stage("check_status")?;
    start(&container, &audit)
}

/// Starts a created container and writes the audit record.
pub fn start(container: &Container, audit: &AuditLog) -> Result<(), Failure> {
    let config = container.config().stage("load_spec");
    let result = match &config {
        Ok(config) => lock_and_start(container, config, audit),
        Err(_) => Ok(()),
    };
    let mut record = Record::new(Event::Start, &container.id).container(container);
    if let Ok(config) = &config {
        record = record.config(config);
    }
    let result = config.and(result);
    audit.write(&record.result(result.as_ref().err()));
    result
}

fn lock_and_start(container: &Container, config: &Config, audit: &AuditLog) -> Result<(), Failure> {
    let lock = container.lock().stage("check_status")?;
    let mut state = container.state().stage("check_status")?;
    let not_created = || {
        let status = status_name(state.status);
        let message = format!("container {} is {status}, not created", container.id);
        Failure::new("check_status", message)
    };
    if state.status != Status::Created {
        return Err(not_created());
    }
    let process = state.process();
    let init = process.and_then(|process| process.pidfd()).ok_or_else(not_created)?;
    let hooks = Hooks {
        id: &container.id,
        config,
        audit,
    };
    let text = render(&state).stage("hook_startContainer")?;
    hooks
        .run(Phase::StartContainer, &text, Some(&init))
        .stage("hook_startContainer")?;

    if let Err(error) = send_start_signal(container).stage("write_fifo")? {
        if !matches!(error, StartError::TimedOut(_)) {
            // Init has ended. Its monitor needs the lock to record the exit.
            drop(lock);
            ensure_finished(container, audit)?;
        }
        return Err(start_failure(container, error));
    }
    state.status = Status::Running;
    container.write_state(&state).stage("update_state")?;
    let text = render(&state).stage("hook_poststart")?;
    if let Err(error) = hooks.run(Phase::Poststart, &text, None) {
        crate::report::output::print_error(error);
    }
    Ok(())
}

fn start_failure(container: &Container, error: StartError) -> Failure {
    let message = match &error {
        StartError::TimedOut(limit) => format!(
            "the program of container {} was not executed within {} s",
            container.id,
            limit.as_secs()
        ),
        error => error.to_string(),
    };
    Failure::new("write_fifo", message).with_status(error.exit_status())
}

/// Sends the start signal, and waits for init to report whether it could execute the program.
fn send_start_signal(container: &Container) -> std::io::Result<Result<(), StartError>> {
    let original_fifo = container.dir.path().join(EXEC_FIFO);
    if original_fifo.exists() && !container.run_dir().exists() {
        return send_original_start_signal(&original_fifo).map(Ok);
    }
    // Open the FIFO before the signal: init holds the other end until it executes the program or ends.
    let fifo: std::fs::File = fs_err::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(container.run_dir().join(EXEC_FIFO))?
        .into();
    let executed = OutcomeReader::from(OwnedFd::from(fifo));
    let mut signal = NotifySocket::new(notify_socket(container));
    signal.notify_container_start().map_err(std::io::Error::other)?;
    Ok(executed.wait(EXEC_LIMIT))
}

/// Sends the start signal of the original: one byte through a FIFO in the container's directory, which the original's
/// `create` made. Its init does not report whether it could execute the program.
fn send_original_start_signal(fifo: &Path) -> std::io::Result<()> {
    // Open without blocking: if init waits, it holds the other end; if it does not, it will never read.
    let mut signal = fs_err::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo)?;
    signal.write_all(&[1])?;
    remove_if_exists(fifo)
}
