//! Error answers: a code with its status, a message and optional data (`docs/spec/api.md` 0.1 and 3.2).

use std::any::Any;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Code;
use super::envelope::{Failure, render};

/// A failed request. Domain errors are converted to this type only in the `api` module.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The error code, which determines the status.
    pub code: Code,
    /// The problem and, if there is one, the remedy. Clients print it.
    pub message: String,
    /// Only the data that the table in `docs/spec/api.md` 3.2 allows for the route: clients decode it like the data of
    /// a success.
    pub data: Option<serde_json::Value>,
}

/// An error that can be sent to a client.
pub trait Coded: std::error::Error {
    /// The error code.
    fn code(&self) -> Code;

    /// The prefix that the contract requires before the message.
    fn prefix(&self) -> &'static str {
        ""
    }
}

impl<E: Coded> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self::new(error.code(), format!("{}{error}", error.prefix()))
    }
}

/// The message of a failure, as a response extension for the audit log.
#[derive(Debug, Clone)]
pub struct Reason(pub String);

impl ApiError {
    /// A failure with this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// The HTTP status, one of those in `docs/spec/api.md` 0.1.
    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// The same with `data`.
    pub fn with_data(mut self, data: serde_json::Value) -> Self {
        self.data = Some(data);
        self
    }

    /// The same with `prefix` before the message, as in `service failed: `.
    pub fn prefixed(mut self, prefix: &str) -> Self {
        self.message.insert_str(0, prefix);
        self
    }
}

/// The failure of a request whose handler panicked, which is a defect and is logged.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> ApiError {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    tracing::error!(panic = text, "a request handler panicked");
    let message = "internal error: the request failed unexpectedly, see the daemon's log";
    ApiError::new(Code::Internal, message)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let reason = Reason(self.message.clone());
        let body = Failure {
            status: "fail",
            message: self.message,
            code: self.code,
            data: self.data,
        };
        let mut response = render(self.code.status(), &body);
        response.extensions_mut().insert(reason);
        response
    }
}
