//! The process in the container: restricts itself and executes the program.
//!
//! It has one thread and ends with `execve` or `_exit`.

use std::os::fd::AsFd;
use std::path::Path;

use condenser::runtime::refusal::REFUSED;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Signal, chdir, getcwd, ioctl_tiocsctty, set_dumpable_behavior, set_parent_process_death_signal,
    setsid, umask,
};
use rustix::thread::set_no_new_privs;

use super::{ExecPlan, NotStarted, Stdio};
use crate::report::failure::without_errno;
use crate::report::outcome_pipe::OutcomeReporter;
use crate::sandbox::process::descriptors::close_others;
use crate::sandbox::process::signals;

/// Runs the process: restricts it and executes the program, or reports why that failed.
pub fn become_program(plan: &ExecPlan, stdio: &Stdio, reporter: &OutcomeReporter) -> ! {
    let status = match restrict(plan, stdio, reporter) {
        Ok(()) => {
            reporter.success();
            let error = plan.program.execute();
            reporter.refusal(error.status, &error.message);
            error.status
        }
        Err(NotStarted { refused, message }) => {
            match refused {
                Some(status) => reporter.refusal(status, &message),
                None => reporter.failure(&message),
            }
            refused.unwrap_or(1)
        }
    };
    // SAFETY: as in `run_joiner`. The end of the process closes the pipe.
    unsafe { libc::_exit(status) }
}

fn restrict(plan: &ExecPlan, stdio: &Stdio, reporter: &OutcomeReporter) -> Result<(), NotStarted> {
    setsid().map_err(|e| format!("cannot start a session: {e}"))?;
    if stdio.terminal {
        ioctl_tiocsctty(&stdio.input).map_err(|e| format!("cannot take the terminal: {e}"))?;
    }
    if let Some(confinement) = &plan.apparmor {
        confinement.apply_on_exec()?;
    }
    set_up_stdio(stdio, reporter).map_err(|e| format!("cannot set up stdio: {e}"))?;
    signals::reset();
    umask(Mode::from_raw_mode(plan.umask));

    // Enter the directory as root, as init does: the user may not have access to it.
    let entered = chdir(&plan.cwd).is_ok();
    plan.credentials.apply().map_err(|e| e.to_string())?;
    set_undumpable()?;
    if plan.ends_with_parent {
        // A change of credentials would reset this. There is none after this line, not even at `execve`.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| format!("cannot set the parent death signal: {e}"))?;
    }
    change_directory(&plan.cwd, entered).map_err(|message| NotStarted {
        refused: Some(REFUSED),
        message,
    })?;
    set_no_new_privs(true).map_err(|e| format!("cannot set no-new-privileges: {e}"))?;
    plan.filters
        .install()
        .map_err(|e| format!("cannot install the system call filters: {e}").into())
}

/// Enters the working directory, unless this process is there already.
fn change_directory(cwd: &Path, entered: bool) -> Result<(), String> {
    let to_error = |e: Errno| format!("working directory {}: {}", cwd.display(), without_errno(&e));
    if !entered {
        chdir(cwd).map_err(to_error)?;
    }
    // For a directory outside of this root, the kernel returns a path without a leading slash.
    if !getcwd(Vec::new()).map_err(to_error)?.as_bytes().starts_with(b"/") {
        return Err(format!("working directory {} is not in the container", cwd.display()));
    }
    Ok(())
}

/// Sets up stdio and closes every other descriptor except the one of `reporter`. Otherwise a working directory such as
/// `/proc/self/fd/7` would lead to the host (CVE-2024-21626).
fn set_up_stdio(stdio: &Stdio, reporter: &OutcomeReporter) -> std::io::Result<()> {
    dup2_stdin(&stdio.input)?;
    dup2_stdout(&stdio.output)?;
    dup2_stderr(&stdio.errors)?;
    close_others([reporter.as_fd()])
}

/// Makes this process undumpable: only root on the host can trace or inspect it. A change of credentials resets this.
pub fn set_undumpable() -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| format!("cannot hide from the container: {e}"))
}
