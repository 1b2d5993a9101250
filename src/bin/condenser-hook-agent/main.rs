//! `condenser-hook-agent`: a runtime starts it as a hook, and it reports the event to the daemon over mutual TLS
//! (`docs/spec/runtime.md` 7).
//!
//! ```text
//! options ── guard variable ── state on stdin ── event ─┬─ requestCert: request a certificate, if necessary
//!    └─ exit 2   └─ exit 2       └─ exit 1     └─ exit 1 └─ any other: post the unchanged state to the daemon
//! ```
//!
//! It is started several times while a container is created, so it must be fast: it has one thread, no log, and no
//! configuration besides its arguments. It never waits longer than [`client::TOTAL_TIME`]. If the daemon refuses a
//! request, the agent fails.

#![warn(clippy::too_many_lines)]

mod certificate;
mod client;
mod error;
mod options;
mod request;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use condenser::base::cause::Cause;
use condenser::runtime::dir::{DEFAULT_ROOT, ROOT_ENV};
use condenser::runtime::hook::{EVENT_HEADER, HookEvent};
use error::AgentError;
use options::{Options, OptionsError};
use request::post;

/// The variable and value that a hook must have. They show that the program was not started by accident.
const GUARD: (&str, &str) = ("RAIND-HOOK-SETTER", "CONDENSER");
/// The event that requests a certificate instead of reporting.
const REQUEST_CERTIFICATE: &str = "requestCert";
/// Maximum size of the state, in bytes.
const STATE_LIMIT: u64 = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match run(&arguments, |name| std::env::var_os(name), std::io::stdin().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(AgentError::Options(OptionsError::Help)) => {
            print_line(std::io::stdout(), options::USAGE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_line(std::io::stderr(), &error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints a line. Ignores a closed stream: the exit code tells the result.
fn print_line(mut stream: impl Write, text: &str) {
    let _ = writeln!(stream, "{text}");
}

fn run(
    arguments: &[OsString],
    environment: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read,
) -> Result<(), AgentError> {
    let options = Options::parse(arguments)?;
    if environment(GUARD.0).as_deref() != Some(GUARD.1.as_ref()) {
        return Err(AgentError::Guard);
    }
    let state = read_state(stdin)?;
    let root = environment(ROOT_ENV)
        .filter(|root| !root.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from);
    if options.event == REQUEST_CERTIFICATE {
        certificate::ensure(&options, &root, &state)
    } else if options.event.parse::<HookEvent>().is_ok() {
        report(&options, state)
    } else {
        Err(AgentError::Event(options.event))
    }
}

fn read_state(stdin: impl Read) -> Result<Vec<u8>, AgentError> {
    let mut state = Vec::new();
    let read = stdin.take(STATE_LIMIT + 1).read_to_end(&mut state);
    read.map_err(|e| AgentError::Stdin(e.into()))?;
    if state.len() as u64 > STATE_LIMIT {
        let why = format!("input too large (>{STATE_LIMIT} bytes)");
        return Err(AgentError::Stdin(Cause::new(why)));
    }
    Ok(state)
}

fn report(options: &Options, state: Vec<u8>) -> Result<(), AgentError> {
    let headers = [
        ("content-type", "application/json"),
        (EVENT_HEADER, options.event.as_str()),
    ];
    let response = post(options, &headers, state)?;
    match response.is_success() {
        true => Ok(()),
        false => Err(AgentError::Refused(response.error_message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(arguments: &[&str], guard: Option<&str>, stdin: impl Read) -> (String, u8) {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        let environment = |name: &str| guard.filter(|_| name == "RAIND-HOOK-SETTER").map(OsString::from);
        let error = run(&arguments, environment, stdin).unwrap_err();
        (error.to_string(), error.exit_code())
    }

    const ALL: [&str; 11] = [
        "agent",
        "--url",
        "https://localhost:1/",
        "--event",
        "poststart",
        "--ca",
        "/c",
        "--cert",
        "/x",
        "--key",
        "/k",
    ];

    #[test]
    fn the_checks_have_the_order_of_the_contract() {
        let missing = "required flags: --url --event --ca --cert --key";
        assert_eq!(failure(&["agent"], None, &b""[..]), (missing.into(), 2));
        for guard in [None, Some(""), Some("condenser")] {
            assert_eq!(failure(&ALL, guard, &b""[..]), ("invalid raind-hook client".into(), 2));
        }
        let mut other_event = ALL;
        other_event[4] = "startContainer";
        let endless = std::io::repeat(b' ');
        let too_large = "read stdin: input too large (>1048576 bytes)";
        assert_eq!(failure(&other_event, Some("CONDENSER"), endless), (too_large.into(), 1));
        let unknown = "invalid event: startContainer";
        assert_eq!(failure(&other_event, Some("CONDENSER"), &b""[..]), (unknown.into(), 1));
        let unreadable = "init http client: /c: No such file or directory (os error 2)";
        assert_eq!(failure(&ALL, Some("CONDENSER"), &b"{}"[..]), (unreadable.into(), 1));
    }

    #[test]
    fn a_state_of_one_mebibyte_is_accepted() {
        assert_eq!(
            read_state(std::io::repeat(b' ').take(STATE_LIMIT)).unwrap().len(),
            1 << 20
        );
    }
}
