//! The steps of `create`, in the order that hooks can see.

use std::os::unix::fs::DirBuilderExt;

use condenser::model::ProcessId;
use condenser::runtime::process::boot_id;
use condenser::runtime::state::{RuntimeState, Status};

use super::rollback::Rollback;
use crate::config::NamespaceKind;
use crate::config::id_mapping::host_id;
use crate::container::files::replace;
use crate::container::lock::Lock;
use crate::container::run_record::RunRecord;
use crate::container::{Container, render};
use crate::hooks::{Hooks, Phase};
use crate::monitor::MonitorHandle;
use crate::report::audit::AuditLog;
use crate::report::failure::{Failure, Stage};
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::network;
use crate::sandbox::plan::Plan;

/// Sets up a container. Returns the pid of init. Records in `rollback` what a failure has to undo.
pub fn set_up(
    plan: &Plan,
    audit: &AuditLog,
    config_text: &[u8],
    lock: &Lock,
    rollback: &mut Rollback<'_>,
) -> Result<i32, Failure> {
    let container = &plan.container;
    let hooks = Hooks {
        id: &container.id,
        config: &plan.config,
        audit,
    };
    prepare_run_dir(plan).stage("create_state")?;
    replace(&container.config_copy(), config_text, 0o600).stage("create_state")?;
    let mut state = initial_state(plan);
    let text = write_state(container, &state).stage("create_state")?;
    hooks
        .run(Phase::CreateRuntime, &text, None)
        .stage("hook_create_runtime")?;

    let stage = if plan.tty { "execute_shim" } else { "execute_init" };
    let monitor = rollback
        .monitor
        .insert(MonitorHandle::fork(plan, audit, lock).stage(stage)?);
    let pid = monitor.wait_until_ready(stage)?;
    let init_died = || Failure::new(stage, format!("init of container {} died", container.id));
    let process = ProcessId::of(pid).ok_or_else(init_died)?;
    let init = process.pidfd().ok_or_else(init_died)?;
    RunRecord {
        finisher: ProcessId::of(monitor.pid()).ok_or_else(init_died)?,
        completed: false,
    }
    .write(container)
    .stage("update_state")?;

    let namespace = fs_err::File::open(format!("/proc/{pid}/ns/net")).stage("setup_network")?;
    network::connect(&plan.network, namespace.file()).stage("setup_network")?;
    rollback.connected = true;

    state.status = Status::Created;
    state.pid = pid;
    state.shim_pid = if plan.tty { monitor.pid() } else { 0 };
    state.pid_start_time = Some(process.start_time);
    state.boot_id = Some(boot_id());
    let text = write_state(container, &state).stage("update_state")?;
    hooks
        .run(Phase::CreateContainer, &text, Some(&init))
        .stage("hook_create_container")?;
    monitor.confirm().stage("update_state")?;
    Ok(pid)
}

/// Makes an empty run directory and removes the files of an earlier run.
fn prepare_run_dir(plan: &Plan) -> std::io::Result<()> {
    let container = &plan.container;
    if let Ok(cgroup) = Cgroup::new(&plan.config, &container.id) {
        // There are processes only if an earlier `create` was killed together with its monitor.
        cgroup.kill_all();
    }
    container.remove_run_files()?;
    // With shifted ids, init is another user on the host and must be able to pass through to its bind mounts.
    let identity = host_id(&plan.config.linux.uid_mappings, 0) == Some(0);
    let user = plan.config.namespace(NamespaceKind::User);
    let mode = if identity || user.is_none() { 0o700 } else { 0o711 };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(container.run_dir())
}

fn initial_state(plan: &Plan) -> RuntimeState {
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

/// Writes state.json. Returns its text, which hooks get.
fn write_state(container: &Container, state: &RuntimeState) -> std::io::Result<String> {
    container.write_state(state)?;
    render(state)
}
