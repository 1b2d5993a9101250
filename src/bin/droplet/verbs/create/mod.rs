//! `create` (`docs/spec/runtime.md` 4.2): sets a container up, until its init waits for the start signal.
//!
//! Hooks see the effects in this order: state `creating`, createRuntime hooks, namespaces and root file system, network,
//! state `created`, createContainer hooks. If any step fails, everything is rolled back: a stopped container is stopped
//! again, and a new one does not exist again.

mod rollback;
mod set_up;

use condenser::runtime::state::{RuntimeState, Status};

use super::arguments::{Args, Opt};
use crate::config::Config;
use crate::container::lock::Lock;
use crate::container::{Container, RuntimePaths, status_name};
use crate::monitor::run_end::ensure_finished;
use crate::report::audit::{AuditLog, Event, Record};
use crate::report::failure::{Failure, Stage, StageWithStatus};
use crate::report::output;
use crate::sandbox::plan::Plan;
use rollback::Rollback;
use set_up::set_up;

/// Options of `create` and `run`.
pub const OPTIONS: &[Opt] = &[Opt::Flag(&["tty", "t"]), Opt::Flag(&["print-pid"])];

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(OPTIONS, arguments)?;
    let container = paths.container(args.id()?).stage("load_spec")?;
    let audit = AuditLog::open(&paths.root).stage("load_spec")?;
    let pid = create(&container, &audit, args.flag("tty"))?;
    if args.flag("print-pid") {
        output::print(pid);
    }
    Ok(())
}

/// Creates a container and writes the audit record. Returns the pid of init.
pub fn create(container: &Container, audit: &AuditLog, tty: bool) -> Result<i32, Failure> {
    let mut config = None;
    let result = lock_and_create(container, audit, tty, &mut config);
    let mut record = Record::new(Event::Create, &container.id).container(container);
    if let Some(config) = &config {
        record = record.config(config);
    }
    if let Ok(pid) = &result {
        record = record.pid(*pid);
    }
    audit.write(&record.result(result.as_ref().err()));
    result
}

/// Takes the container's lock and creates the container. Stores the configuration in `loaded` as soon as it is known.
fn lock_and_create(
    container: &Container,
    audit: &AuditLog,
    tty: bool,
    loaded: &mut Option<Config>,
) -> Result<i32, Failure> {
    // The monitor of an earlier run may still be recording its exit. It needs the lock for that.
    let recorded = container.recorded_state().stage("create_state")?;
    if recorded.is_some_and(|state| state.status != Status::Creating) {
        refuse_if_alive(container)?;
        ensure_finished(container, audit)?;
    }
    let lock = Lock::exclusive(&container.lock_path().stage("load_spec")?).stage("load_spec")?;
    let result = plan_and_set_up(container, audit, tty, &lock, loaded);
    if result.is_err() && !container.dir.state().exists() {
        // If the container did not exist before, do not leave its lock behind.
        let _ = lock.remove();
    }
    result
}

fn plan_and_set_up(
    container: &Container,
    audit: &AuditLog,
    tty: bool,
    lock: &Lock,
    loaded: &mut Option<Config>,
) -> Result<i32, Failure> {
    let previous = refuse_if_alive(container)?;
    let text = fs_err::read(container.dir.config()).stage("load_spec")?;
    let config = Config::parse(&text, &container.dir.config()).stage("load_spec")?;
    *loaded = Some(config.clone());
    let plan = Plan::new(container, config, tty).stage_with_status("load_spec")?;
    let mut rollback = Rollback::new(&plan, previous);
    let result = set_up(&plan, audit, &text, lock, &mut rollback);
    if result.is_err() {
        rollback.run();
    }
    result
}

/// Returns the state to restore on failure. Fails if the container has a process, which would be lost.
fn refuse_if_alive(container: &Container) -> Result<Option<RuntimeState>, Failure> {
    if container.recorded_state().stage("create_state")?.is_none() {
        return Ok(None);
    }
    let state = container.state().stage("create_state")?;
    match state.status {
        Status::Stopped => Ok(Some(state)),
        // An earlier `create` was killed. No other verb can be at work, because this process holds the lock.
        Status::Creating => Ok(None),
        Status::Created | Status::Running => {
            let status = status_name(state.status);
            Err(Failure::new(
                "create_state",
                format!("container {} exists and is {status}", container.id),
            ))
        }
    }
}
