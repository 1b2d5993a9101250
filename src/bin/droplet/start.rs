//! `start` (`docs/spec/runtime.md` 4.3): releases init and waits until its program was executed or could not be.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use condenser::runtime::state::Status;
use fs_err::os::unix::fs::OpenOptionsExt;
use libcontainer::notify_socket::NotifySocket;

use crate::audit::{AuditLog, Event, Record};
use crate::cli::Args;
use crate::config::Config;
use crate::container::{Container, Site, remove_if_exists, render};
use crate::create::render_status;
use crate::failure::{Failure, Stage};
use crate::finish::settle;
use crate::hooks::{Hooks, Phase};
use crate::init::{EXEC_FIFO, notify_socket};
use crate::report::{Bad, Listener};

/// How long an `execve` may take.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

/// Runs the verb.
pub fn run(site: &Site, words: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[], words)?;
    let container = site.container(args.id()?).stage("check_status")?;
    let audit = AuditLog::open(&site.root).stage("check_status")?;
    start(&container, &audit)
}

/// Starts a created container and writes the audit record.
pub fn start(container: &Container, audit: &AuditLog) -> Result<(), Failure> {
    let config = container.config().stage("load_spec");
    let result = match &config {
        Ok(config) => locked(container, config, audit),
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

fn locked(container: &Container, config: &Config, audit: &AuditLog) -> Result<(), Failure> {
    let lock = container.lock().stage("check_status")?;
    let mut state = container.state().stage("check_status")?;
    let status = render_status(state.status);
    let refused = || {
        Failure::new(
            "check_status",
            format!("container {} is {status}, not created", container.id),
        )
    };
    if state.status != Status::Created {
        return Err(refused());
    }
    let init = state
        .process()
        .and_then(|process| process.pidfd())
        .ok_or_else(refused)?;
    let hooks = Hooks {
        id: &container.id,
        config,
        audit,
    };
    let text = render(&state).stage("hook_startContainer")?;
    hooks
        .run(Phase::StartContainer, &text, Some(&init))
        .stage("hook_startContainer")?;

    match release(container).stage("write_fifo")? {
        Ok(()) => {}
        Err(Bad::Late(limit)) => {
            let message = format!(
                "the program of container {} was not executed within {} s",
                container.id,
                limit.as_secs()
            );
            return Err(Failure::new("write_fifo", message));
        }
        // The monitor records the end; it needs the lock.
        Err(reason) => {
            drop(lock);
            settle(container, audit)?;
            let failure = Failure::new("write_fifo", reason.to_string());
            return Err(match reason {
                Bad::Refused { status, .. } => failure.with_status(status),
                _ => failure,
            });
        }
    }
    state.status = Status::Running;
    container.write_state(&state).stage("update_state")?;
    let text = render(&state).stage("hook_poststart")?;
    if let Err(error) = hooks.run(Phase::Poststart, &text, None) {
        crate::output::complain(error);
    }
    Ok(())
}

/// Sends the start signal, and hears whether init could execute the program.
fn release(container: &Container) -> std::io::Result<Result<(), Bad>> {
    let of_original = container.dir.path().join(EXEC_FIFO);
    if of_original.exists() && !container.run_dir().exists() {
        return release_original(&of_original).map(Ok);
    }
    // Opened before the signal: init holds the other end open until it executes the program or ends.
    let fifo: std::fs::File = fs_err::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(container.run_dir().join(EXEC_FIFO))?
        .into();
    let executed = Listener::from(OwnedFd::from(fifo));
    let mut signal = NotifySocket::new(notify_socket(container));
    signal.notify_container_start().map_err(std::io::Error::other)?;
    Ok(executed.hear(EXEC_LIMIT))
}

/// The start signal of the original: one byte through a fifo in the container's directory, which its `create` made. Its
/// init does not tell whether the program could be executed.
fn release_original(fifo: &Path) -> std::io::Result<()> {
    // Non-blocking: an init that waits holds the other end, and one that does not will never read.
    let mut signal = fs_err::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo)?;
    signal.write_all(&[1])?;
    remove_if_exists(fifo)
}
