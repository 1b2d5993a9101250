//! Starts a process: forks the joiner and waits for its report.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use super::joiner::run_joiner;
use super::{ExecPlan, NotStarted, Process, Stdio};
use crate::report::outcome_pipe::{StartError, outcome_pipe};
use crate::sandbox::process::fork::fork;

/// Time limit for the program to be executed. In a frozen container it would take forever.
const LIMIT: Duration = Duration::from_secs(20);

/// Starts the program in its container. Returns when it was executed or could not be executed.
pub fn start(plan: &ExecPlan, stdio: Stdio) -> Result<Process, NotStarted> {
    let cannot_start = |e: Errno| format!("cannot start a process: {e}");
    let (reporter, reader) = outcome_pipe().map_err(|e| e.to_string())?;
    let (pid_reader, pid_writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(cannot_start)?;
    let Some(joiner) = fork().map_err(cannot_start)? else {
        run_joiner(plan, &stdio, &reporter, &pid_writer)
    };
    drop((reporter, pid_writer, stdio));
    let outcome = reader.wait(LIMIT);
    let pid = read_pid(&pid_reader);
    if let Err(error) = outcome {
        kill_failed_start(joiner, pid, &error);
        return Err(match error {
            StartError::TimedOut(_) => format!("{error}; is the container frozen?").into(),
            StartError::Failed(_) | StartError::Died => error.to_string().into(),
            StartError::Refused { status, message } => NotStarted {
                refused: Some(status),
                message,
            },
        });
    }
    let _ = waitpid(Some(joiner), WaitOptions::empty());
    let pid = pid.ok_or_else(|| "the process did not report its pid".to_owned())?;
    // The process is our child and not reaped yet, so its pid cannot be reused.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(cannot_start)?;
    Ok(Process { pid, pidfd })
}

/// Kills and reaps the processes of a failed start. After a time-out, does not wait for them: they may hang in the
/// kernel.
fn kill_failed_start(joiner: Pid, process: Option<Pid>, error: &StartError) {
    let options = match error {
        StartError::TimedOut(_) => WaitOptions::NOHANG,
        _ => WaitOptions::empty(),
    };
    for pid in [Some(joiner), process].into_iter().flatten() {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), options);
    }
}

fn read_pid(reader: &OwnedFd) -> Option<Pid> {
    let mut bytes = [0; size_of::<i32>()];
    match rustix::io::read(reader, &mut bytes) {
        Ok(n) if n == bytes.len() => Pid::from_raw(i32::from_ne_bytes(bytes)),
        _ => None,
    }
}
