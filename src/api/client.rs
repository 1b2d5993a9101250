//! Detects whether the client of a request is still connected.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The client of one request. Most operations run to completion even if the client disconnects. A handler takes this
/// extractor if its work is useful only to its client.
#[derive(Debug, Clone, Default)]
pub struct Client(CancellationToken);

impl Client {
    /// Returns when the connection has closed before the answer.
    pub async fn gone(&self) {
        self.0.cancelled().await;
    }

    /// The guard that the connection holds until it has the answer.
    pub(super) fn presence(&self) -> Presence {
        Presence(self.0.clone().drop_guard())
    }
}

/// Dropping it means that the client has disconnected.
#[derive(Debug)]
pub(super) struct Presence(DropGuard);

impl Presence {
    /// Marks the request as answered, so that dropping the guard no longer means a disconnect.
    pub(super) fn answered(self) {
        self.0.disarm();
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = std::convert::Infallible;

    /// A request without a connection has a client that never disconnects.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
