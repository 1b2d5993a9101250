//! `/v1/containers/{containerId}/attach` and `…/exec/attach` (`docs/spec/api.md` 6): a WebSocket that is connected to
//! the socket of a terminal.
//!
//! ```text
//! refused: an envelope  │ 101 ── dial ──> pipe ──> 1000 "stream closed"          one side has ended
//!                       │          │        └────> 1001 "daemon is shutting down"
//!                       │          └──> 1013 "target not ready"
//! ```
//!
//! The data is not interpreted. The runtime disconnects a client that does not read; this module buffers at most one
//! chunk of output. A close frame of the client is answered with its own code, as RFC 6455 requires.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::Management;
use super::containers::about;
use crate::api::{ApiError, AuditEntry, Code, Failure, PathParams};
use crate::workload::container::Terminal;

/// Maximum number of bytes of output in one message.
const PIECE: usize = 32 << 10;
/// Maximum size of a client message in bytes: the longest frame that the runtime accepts, with some margin.
const MAX_MESSAGE: usize = (8 << 20) + (64 << 10);
/// Time limit for the client's answer to a close.
const CLOSING: Duration = Duration::from_secs(2);

/// The reason why a session ends.
type Farewell = (u16, &'static str);
const STREAM_CLOSED: Farewell = (close_code::NORMAL, "stream closed");
const NOT_READY: Farewell = (close_code::AGAIN, "target not ready");
const SHUTTING_DOWN: Farewell = (close_code::AWAY, "daemon is shutting down");

/// Attach to the terminal of a container
///
/// Client to server: binary messages that form one stream of frames: type (0 input, 1 window size), length (4 bytes,
/// big-endian), payload (a size is rows and columns, 2 bytes each, big-endian). Server to client: binary messages with
/// the raw output.
#[utoipa::path(get, path = "/v1/containers/{containerId}/attach", tag = "terminals",
    params(("containerId" = String, Path)),
    responses((status = 101, description = "WebSocket, ends with close code 1000, 1001 or 1013"),
        (status = 400, body = Failure, description = "Not a WebSocket handshake over HTTP/1.1"),
        (status = 403, body = Failure, description = "Another role, or an origin that is not allowed"), (status = 404, body = Failure),
        (status = 409, body = Failure, description = "No terminal, not created or running, or 16 clients already")))]
pub async fn attach(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    about(&m, &entry, &id);
    let terminal = m.containers.terminal(&id).await?;
    open(&m, entry, terminal, &headers, upgrade)
}

/// Attach to the terminal of the latest exec of a container; as the terminal of the container
#[utoipa::path(get, path = "/v1/containers/{containerId}/exec/attach", tag = "terminals",
    params(("containerId" = String, Path)),
    responses((status = 101, description = "WebSocket, ends with close code 1000, 1001 or 1013"),
        (status = 400, body = Failure, description = "Not a WebSocket handshake over HTTP/1.1"),
        (status = 403, body = Failure, description = "Another role, or an origin that is not allowed"), (status = 404, body = Failure),
        (status = 409, body = Failure, description = "Not running, or 16 clients already")))]
pub async fn exec_attach(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    about(&m, &entry, &id);
    let terminal = m.containers.exec_terminal(&id).await?;
    open(&m, entry, terminal, &headers, upgrade)
}

fn open(
    m: &Management,
    entry: AuditEntry,
    terminal: Terminal,
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    check_origin(headers, &m.allowed_origins)?;
    let Ok(upgrade) = upgrade else {
        let mut refusal = ApiError::new(Code::WebSocketRequired, "Bad Request").into_response();
        let version = HeaderValue::from_static("13");
        refusal.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
        return Ok(refusal);
    };
    // The session is a separate task, and the daemon waits for it.
    let (stop, token) = (m.sessions.stop.clone(), m.sessions.tasks.token());
    let upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    Ok(upgrade.on_upgrade(async move |socket| {
        session(socket, terminal, entry, stop).await;
        drop(token);
    }))
}

/// A page of another site must not reach a terminal through an administrator's browser. Browsers send the origin, other
/// clients usually do not (`docs/spec/security.md` S-16).
fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let own = headers
        .get(header::HOST)
        .map(|host| [b"https://", host.as_bytes()].concat());
    if own.is_some_and(|own| own == origin.as_bytes()) || allowed.iter().any(|allowed| origin == allowed.as_str()) {
        return Ok(());
    }
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let message = format!("origin not allowed: {origin} (see allowed_origins in the configuration)");
    Err(ApiError::new(Code::OriginDenied, message))
}

/// Serves one client until it disconnects or the terminal ends. Then the audit record is complete.
async fn session(mut socket: WebSocket, terminal: Terminal, entry: AuditEntry, stop: CancellationToken) {
    let farewell = tokio::select! {
        farewell = pipe(&mut socket, &terminal, &entry) => farewell,
        () = stop.cancelled() => SHUTTING_DOWN,
    };
    // The result does not matter: the client may have disconnected before.
    let _ = tokio::time::timeout(CLOSING, close(socket, farewell)).await;
}

async fn pipe(socket: &mut WebSocket, terminal: &Terminal, entry: &AuditEntry) -> Farewell {
    let Ok(stream) = terminal.connect().await else {
        return NOT_READY;
    };
    let (from_terminal, to_terminal) = stream.into_split();
    let (to_client, from_client) = socket.split();
    tokio::select! {
        () = forward_output(from_terminal, to_client, entry) => {}
        () = forward_input(from_client, to_terminal) => {}
    }
    STREAM_CLOSED
}

/// Returns when the terminal has no more output, or the client accepts no more.
async fn forward_output(
    mut terminal: impl AsyncRead + Unpin,
    mut client: impl Sink<Message> + Unpin,
    entry: &AuditEntry,
) {
    let mut buffer = vec![0; PIECE];
    while let Ok(read @ 1..) = terminal.read(&mut buffer).await {
        let piece = Bytes::copy_from_slice(&buffer[..read]);
        if client.send(Message::Binary(piece)).await.is_err() {
            return;
        }
        entry.add_bytes(read as u64);
    }
}

/// Returns when the client has disconnected. It continues if the terminal accepts no input, because output may follow.
async fn forward_input(
    mut client: impl Stream<Item = Result<Message, axum::Error>> + Unpin,
    mut terminal: impl AsyncWrite + Unpin,
) {
    let mut taken = true;
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(piece) if taken => taken = terminal.write_all(&piece).await.is_ok(),
            Message::Close(_) => return,
            // Text is ignored; the library answers pings.
            _ => {}
        }
    }
}

/// Sends the close reason and waits for the answer; otherwise the last output might not arrive.
async fn close(mut socket: WebSocket, (code, reason): Farewell) {
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    // Fails if the client has closed; then the loop sends the answer.
    let _ = socket.send(Message::Close(Some(frame))).await;
    while let Some(Ok(_)) = socket.recv().await {}
}

#[cfg(test)]
mod tests;
