//! The errors of the agent.

use condenser::base::cause::Cause;

use crate::client::PostError;
use crate::options::OptionsError;

/// Why the agent fails. The runtime logs this text.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
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
    Post(#[from] PostError),
    #[error("post state failed: {0}")]
    Refused(String),
    #[error("generate csr: {0}")]
    Request(#[from] rcgen::Error),
    #[error("request cert: {0}")]
    Certificate(#[source] Cause),
}

impl AgentError {
    /// Returns 2 for wrong usage and 1 for any other failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Options(_) | Self::Guard => 2,
            _ => 1,
        }
    }
}
