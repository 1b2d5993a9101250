//! Failures on the wire: a code with its status, a sentence and sometimes data (`docs/spec/api.md` 0.1 and 3.2).

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Code;
use super::envelope::{Failure, render};

/// A failed request. Domain errors become one of these in the `api` module and nowhere else.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The cause, for programs; the status goes with it.
    pub code: Code,
    /// What was wrong and, where there is one, the way out. Clients print it.
    pub message: String,
    /// Only what the table in `docs/spec/api.md` 3.2 allows for the route: clients decode failures like successes.
    pub data: Option<serde_json::Value>,
}

/// An error that can be the answer to a request.
pub trait Coded: std::error::Error {
    /// The cause, for programs.
    fn code(&self) -> Code;

    /// What the contract puts in front of the sentence.
    fn prefix(&self) -> &'static str {
        ""
    }
}

impl<E: Coded> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self::new(error.code(), format!("{}{error}", error.prefix()))
    }
}

/// The sentence of a failure, as an extension of its response, for those who record requests.
#[derive(Debug, Clone)]
pub struct Reason(pub String);

impl ApiError {
    /// A failure for that cause.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// HTTP status, one of those of `docs/spec/api.md` 0.1.
    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// The same with `data`.
    pub fn with_data(mut self, data: serde_json::Value) -> Self {
        self.data = Some(data);
        self
    }

    /// The same with `prefix` in front of the message, as in `service failed: `.
    pub fn prefixed(mut self, prefix: &str) -> Self {
        self.message.insert_str(0, prefix);
        self
    }
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
