//! Writes one audit record for every request of a listener, including refused requests (`docs/spec/api.md` 21).
//!
//! A record is complete when the answer has been sent or abandoned and every clone of its [`AuditEntry`] has been
//! dropped. Therefore a WebSocket session that keeps a clone is recorded when it ends.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::action::action_of;
use super::error::Reason;
use super::identity::PeerIdentity;
use super::time::rfc3339;
use crate::observe::audit::{Actor, AuditLog, Outcome, Record, RequestInfo, ResultInfo, Severity, Target};
use crate::runtime::hook::EVENT_HEADER;

/// The audit record of the current request. Handlers add details to it. Clones share it.
#[derive(Clone, Default)]
pub struct AuditEntry(Arc<Pending>);

#[derive(Default)]
struct Pending {
    /// `None` if the request is not recorded.
    begun: Option<Begun>,
    learned: Mutex<Learned>,
    bytes: AtomicU64,
}

struct Begun {
    log: AuditLog,
    at: Instant,
    generated_ts: String,
    correlation_id: String,
    actor: Actor,
    action: &'static str,
    severity: Severity,
    request: RequestInfo,
}

#[derive(Default)]
struct Learned {
    target: Target,
    extra: Map<String, Value>,
    answer: Option<(StatusCode, String)>,
    /// The outcome of an operation whose answer began before it ended. It counts instead of the answer.
    outcome: Option<(StatusCode, String)>,
}

impl AuditEntry {
    /// Sets the target of the request. It must not contain environment variables.
    pub fn target(&self, change: impl FnOnce(&mut Target)) {
        self.learn(|learned| change(&mut learned.target));
    }

    /// Adds a detail that has no field in [`Target`].
    pub fn extra(&self, name: &str, value: impl Into<Value>) {
        self.learn(|learned| drop(learned.extra.insert(name.to_owned(), value.into())));
    }

    /// Sets the outcome of an operation that a streamed answer reports: the status that the plain answer would have, and
    /// the message of a failure.
    pub fn ended(&self, status: StatusCode, reason: &str) {
        self.learn(|learned| learned.outcome = Some((status, reason.to_owned())));
    }

    /// Counts bytes sent outside the response body, for example over a WebSocket.
    pub fn add_bytes(&self, n: u64) {
        self.0.bytes.fetch_add(n, Ordering::Relaxed);
    }

    fn learn(&self, change: impl FnOnce(&mut Learned)) {
        change(&mut self.0.learned.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AuditEntry {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Records a request. It wraps every layer that can refuse the request.
pub async fn record(State(log): State<AuditLog>, mut request: Request, next: Next) -> Response {
    let entry = AuditEntry(Arc::new(Pending {
        begun: Some(Begun::new(log, &request)),
        learned: Mutex::default(),
        bytes: AtomicU64::new(0),
    }));
    request.extensions_mut().insert(entry.clone());
    let mut response = next.run(request).await;
    let reason = response
        .extensions_mut()
        .remove::<Reason>()
        .map_or_else(String::new, |r| r.0);
    entry.learn(|learned| learned.answer = Some((response.status(), reason)));
    response.map(|inner| Body::new(CountedBody { inner, entry }))
}

impl Begun {
    fn new(log: AuditLog, request: &Request) -> Self {
        let headers = request.headers();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let path = request.uri().path();
        let (action, severity) = action_of(request.method(), path, text(EVENT_HEADER));
        // HTTP/1.1 has the host in a header, HTTP/2 in the URI.
        let host = text(header::HOST.as_str()).or_else(|| request.uri().authority().map(|a| a.as_str()));
        Self {
            at: Instant::now(),
            generated_ts: rfc3339(Some(Timestamp::now())),
            correlation_id: client_id(headers).unwrap_or_else(|| log.next_correlation_id()),
            actor: request
                .extensions()
                .get::<Arc<PeerIdentity>>()
                .map_or_else(Actor::default, |p| actor(p)),
            action,
            severity,
            request: RequestInfo {
                method: request.method().to_string(),
                path: path.to_owned(),
                host: host.unwrap_or_default().to_owned(),
            },
            log,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        let learned = std::mem::take(self.learned.get_mut().unwrap_or_else(PoisonError::into_inner));
        // A request without an answer was interrupted, for example by the daemon's shutdown.
        let (status, reason) = learned
            .outcome
            .or(learned.answer)
            .unwrap_or((StatusCode::INTERNAL_SERVER_ERROR, "the request was cut off".into()));
        let outcome = Outcome::of(status.as_u16());
        let raised = || begun.severity.raised();
        let record = Record {
            generated_ts: begun.generated_ts,
            event_id: uuid::Uuid::new_v4().to_string(),
            correlation_id: begun.correlation_id,
            severity: if outcome == Outcome::Allow {
                begun.severity
            } else {
                raised()
            },
            actor: begun.actor,
            action: begun.action.to_owned(),
            target: learned.target,
            request: begun.request,
            result: ResultInfo {
                status: outcome,
                code: status.as_u16(),
                reason,
                bytes: i64::try_from(*self.bytes.get_mut()).unwrap_or(i64::MAX),
                latency_ms: i64::try_from(begun.at.elapsed().as_millis()).unwrap_or(i64::MAX),
            },
            runtime: begun.log.runtime(),
            extra: learned.extra,
        };
        begun.log.record(record);
    }
}

/// The client, in the form of the audit record.
pub(super) fn actor(peer: &PeerIdentity) -> Actor {
    let certificate = peer.certificate.as_ref();
    Actor {
        spiffe_id: certificate.and_then(|c| c.uris.first().cloned()).unwrap_or_default(),
        certificate_fingerprint: certificate.map(|c| c.fingerprint.clone()).unwrap_or_default(),
        peer_ip: peer.address.ip().to_canonical().to_string(),
    }
}

/// The client's request id, if it is safe to log (`docs/spec/observability.md` O-26).
fn client_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let harmless = |c: u8| c.is_ascii_alphanumeric() || b"._/-".contains(&c);
    ((1..=128).contains(&id.len()) && id.bytes().all(harmless)).then(|| id.to_owned())
}

/// A body that counts the bytes sent.
struct CountedBody {
    inner: Body,
    entry: AuditEntry,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.entry.add_bytes(data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
