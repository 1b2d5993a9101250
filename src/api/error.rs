//! Failures on the wire: a status, a sentence and sometimes data (`docs/spec/api.md` 0.1 and 3.2).

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::envelope::{Failure, render};

/// A failed request. Domain errors become one of these in the `api` module and nowhere else.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status, one of those of `docs/spec/api.md` 0.1.
    pub status: StatusCode,
    /// What was wrong and, where there is one, the way out. Clients print it.
    pub message: String,
    /// Only what the table in `docs/spec/api.md` 3.2 allows for the route: clients decode failures like successes.
    pub data: Option<serde_json::Value>,
}

/// The sentence of a failure, as an extension of its response, for those who record requests.
#[derive(Debug, Clone)]
pub struct Reason(pub String);

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident = $status:ident),* $(,)?) => { $(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(StatusCode::$status, message)
        }
    )* };
}

impl ApiError {
    /// A failure with any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            data: None,
        }
    }

    constructors! {
        /// 400: malformed or invalid input.
        bad_request = BAD_REQUEST,
        /// 401: no client certificate.
        unauthorized = UNAUTHORIZED,
        /// 403: wrong identity.
        forbidden = FORBIDDEN,
        /// 404: the named object does not exist.
        not_found = NOT_FOUND,
        /// 405: the path exists, but not with this method.
        method_not_allowed = METHOD_NOT_ALLOWED,
        /// 409: taken, in the wrong state, in use, or managed by something else.
        conflict = CONFLICT,
        /// 413: body larger than the route takes.
        too_large = PAYLOAD_TOO_LARGE,
        /// 500: the system, the runtime or the store failed.
        internal = INTERNAL_SERVER_ERROR,
        /// 502: the registry failed or refused.
        bad_gateway = BAD_GATEWAY,
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
            data: self.data,
        };
        let mut response = render(self.status, &body);
        response.extensions_mut().insert(reason);
        response
    }
}
