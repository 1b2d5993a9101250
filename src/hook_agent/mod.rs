//! What `condenser-hook-agent` does: the runtime starts it as a hook, and it tells the daemon over mutual TLS
//! (`docs/spec/runtime.md` 7).
//!
//! ```text
//! options ── guard variable ── state on stdin ── event ─┬─ requestCert: container key and certificate, if due
//!    └─ exit 2   └─ exit 2       └─ exit 1     └─ exit 1 └─ any other: the state, unchanged, to the daemon
//! ```
//!
//! It is started several times while a container is created, so it does nothing that it can leave undone: one thread, no
//! logging, no configuration but its arguments. It never waits longer than [`client::TOTAL_TIME`], and a refusal of the
//! daemon is a failure.

mod certificate;
pub mod client;
mod options;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use options::{Options, OptionsError};

use crate::base::cause::Cause;
use crate::runtime::dir::{DEFAULT_ROOT, ROOT_ENV};
use crate::runtime::hook::{EVENT_HEADER, HookEvent};

/// The variable that tells a hook from an accident, and its value.
pub const GUARD: (&str, &str) = ("RAIND-HOOK-SETTER", "CONDENSER");
/// The event that is not a report.
const REQUEST_CERTIFICATE: &str = "requestCert";
/// Largest state that is passed on, in bytes.
const STATE_LIMIT: u64 = 1 << 20;

/// Runs the agent with this process's arguments, environment and standard input.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match run(&arguments, |name| std::env::var_os(name), std::io::stdin().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(AgentError::Options(OptionsError::Help)) => {
            say(std::io::stdout(), options::USAGE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(std::io::stderr(), &error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// A closed stream is no reason to fail otherwise than with the exit code.
fn say(mut stream: impl Write, text: &str) {
    let _ = writeln!(stream, "{text}");
}

/// Why the agent fails. The text is what the runtime's log shows.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("invalid raind-hook client")]
    Guard,
    #[error("read stdin: {0}")]
    Stdin(#[source] Cause),
    #[error("invalid event: {0}")]
    Event(String),
    #[error("json parse: {0}")]
    Json(#[source] Cause),
    #[error("init http client: {0}")]
    Client(#[source] Cause),
    #[error("post: {0}")]
    Post(#[from] client::PostError),
    #[error("post state failed: {0}")]
    Refused(String),
    #[error("generate csr: {0}")]
    Request(#[from] rcgen::Error),
    #[error("request cert: {0}")]
    Certificate(#[source] Cause),
}

impl AgentError {
    /// 2 for wrong use, 1 for a failure.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Options(_) | Self::Guard => 2,
            _ => 1,
        }
    }
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
    let answer = post(options, &headers, state)?;
    match answer.is_success() {
        true => Ok(()),
        false => Err(AgentError::Refused(answer.refusal())),
    }
}

fn post(options: &Options, headers: &[(&str, &str)], body: Vec<u8>) -> Result<client::Answer, AgentError> {
    let named = |path: &Path, e: std::io::Error| AgentError::Client(Cause::new(format!("{}: {e}", path.display())));
    let read = |path: &Path| std::fs::read(path).map_err(|e| named(path, e));
    let (ca, certificate, key) = (read(&options.ca)?, read(&options.cert)?, read(&options.key)?);
    let tls = client::tls_config(&ca, &certificate, &key).map_err(|e| AgentError::Client(e.into()))?;
    Ok(client::post(&options.url, tls, headers, body)?)
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
    fn checks_come_in_the_order_of_the_contract() {
        let missing = "required flags: --url --event --ca --cert --key";
        assert_eq!(failure(&["agent"], None, &b""[..]), (missing.into(), 2));
        for guard in [None, Some(""), Some("condenser")] {
            assert_eq!(failure(&ALL, guard, &b""[..]), ("invalid raind-hook client".into(), 2));
        }
        let mut odd = ALL;
        odd[4] = "startContainer";
        let long = std::io::repeat(b' ');
        let too_large = "read stdin: input too large (>1048576 bytes)";
        assert_eq!(failure(&odd, Some("CONDENSER"), long), (too_large.into(), 1));
        let unknown = "invalid event: startContainer";
        assert_eq!(failure(&odd, Some("CONDENSER"), &b""[..]), (unknown.into(), 1));
        let unreadable = "init http client: /c: No such file or directory (os error 2)";
        assert_eq!(failure(&ALL, Some("CONDENSER"), &b"{}"[..]), (unreadable.into(), 1));
    }

    #[test]
    fn a_state_of_exactly_one_mebibyte_is_read() {
        assert_eq!(
            read_state(std::io::repeat(b' ').take(STATE_LIMIT)).unwrap().len(),
            1 << 20
        );
    }
}
