//! The monitor: parent of a container's init from before its birth until after its end (`docs/spec/runtime.md` 13.2).
//!
//! Forked by `create`, never executing anything else, with one thread. In this order it
//! 1. leaves session, standard streams and (on cgroup v2) service cgroup of its creator,
//! 2. has libcontainer set init up, and reports to `create`,
//! 3. forwards output until `create` says that the container stays; if `create` fails or dies instead, it kills init and
//!    leaves nothing,
//! 4. forwards output until init ends, then records the end and runs the stopContainer hooks (`finish`).
//!
//! It never needs the daemon, and is not disturbed by its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use condenser::model::{Exit, ProcessId};
use condenser::runtime::state::{REASON_COMPLETED, REASON_ERROR, REASON_OOM};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::audit::{AuditLog, Event, Record};
use crate::cgroup::{self, Cgroup};
use crate::console::Pump;
use crate::container::{ContainerError, remove_if_exists, replace};
use crate::failure::{Failure, Judge, Stage};
use crate::finish::{finish, readable};
use crate::init::{self, Init};
use crate::lock::Lock;
use crate::logfile::{EventLog, LogFile};
use crate::plan::Plan;
use crate::record::RunRecord;
use crate::report::{Bad, Listener};

/// How long `create` waits for the monitor's report.
const SET_UP_LIMIT: Duration = Duration::from_secs(60);
/// How often a monitor looks whether there is room for its last words.
const ROOM_PAUSE: Duration = Duration::from_secs(1);
/// What `create` sends when the container stays.
const KEEP: u8 = b'k';

/// First message of a monitor.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// Init waits for the start signal.
    Ready { pid: i32 },
    /// It could not be set up; nothing is left.
    Failed { reason: String, status: i32 },
}

/// `create`'s end of the connection to its monitor. Dropping it makes the monitor give up.
#[derive(Debug)]
pub struct Creator {
    stream: UnixStream,
    monitor: i32,
}

impl Creator {
    /// Forks the monitor, which does not hold the lock.
    pub fn fork(plan: &Plan, audit: &AuditLog, lock: &Lock) -> std::io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        // What a monitor that is killed leaves half set up comes to us, and is found by that.
        nix::sys::prctl::set_child_subreaper(true)?;
        // SAFETY: this process has one thread, so the child may do whatever this process may.
        match unsafe { nix::unistd::fork() }? {
            nix::unistd::ForkResult::Parent { child } => Ok(Self {
                stream,
                monitor: child.as_raw(),
            }),
            nix::unistd::ForkResult::Child => {
                drop(stream);
                // SAFETY: this process leaves below, by `_exit`.
                unsafe { lock.close_in_child() };
                monitor(plan, audit, theirs);
                // SAFETY: ends this process without running what the parent registered for its own end.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Pid of the monitor.
    pub fn monitor(&self) -> i32 {
        self.monitor
    }

    /// Waits until init is set up; its pid.
    pub fn ready(&self, stage: &'static str) -> Result<i32, Failure> {
        let receive = || -> std::io::Result<Report> {
            self.wait_for_report()?;
            self.stream.set_read_timeout(Some(SET_UP_LIMIT))?;
            let mut line = String::new();
            BufReader::new(&self.stream).read_line(&mut line)?;
            Ok(serde_json::from_str(&line)?)
        };
        match receive() {
            Ok(Report::Ready { pid }) => Ok(pid),
            Ok(Report::Failed { reason, status }) => Err(Failure::new(stage, reason).with_status(status)),
            Err(error) => Err(Failure::new(stage, format!("the monitor does not answer: {error}"))),
        }
    }

    /// That the monitor died does not end the connection: init has a copy of its end.
    fn wait_for_report(&self) -> std::io::Result<()> {
        let monitor = Pid::from_raw(self.monitor).ok_or(std::io::ErrorKind::NotFound)?;
        let monitor = pidfd_open(monitor, PidfdFlags::empty())?;
        let limit = Timespec::try_from(SET_UP_LIMIT).ok();
        let mut either = [
            PollFd::new(&self.stream, PollFlags::IN),
            PollFd::new(&monitor, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut either, limit.as_ref()))?;
        match either.map(|fd| !fd.revents().is_empty()) {
            [true, _] => Ok(()),
            [false, true] => Err(std::io::Error::other("it died")),
            [false, false] => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// The container stays; from here on the monitor is on its own. Fails when it is dead.
    pub fn keep(&mut self) -> std::io::Result<()> {
        // The connection does not tell: init has a copy of the monitor's end.
        if ProcessId::of(self.monitor).is_none() {
            return Err(std::io::Error::other("the monitor died"));
        }
        self.stream.write_all(&[KEEP])?;
        Ok(nix::sys::prctl::set_child_subreaper(false)?)
    }

    /// Makes the monitor kill init, and waits until both are gone. Kills what a monitor that was killed has left.
    pub fn give_up(self) {
        drop(self.stream);
        let Some(pid) = Pid::from_raw(self.monitor) else {
            return;
        };
        if let Ok(monitor) = pidfd_open(pid, PidfdFlags::empty()) {
            if !readable(&monitor, Instant::now() + Duration::from_secs(10)) {
                let _ = pidfd_send_signal(&monitor, Signal::KILL);
            }
            let _ = rustix::process::waitid(WaitId::PidFd(monitor.as_fd()), WaitIdOptions::EXITED);
        }
        init::kill_children();
    }
}

/// What the forked process does.
fn monitor(plan: &Plan, audit: &AuditLog, mut creator: UnixStream) {
    let failed = |failure: Failure| {
        remove_cgroup(plan);
        note(plan, &failure.message);
        audit.write(&record(plan, Event::Init, 0).result(Some(&failure)));
        Report::Failed {
            status: failure.status,
            reason: failure.message,
        }
    };
    let started = detach()
        .stage("prepare")
        .and_then(|()| init::set_up(plan).judge("prepare"))
        .and_then(|init| Attendant::new(plan, init).stage("prepare"));
    match started {
        Err(failure) => send(&mut creator, &failed(failure)),
        Ok(mut attendant) => {
            if attendant.wait_for_creator(creator) {
                ignore_signals();
                attendant.attend(audit);
            } else {
                attendant.give_up();
            }
        }
    }
}

/// Own session, no working directory and standard streams of the creator, no place in the daemon's cgroup, no
/// supplementary groups to inherit.
fn detach() -> std::io::Result<()> {
    let _ = rustix::thread::set_name(c"droplet:monitor");
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    if let Err(error) = cgroup::join_monitors() {
        // The container works; it only ends with the daemon if the service manager kills the daemon's cgroup.
        crate::output::complain(format_args!(
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

/// Looks after an init that exists.
struct Attendant<'a> {
    plan: &'a Plan,
    pid: i32,
    process: OwnedFd,
    executed: Listener,
    pump: Pump,
    cgroup: Option<Cgroup>,
    oom_kills: u64,
    /// What happens to a terminal container is noted.
    events: Option<EventLog>,
}

impl<'a> Attendant<'a> {
    /// On failure init is gone.
    fn new(plan: &'a Plan, init: Init) -> std::io::Result<Self> {
        let process = pidfd_open(init.pid, PidfdFlags::empty())?;
        let pid = init.pid.as_raw_nonzero().get();
        let prepare = || {
            if plan.tty {
                replace(&init_pid_file(plan), format!("{pid}\n").as_bytes(), 0o600)?;
            }
            pump(plan, init.output)
        };
        let pump = prepare().inspect_err(|_| end_now(plan, process.as_fd()))?;
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

    /// Reports to `create`, and forwards output until that has said whether the container stays.
    fn wait_for_creator(&mut self, mut creator: UnixStream) -> bool {
        let pid = self.pid;
        if let Some(events) = &mut self.events {
            events.line(format_args!("init started (pid={pid})"));
        }
        send(&mut creator, &Report::Ready { pid });
        self.pump.run(creator.as_fd()).is_ok() && kept(&mut creator)
    }

    /// Undoes everything of this run that is not `create`'s to undo.
    fn give_up(self) {
        end_now(self.plan, self.process.as_fd());
        let _ = self.pump.finish();
        let _ = remove_if_exists(&init_pid_file(self.plan));
    }

    /// Until init has ended and everybody knows. Output that cannot be forwarded is no reason not to be there then.
    fn attend(mut self, audit: &AuditLog) {
        let _ = self.pump.run(self.executed.as_fd());
        let executed = self.executed.hear(SET_UP_LIMIT);
        let failure = executed.as_ref().err().map(|bad| match bad {
            Bad::Died => Failure::new("read_fifo", "killed before it was started"),
            other => Failure::new("exec_entrypoint", other.to_string()),
        });
        let init = record(self.plan, Event::Init, self.pid).confined(self.plan.apparmor.is_some());
        audit.write(&init.result(failure.as_ref()));
        // Now nobody waits for this process.
        let _ = audit.trim();

        let _ = self.pump.run(self.process.as_fd());
        let code = wait(self.process.as_fd());
        let oom_kills = oom_kills(self.cgroup.as_ref());
        let exit = classify(code, oom_kills > self.oom_kills, executed.err());
        let _ = self.pump.finish();
        if let Some(events) = &mut self.events {
            events.line(format_args!("init exited (status={code})"));
            let failed = Failure::new("wait_init", format!("exit status {code}"));
            audit.write(&record(self.plan, Event::Shim, self.pid).result((code != 0).then_some(&failed)));
        }
        let finish = || finish(&self.plan.container, &self.plan.config, audit, &exit);
        let mut finished = finish();
        // Nobody else knows the exit status: it waits until there is room to write it down.
        while finished.as_ref().is_err_and(is_full) {
            std::thread::sleep(ROOM_PAUSE);
            finished = finish();
        }
        if let Err(error) = finished {
            note(self.plan, &error.to_string());
        }
    }
}

/// How many processes were killed for lack of memory; on v2, where the group outlives a run, in earlier runs too.
fn oom_kills(cgroup: Option<&Cgroup>) -> u64 {
    let events = cgroup.and_then(Cgroup::memory_events);
    events.map_or(0, |events| events.oom_kill)
}

fn is_full(error: &ContainerError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error, ContainerError::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded))
}

fn pump(plan: &Plan, output: init::Output) -> std::io::Result<Pump> {
    let log = LogFile::open(plan.container.dir.log(plan.tty))?;
    match output {
        init::Output::Pipe(pipe) => Pump::pipe(pipe, log),
        init::Output::Terminal { master, socket } => Pump::terminal(master, log, socket, event_log(plan)),
    }
}

fn event_log(plan: &Plan) -> EventLog {
    EventLog::open(plan.container.dir.logs().join("shim.log"), "shim")
}

/// For whoever looks for it there, as the original's shim wrote it.
fn init_pid_file(plan: &Plan) -> PathBuf {
    plan.container.dir.path().join("init.pid")
}

/// A creator that is not there any more shows when its answer is awaited.
fn send(creator: &mut UnixStream, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = creator.write_all(&line);
    }
}

/// Whether the container stays. `create` that fails or dies closes the connection.
fn kept(creator: &mut UnixStream) -> bool {
    let mut answer = [0];
    creator.read_exact(&mut answer).is_ok() && answer == [KEEP]
}

/// Kills and reaps an init that is not wanted any more. Nobody is told: the container never was.
fn end_now(plan: &Plan, process: BorrowedFd<'_>) {
    let _ = pidfd_send_signal(process, Signal::KILL);
    wait(process);
    remove_cgroup(plan);
    // Without the lock: `create` holds it and waits for us, or is dead, and then there is a next one to find this.
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

/// Reaps a child, which is waited for. Exit status, or 128 + signal number; -1 when it is not known.
pub fn wait(process: BorrowedFd<'_>) -> i32 {
    let status = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(process), WaitIdOptions::EXITED));
    status.ok().flatten().map_or(-1, |status| code(&status))
}

fn code(status: &WaitIdStatus) -> i32 {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

fn classify(code: i32, oom: bool, refusal: Option<Bad>) -> Exit {
    let reason = match code {
        0 => REASON_COMPLETED,
        code if code == 128 + libc::SIGKILL && oom => REASON_OOM,
        _ => REASON_ERROR,
    };
    // Of a program that ran, nothing is known but its status, even if that is 127.
    let message = match refusal {
        Some(Bad::Said(message) | Bad::Refused { message, .. }) => message,
        _ => String::new(),
    };
    Exit {
        code,
        reason: reason.to_owned(),
        message,
    }
}

/// The monitor outlives whoever wants everything to end: it has to record how its container did.
fn ignore_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: sets a disposition; there is no handler. Hooks set it back.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// A line in the container's own log (L4).
fn note(plan: &Plan, message: &str) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_has_a_reason() {
        let reason = |code, oom| classify(code, oom, None).reason;
        assert_eq!(reason(0, true), "Completed");
        assert_eq!(reason(3, true), "Error");
        assert_eq!(reason(137, true), "OOMKilled");
        assert_eq!(reason(137, false), "Error");
        assert_eq!(reason(143, true), "Error");
    }

    #[test]
    fn only_a_refused_program_has_a_message() {
        let refused = Bad::Refused {
            status: 127,
            message: "x: not found in PATH".into(),
        };
        assert_eq!(classify(127, false, Some(refused)).message, "x: not found in PATH");
        assert_eq!(classify(127, false, None).message, "");
        assert_eq!(classify(137, false, Some(Bad::Died)).message, "");
    }
}
