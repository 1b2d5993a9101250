//! The error of a verb: what went wrong, and in which step (audit `error.stage`, `docs/spec/runtime.md` 17.4).

use std::fmt::Display;

use condenser::runtime::refusal::{FAILED, REFUSED};

/// An error together with the step in which it happened. Displays as the message alone.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One of the words of 17.4.
    pub stage: &'static str,
    /// What the user reads.
    pub message: String,
    /// Exit status of the verb: who is to blame ([`condenser::runtime::refusal`]).
    pub status: i32,
}

const USAGE: &str = "usage";

impl Failure {
    /// An error that no lower module reported.
    pub fn new(stage: &'static str, message: impl Into<String>) -> Self {
        Self {
            stage,
            message: message.into(),
            status: FAILED,
        }
    }

    /// The same with another exit status. [`REFUSED`] says that what was asked for cannot be, not that something broke.
    pub fn with_status(self, status: i32) -> Self {
        Self { status, ..self }
    }

    /// A command line that cannot be understood. Nothing was done.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// Whether the command line is to blame.
    pub fn is_usage(&self) -> bool {
        self.stage == USAGE
    }
}

/// Says in which step a result is an error.
pub trait Stage<T> {
    /// The same result, with the step.
    fn stage(self, stage: &'static str) -> Result<T, Failure>;
}

impl<T, E: Display> Stage<T> for Result<T, E> {
    fn stage(self, stage: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(stage, error.to_string()))
    }
}

/// Errors that may be the fault of whoever asked.
pub trait Blame {
    /// The exit status that says so.
    fn status(&self) -> i32;
}

/// Says in which step a result is an error, and who is to blame.
pub trait Judge<T> {
    /// The same result, with the step and the status.
    fn judge(self, stage: &'static str) -> Result<T, Failure>;
}

impl<T, E: Display + Blame> Judge<T> for Result<T, E> {
    fn judge(self, stage: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(stage, error.to_string()).with_status(error.status()))
    }
}

/// What the system said, without the number that it has for that.
pub fn plain(error: &dyn Display) -> String {
    let said = error.to_string();
    said.split(" (os error").next().unwrap_or_default().to_owned()
}

/// [`REFUSED`] or [`FAILED`].
pub fn refused_if(refused: bool) -> i32 {
    if refused { REFUSED } else { FAILED }
}
