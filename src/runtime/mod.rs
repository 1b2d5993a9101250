//! The low-level runtime: the types shared by the daemon and `bin/droplet`, and the driver that runs it.
//!
//! The contract between the two is a command line and files (`docs/spec/runtime.md`). The types here are those files;
//! neither side may depend on anything else of the other.

pub mod apparmor;
pub mod defaults;
pub mod dir;
pub mod droplet;
pub mod exec;
pub mod hook;
pub mod mounts;
pub mod process;
pub mod reaper;
pub mod refusal;
pub mod signal;
pub mod state;
pub mod tmpfs;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;

use self::exec::ExecOutcome;
use self::state::RuntimeState;

/// A low-level runtime as the daemon uses it. Every call ends within its timeout.
///
/// While `create`, `start`, `stop` and `delete` run, the runtime calls the daemon back through hooks, so do not hold
/// anything that a hook needs.
pub trait Runtime: Send + Sync + 'static {
    /// Sets up the container of that bundle; its process waits.
    fn create<'a>(&'a self, id: &'a str, tty: bool) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Releases the process; fails if the program cannot be executed.
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Stops the process: sends the signal, and KILL after the grace period. The exit is recorded when this returns.
    fn stop<'a>(&'a self, id: &'a str, request: &'a StopRequest) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Deletes a container that does not run. Kills a process that waits for `start`.
    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Starts an additional process in a running container; returns once the program is executed.
    fn exec<'a>(&'a self, id: &'a str, tty: bool, argv: &'a [String]) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Runs an additional process in a running container until it exits, `limit` expires or the container ends.
    /// Dropping the future kills the process and its children. If the program cannot be executed, that is an outcome
    /// (126, 127), not an error.
    fn exec_wait<'a>(
        &'a self,
        id: &'a str,
        argv: &'a [String],
        limit: Option<Duration>,
    ) -> BoxFuture<'a, Result<ExecOutcome, RuntimeError>>;
    /// The runtime's state of the container; `None` if it does not know the container.
    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<RuntimeState>, RuntimeError>>;
}

/// How to stop a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRequest {
    /// Name of the signal, including `SIG`.
    pub signal: String,
    /// Time from that signal to KILL; rounded to whole seconds.
    pub grace: Duration,
}

impl Default for StopRequest {
    /// TERM, KILL after 3 s (`docs/spec/runtime.md` 4.4).
    fn default() -> Self {
        Self {
            signal: "SIGTERM".to_owned(),
            grace: Duration::from_secs(3),
        }
    }
}

/// Why a runtime call failed. `word` is the verb in error messages.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The program could not be started.
    #[error("cannot start the runtime {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The program reported a failure.
    #[error("droplet {word} failed: {detail}")]
    Failed {
        /// The verb.
        word: &'static str,
        /// Its output and exit status.
        detail: String,
    },
    /// The program refused an invalid request.
    #[error("{message}")]
    Refused {
        /// Its message.
        message: String,
    },
    /// The program did not end in time and was killed.
    #[error("droplet {word} failed: no answer within {seconds} s; it was killed")]
    TimedOut {
        /// The verb.
        word: &'static str,
        /// The time limit.
        seconds: u64,
    },
}
