//! Sets up init with libcontainer. This runs in the monitor (`docs/spec/runtime.md` 15.4).
//!
//! First the root file system is set up, in a mount namespace that only init inherits. Then libcontainer starts init, which
//! waits for the start signal.

mod bundle;
mod entrypoint;
mod error;
mod libcontainer;
mod root;
mod streams;

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use rustix::fs::Mode;
use rustix::process::Pid;

use self::entrypoint::{Entrypoint, Restrictions};
pub use self::error::InitError;
pub use self::libcontainer::{kill_children, notify_socket};
use self::root::{Root, prepare_root};
pub use self::streams::Output;
use self::streams::Streams;
use crate::report::outcome_pipe::{OutcomeReader, OutcomeReporter, StartError, outcome_pipe};
use crate::sandbox::apparmor::Confinement;
use crate::sandbox::cgroup::{self, Cgroup};
use crate::sandbox::namespaces;
use crate::sandbox::plan::Plan;
use crate::sandbox::process::supervisor::Supervisor;
use crate::sandbox::rootfs::mount_namespace::PrivateMounts;
use crate::sandbox::rootfs::shm::SharedMemory;

/// FIFO in the run directory through which init reports to `start`.
pub const EXEC_FIFO: &str = "exec.fifo";

/// An init that waits for the start signal.
#[derive(Debug)]
pub struct Init {
    /// Pid of init, a child of this process.
    pub pid: Pid,
    /// The output of init.
    pub output: Output,
    /// Receives whether init could execute the program.
    pub executed: OutcomeReader,
}

/// Sets up init.
pub fn set_up(plan: &Plan) -> Result<Init, InitError> {
    plan.limits.raise_hard_limits()?;
    let shared = SharedMemory::copy_joined(&plan.config, &plan.joined)?;
    let mounts = PrivateMounts::enter()?;
    let root = prepare_root(plan, shared.as_ref(), !limits_are_ours())?;
    let to_start = open_fifo(plan)?;
    let (to_monitor, executed) = outcome_pipe()?;
    let entrypoint = entrypoint(plan, root, [to_monitor, to_start])?;
    let streams = Streams::open(plan)?;
    let built = libcontainer::build(plan, entrypoint, &streams);
    let left = mounts.leave(&plan.config.root.path);
    let pid = built.map_err(|error| match executed.error_so_far() {
        Some(StartError::Refused { message, .. }) => InitError::Refused(message),
        _ => error,
    })?;
    let finish = || {
        left?;
        if limits_are_ours() {
            Cgroup::new(&plan.config, &plan.container.id)?.write_v1_limits(&plan.config.linux.resources)?;
        }
        let output = streams.output(plan)?;
        Ok(Init { pid, output, executed })
    };
    finish().inspect_err(|_: &InitError| kill_children())
}

fn entrypoint(plan: &Plan, root: Root, reporters: [OutcomeReporter; 2]) -> Result<Entrypoint, InitError> {
    let required = plan.config.requires_apparmor();
    let confinement = plan.apparmor.clone().map(|profile| Confinement::new(profile, required));
    let restrictions = Restrictions {
        filters: Rc::clone(&plan.filters),
        apparmor: confinement.transpose()?,
    };
    let supervisor = plan.config.wants_supervisor().then(Supervisor::new).transpose()?;
    Ok(Entrypoint::new(
        root.program,
        &plan.config.process.cwd,
        root.in_working_directory,
        restrictions,
        supervisor,
        reporters,
    ))
}

/// Returns whether libcontainer cannot set the limits: inside a foreign user namespace on cgroup v1.
fn limits_are_ours() -> bool {
    namespaces::in_user_namespace() && !cgroup::unified()
}

/// Makes the FIFO that `start` reads. Opens it for reading too, because then opening it for writing does not block.
fn open_fifo(plan: &Plan) -> std::io::Result<OutcomeReporter> {
    let path = plan.container.run_dir().join(EXEC_FIFO);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)?;
    Ok(OwnedFd::from(file).into())
}
