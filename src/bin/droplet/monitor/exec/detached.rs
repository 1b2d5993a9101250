//! The monitor of an exec: forwards the output of the process, reaps it and records its exit. It has left the caller's
//! session and the daemon's service. It ends with the terminal, or with the last process that writes to the log.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use condenser::runtime::dir::ContainerDir;
use condenser::runtime::refusal::FAILED;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::fs::{Mode, OFlags, fchown, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, chdir, setsid, waitid};

use super::ExecRequest;
use crate::monitor::console::Pump;
use crate::monitor::console::socket::Socket;
use crate::monitor::log_file::{EventLog, LogFile};
use crate::report::audit::Event;
use crate::report::failure::{Failure, Stage, StageWithStatus};
use crate::report::outcome_pipe::{OutcomeReporter, outcome_pipe};
use crate::sandbox::cgroup;
use crate::sandbox::exec::{self, ExecPlan, Process, Stdio};
use crate::sandbox::process::fork::fork;
use crate::sandbox::process::signals;

/// Time limit for the answer of the monitor. The monitor gives up earlier.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);
/// Symbolic link to the socket of the latest session. Clients connect here.
const ALIAS: &str = "exec_tty.sock";

/// Starts the process under a monitor, and writes the audit record. Returns when the program was executed or could not be
/// executed.
pub fn start(request: ExecRequest<'_>) -> Result<(), Failure> {
    let started = fork_monitor(request);
    request.record_launch(started.as_ref().err());
    started
}

fn fork_monitor(request: ExecRequest<'_>) -> Result<(), Failure> {
    let (lock, plan) = request.prepare()?;
    let stage = request.stage();
    let (reporter, reader) = outcome_pipe().stage(stage)?;
    match fork().stage(stage)? {
        None => {
            // Every holder of the descriptor holds the lock, and the monitor outlives this command.
            drop((lock, reader));
            monitor(request, plan, reporter)
        }
        Some(_) => {
            drop::<OutcomeReporter>(reporter);
            reader.wait(ANSWER_LIMIT).stage_with_status(stage)
        }
    }
}

/// Starts and monitors the process, then ends this process. `answer` reports whether the program was executed.
fn monitor(request: ExecRequest<'_>, plan: ExecPlan, answer: OutcomeReporter) -> ! {
    let mut events = EventLog::open(request.container.dir.logs().join("exec_shim.log"), "exec_shim");
    match detach().and_then(|null| start_process(request, plan, null)) {
        Ok((mut pump, process)) => {
            let (pid, command) = (process.pid, request.command);
            events.line(format_args!("command started: pid {pid} {command:?}"));
            answer.success();
            drop(answer);
            let ended = wait_for_exit(&mut pump, &process);
            events.line(match &ended {
                Ok(()) => "command ended: exit status 0".to_owned(),
                Err(failure) => format!("command ended: {failure}"),
            });
            record_exit(request, pid.as_raw_nonzero().get(), ended);
            // Background processes may still write to the log, but not to a terminal.
            if !request.tty {
                let _ = pump.run_to_end();
            }
            let _ = pump.finish();
            std::process::exit(0)
        }
        Err(failure) => {
            events.line(format_args!("command not started: {failure}"));
            match failure.status {
                FAILED => answer.failure(&failure.message),
                status => answer.refusal(status, &failure.message),
            }
            record_exit(request, 0, Err(failure));
            std::process::exit(1)
        }
    }
}

/// Leaves the caller's session. Returns `/dev/null`, which is now the stdio of this process.
fn detach() -> Result<OwnedFd, Failure> {
    const STAGE: &str = "exec_command";
    signals::reset();
    // SAFETY: ignoring a signal runs no code. This process must not end because a client or the caller is gone.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    setsid().stage(STAGE)?;
    chdir("/").stage(STAGE)?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).stage(STAGE)?;
    dup2_stdin(&null).stage(STAGE)?;
    dup2_stdout(&null).stage(STAGE)?;
    dup2_stderr(&null).stage(STAGE)?;
    cgroup::join_monitors().stage(STAGE)?;
    Ok(null)
}

/// Starts the process. Consumes the plan: all descriptors of the container are closed when this returns.
fn start_process(request: ExecRequest<'_>, plan: ExecPlan, null: OwnedFd) -> Result<(Pump, Process), Failure> {
    let dir = &request.container.dir;
    let (pump, stdio) = match request.tty {
        true => terminal(dir, &plan)?,
        false => pipe(dir, &plan, null)?,
    };
    let process = exec::start(&plan, stdio).stage_with_status("exec_command")?;
    Ok((pump, process))
}

/// Connects the output to `exec.log`. There is no input.
fn pipe(dir: &ContainerDir, plan: &ExecPlan, null: OwnedFd) -> Result<(Pump, Stdio), Failure> {
    let log = LogFile::open(dir.exec_log()).stage("open_log")?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).stage("open_log")?;
    // Make the user of the process the owner of the pipe, so that it can open `/dev/stdout`.
    fchown(&writer, Some(plan.owner.0), Some(plan.owner.1)).stage("open_log")?;
    let pump = Pump::pipe(reader, log).stage("open_log")?;
    let stdio = Stdio {
        input: null,
        errors: writer.try_clone().stage("open_log")?,
        output: writer,
        terminal: false,
    };
    Ok((pump, stdio))
}

/// Opens a terminal of the container. The socket of the session is listening when this returns.
fn terminal(dir: &ContainerDir, plan: &ExecPlan) -> Result<(Pump, Stdio), Failure> {
    let log = LogFile::open(dir.logs().join("exec_console.log")).stage("open_log")?;
    let events = EventLog::open(dir.logs().join("exec_shim.log"), "exec_shim");
    let (master, slave) = plan.target.open_pty().stage("open_pty")?;
    // Keep the group, which the devpts mount of the container has set to `tty`.
    fchown(&slave, Some(plan.owner.0), None).stage("open_pty")?;
    let name = format!("exec_tty.{}.sock", std::process::id());
    let mut socket = Socket::listen(dir.path(), name).stage("listen_socket")?;
    socket.alias(ALIAS).stage("listen_socket")?;
    let pump = Pump::terminal(master, log, socket, events).stage("open_pty")?;
    let stdio = Stdio {
        input: slave.try_clone().stage("open_pty")?,
        errors: slave.try_clone().stage("open_pty")?,
        output: slave,
        terminal: true,
    };
    Ok((pump, stdio))
}

/// Forwards output until the process ends, and reaps it at once: until then its pid namespace cannot end.
fn wait_for_exit(pump: &mut Pump, process: &Process) -> Result<(), Failure> {
    let failure = |message| Err(Failure::new("exec_command", message));
    let _ = pump.run(process.pidfd.as_fd());
    let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED));
    let Some(status) = status.stage("exec_command")? else {
        return failure("exit status unknown".into());
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => failure(format!("exit status {code}")),
        (None, Some(signal)) => failure(format!("signal: {}", signal_name(signal))),
        (None, None) => failure("exit status unknown".into()),
    }
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => signal.to_string(),
    }
}

fn record_exit(request: ExecRequest<'_>, pid: i32, ended: Result<(), Failure>) {
    let record = request.record(Event::ExecShim).pid(pid);
    request.audit.write(&record.result(ended.err().as_ref()));
}
