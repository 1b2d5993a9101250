//! The monitor of a container: the parent of its init (`docs/spec/runtime.md` 13.2).
//!
//! `create` forks it. It executes no other program and has one thread. It
//! 1. leaves the session, the standard streams and (on cgroup v2) the service cgroup of its creator,
//! 2. lets libcontainer set init up, and reports to `create`,
//! 3. forwards output until `create` confirms the container; if `create` fails or dies instead, it kills init and cleans
//!    up,
//! 4. forwards output until init ends, then finishes the run ([`run_end`](crate::monitor::run_end)).
//!
//! It never needs the daemon, and does not end with it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use condenser::model::Exit;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::console::Pump;
use super::console::socket::Socket;
use super::log_file::{EventLog, LogFile};
use super::protocol::{CONFIRMED, Report};
use super::reaper::{exit, reap};
use super::run_end::finish;
use crate::container::ContainerError;
use crate::container::files::{remove_if_exists, replace};
use crate::container::run_record::RunRecord;
use crate::report::audit::{AuditLog, Event, Record};
use crate::report::failure::{Failure, Stage, StageWithStatus};
use crate::report::outcome_pipe::{OutcomeReader, StartError};
use crate::report::output;
use crate::sandbox::cgroup::{self, Cgroup};
use crate::sandbox::init::{self, Init, Output};
use crate::sandbox::plan::Plan;

/// Time limit for init to close its outcome pipe after it reported.
const OUTCOME_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two attempts to record the exit on a full disk.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(1);

/// Runs in the forked process.
pub fn supervise(plan: &Plan, audit: &AuditLog, mut creator: UnixStream) {
    let monitor = detach()
        .stage("prepare")
        .and_then(|()| init::set_up(plan).stage_with_status("prepare"))
        .and_then(|init| Monitor::new(plan, init).stage("prepare"));
    match monitor {
        Err(failure) => {
            remove_cgroup(plan);
            write_to_log(plan, &failure.message);
            audit.write(&record(plan, Event::Init, 0).result(Some(&failure)));
            let report = Report::Failed {
                status: failure.status,
                reason: failure.message,
            };
            send(&mut creator, &report);
        }
        Ok(mut monitor) => {
            if monitor.wait_for_creator(creator) {
                ignore_signals();
                monitor.run(audit);
            } else {
                monitor.cancel();
            }
        }
    }
}

/// Leaves the creator's session, working directory, standard streams and supplementary groups, and the daemon's cgroup.
fn detach() -> std::io::Result<()> {
    let _ = rustix::thread::set_name(c"droplet:monitor");
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    if let Err(error) = cgroup::join_monitors() {
        // The container works nevertheless. It only ends with the daemon if the service manager kills the daemon's
        // cgroup.
        output::print_error(format_args!(
            "droplet: the monitor stays in the cgroup of its creator: {error}"
        ));
    }
    let null = fs_err::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    Ok(rustix::thread::set_thread_groups(&[])?)
}

/// The monitor of an init that exists.
struct Monitor<'a> {
    plan: &'a Plan,
    pid: i32,
    process: OwnedFd,
    executed: OutcomeReader,
    pump: Pump,
    cgroup: Option<Cgroup>,
    oom_kills: u64,
    /// The event log of a container with a terminal.
    events: Option<EventLog>,
}

impl<'a> Monitor<'a> {
    /// If this fails, init is gone.
    fn new(plan: &'a Plan, init: Init) -> std::io::Result<Self> {
        let process = pidfd_open(init.pid, PidfdFlags::empty())?;
        let pid = init.pid.as_raw_nonzero().get();
        let prepare = || {
            if plan.tty {
                replace(&init_pid_file(plan), format!("{pid}\n").as_bytes(), 0o600)?;
            }
            pump(plan, init.output)
        };
        let pump = prepare().inspect_err(|_| kill_init(plan, process.as_fd()))?;
        let cgroup = Cgroup::new(&plan.config, &plan.container.id).ok();
        Ok(Self {
            plan,
            pid,
            executed: init.executed,
            pump,
            oom_kills: oom_kills(cgroup.as_ref()),
            cgroup,
            events: plan.tty.then(|| event_log(plan)),
            process,
        })
    }

    /// Reports to `create`, and forwards output until `create` answers. Returns whether the container was confirmed.
    fn wait_for_creator(&mut self, mut creator: UnixStream) -> bool {
        let pid = self.pid;
        if let Some(events) = &mut self.events {
            events.line(format_args!("init started (pid={pid})"));
        }
        send(&mut creator, &Report::Ready { pid });
        self.pump.run(creator.as_fd()).is_ok() && is_confirmed(&mut creator)
    }

    /// Rolls back the monitor's part of this run.
    fn cancel(self) {
        kill_init(self.plan, self.process.as_fd());
        let _ = self.pump.finish();
        let _ = remove_if_exists(&init_pid_file(self.plan));
    }

    /// Monitors init until it has ended and the run is finished. An error while forwarding output does not stop the
    /// monitor.
    fn run(mut self, audit: &AuditLog) {
        let _ = self.pump.run(self.executed.as_fd());
        let start_error = self.executed.wait(OUTCOME_LIMIT).err();
        let failure = start_error.as_ref().map(start_failure);
        let init = record(self.plan, Event::Init, self.pid).confined(self.plan.apparmor.is_some());
        audit.write(&init.result(failure.as_ref()));
        // Trim the log here: nobody waits for this process now.
        let _ = audit.trim();

        let _ = self.pump.run(self.process.as_fd());
        let code = reap(self.process.as_fd());
        let oom_killed = oom_kills(self.cgroup.as_ref()) > self.oom_kills;
        let _ = self.pump.finish();
        if let Some(events) = &mut self.events {
            events.line(format_args!("init exited (status={code})"));
            let failure = (code != 0).then(|| Failure::new("wait_init", format!("exit status {code}")));
            audit.write(&record(self.plan, Event::Shim, self.pid).result(failure.as_ref()));
        }
        finish_run(self.plan, audit, &exit(code, oom_killed, start_error));
    }
}

fn start_failure(error: &StartError) -> Failure {
    match error {
        StartError::Died => Failure::new("read_fifo", "killed before it was started"),
        other => Failure::new("exec_entrypoint", other.to_string()),
    }
}

fn finish_run(plan: &Plan, audit: &AuditLog, exit: &Exit) {
    let finish = || finish(&plan.container, &plan.config, audit, exit);
    let mut finished = finish();
    // No other process knows the exit status. If the disk is full, wait until it can be recorded.
    while finished.as_ref().is_err_and(is_disk_full) {
        std::thread::sleep(DISK_FULL_PAUSE);
        finished = finish();
    }
    if let Err(error) = finished {
        write_to_log(plan, &error.to_string());
    }
}

fn is_disk_full(error: &ContainerError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error, ContainerError::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded))
}

/// Returns how many processes the OOM killer has killed. On v2 the cgroup outlives a run, so earlier runs count too.
fn oom_kills(cgroup: Option<&Cgroup>) -> u64 {
    let events = cgroup.and_then(Cgroup::memory_events);
    events.map_or(0, |events| events.oom_kill)
}

/// Makes the pump. For a terminal, the socket for viewers is listening when this returns.
fn pump(plan: &Plan, output: Output) -> std::io::Result<Pump> {
    let log = LogFile::open(plan.container.dir.log(plan.tty))?;
    match output {
        Output::Pipe(pipe) => Pump::pipe(pipe, log),
        Output::Terminal(master) => {
            let socket = Socket::listen(plan.container.dir.path(), "tty.sock")?;
            Pump::terminal(master, log, socket, event_log(plan))
        }
    }
}

fn event_log(plan: &Plan) -> EventLog {
    EventLog::open(plan.container.dir.logs().join("shim.log"), "shim")
}

/// A file with the pid of init, as the original's shim wrote it.
fn init_pid_file(plan: &Plan) -> PathBuf {
    plan.container.dir.path().join("init.pid")
}

/// If the creator is gone, waiting for its answer will show it.
fn send(creator: &mut UnixStream, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = creator.write_all(&line);
    }
}

/// Reads the answer of `create`. If `create` fails or dies, it closes the connection instead.
fn is_confirmed(creator: &mut UnixStream) -> bool {
    let mut answer = [0];
    creator.read_exact(&mut answer).is_ok() && answer == [CONFIRMED]
}

/// Kills and reaps init. No stopContainer hook runs, because the container was never created.
fn kill_init(plan: &Plan, process: BorrowedFd<'_>) {
    let _ = pidfd_send_signal(process, Signal::KILL);
    reap(process);
    remove_cgroup(plan);
    // Do not take the lock: `create` holds it and waits for this process. If `create` is dead, the next verb reads this.
    if let Ok(Some(mut run)) = RunRecord::read(&plan.container) {
        run.completed = true;
        let _ = run.write(&plan.container);
    }
}

fn remove_cgroup(plan: &Plan) {
    if let Ok(cgroup) = Cgroup::new(&plan.config, &plan.container.id) {
        let _ = cgroup.remove();
    }
}

/// Ignores the signals that end a session or a service: the monitor must record the exit of its container.
fn ignore_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: sets a disposition, not a handler. Hooks reset it.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Writes a line into the log of the container (L4).
fn write_to_log(plan: &Plan, message: &str) {
    if let Ok(mut log) = LogFile::open(plan.container.dir.log(plan.tty)) {
        let _ = log.write(format!("droplet: {message}\n").as_bytes());
    }
}

fn record(plan: &Plan, event: Event, pid: i32) -> Record {
    Record::new(event, &plan.container.id)
        .container(&plan.container)
        .config(&plan.config)
        .pid(pid)
}
