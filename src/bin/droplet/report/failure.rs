//! The error of a verb: the message, and the stage in which it happened (audit `error.stage`, `docs/spec/runtime.md`
//! 17.4).

use std::fmt::Display;

use condenser::runtime::refusal::{FAILED, REFUSED};

/// An error with its stage. Displays the message only.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One of the stages of 17.4.
    pub stage: &'static str,
    /// The message for the user.
    pub message: String,
    /// Exit status of the verb. It tells whether the request or the runtime is at fault
    /// ([`condenser::runtime::refusal`]).
    pub status: i32,
}

const USAGE: &str = "usage";

impl Failure {
    /// Makes an error with the exit status [`FAILED`].
    pub fn new(stage: &'static str, message: impl Into<String>) -> Self {
        Self {
            stage,
            message: message.into(),
            status: FAILED,
        }
    }

    /// Changes the exit status. [`REFUSED`] means that the request cannot be carried out; nothing broke.
    pub fn with_status(self, status: i32) -> Self {
        Self { status, ..self }
    }

    /// Makes an error about a wrong command line. Nothing was changed.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// Returns whether the command line is wrong.
    pub fn is_usage(&self) -> bool {
        self.stage == USAGE
    }
}

/// Adds a stage to the error of a result.
pub trait Stage<T> {
    /// Converts the error to a [`Failure`] in this stage.
    fn stage(self, stage: &'static str) -> Result<T, Failure>;
}

impl<T, E: Display> Stage<T> for Result<T, E> {
    fn stage(self, stage: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(stage, error.to_string()))
    }
}

/// An error that may be the fault of the caller.
pub trait HasExitStatus {
    /// Returns the exit status of a verb that fails with this error.
    fn exit_status(&self) -> i32;
}

/// Adds a stage to the error of a result, and takes the exit status from the error.
pub trait StageWithStatus<T> {
    /// Converts the error to a [`Failure`] in this stage.
    fn stage_with_status(self, stage: &'static str) -> Result<T, Failure>;
}

impl<T, E: Display + HasExitStatus> StageWithStatus<T> for Result<T, E> {
    fn stage_with_status(self, stage: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(stage, error.to_string()).with_status(error.exit_status()))
    }
}

/// Returns the text of a system error without its error number.
pub fn without_errno(error: &dyn Display) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Returns [`REFUSED`] or [`FAILED`].
pub fn refused_or_failed(refused: bool) -> i32 {
    if refused { REFUSED } else { FAILED }
}
