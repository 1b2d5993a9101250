//! The joiner: moves from the host into a container and forks the process there.
//!
//! It has one thread and ends with `_exit`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::restricted::{become_program, set_undumpable};
use super::{ExecPlan, Stdio};
use crate::report::outcome_pipe::OutcomeReporter;
use crate::sandbox::process::descriptors::close_others;
use crate::sandbox::process::fork::fork_sibling;

/// Runs the joiner: enters the container, forks the process, reports its pid and ends.
pub fn run_joiner(plan: &ExecPlan, stdio: &Stdio, reporter: &OutcomeReporter, pid_writer: &OwnedFd) -> ! {
    // Close the monitor's own report pipe above all: even if this process hangs, the monitor must be able to answer.
    let needed = [
        reporter.as_fd(),
        pid_writer.as_fd(),
        stdio.input.as_fd(),
        stdio.output.as_fd(),
        stdio.errors.as_fd(),
        plan.target.as_fd(),
        // Without AppArmor, repeat another one.
        plan.apparmor.as_ref().map_or(reporter.as_fd(), AsFd::as_fd),
    ];
    let closed = close_others(needed).map_err(|e| format!("cannot close other descriptors: {e}"));
    let forked = closed
        .and_then(|()| join_container(plan))
        .and_then(|()| match fork_sibling() {
            Ok(None) => become_program(plan, stdio, reporter),
            Ok(Some(pid)) => {
                let _ = rustix::io::write(pid_writer, &pid.as_raw_nonzero().get().to_ne_bytes());
                Ok(())
            }
            Err(errno) => Err(format!("cannot make a process in the container: {errno}")),
        });
    if let Err(reason) = forked {
        reporter.failure(&reason);
    }
    // SAFETY: ends only this process. Destructors belong to the monitor: they would remove its socket.
    unsafe { libc::_exit(1) }
}

/// Moves this process into the container, as its root user with all capabilities.
fn join_container(plan: &ExecPlan) -> Result<(), String> {
    set_undumpable()?;
    let score = plan.oom_score_adj.to_string();
    fs_err::write("/proc/self/oom_score_adj", score).map_err(|e| e.to_string())?;
    plan.cgroup
        .join()
        .map_err(|e| format!("cannot join the container's cgroup: {e}"))?;
    plan.limits.set().map_err(|e| e.to_string())?;
    plan.target
        .enter()
        .map_err(|e| format!("cannot enter the container's namespaces: {e}"))?;
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))
        .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
        .map_err(|e| format!("cannot become root of the container: {e}"))?;
    set_undumpable()
}
