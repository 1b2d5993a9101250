//! The process that stays with an exec'd one: forwards its output, reaps it, records its end. It has left the caller's
//! session and the daemon's service, and ends with the terminal or with the last writer to the log.

use std::os::fd::{AsFd, OwnedFd};

use condenser::runtime::dir::ContainerDir;
use condenser::runtime::refusal::FAILED;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::fs::{Mode, OFlags, fchown, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, chdir, setsid, waitid};

use super::process::{self, Process, Stdio};
use super::{Job, Request};
use crate::audit::{Event, Record};
use crate::cgroup;
use crate::console::Pump;
use crate::failure::{Failure, Judge, Stage};
use crate::logfile::{EventLog, LogFile};
use crate::report::Speaker;
use crate::signals;
use crate::socket::Socket;

/// Where clients of the latest session connect: a symbolic link to its socket.
const ALIAS: &str = "exec_tty.sock";

/// Does everything, and ends this process. `answer` hears when the program was executed, or why it was not.
pub fn run(request: Request<'_>, job: Job, answer: Speaker) -> ! {
    let mut events = EventLog::open(request.container.dir.logs().join("exec_shim.log"), "exec_shim");
    match detach().and_then(|null| start(request, job, null)) {
        Ok((mut pump, process)) => {
            events.line(format_args!(
                "command started: pid {} {:?}",
                process.pid, request.command
            ));
            answer.done();
            drop(answer);
            let ended = attend(&mut pump, &process);
            events.line(match &ended {
                Ok(()) => "command ended: exit status 0".to_owned(),
                Err(failure) => format!("command ended: {failure}"),
            });
            record(request, process.pid.as_raw_nonzero().get(), ended);
            // What it left in the background may go on writing to the log, but not to a terminal.
            if !request.tty {
                let _ = pump.run_to_end();
            }
            let _ = pump.finish();
            std::process::exit(0)
        }
        Err(failure) => {
            events.line(format_args!("command not started: {failure}"));
            match failure.status {
                FAILED => answer.failed(&failure.message),
                status => answer.refused(status, &failure.message),
            }
            record(request, 0, Err(failure));
            std::process::exit(1)
        }
    }
}

/// Leaves the caller behind. Returns `/dev/null`, which stdio leads to now.
fn detach() -> Result<OwnedFd, Failure> {
    const STAGE: &str = "exec_command";
    signals::reset();
    // SAFETY: ignoring a signal runs no code. A client or a caller that is gone must not end this process.
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

/// Takes the job: what is open of the container is closed when it has been done, whatever the container does then.
fn start(request: Request<'_>, job: Job, null: OwnedFd) -> Result<(Pump, Process), Failure> {
    let dir = &request.container.dir;
    let (pump, stdio) = match request.tty {
        true => terminal(dir, &job)?,
        false => pipe(dir, &job, null)?,
    };
    let process = process::start(&job, stdio).judge("exec_command")?;
    Ok((pump, process))
}

/// Output to `exec.log`, no input.
fn pipe(dir: &ContainerDir, job: &Job, null: OwnedFd) -> Result<(Pump, Stdio), Failure> {
    let log = LogFile::open(dir.exec_log()).stage("open_log")?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).stage("open_log")?;
    // A pipe belongs to who made it, and `/dev/stdout` can only be opened by who may.
    fchown(&writer, Some(job.owner.0), Some(job.owner.1)).stage("open_log")?;
    let pump = Pump::pipe(reader, log).stage("open_log")?;
    let stdio = Stdio {
        input: null,
        errors: writer.try_clone().stage("open_log")?,
        output: writer,
        terminal: false,
    };
    Ok((pump, stdio))
}

/// A terminal of the container, and the session's own socket, listening when this returns.
fn terminal(dir: &ContainerDir, job: &Job) -> Result<(Pump, Stdio), Failure> {
    let log = LogFile::open(dir.logs().join("exec_console.log")).stage("open_log")?;
    let events = EventLog::open(dir.logs().join("exec_shim.log"), "exec_shim");
    let (master, slave) = job.target.open_pty().stage("open_pty")?;
    // The group is that of terminals, which the container's devpts has set.
    fchown(&slave, Some(job.owner.0), None).stage("open_pty")?;
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

/// Forwards until the process ends, and reaps it at once: until then its pid namespace cannot end.
fn attend(pump: &mut Pump, process: &Process) -> Result<(), Failure> {
    let failed = |message| Err(Failure::new("exec_command", message));
    let _ = pump.run(process.pidfd.as_fd());
    let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED));
    let Some(status) = status.stage("exec_command")? else {
        return failed("exit status unknown".into());
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => failed(format!("exit status {code}")),
        (None, Some(signal)) => failed(format!("signal: {}", name(signal))),
        (None, None) => failed("exit status unknown".into()),
    }
}

fn name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => signal.to_string(),
    }
}

fn record(request: Request<'_>, pid: i32, ended: Result<(), Failure>) {
    request.audit.write(
        &Record::new(Event::ExecShim, &request.container.id)
            .container(request.container)
            .exec_command(request.command.to_vec())
            .pid(pid)
            .result(ended.err().as_ref()),
    );
}
