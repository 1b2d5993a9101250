//! `create` (`docs/spec/runtime.md` 4.2): everything up to an init that waits for the start signal.
//!
//! Effects in the order that hooks can see: state `creating`, createRuntime hooks, namespaces and root file system,
//! network, state `created`, createContainer hooks. A failure anywhere undoes all of it: a container that was stopped
//! before is stopped again, one that was not there is not there.

use std::os::unix::fs::DirBuilderExt;

use condenser::model::ProcessId;
use condenser::runtime::process::boot_id;
use condenser::runtime::state::{RuntimeState, Status};

use crate::audit::{AuditLog, Event, Record};
use crate::cgroup::Cgroup;
use crate::cli::{Args, Opt};
use crate::config::{Config, NamespaceKind};
use crate::container::{Container, Site, remove_if_exists, render, replace};
use crate::failure::{Failure, Judge, Stage};
use crate::finish::settle;
use crate::hooks::{Hooks, Phase};
use crate::lock::Lock;
use crate::monitor::Creator;
use crate::plan::Plan;
use crate::record::RunRecord;
use crate::{bundle, network, output};

/// Options of `create` and `run`.
pub const OPTIONS: &[Opt] = &[Opt::Flag(&["tty", "t"]), Opt::Flag(&["print-pid"])];

/// Files that an earlier run, ours or the original's, may have left in the container's directory.
const LEFTOVERS: [&str; 4] = ["exec.fifo", "config_hash.json", "init.pid", "tty.sock"];

/// Runs the verb.
pub fn run(site: &Site, words: &[String]) -> Result<(), Failure> {
    let args = Args::parse(OPTIONS, words)?;
    let container = site.container(args.id()?).stage("load_spec")?;
    let audit = AuditLog::open(&site.root).stage("load_spec")?;
    let pid = create(&container, &audit, args.flag("tty"))?;
    if args.flag("print-pid") {
        output::print(pid);
    }
    Ok(())
}

/// Creates a container and writes the audit record. Pid of init.
pub fn create(container: &Container, audit: &AuditLog, tty: bool) -> Result<i32, Failure> {
    let mut config = None;
    let result = alone(container, audit, tty, &mut config);
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

/// Waits until nobody else is at work on the container, and keeps it that way.
fn alone(container: &Container, audit: &AuditLog, tty: bool, loaded: &mut Option<Config>) -> Result<i32, Failure> {
    // The monitor of an earlier run may still be telling of its end; it needs the lock for that.
    let recorded = container.recorded_state().stage("create_state")?;
    if recorded.is_some_and(|state| state.status != Status::Creating) {
        refuse_if_alive(container)?;
        settle(container, audit)?;
    }
    let lock = Lock::exclusive(&container.lock_path().stage("load_spec")?).stage("load_spec")?;
    let result = plan_and_set_up(container, audit, tty, &lock, loaded);
    if result.is_err() && !container.dir.state().exists() {
        // Of a container that was not there, the lock is not there either.
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
    let plan = Plan::new(container, config, tty).judge("load_spec")?;
    let mut undo = Undo {
        plan: &plan,
        previous,
        monitor: None,
        connected: false,
    };
    let result = set_up(&plan, audit, &text, lock, &mut undo);
    if result.is_err() {
        undo.run();
    }
    result
}

/// State to return to on failure. Fails when there is a process that would be lost.
fn refuse_if_alive(container: &Container) -> Result<Option<RuntimeState>, Failure> {
    if container.recorded_state().stage("create_state")?.is_none() {
        return Ok(None);
    }
    let state = container.state().stage("create_state")?;
    match state.status {
        Status::Stopped => Ok(Some(state)),
        // Its `create` was killed: nobody else can be at work, for this process holds the lock.
        Status::Creating => Ok(None),
        Status::Created | Status::Running => {
            let status = render_status(state.status);
            Err(Failure::new(
                "create_state",
                format!("container {} exists and is {status}", container.id),
            ))
        }
    }
}

/// The word in state.json.
pub fn render_status(status: Status) -> &'static str {
    match status {
        Status::Creating => "creating",
        Status::Created => "created",
        Status::Running => "running",
        Status::Stopped => "stopped",
    }
}

fn set_up(plan: &Plan, audit: &AuditLog, config_text: &[u8], lock: &Lock, undo: &mut Undo<'_>) -> Result<i32, Failure> {
    let container = &plan.container;
    let hooks = Hooks {
        id: &container.id,
        config: &plan.config,
        audit,
    };
    clear(plan).stage("create_state")?;
    replace(&container.config_copy(), config_text, 0o600).stage("create_state")?;
    let mut state = state_of(plan);
    let text = save(container, &state).stage("create_state")?;
    hooks
        .run(Phase::CreateRuntime, &text, None)
        .stage("hook_create_runtime")?;

    let stage = if plan.tty { "execute_shim" } else { "execute_init" };
    let creator = undo.monitor.insert(Creator::fork(plan, audit, lock).stage(stage)?);
    let pid = creator.ready(stage)?;
    let gone = || Failure::new(stage, format!("init of container {} died", container.id));
    let process = ProcessId::of(pid).ok_or_else(gone)?;
    let init = process.pidfd().ok_or_else(gone)?;
    let monitor = ProcessId::of(creator.monitor()).ok_or_else(gone)?;
    RunRecord {
        finisher: monitor,
        completed: false,
    }
    .write(container)
    .stage("update_state")?;

    let namespace = fs_err::File::open(format!("/proc/{pid}/ns/net")).stage("setup_network")?;
    network::connect(&plan.network, namespace.file()).stage("setup_network")?;
    undo.connected = true;

    state.status = Status::Created;
    state.pid = pid;
    state.shim_pid = if plan.tty { creator.monitor() } else { 0 };
    state.pid_start_time = Some(process.start_time);
    state.boot_id = Some(boot_id());
    let text = save(container, &state).stage("update_state")?;
    hooks
        .run(Phase::CreateContainer, &text, Some(&init))
        .stage("hook_create_container")?;
    creator.keep().stage("update_state")?;
    Ok(pid)
}

/// An empty volatile directory, and nothing of an earlier run anywhere.
fn clear(plan: &Plan) -> std::io::Result<()> {
    let container = &plan.container;
    if let Ok(cgroup) = Cgroup::new(&plan.config, &container.id) {
        // Only a `create` that was killed together with its monitor leaves processes.
        cgroup.kill_all();
    }
    remove_traces(container)?;
    // With shifted ids, init as a stranger has to pass through to its bind mounts.
    let identity = bundle::host_id(&plan.config.linux.uid_mappings, 0) == Some(0);
    let user = plan.config.namespace(NamespaceKind::User);
    let mode = if identity || user.is_none() { 0o700 } else { 0o711 };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(container.run_dir())
}

/// Removes the volatile directory and what verbs and monitor put into the container's directory, but for state.json.
pub fn remove_traces(container: &Container) -> std::io::Result<()> {
    for name in LEFTOVERS {
        remove_if_exists(&container.dir.path().join(name))?;
    }
    match fs_err::remove_dir_all(container.run_dir()) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn state_of(plan: &Plan) -> RuntimeState {
    RuntimeState {
        oci_version: "1.3.0".to_owned(),
        id: plan.container.id.clone(),
        status: Status::Creating,
        pid: 0,
        shim_pid: 0,
        rootfs: plan.config.root.path.display().to_string(),
        bundle: plan.container.dir.path().display().to_string(),
        exit_code: None,
        reason: None,
        message: None,
        finished_at: None,
        memory_events: None,
        pid_start_time: None,
        boot_id: None,
        annotations: plan.config.annotations.clone(),
    }
}

fn save(container: &Container, state: &RuntimeState) -> std::io::Result<String> {
    container.write_state(state)?;
    render(state)
}

/// What a failed `create` has to take back.
struct Undo<'a> {
    plan: &'a Plan,
    previous: Option<RuntimeState>,
    monitor: Option<Creator>,
    connected: bool,
}

impl Undo<'_> {
    /// Goes on after errors; there is nobody to tell but stderr.
    fn run(self) {
        let container = &self.plan.container;
        let complain = |what: &str, result: std::io::Result<()>| {
            if let Err(error) = result {
                output::complain(format_args!("roll-back of {}: {what}: {error}", container.id));
            }
        };
        if let Some(monitor) = self.monitor {
            monitor.give_up();
        }
        // Nothing is left unless the monitor died.
        match Cgroup::new(&self.plan.config, &container.id) {
            Ok(cgroup) => {
                cgroup.kill_all();
                complain("cgroup", cgroup.remove());
            }
            Err(error) => complain("cgroup", Err(std::io::Error::other(error))),
        }
        if let (network::Plan::Veth(veth), true) = (&self.plan.network, self.connected) {
            complain(
                "network",
                network::disconnect(&veth.name).map_err(std::io::Error::other),
            );
        }
        complain("files", remove_traces(container));
        let restored = match &self.previous {
            Some(state) => container.write_state(state),
            None => remove_if_exists(&container.dir.state()),
        };
        complain("state.json", restored);
    }
}
