//! Whether anybody still waits for an answer.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The client of one request. Most operations are carried out to their end also without it; a handler that asks is one
/// whose work is for its client only.
#[derive(Debug, Clone, Default)]
pub struct Client(CancellationToken);

impl Client {
    /// Returns when the connection has ended and no answer can arrive any more.
    pub async fn gone(&self) {
        self.0.cancelled().await;
    }

    /// What the connection holds until it has the answer.
    pub(super) fn presence(&self) -> Presence {
        Presence(self.0.clone().drop_guard())
    }
}

/// Dropping it means that the client has gone.
#[derive(Debug)]
pub(super) struct Presence(DropGuard);

impl Presence {
    /// The answer is there: whoever worked for the client has finished.
    pub(super) fn answered(self) {
        self.0.disarm();
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = std::convert::Infallible;

    /// A request that came by no connection has a client that stays.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
