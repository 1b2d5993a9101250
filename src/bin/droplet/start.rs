//! `start` (`contract/runtime.md` 4.3): releases init and waits until its program was executed or could not be.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use condenser::runtime::state::Status;
use libcontainer::notify_socket::NotifySocket;

use crate::audit::{AuditLog, Event, Record};
use crate::cli::Args;
use crate::config::Config;
use crate::container::{Container, Site, render};
use crate::create::render_status;
use crate::failure::{Failure, Stage};
use crate::finish::{readable, settle};
use crate::hooks::{Hooks, Phase};
use crate::init::{EXEC_FIFO, notify_socket};
use crate::lock::Lock;

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
    // Nothing is made for a container that does not exist.
    container.state().stage("check_status")?;
    let lock = Lock::exclusive(&container.lock_path().stage("check_status")?).stage("check_status")?;
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

    if let Some(reason) = release(container).stage("write_fifo")? {
        // The monitor records the end; it needs the lock.
        drop(lock);
        settle(container, audit)?;
        return Err(Failure::new("write_fifo", reason));
    }
    state.status = Status::Running;
    container.write_state(&state).stage("update_state")?;
    let text = render(&state).stage("hook_poststart")?;
    if let Err(error) = hooks.run(Phase::Poststart, &text, None) {
        eprintln!("{error}");
    }
    Ok(())
}

/// Sends the start signal. What init says when it cannot execute the program.
fn release(container: &Container) -> std::io::Result<Option<String>> {
    // Before the signal: init holds the other end open until it executes the program or ends.
    let mut executed = fs_err::OpenOptions::new();
    executed
        .options_mut()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let mut executed = executed.open(container.run_dir().join(EXEC_FIFO))?;
    let mut signal = NotifySocket::new(notify_socket(container));
    signal.notify_container_start().map_err(std::io::Error::other)?;

    let deadline = Instant::now() + EXEC_LIMIT;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while readable(executed.file(), deadline) {
        match executed.read(&mut buffer)? {
            0 => {
                let text = String::from_utf8_lossy(&said).into_owned();
                return Ok((!text.is_empty()).then_some(text));
            }
            n => said.extend_from_slice(&buffer[..n]),
        }
    }
    Err(std::io::Error::other(format!(
        "the program was not executed within {} s",
        EXEC_LIMIT.as_secs()
    )))
}
