//! The monitor as `create` sees it: forks it, waits for its report, then confirms or cancels the container.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use condenser::model::ProcessId;
use nix::sys::prctl::set_child_subreaper;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::protocol::{CONFIRMED, Report};
use super::reaper::reap;
use super::supervise::supervise;
use crate::container::lock::Lock;
use crate::report::audit::AuditLog;
use crate::report::failure::{Failure, Stage};
use crate::sandbox::init::kill_children;
use crate::sandbox::plan::Plan;
use crate::wait::readable;

/// Time limit for the monitor to report that init is set up.
const SET_UP_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the monitor to clean up.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// The connection of `create` to the monitor. When it is dropped, the monitor kills init and ends.
#[derive(Debug)]
pub struct MonitorHandle {
    stream: UnixStream,
    pid: i32,
}

impl MonitorHandle {
    /// Forks the monitor. The monitor does not hold the lock.
    pub fn fork(plan: &Plan, audit: &AuditLog, lock: &Lock) -> std::io::Result<Self> {
        let (stream, monitor_end) = UnixStream::pair()?;
        // If the monitor is killed, its children become children of this process, which can then find them.
        set_child_subreaper(true)?;
        // SAFETY: this process has one thread, so the child may do everything that this process may do.
        match unsafe { nix::unistd::fork() }? {
            nix::unistd::ForkResult::Parent { child } => Ok(Self {
                stream,
                pid: child.as_raw(),
            }),
            nix::unistd::ForkResult::Child => {
                drop(stream);
                // SAFETY: this child ends below, with `_exit`.
                unsafe { lock.close_in_child() };
                supervise(plan, audit, monitor_end);
                // SAFETY: ends this process without running the exit handlers of the parent.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Pid of the monitor.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until init is set up. Returns its pid.
    pub fn wait_until_ready(&self, stage: &'static str) -> Result<i32, Failure> {
        match self.receive_report() {
            Ok(Report::Ready { pid }) => Ok(pid),
            Ok(Report::Failed { reason, status }) => Err(Failure::new(stage, reason).with_status(status)),
            Err(error) => Err(format!("the monitor does not answer: {error}")).stage(stage),
        }
    }

    fn receive_report(&self) -> std::io::Result<Report> {
        self.wait_for_report()?;
        self.stream.set_read_timeout(Some(SET_UP_LIMIT))?;
        let mut line = String::new();
        BufReader::new(&self.stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Waits for a report or the death of the monitor. Its death does not close the connection: init has a copy of its
    /// end.
    fn wait_for_report(&self) -> std::io::Result<()> {
        let monitor = Pid::from_raw(self.pid).ok_or(std::io::ErrorKind::NotFound)?;
        let monitor = pidfd_open(monitor, PidfdFlags::empty())?;
        let limit = Timespec::try_from(SET_UP_LIMIT).ok();
        let mut fds = [
            PollFd::new(&self.stream, PollFlags::IN),
            PollFd::new(&monitor, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref()))?;
        match fds.map(|fd| !fd.revents().is_empty()) {
            [true, _] => Ok(()),
            [false, true] => Err(std::io::Error::other("it died")),
            [false, false] => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Confirms the container: the monitor no longer depends on this process. Fails if the monitor is dead.
    pub fn confirm(&mut self) -> std::io::Result<()> {
        // The connection does not tell: init has a copy of the monitor's end.
        if ProcessId::of(self.pid).is_none() {
            return Err(std::io::Error::other("the monitor died"));
        }
        self.stream.write_all(&[CONFIRMED])?;
        Ok(set_child_subreaper(false)?)
    }

    /// Makes the monitor kill init, and waits until both are gone. If the monitor was killed, kills what it left.
    pub fn cancel(self) {
        drop(self.stream);
        let Some(pid) = Pid::from_raw(self.pid) else {
            return;
        };
        if let Ok(monitor) = pidfd_open(pid, PidfdFlags::empty()) {
            if !readable(&monitor, Instant::now() + CANCEL_LIMIT) {
                let _ = pidfd_send_signal(&monitor, Signal::KILL);
            }
            reap(monitor.as_fd());
        }
        kill_children();
    }
}
