//! The low-level runtime: what the daemon and `bin/droplet` share, and the driver that starts it.
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

/// A low-level runtime as the daemon sees it. Every call ends within its time-out.
///
/// While `create`, `start`, `stop` and `delete` run, the runtime calls the daemon back through hooks, so nothing that a
/// hook needs may be held meanwhile.
pub trait Runtime: Send + Sync + 'static {
    /// Sets the container of that bundle up; its process waits.
    fn create<'a>(&'a self, id: &'a str, tty: bool) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Releases the process; fails when it could not be executed.
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Ends the process: the signal, KILL after the grace period. Its exit is recorded when this returns.
    fn stop<'a>(&'a self, id: &'a str, request: &'a StopRequest) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Forgets a container that does not run. A waiting process is killed.
    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Starts one more process in a running container; returns when it was executed.
    fn exec<'a>(&'a self, id: &'a str, tty: bool, argv: &'a [String]) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Runs one more process in a running container to its end, which is the caller's, `limit`'s or the container's at the
    /// latest: dropping the future kills the process and what it started. A program that cannot be executed is an outcome
    /// (126, 127), not an error.
    fn exec_wait<'a>(
        &'a self,
        id: &'a str,
        argv: &'a [String],
        limit: Option<Duration>,
    ) -> BoxFuture<'a, Result<ExecOutcome, RuntimeError>>;
    /// What the runtime knows; `None` when it does not know the container.
    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<RuntimeState>, RuntimeError>>;
}

/// How a container is asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRequest {
    /// Name of the signal, with `SIG`.
    pub signal: String,
    /// From that signal to KILL; counted in whole seconds.
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

/// Why a runtime call failed. `word` is the verb as clients know it.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The program could not be started.
    #[error("cannot start the runtime {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
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
    /// The program refused: what was asked for cannot be, and nothing broke.
    #[error("{message}")]
    Refused {
        /// In its words.
        message: String,
    },
    /// The program did not end in time and was killed.
    #[error("droplet {word} failed: no answer within {seconds} s; it was killed")]
    TimedOut {
        /// The verb.
        word: &'static str,
        /// The limit.
        seconds: u64,
    },
}
