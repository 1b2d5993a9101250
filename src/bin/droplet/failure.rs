//! The error of a verb: what went wrong, and in which step (audit `error.stage`, `contract/runtime.md` 17.4).

use std::fmt::Display;

/// An error together with the step in which it happened. Displays as the message alone.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One of the words of 17.4.
    pub stage: &'static str,
    /// What the user reads.
    pub message: String,
}

const USAGE: &str = "usage";

impl Failure {
    /// An error that no lower module reported.
    pub fn new(stage: &'static str, message: impl Into<String>) -> Self {
        Self {
            stage,
            message: message.into(),
        }
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
