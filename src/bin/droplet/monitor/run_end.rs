//! Finishes a run (`docs/spec/runtime.md` 13.2): records the exit, runs the stopContainer hooks once, marks the run
//! completed.
//!
//! The monitor does this. [`ensure_finished`] waits for it, and does the work itself if the monitor is gone.

use std::time::{Duration, Instant};

use condenser::model::{Exit, ProcessId};
use condenser::runtime::state::{REASON_ERROR, RuntimeState, Status};

use crate::config::Config;
use crate::container::files::remove_if_exists;
use crate::container::lock::Lock;
use crate::container::run_record::RunRecord;
use crate::container::{Container, ContainerError, render};
use crate::hooks::{Hooks, Phase};
use crate::report::audit::AuditLog;
use crate::report::failure::{Failure, Stage};
use crate::report::output;
use crate::sandbox::cgroup::Cgroup;
use crate::wait::readable;

/// Time in addition to the time-outs of the hooks.
const MARGIN: Duration = Duration::from_secs(5);

/// Finishes a run whose init is gone. Does nothing if another process has finished it.
pub fn finish(container: &Container, config: &Config, audit: &AuditLog, exit: &Exit) -> Result<(), ContainerError> {
    let cgroup = Cgroup::new(config, &container.id);
    let Some(state) = record_exit(container, cgroup.as_ref().ok(), exit)? else {
        return Ok(());
    };
    if let Err(error) = cgroup.and_then(|cgroup| Ok(cgroup.remove()?)) {
        output::print_error(format_args!("droplet: {}: {error}", container.id));
    }
    let hooks = Hooks {
        id: &container.id,
        config,
        audit,
    };
    // The audit log has the failure. The container is stopped nevertheless.
    let _ = hooks.run(Phase::StopContainer, &render(&state)?, None);
    let Some(_lock) = Lock::exclusive_if_exists(&container.lock_path()?)? else {
        return Ok(());
    };
    if let Some(mut run) = RunRecord::read(container)? {
        run.completed = true;
        run.write(container)?;
    }
    Ok(())
}

/// Writes the exit into state.json. Returns the new state, or `None` if the run is already finished.
fn record_exit(
    container: &Container,
    cgroup: Option<&Cgroup>,
    exit: &Exit,
) -> Result<Option<RuntimeState>, ContainerError> {
    let Some(_lock) = Lock::exclusive_if_exists(&container.lock_path()?)? else {
        return Ok(None);
    };
    if RunRecord::read(container)?.is_none_or(|run| run.completed) {
        return Ok(None);
    }
    let Some(mut state) = container.recorded_state()? else {
        return Ok(None);
    };
    // The status is already `stopped` if an earlier finisher died while the hooks ran.
    if state.status != Status::Stopped {
        state.status = Status::Stopped;
        state.pid = 0;
        state.shim_pid = 0;
        state.pid_start_time = None;
        state.exit_code = Some(exit.code);
        state.reason = Some(exit.reason.clone());
        state.message = Some(exit.message.clone());
        state.finished_at = Some(jiff::Timestamp::now().to_string());
        state.memory_events = cgroup.and_then(Cgroup::memory_events);
        container.write_state(&state)?;
    }
    for name in ["tty.sock", "init.pid"] {
        remove_if_exists(&container.dir.path().join(name))?;
    }
    Ok(Some(state))
}

/// Waits until the last run of a container is completed. Its init must be gone. If the monitor is gone too, this
/// process completes the run.
pub fn ensure_finished(container: &Container, audit: &AuditLog) -> Result<(), Failure> {
    let config = container.config().stage("load_spec")?;
    let limit = Phase::StopContainer.limit(&config) + MARGIN;
    let deadline = Instant::now() + limit;
    while let Some(run) = RunRecord::read(container).stage("update_state")? {
        if run.finisher.pid == own_pid() {
            break;
        }
        match run.finisher.pidfd() {
            Some(finisher) => {
                if !readable(&finisher, deadline) && !run.completed {
                    let waited = limit.as_secs();
                    let message = format!(
                        "the exit of container {} was not recorded within {waited} s",
                        container.id
                    );
                    return Err(Failure::new("wait_exit_kill", message));
                }
            }
            None if run.completed => break,
            None => {
                if become_finisher(container, &run).stage("update_state")? {
                    finish(container, &config, audit, &unknown_exit()).stage("update_state")?;
                }
            }
        }
    }
    Ok(())
}

/// Makes this process the finisher. Returns `false` if the run has changed meanwhile.
fn become_finisher(container: &Container, dead: &RunRecord) -> std::io::Result<bool> {
    let lock = Lock::exclusive(&container.lock_path()?)?;
    match RunRecord::read(container)? {
        None => {
            lock.remove()?;
            return Ok(false);
        }
        Some(run) if run != *dead => return Ok(false),
        Some(_) => {}
    }
    let own = ProcessId::of(own_pid()).ok_or_else(|| std::io::Error::other("cannot read /proc/self/stat"))?;
    RunRecord {
        finisher: own,
        completed: false,
    }
    .write(container)?;
    Ok(true)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The exit to record if no process saw it.
fn unknown_exit() -> Exit {
    Exit {
        code: -1,
        reason: REASON_ERROR.to_owned(),
        message: "exit status unknown".to_owned(),
    }
}
