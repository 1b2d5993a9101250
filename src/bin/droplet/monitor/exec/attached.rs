//! An exec with `--wait`: this process is the parent, collects the output, and answers when the process has ended.
//!
//! ```text
//!                        ┌ the process ended ─────────── answer
//! started ── pump ───────┤ the time limit passed ─ kill ─ answer (137, timed out)
//!                        └ the caller is gone ──── kill ─ end
//! ```
//!
//! The caller reads the answer from a pipe. When nobody can read it any more, the process is killed. If this process is
//! killed, the kernel kills the other one. When the process ends by itself, its background processes continue, but
//! their output is lost. When it is killed, all processes of its session are killed.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use condenser::runtime::exec::ExecOutcome;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::ExecRequest;
use super::output_tail::{PIECE, Stream};
use super::session::kill_session;
use crate::monitor::reaper::reap;
use crate::report::failure::{Failure, Stage, StageWithStatus};
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::exec::{self, ExecPlan, NotStarted, Process, Stdio};
use crate::sandbox::process::program::{NOT_EXECUTABLE, NOT_FOUND};
use crate::sandbox::process::signals;
use crate::wait::readable;

/// Time limit for the process to end after KILL. It does not end if it hangs in the kernel or in a frozen container.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const STAGE: &str = "exec_nsenter";

/// Runs the command to its end, and prints the result.
pub fn run(request: ExecRequest<'_>, limit: Option<Duration>) -> Result<(), Failure> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    signals::reset();
    // SAFETY: ignoring a signal runs no code. The write of the answer fails if nobody reads it.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let outcome = match start(request)? {
        Ok(process) => process.wait(deadline)?,
        // Report a program that cannot be executed as a shell does, because the caller asked for the result of the
        // command.
        Err((status, message)) => ExecOutcome {
            exit_code: status,
            stderr: format!("droplet: {message}\n").into_bytes(),
            ..ExecOutcome::default()
        },
    };
    let answer = outcome.render().stage(STAGE)?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&answer).and_then(|()| stdout.flush()).stage(STAGE)
}

/// Starts the process. The inner error is the exit status and message of a program that cannot be executed.
fn start(request: ExecRequest<'_>) -> Result<Result<AttachedProcess, (i32, String)>, Failure> {
    let started = request.prepare().and_then(|(lock, plan)| {
        let cgroup = plan.cgroup.clone();
        let (stdio, streams) = stdio(&plan)?;
        let started = exec::start(&plan, stdio);
        // Close all descriptors of the container now, whatever the container does later.
        drop((plan, lock));
        match started {
            Ok(process) => Ok(Ok(AttachedProcess {
                process,
                cgroup,
                streams,
            })),
            Err(NotStarted {
                refused: Some(status @ (NOT_FOUND | NOT_EXECUTABLE)),
                message,
            }) => Ok(Err((status, message))),
            Err(error) => Err(error).stage_with_status(STAGE),
        }
    });
    let to_failure = |(_, message): &(i32, String)| Failure::new(STAGE, message.clone());
    match &started {
        Ok(Ok(_)) => request.record_launch(None),
        Ok(Err(refusal)) => request.record_launch(Some(&to_failure(refusal))),
        Err(failure) => request.record_launch(Some(failure)),
    }
    started
}

/// Makes the stdio of the process: no input, and one pipe for each output.
fn stdio(plan: &ExecPlan) -> Result<(Stdio, [Stream; 2]), Failure> {
    let (out, output) = Stream::new(plan.owner).stage(STAGE)?;
    let (err, errors) = Stream::new(plan.owner).stage(STAGE)?;
    let stdio = Stdio {
        input: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).stage(STAGE)?,
        output,
        errors,
        terminal: false,
    };
    Ok((stdio, [out, err]))
}

/// A running process.
struct AttachedProcess {
    process: Process,
    cgroup: Cgroup,
    /// Its stdout and stderr.
    streams: [Stream; 2],
}

/// Why the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopCause {
    Exited,
    TimedOut,
    CallerGone,
}

impl AttachedProcess {
    /// Waits until the process ends, or kills it.
    fn wait(mut self, deadline: Option<Instant>) -> Result<ExecOutcome, Failure> {
        let cause = self.pump(deadline).stage(STAGE)?;
        let mut exit_code = 128 + libc::SIGKILL;
        if cause != StopCause::Exited {
            kill_session(self.process.pid, &self.cgroup);
        }
        // Reap the process last: until then its pid, which identifies the session, cannot be reused.
        if cause == StopCause::Exited || readable(&self.process.pidfd, Instant::now() + KILL_LIMIT) {
            let code = reap(self.process.pidfd.as_fd());
            if cause == StopCause::Exited {
                exit_code = code;
            }
        }
        if cause == StopCause::CallerGone {
            return Err(Failure::new(STAGE, "the caller is gone; the process was killed"));
        }
        let [out, err] = self.streams.map(Stream::finish);
        Ok(ExecOutcome {
            exit_code,
            truncated: out.1 || err.1,
            stdout: out.0,
            stderr: err.0,
            timed_out: cause == StopCause::TimedOut,
        })
    }

    /// Collects the output of the process until it ends, the deadline passes or the caller is gone.
    fn pump(&mut self, deadline: Option<Instant>) -> rustix::io::Result<StopCause> {
        let caller = std::io::stdout();
        let mut buffer = vec![0; PIECE];
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(StopCause::TimedOut);
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            // Without interest, poll still reports the error state of a pipe without a reader.
            let mut fds = vec![
                PollFd::new(&self.process.pidfd, PollFlags::IN),
                PollFd::new(&caller, PollFlags::empty()),
            ];
            let readers = self.streams.iter().filter_map(Stream::reader);
            fds.extend(readers.map(|reader| PollFd::new(reader, PollFlags::IN)));
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            let (ended, caller_gone) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if ended {
                return Ok(StopCause::Exited);
            }
            if caller_gone {
                return Ok(StopCause::CallerGone);
            }
            for stream in &mut self.streams {
                stream.take(&mut buffer);
            }
        }
    }
}
