//! `kill` (`docs/spec/runtime.md` 4.4): stops a container, or sends a signal to its init.
//!
//! TERM, INT, QUIT and KILL stop the container, and so does any signal with `--grace`: after the grace period, `kill`
//! kills all processes, and it returns when the monitor has recorded the exit and run the stopContainer hooks. Any
//! other signal is only sent.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use condenser::runtime::signal;
use condenser::runtime::state::Status;
use rustix::process::{Signal, pidfd_send_signal};

use super::arguments::{Args, Opt};
use crate::config::Config;
use crate::container::{Container, RuntimePaths};
use crate::monitor::run_end::ensure_finished;
use crate::report::audit::{AuditLog, Event, Record};
use crate::report::failure::{Failure, Stage};
use crate::sandbox::cgroup::Cgroup;
use crate::wait::readable;

const OPTIONS: &[Opt] = &[Opt::Value("grace")];
/// Default time from the signal to KILL (K6).
const DEFAULT_GRACE: Duration = Duration::from_secs(3);
/// Time limit for init to end after KILL.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(OPTIONS, arguments)?;
    let grace = args.value("grace").map(seconds).transpose()?;
    let (id, signal) = match args.positional.as_slice() {
        [id] => (id, Signal::TERM),
        [id, signal] => (
            id,
            parse_signal(signal).ok_or_else(|| Failure::usage(format!("unknown signal: {signal}")))?,
        ),
        _ => return Err(Failure::usage("a container id and at most a signal are required")),
    };
    let container = paths.container(id).stage("load_spec")?;
    let audit = AuditLog::open(&paths.root).stage("load_spec")?;
    let config = container.config().stage("load_spec");
    let mut sent = Vec::new();
    let result = match &config {
        Ok(config) => kill(&container, config, &audit, KillRequest { signal, grace }, &mut sent),
        Err(_) => Ok(()),
    };
    let mut record = Record::new(Event::Kill, &container.id)
        .container(&container)
        .signals(sent);
    if let Ok(config) = &config {
        record = record.config(config);
    }
    let result = config.map(|_| ()).and(result);
    audit.write(&record.result(result.as_ref().err()));
    result
}

/// Parses a signal signal_name or number, as [`signal::parse`] does.
fn parse_signal(text: &str) -> Option<Signal> {
    let number = signal::parse(text)?;
    // SAFETY: the number is a signal of the kernel. It is only sent to another process, never handled or blocked here.
    Some(unsafe { Signal::from_raw_unchecked(number) })
}

fn seconds(text: &str) -> Result<Duration, Failure> {
    let seconds = text.parse::<u32>();
    let seconds = seconds.map_err(|_| Failure::usage(format!("grace is not a number of seconds: {text}")))?;
    Ok(Duration::from_secs(seconds.into()))
}

fn signal_name(signal: Signal) -> String {
    signal::name(signal.as_raw())
}

/// What the caller asked for.
#[derive(Debug, Clone, Copy)]
struct KillRequest {
    signal: Signal,
    grace: Option<Duration>,
}

impl KillRequest {
    /// Returns the time from the signal to KILL, or `None` if the signal is only sent.
    fn time_until_kill(self) -> Option<Duration> {
        match self.signal {
            Signal::KILL => Some(Duration::ZERO),
            Signal::TERM | Signal::INT | Signal::QUIT => Some(self.grace.unwrap_or(DEFAULT_GRACE)),
            _ => self.grace,
        }
    }
}

fn kill(
    container: &Container,
    config: &Config,
    audit: &AuditLog,
    request: KillRequest,
    sent: &mut Vec<String>,
) -> Result<(), Failure> {
    let signal = request.signal;
    let (init, pid) = send_to_init(container, signal)?;
    sent.push(signal_name(signal));
    let Some(grace) = request.time_until_kill() else {
        return Ok(());
    };
    if signal == Signal::KILL || !readable(&init, Instant::now() + grace) {
        kill_all(container, config, &init);
        if signal != Signal::KILL {
            sent.push(signal_name(Signal::KILL));
        }
    }
    if !readable(&init, Instant::now() + KILL_LIMIT) {
        let message = format!("failed to stop container pid={pid}: context deadline exceeded");
        return Err(Failure::new("wait_exit_kill", message));
    }
    ensure_finished(container, audit)
}

/// Sends a signal to the init of a running container. Returns its pidfd and pid.
fn send_to_init(container: &Container, signal: Signal) -> Result<(OwnedFd, i32), Failure> {
    let _lock = container.lock().stage("get_status")?;
    let state = container.state().stage("get_status")?;
    let init = state.process().and_then(|process| process.pidfd());
    match (state.status, init) {
        (Status::Running, Some(init)) => {
            pidfd_send_signal(&init, signal).stage("send_signal")?;
            Ok((init, state.pid))
        }
        _ => Err(Failure::new(
            "check_status",
            format!("container: {} not running.", container.id),
        )),
    }
}

/// Kills all processes at once where the kernel supports it. Otherwise kills init, and the kernel kills the others.
fn kill_all(container: &Container, config: &Config, init: &OwnedFd) {
    if !Cgroup::new(config, &container.id).is_ok_and(|cgroup| cgroup.kill_at_once()) {
        let _ = pidfd_send_signal(init, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_and_a_number() {
        for text in ["TERM", "SIGTERM", "sigterm", "term", "15"] {
            assert_eq!(parse_signal(text), Some(Signal::TERM), "{text}");
        }
        for text in ["", "SIG", "TERMINATE", "0", "-1", "65536", "SIGSIGTERM"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
        assert_eq!(signal_name(Signal::KILL), "KILL");
        assert_eq!(parse_signal("SIGRTMIN+3").map(signal_name).as_deref(), Some("RTMIN+3"));
    }

    #[test]
    fn a_grace_period_turns_any_signal_into_a_stop() {
        let time_until_kill = |signal, grace: Option<u64>| {
            let grace = grace.map(Duration::from_secs);
            KillRequest { signal, grace }.time_until_kill().map(|d| d.as_secs())
        };
        assert_eq!(time_until_kill(Signal::TERM, None), Some(3));
        assert_eq!(time_until_kill(Signal::TERM, Some(0)), Some(0));
        assert_eq!(time_until_kill(Signal::USR1, None), None);
        assert_eq!(time_until_kill(Signal::USR1, Some(70)), Some(70));
        assert_eq!(time_until_kill(Signal::KILL, Some(70)), Some(0));
        for text in ["", "-1", "1.5", "4294967296"] {
            assert!(seconds(text).unwrap_err().is_usage(), "{text}");
        }
    }
}
