//! `delete` (`docs/spec/runtime.md` 4.5): removes the runtime's files of a container that does not run.
//!
//! If init still waits for the start signal, `delete` kills it. The container's directory belongs to the daemon, and so
//! does its cgroup on cgroup v2.

use std::time::{Duration, Instant};

use condenser::runtime::state::{RuntimeState, Status};
use rustix::process::{Signal, pidfd_send_signal};

use super::arguments::Args;
use crate::config::Config;
use crate::container::files::remove_if_exists;
use crate::container::run_record::RunRecord;
use crate::container::{Container, RuntimePaths, render};
use crate::hooks::{Hooks, Phase};
use crate::monitor::run_end::ensure_finished;
use crate::report::audit::{AuditLog, Event, Record};
use crate::report::failure::{Failure, Stage};
use crate::report::output;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::network::{self, NetworkPlan};
use crate::wait::readable;

/// Time limit for a killed process to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[], arguments)?;
    let container = paths.container(args.id()?).stage("get_status")?;
    let audit = AuditLog::open(&paths.root).stage("get_status")?;
    delete(&container, &audit)
}

/// Deletes a container and writes the audit record.
pub fn delete(container: &Container, audit: &AuditLog) -> Result<(), Failure> {
    // Load the configuration before its copy is removed. If it cannot be read, remove everything else nevertheless.
    let config = container.config();
    let result = lock_and_delete(container, audit, config.as_ref().ok());
    let mut record = Record::new(Event::Delete, &container.id).container(container);
    if let Ok(config) = &config {
        record = record.config(config);
    }
    audit.write(&record.result(result.as_ref().err()));
    result
}

fn lock_and_delete(container: &Container, audit: &AuditLog, config: Option<&Config>) -> Result<(), Failure> {
    if container.state().stage("get_status")?.status == Status::Stopped && config.is_some() {
        ensure_finished(container, audit)?;
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
        Status::Created => state = kill_created(container, &state)?,
        Status::Creating | Status::Stopped => {}
    }
    if let Some(config) = config {
        remove_crash_leftovers(container, config);
        let hooks = Hooks {
            id: &container.id,
            config,
            audit,
        };
        let text = render(&state).stage("hook_poststop")?;
        if let Err(error) = hooks.run(Phase::Poststop, &text, None) {
            output::print_error(error);
        }
    }
    remove_if_exists(&container.dir.state()).stage("remove_state")?;
    remove_if_exists(&container.dir.path().join("exec_tty.sock")).stage("remove_state")?;
    container.remove_run_files().stage("remove_fifo")?;
    lock.remove().stage("remove_fifo")?;
    if let Some(monitor) = monitor {
        // Nothing depends on the monitor any more. Wait for it so that no process is left when `delete` returns.
        readable(&monitor, Instant::now() + KILL_LIMIT);
    }
    Ok(())
}

/// Kills an init that was never started. The run is marked completed first, so its monitor only reaps it.
fn kill_created(container: &Container, state: &RuntimeState) -> Result<RuntimeState, Failure> {
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
            let message = format!(
                "init of container {} (pid {}) was killed but did not end",
                container.id, state.pid
            );
            return Err(Failure::new("kill_process_before_remove", message));
        }
    }
    Ok(stopped)
}

/// Removes what only a crash leaves behind: processes in the cgroup, cgroup directories, the host end of the veth pair.
/// Prints errors and continues.
fn remove_crash_leftovers(container: &Container, config: &Config) {
    let results = [remove_cgroup(container, config), remove_stale_veth(config)];
    for error in results.into_iter().filter_map(Result::err) {
        output::print_error(format_args!("delete {}: {error}", container.id));
    }
}

fn remove_cgroup(container: &Container, config: &Config) -> Result<(), String> {
    let cgroup = Cgroup::new(config, &container.id).map_err(|e| e.to_string())?;
    cgroup.kill_all();
    cgroup.remove().map_err(|e| e.to_string())
}

fn remove_stale_veth(config: &Config) -> Result<(), String> {
    let net = config.net().map_err(|e| e.to_string())?;
    match network::plan(config, net.as_ref()).map_err(|e| e.to_string())? {
        NetworkPlan::Veth(veth) => network::remove_stale(&veth.name).map_err(|e| e.to_string()),
        NetworkPlan::Nothing | NetworkPlan::Loopback => Ok(()),
    }
}
