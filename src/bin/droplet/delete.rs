//! `delete` (`docs/spec/runtime.md` 4.5): removes what the runtime keeps of a container that does not run.
//!
//! An init that still waits for the start signal is killed. The container's directory, and on cgroup v2 its cgroup,
//! belong to the daemon.

use std::time::{Duration, Instant};

use condenser::runtime::state::{RuntimeState, Status};
use rustix::process::{Signal, pidfd_send_signal};

use crate::audit::{AuditLog, Event, Record};
use crate::cgroup::Cgroup;
use crate::cli::Args;
use crate::config::Config;
use crate::container::{Container, Site, remove_if_exists, render};
use crate::create::remove_traces;
use crate::failure::{Failure, Stage};
use crate::finish::{readable, settle};
use crate::hooks::{Hooks, Phase};
use crate::network;
use crate::output;
use crate::record::RunRecord;

/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Runs the verb.
pub fn run(site: &Site, words: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[], words)?;
    let container = site.container(args.id()?).stage("get_status")?;
    let audit = AuditLog::open(&site.root).stage("get_status")?;
    delete(&container, &audit)
}

/// Deletes a container and writes the audit record.
pub fn delete(container: &Container, audit: &AuditLog) -> Result<(), Failure> {
    // Loaded before the copy is removed; a configuration that cannot be read must not keep the rest alive.
    let config = container.config();
    let result = unlocked(container, audit, config.as_ref().ok());
    let mut record = Record::new(Event::Delete, &container.id).container(container);
    if let Ok(config) = &config {
        record = record.config(config);
    }
    audit.write(&record.result(result.as_ref().err()));
    result
}

fn unlocked(container: &Container, audit: &AuditLog, config: Option<&Config>) -> Result<(), Failure> {
    if container.state().stage("get_status")?.status == Status::Stopped && config.is_some() {
        settle(container, audit)?;
    }
    let lock = container.lock().stage("get_status")?;
    let mut state = container.state().stage("get_status")?;
    let monitor = RunRecord::read(container)
        .stage("get_status")?
        .and_then(|run| run.finisher.pidfd());
    match state.status {
        Status::Running => {
            return Err(Failure::new(
                "check_status",
                format!("container {} is running", container.id),
            ));
        }
        Status::Created => state = abandon(container, &state)?,
        Status::Creating | Status::Stopped => {}
    }
    if let Some(config) = config {
        sweep(container, config);
        let hooks = Hooks {
            id: &container.id,
            config,
            audit,
        };
        let text = render(&state).stage("hook_poststop")?;
        if let Err(error) = hooks.run(Phase::Poststop, &text, None) {
            output::complain(error);
        }
    }
    remove_if_exists(&container.dir.state()).stage("remove_state")?;
    remove_if_exists(&container.dir.path().join("exec_tty.sock")).stage("remove_state")?;
    remove_traces(container).stage("remove_fifo")?;
    lock.remove().stage("remove_fifo")?;
    if let Some(monitor) = monitor {
        // Nothing depends on it any more; waiting only makes the end of `delete` the end of everything.
        readable(&monitor, Instant::now() + KILL_LIMIT);
    }
    Ok(())
}

/// Kills an init that was never started. Its monitor only reaps it, for the run is completed first.
fn abandon(container: &Container, state: &RuntimeState) -> Result<RuntimeState, Failure> {
    if let Some(mut run) = RunRecord::read(container).stage("kill_process_before_remove")? {
        run.completed = true;
        run.write(container).stage("kill_process_before_remove")?;
    }
    let stopped = RuntimeState {
        status: Status::Stopped,
        pid: 0,
        shim_pid: 0,
        pid_start_time: None,
        ..state.clone()
    };
    container.write_state(&stopped).stage("kill_process_before_remove")?;
    if let Some(init) = state.process().and_then(|process| process.pidfd()) {
        let _ = pidfd_send_signal(&init, Signal::KILL);
        if !readable(&init, Instant::now() + KILL_LIMIT) {
            let message = format!("init of container {} (pid {}) does not die", container.id, state.pid);
            return Err(Failure::new("kill_process_before_remove", message));
        }
    }
    Ok(stopped)
}

/// What only a crash leaves behind: processes in the cgroup, its directories, the host's end of the veth pair.
fn sweep(container: &Container, config: &Config) {
    let complain = |error: &dyn std::fmt::Display| output::complain(format_args!("delete {}: {error}", container.id));
    match Cgroup::new(config, &container.id) {
        Ok(cgroup) => {
            cgroup.kill_all();
            if let Err(error) = cgroup.remove() {
                complain(&error);
            }
        }
        Err(error) => complain(&error),
    }
    let plan = config.net().map_err(|e| e.to_string());
    let plan = plan.and_then(|net| network::plan(config, net.as_ref()).map_err(|e| e.to_string()));
    match plan {
        Ok(network::Plan::Veth(veth)) => {
            if let Err(error) = network::sweep(&veth.name) {
                complain(&error);
            }
        }
        Ok(_) => {}
        Err(error) => complain(&error),
    }
}
