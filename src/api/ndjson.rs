//! Answers of long operations: plain, or one JSON object a line while the operation runs (`docs/spec/api.md` 7.7).
//!
//! ```text
//! handler ── operation(reporter, client) ──> its own task ── ends ──> audit record
//!                │ events                          ↑ gone
//!                └─> lines ──> body of the answer ─┘ the client has disconnected, or reads nothing
//! ```
//! The status is that of the first event: an operation that fails before it has reported anything is answered like any
//! other failed request.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, stream};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::lines::Renderer;
use super::client::Presence;
use super::error::panicked;
use super::sessions::Sessions;
use super::{ApiError, AuditEntry, Client, Code, Success, SuccessBody};
use crate::ops::progress::{ProgressEvent, Reporter};

mod lines;

pub use self::lines::ProgressLine;

/// Media type of a progress answer.
pub const MEDIA_TYPE: &str = "application/x-ndjson";
/// After this time without a line an empty one is sent, so that no proxy closes the connection.
const SILENCE: Duration = Duration::from_secs(15);
/// A client that reads nothing for this long counts as gone.
const PATIENCE: Duration = Duration::from_secs(300);
/// How many lines wait for the client.
const WAITING: usize = 16;
const EMPTY_LINE: Bytes = Bytes::from_static(b"\n");

/// How the client of a request wants to be answered.
pub struct ProgressAnswer {
    wants_lines: bool,
    client: Client,
    entry: AuditEntry,
}

impl<S: Send + Sync> FromRequestParts<S> for ProgressAnswer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self {
            wants_lines: prefers_lines(&parts.headers),
            client: Client::from_request_parts(parts, state).await?,
            entry: AuditEntry::from_request_parts(parts, state).await?,
        })
    }
}

impl ProgressAnswer {
    /// Runs an operation and answers with its result. [`Client::gone`] returns when the client has disconnected; only an
    /// operation that is useful to nobody else may end then.
    pub async fn run<T, F>(self, sessions: &Sessions, operation: impl FnOnce(Reporter, Client) -> F) -> Response
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Result<Success<SuccessBody<T>>, ApiError>> + Send + 'static,
    {
        if !self.wants_lines {
            return Box::pin(operation(Reporter::silent(), self.client))
                .await
                .into_response();
        }
        let (reporter, mut events) = Reporter::channel();
        let client = Client::default();
        let presence = client.presence();
        let running = Box::pin(operation(reporter, client));
        let (tell, mut outcome) = oneshot::channel();
        sessions
            .tasks
            .spawn(to_its_end(running, sessions.stop.clone(), self.entry, tell));
        let first = tokio::select! {
            biased;
            Some(event) = events.recv() => First::Event(event),
            outcome = &mut outcome => match ended(outcome) {
                Ok(result) => First::Ended(result),
                Err(error) => return error.into_response(),
            },
            () = sleep(SILENCE) => First::Nothing,
            () = self.client.gone() => {
                drop((presence, events));
                return ended(outcome.await).into_response();
            }
        };
        let (lines, body) = body();
        let stream = Stream {
            renderer: Renderer::default(),
            lines,
            events,
            presence,
        };
        sessions.tasks.spawn(stream.run(first, outcome));
        ([(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
    }
}

/// What happens first.
enum First<T> {
    Event(ProgressEvent),
    Ended(Success<SuccessBody<T>>),
    Nothing,
}

type Outcome<T> = Result<Success<SuccessBody<T>>, ApiError>;

/// Runs the operation, and writes its outcome to the audit record, whoever still reads.
async fn to_its_end<T, F: Future<Output = Outcome<T>>>(
    operation: F,
    stop: CancellationToken,
    entry: AuditEntry,
    tell: oneshot::Sender<Outcome<T>>,
) {
    let operation = AssertUnwindSafe(operation).catch_unwind();
    let outcome = tokio::select! {
        biased;
        outcome = operation => outcome.unwrap_or_else(|panic| Err(panicked(&*panic))),
        () = stop.cancelled() => Err(ApiError::new(Code::Cancelled, "the daemon is shutting down; repeat the request")),
    };
    match &outcome {
        Ok(_) => entry.ended(StatusCode::OK, ""),
        Err(error) => entry.ended(error.status(), &error.message),
    }
    // An error means that the client has gone.
    tell.send(outcome).unwrap_or_default();
}

fn ended<T>(outcome: Result<Outcome<T>, oneshot::error::RecvError>) -> Outcome<T> {
    let lost = |_| ApiError::new(Code::Internal, "internal error: the operation ended without a result");
    outcome.map_err(lost).flatten()
}

/// A body, and where its pieces come from.
fn body() -> (mpsc::Sender<Bytes>, Body) {
    let (lines, mut pieces) = mpsc::channel::<Bytes>(WAITING);
    let pieces = stream::poll_fn(move |context| pieces.poll_recv(context));
    let body = Body::from_stream(futures_util::StreamExt::map(pieces, Ok::<_, std::convert::Infallible>));
    (lines, body)
}

/// The answer while it is written. Dropping it tells the operation that its client is gone.
struct Stream {
    renderer: Renderer,
    lines: mpsc::Sender<Bytes>,
    events: mpsc::Receiver<ProgressEvent>,
    presence: Presence,
}

/// The client does not read any more.
struct Gone;

impl Stream {
    async fn run<T: Serialize>(mut self, first: First<T>, outcome: oneshot::Receiver<Outcome<T>>) {
        if let Ok(outcome) = self.until_the_end(first, outcome).await
            && self.finish(outcome).await.is_ok()
        {
            self.presence.answered();
        }
    }

    async fn until_the_end<T>(
        &mut self,
        first: First<T>,
        mut outcome: oneshot::Receiver<Outcome<T>>,
    ) -> Result<Outcome<T>, Gone> {
        match first {
            First::Event(event) => self.write(event).await?,
            First::Ended(result) => return Ok(Ok(result)),
            First::Nothing => self.send_bytes(EMPTY_LINE).await?,
        }
        let mut silent_since = Instant::now();
        loop {
            let due = self.renderer.next_due();
            tokio::select! {
                biased;
                () = self.lines.closed() => return Err(Gone),
                Some(event) = self.events.recv() => self.write(event).await?,
                outcome = &mut outcome => return Ok(ended(outcome)),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let lines = self.renderer.due(Instant::now());
                    self.send(&lines).await?;
                }
                () = sleep_until(silent_since + SILENCE) => self.send_bytes(EMPTY_LINE).await?,
            }
            silent_since = Instant::now();
        }
    }

    /// The lines that were held back, and the last one.
    async fn finish<T: Serialize>(&mut self, outcome: Outcome<T>) -> Result<(), Gone> {
        while let Ok(event) = self.events.try_recv() {
            self.write(event).await?;
        }
        let mut rest = self.renderer.rest(Instant::now());
        let parts = outcome.and_then(|result| {
            result.into_parts().map_err(|error| {
                tracing::error!(%error, "an answer cannot be written as JSON");
                ApiError::new(Code::Internal, "internal error: the answer cannot be written as JSON")
            })
        });
        rest.push(match parts {
            Ok((message, data)) => ProgressLine::result(message, data),
            Err(error) => ProgressLine::error(error),
        });
        self.send(&rest).await
    }

    async fn write(&mut self, event: ProgressEvent) -> Result<(), Gone> {
        let lines = self.renderer.lines(event, Instant::now());
        self.send(&lines).await
    }

    async fn send(&self, lines: &[ProgressLine]) -> Result<(), Gone> {
        for line in lines {
            self.send_bytes(line.bytes()).await?;
        }
        Ok(())
    }

    async fn send_bytes(&self, bytes: Bytes) -> Result<(), Gone> {
        match timeout(PATIENCE, self.lines.send(bytes)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }
}

/// Whether `Accept` names the media type of a progress answer with a quality that JSON does not exceed. Of two equal ones
/// the first one counts; wildcards mean the plain answer.
fn prefers_lines(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter();
    let ranges = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    let (mut lines, mut json) = (None, None);
    for range in ranges {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        let quality: f32 = quality.map_or(1.0, |text| text.trim().parse().unwrap_or(0.0));
        if name.eq_ignore_ascii_case(MEDIA_TYPE) {
            lines.get_or_insert((quality, json.is_none()));
        } else if name.eq_ignore_ascii_case("application/json") {
            json.get_or_insert(quality);
        }
    }
    lines.is_some_and(|(quality, is_first)| {
        let other = json.unwrap_or(0.0);
        quality > other || quality == other && quality > 0.0 && is_first
    })
}

#[cfg(test)]
mod tests;
