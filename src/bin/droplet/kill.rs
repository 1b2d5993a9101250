//! `kill` (`docs/spec/runtime.md` 4.4): stops a container, or delivers a signal to its init.
//!
//! TERM, INT, QUIT and KILL mean stop, and so does any signal with `--grace`: after a grace period everything is killed,
//! and the verb returns when the monitor has recorded the end and reported it. Any other signal is delivered and nothing
//! else.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use condenser::runtime::signal;
use condenser::runtime::state::Status;
use rustix::process::{Signal, pidfd_send_signal};

use crate::audit::{AuditLog, Event, Record};
use crate::cgroup::Cgroup;
use crate::cli::{Args, Opt};
use crate::config::Config;
use crate::container::{Container, Site};
use crate::failure::{Failure, Stage};
use crate::finish::{readable, settle};

const OPTIONS: &[Opt] = &[Opt::Value("grace")];
/// From the signal to KILL, unless it is chosen (K6).
const GRACE: Duration = Duration::from_secs(3);
/// From KILL to giving up.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Runs the verb.
pub fn run(site: &Site, words: &[String]) -> Result<(), Failure> {
    let args = Args::parse(OPTIONS, words)?;
    let grace = args.value("grace").map(seconds).transpose()?;
    let (id, signal) = match args.positional.as_slice() {
        [id] => (id, Signal::TERM),
        [id, signal] => (
            id,
            parse(signal).ok_or_else(|| Failure::usage(format!("unknown signal: {signal}")))?,
        ),
        _ => return Err(Failure::usage("a container id and at most a signal are required")),
    };
    let container = site.container(id).stage("load_spec")?;
    let audit = AuditLog::open(&site.root).stage("load_spec")?;
    let config = container.config().stage("load_spec");
    let mut sent = Vec::new();
    let result = match &config {
        Ok(config) => kill(&container, config, &audit, Wish { signal, grace }, &mut sent),
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

/// As [`signal::parse`] has it.
fn parse(text: &str) -> Option<Signal> {
    let number = signal::parse(text)?;
    // SAFETY: it is one of the kernel's signals; it is only sent to another process, never handled or blocked here.
    Some(unsafe { Signal::from_raw_unchecked(number) })
}

fn seconds(text: &str) -> Result<Duration, Failure> {
    let seconds = text.parse::<u32>();
    let seconds = seconds.map_err(|_| Failure::usage(format!("grace is not a number of seconds: {text}")))?;
    Ok(Duration::from_secs(seconds.into()))
}

fn name(signal: Signal) -> String {
    signal::name(signal.as_raw())
}

/// What the caller wants.
#[derive(Debug, Clone, Copy)]
struct Wish {
    signal: Signal,
    grace: Option<Duration>,
}

impl Wish {
    /// From the signal to KILL; `None` when the signal is just delivered.
    fn until_kill(self) -> Option<Duration> {
        match self.signal {
            Signal::KILL => Some(Duration::ZERO),
            Signal::TERM | Signal::INT | Signal::QUIT => Some(self.grace.unwrap_or(GRACE)),
            _ => self.grace,
        }
    }
}

fn kill(
    container: &Container,
    config: &Config,
    audit: &AuditLog,
    wish: Wish,
    sent: &mut Vec<String>,
) -> Result<(), Failure> {
    let signal = wish.signal;
    let (init, pid) = {
        let _lock = container.lock().stage("get_status")?;
        let state = container.state().stage("get_status")?;
        let init = state.process().and_then(|process| process.pidfd());
        match (state.status, init) {
            (Status::Running, Some(init)) => {
                pidfd_send_signal(&init, signal).stage("send_signal")?;
                sent.push(name(signal));
                (init, state.pid)
            }
            _ => {
                return Err(Failure::new(
                    "check_status",
                    format!("container: {} not running.", container.id),
                ));
            }
        }
    };
    let Some(grace) = wish.until_kill() else {
        return Ok(());
    };
    if signal == Signal::KILL || !readable(&init, Instant::now() + grace) {
        kill_all(container, config, &init);
        if signal != Signal::KILL {
            sent.push(name(Signal::KILL));
        }
    }
    if !readable(&init, Instant::now() + KILL_LIMIT) {
        let message = format!("failed to stop container pid={pid}: context deadline exceeded");
        return Err(Failure::new("wait_exit_kill", message));
    }
    settle(container, audit)
}

/// Kills the container's processes at once where the kernel can, else its init, with which the others end.
fn kill_all(container: &Container, config: &Config, init: &OwnedFd) {
    if !Cgroup::new(config, &container.id).is_ok_and(|cgroup| cgroup.kill()) {
        let _ = pidfd_send_signal(init, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "term", "15"] {
            assert_eq!(parse(text), Some(Signal::TERM), "{text}");
        }
        for text in ["", "SIG", "TERMINATE", "0", "-1", "65536", "SIGSIGTERM"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(name(Signal::KILL), "KILL");
        assert_eq!(parse("SIGRTMIN+3").map(name).as_deref(), Some("RTMIN+3"));
    }

    #[test]
    fn a_grace_period_makes_any_signal_a_stop() {
        let until_kill = |signal, grace: Option<u64>| {
            let grace = grace.map(Duration::from_secs);
            Wish { signal, grace }.until_kill().map(|d| d.as_secs())
        };
        assert_eq!(until_kill(Signal::TERM, None), Some(3));
        assert_eq!(until_kill(Signal::TERM, Some(0)), Some(0));
        assert_eq!(until_kill(Signal::USR1, None), None);
        assert_eq!(until_kill(Signal::USR1, Some(70)), Some(70));
        assert_eq!(until_kill(Signal::KILL, Some(70)), Some(0));
        for text in ["", "-1", "1.5", "4294967296"] {
            assert!(seconds(text).unwrap_err().is_usage(), "{text}");
        }
    }
}
