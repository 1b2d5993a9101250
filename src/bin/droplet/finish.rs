//! The end of a run (`docs/spec/runtime.md` 13.2): recorded, reported to the stopContainer hooks once, completed.
//!
//! The monitor does this. `settle` waits for it, and does it in its place when the monitor is gone.

use std::time::{Duration, Instant};

use condenser::model::{Exit, ProcessId};
use condenser::runtime::state::{REASON_ERROR, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::audit::AuditLog;
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::container::{Container, ContainerError, remove_if_exists, render};
use crate::failure::{Failure, Stage};
use crate::hooks::{Hooks, Phase};
use crate::lock::Lock;
use crate::output;
use crate::record::RunRecord;

/// Beyond the hooks' own time-outs.
const MARGIN: Duration = Duration::from_secs(5);

/// Ends a run whose init is gone. Does nothing when somebody else has.
pub fn finish(container: &Container, config: &Config, audit: &AuditLog, exit: &Exit) -> Result<(), ContainerError> {
    let Some(lock) = Lock::existing(&container.lock_path()?)? else {
        return Ok(());
    };
    if RunRecord::read(container)?.is_none_or(|run| run.completed) {
        return Ok(());
    }
    let Some(mut state) = container.recorded_state()? else {
        return Ok(());
    };
    let cgroup = Cgroup::new(config, &container.id);
    // Already so when the finisher before us died while hooks ran.
    if state.status != Status::Stopped {
        state.status = Status::Stopped;
        state.pid = 0;
        state.shim_pid = 0;
        state.pid_start_time = None;
        state.exit_code = Some(exit.code);
        state.reason = Some(exit.reason.clone());
        state.message = Some(exit.message.clone());
        state.finished_at = Some(jiff::Timestamp::now().to_string());
        state.memory_events = cgroup.as_ref().ok().and_then(Cgroup::memory_events);
        container.write_state(&state)?;
    }
    for name in ["tty.sock", "init.pid"] {
        remove_if_exists(&container.dir.path().join(name))?;
    }
    drop(lock);
    if let Err(error) = cgroup.and_then(|cgroup| Ok(cgroup.remove()?)) {
        output::complain(format_args!("droplet: {}: {error}", container.id));
    }
    let hooks = Hooks {
        id: &container.id,
        config,
        audit,
    };
    // Logged; the container is stopped all the same.
    let _ = hooks.run(Phase::StopContainer, &render(&state)?, None);
    let Some(_lock) = Lock::existing(&container.lock_path()?)? else {
        return Ok(());
    };
    if let Some(mut run) = RunRecord::read(container)? {
        run.completed = true;
        run.write(container)?;
    }
    Ok(())
}

/// Returns when the last run of a container whose init is gone has been completed, by its monitor or by this process.
pub fn settle(container: &Container, audit: &AuditLog) -> Result<(), Failure> {
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
                    let message = format!("the end of container {} is not recorded after {waited} s", container.id);
                    return Err(Failure::new("wait_exit_kill", message));
                }
            }
            None if run.completed => break,
            None => {
                if take_over(container, &run).stage("update_state")? {
                    finish(container, &config, audit, &unknown()).stage("update_state")?;
                }
            }
        }
    }
    Ok(())
}

/// Makes this process the finisher, unless the run has changed meanwhile.
fn take_over(container: &Container, dead: &RunRecord) -> std::io::Result<bool> {
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

/// What is recorded when nobody saw the end.
fn unknown() -> Exit {
    Exit {
        code: -1,
        reason: REASON_ERROR.to_owned(),
        message: "exit status unknown".to_owned(),
    }
}

/// Waits until a descriptor becomes readable: a pidfd when its process ends. `false` when it does not in time.
pub fn readable(fd: impl std::os::fd::AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            polled => return polled.is_ok_and(|ready| ready > 0),
        }
    }
}
