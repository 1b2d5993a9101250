//! `exec`: one more process in a running container (`docs/spec/runtime.md` 4.6, 16.3), launched only or waited for.
//!
//! Four processes, each the parent of the next:
//!
//! ```text
//! droplet exec      checks, looks everything up, and returns when the program was executed or could not be
//!   monitor         stays on the host: log or terminal, reaps, records the end                    (monitor)
//!     entrant       joins cgroup and namespaces, then makes the process as a child of the monitor  (process)
//!     process       takes on the container's restrictions and becomes the program                  (process)
//! ```
//!
//! With `--wait` there is no monitor: `droplet exec` itself does its work and ends with the process ([`wait`]).
//!
//! The process gets everything from the container's configuration, nothing from the caller: environment, working
//! directory, user, capabilities, limits, system call filters, AppArmor profile. What has to be looked up is looked up
//! here, through descriptors of the container's init, so that nothing can change its meaning on the way.
//!
//! What the container could attack is kept from it: the executable is sealed ([`crate::sealed`]), the process is visible in the
//! container's pid namespace only after it has left every namespace of the host, it can neither be traced nor looked
//! into before it executes the program, and by then has no descriptor of the host's but its stdio.

mod monitor;
mod process;
mod target;
mod wait;

use std::path::PathBuf;
use std::time::Duration;

use condenser::runtime::state::Status;
use rustix::process::{Gid, Uid};

use crate::apparmor::{self, Confinement};
use crate::audit::{AuditLog, Event, Record};
use crate::bundle;
use crate::cgroup::Cgroup;
use crate::cli::{Args, Opt};
use crate::config::Config;
use crate::container::{Container, Site};
use crate::credentials::Credentials;
use crate::failure::{Failure, Stage};
use crate::limits::Limits;
use crate::lock::Lock;
use crate::program::Program;
use crate::report::{self, Bad, Speaker};
use crate::seccomp::Filters;

use target::Target;

const OPTIONS: &[Opt] = &[Opt::Flag(&["tty", "t"]), Opt::Flag(&["wait"]), Opt::Value("timeout")];
/// The monitor gives up before this.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);
/// No time-out is longer: it could not be added to the time of day.
const MAX_LIMIT: Duration = Duration::from_secs(u32::MAX as u64);

/// What a program with a terminal finds when the container has none.
const TERM: &str = "TERM=xterm-256color";

/// What was asked for.
#[derive(Debug, Clone, Copy)]
struct Request<'a> {
    container: &'a Container,
    audit: &'a AuditLog,
    tty: bool,
    wait: bool,
    command: &'a [String],
}

/// How that is done: where, and under which restrictions.
#[derive(Debug)]
struct Job {
    target: Target,
    program: Program,
    cwd: PathBuf,
    umask: u32,
    credentials: Credentials,
    /// The user and group as the host sees them: owner of the terminal or pipe, so that it can be opened again.
    owner: (Uid, Gid),
    cgroup: Cgroup,
    limits: Limits,
    oom_score_adj: i32,
    apparmor: Option<Confinement>,
    filters: Filters,
    /// Whether the process is killed when this one, or that which does its work, ends.
    ends_with_parent: bool,
}

/// `exec [-t|--tty] <id> <argv…>` and `exec --wait [--timeout <seconds>] <id> <argv…>`.
pub fn run(site: &Site, words: &[String]) -> Result<(), Failure> {
    let args = Args::parse(OPTIONS, words)?;
    let (id, command) = match args.positional.split_first() {
        Some((id, command)) if command.first().is_some_and(|program| !program.is_empty()) => (id, command),
        Some(_) => return Err(Failure::usage("a command is required")),
        None => return Err(Failure::usage("a container id is required")),
    };
    let (tty, wait) = (args.flag("tty"), args.flag("wait"));
    let limit = args.value("timeout").map(seconds).transpose()?;
    if tty && wait || limit.is_some() && !wait {
        return Err(Failure::usage("--wait excludes --tty, and --timeout requires --wait"));
    }
    let container = site.container(id).stage("get_status")?;
    let audit = AuditLog::open(&site.root).stage("get_status")?;
    let request = Request {
        container: &container,
        audit: &audit,
        tty,
        wait,
        command,
    };
    if wait {
        return wait::run(request, limit);
    }
    let executed = exec(request);
    record(request, executed.as_ref().err());
    executed
}

/// A number of seconds, more than none, which may have a fraction.
fn seconds(text: &str) -> Result<Duration, Failure> {
    let parsed = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let limit = parsed.filter(|limit| !limit.is_zero() && *limit <= MAX_LIMIT);
    limit.ok_or_else(|| Failure::usage(format!("timeout is not a number of seconds: {text}")))
}

/// How the launch went.
fn record(request: Request<'_>, failure: Option<&Failure>) {
    request.audit.write(
        &Record::new(Event::Exec, &request.container.id)
            .container(request.container)
            .exec_command(request.command.to_vec())
            .result(failure),
    );
}

fn exec(request: Request<'_>) -> Result<(), Failure> {
    let (lock, job) = prepare(request)?;
    let stage = request.stage();
    let (speaker, listener) = report::pair().stage(stage)?;
    match process::fork().stage(stage)? {
        None => {
            // The lock belongs to whoever has its descriptor, and the monitor outlives this command.
            drop((lock, listener));
            monitor::run(request, job, speaker)
        }
        Some(_) => {
            drop::<Speaker>(speaker);
            listener.hear(ANSWER_LIMIT).map_err(|bad| {
                let failure = Failure::new(stage, bad.to_string());
                match bad {
                    Bad::Refused { status, .. } => failure.with_status(status),
                    _ => failure,
                }
            })
        }
    }
}

/// Looks everything up. While the lock is held, no create, start or delete happens.
fn prepare(request: Request<'_>) -> Result<(Lock, Job), Failure> {
    let container = request.container;
    let lock = container.lock_shared().stage("get_status")?;
    let state = container.state().stage("get_status")?;
    let not_running = || Failure::new("check_status", format!("container: {} not running.", container.id));
    if state.status != Status::Running {
        return Err(not_running());
    }
    let init = state.process().ok_or_else(not_running)?;
    let target = Target::open(&init).stage("get_pid")?.ok_or_else(not_running)?;
    let config = container.config().stage(request.stage())?;
    let job = Job::new(request, target, &config).stage(request.stage())?;
    Ok((lock, job))
}

impl Request<'_> {
    /// The word of the contract for the way to start a process.
    fn stage(self) -> &'static str {
        if self.tty { "exec_shim" } else { "exec_nsenter" }
    }
}

impl Job {
    fn new(request: Request<'_>, target: Target, config: &Config) -> Result<Self, Box<dyn std::error::Error>> {
        let process = &config.process;
        let user = &process.user;
        let mut env = process.env.clone();
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", target.home(user.uid)));
        }
        if request.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push(TERM.to_owned());
        }
        let unmapped = |what, id| format!("{what} {id} does not exist in the container's user namespace");
        let uid = bundle::host_id(&config.linux.uid_mappings, user.uid).ok_or_else(|| unmapped("user", user.uid))?;
        let gid = bundle::host_id(&config.linux.gid_mappings, user.gid).ok_or_else(|| unmapped("group", user.gid))?;
        Ok(Self {
            program: Program::new(request.command, &env)?,
            cwd: if process.cwd.as_os_str().is_empty() {
                PathBuf::from("/")
            } else {
                process.cwd.clone()
            },
            umask: user.umask.unwrap_or(0o022),
            credentials: Credentials::new(user, &process.capabilities),
            owner: (Uid::from_raw(uid), Gid::from_raw(gid)),
            cgroup: Cgroup::new(config, &request.container.id)?,
            limits: Limits::from_config(config)?,
            oom_score_adj: process.oom_score_adj,
            apparmor: apparmor::profile(config)?
                .map(|profile| Confinement::new(profile, config.must_be_confined()))
                .transpose()?,
            filters: Filters::from_config(config)?,
            ends_with_parent: request.wait,
            target,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_required() {
        let site = Site::from_environment();
        for words in [&[][..], &["abc".into()], &["-t".into(), "abc".into(), String::new()]] {
            assert!(run(&site, words).unwrap_err().is_usage(), "{words:?}");
        }
    }

    #[test]
    fn a_timeout_is_for_who_waits_without_a_terminal() {
        let site = Site::from_environment();
        for options in [&["-t", "--wait"][..], &["--timeout", "1"], &["--wait", "--timeout=x"]] {
            let words: Vec<_> = options.iter().chain(&["abc", "true"]).map(|&w| w.to_owned()).collect();
            assert!(run(&site, &words).unwrap_err().is_usage(), "{words:?}");
        }
        assert_eq!(seconds("1.5").unwrap(), Duration::from_millis(1500));
        for bad in ["0", "-1", "", "nan", "inf", "1e300"] {
            assert!(seconds(bad).unwrap_err().is_usage(), "{bad}");
        }
    }
}
