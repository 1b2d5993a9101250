//! `exec`: runs another process in a running container (`docs/spec/runtime.md` 4.6, 16.3).
//!
//! Four processes take part, each the parent of the next:
//!
//! ```text
//! droplet exec      checks the request and returns when the program was executed or could not be executed
//!   monitor         stays on the host: forwards output, reaps the process, records its exit  (monitor::exec::detached)
//!     joiner        joins the cgroup and the namespaces, then forks the process             (sandbox::exec::process)
//!     process       restricts itself and executes the program; it is a child of the monitor  (sandbox::exec::process)
//! ```
//!
//! With `--wait` there is no separate monitor: `droplet exec` does its work and ends with the process
//! (`monitor::exec::attached`).

use std::time::Duration;

use super::arguments::{Args, Opt};
use crate::container::RuntimePaths;
use crate::monitor::exec::{ExecRequest, attached, detached};
use crate::report::audit::AuditLog;
use crate::report::failure::{Failure, Stage};

const OPTIONS: &[Opt] = &[Opt::Flag(&["tty", "t"]), Opt::Flag(&["wait"]), Opt::Value("timeout")];
/// Maximum time-out. A longer one could overflow the clock.
const MAX_TIMEOUT: Duration = Duration::from_secs(u32::MAX as u64);

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(OPTIONS, arguments)?;
    let (id, command) = match args.positional.split_first() {
        Some((id, command)) if command.first().is_some_and(|program| !program.is_empty()) => (id, command),
        Some(_) => return Err(Failure::usage("a command is required")),
        None => return Err(Failure::usage("a container id is required")),
    };
    let (tty, wait) = (args.flag("tty"), args.flag("wait"));
    let timeout = args.value("timeout").map(seconds).transpose()?;
    if tty && wait || timeout.is_some() && !wait {
        return Err(Failure::usage("--wait excludes --tty, and --timeout requires --wait"));
    }
    let container = paths.container(id).stage("get_status")?;
    let audit = AuditLog::open(&paths.root).stage("get_status")?;
    let request = ExecRequest {
        container: &container,
        audit: &audit,
        tty,
        wait,
        command,
    };
    match wait {
        true => attached::run(request, timeout),
        false => detached::start(request),
    }
}

/// Parses a positive number of seconds, which may have a fraction.
fn seconds(text: &str) -> Result<Duration, Failure> {
    let parsed = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let timeout = parsed.filter(|timeout| !timeout.is_zero() && *timeout <= MAX_TIMEOUT);
    timeout.ok_or_else(|| Failure::usage(format!("timeout is not a number of seconds: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_required() {
        let paths = RuntimePaths::from_environment();
        for arguments in [&[][..], &["abc".into()], &["-t".into(), "abc".into(), String::new()]] {
            assert!(run(&paths, arguments).unwrap_err().is_usage(), "{arguments:?}");
        }
    }

    #[test]
    fn a_timeout_needs_wait_and_wait_excludes_a_terminal() {
        let paths = RuntimePaths::from_environment();
        for options in [&["-t", "--wait"][..], &["--timeout", "1"], &["--wait", "--timeout=x"]] {
            let arguments: Vec<_> = options.iter().chain(&["abc", "true"]).map(|&w| w.to_owned()).collect();
            assert!(run(&paths, &arguments).unwrap_err().is_usage(), "{arguments:?}");
        }
        assert_eq!(seconds("1.5").unwrap(), Duration::from_millis(1500));
        for bad in ["0", "-1", "", "nan", "inf", "1e300"] {
            assert!(seconds(bad).unwrap_err().is_usage(), "{bad}");
        }
    }
}
