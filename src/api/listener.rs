//! Sockets: accepts connections, does the TLS handshake, serves HTTP, and shuts down gracefully.
//!
//! ```text
//! accept ── first byte ── TLS handshake ── HTTP/1.1 or HTTP/2, as ALPN says ── request, request, … ── closed
//!              │ plain HTTP    │ refused                                          │ shutdown: the last one
//!              └─> a hint, 400 └─> alert, audited                                 └─> may finish
//! ```
//!
//! A slow client blocks only its own connection: everything before the handlers has a time-out, and the number of
//! unfinished handshakes per address is limited. A request that has started runs to completion, even if its client
//! disconnects, so that no operation stops halfway. A handler whose work is only for its client can take the [`Client`]
//! extractor.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::handshakes::{Handshakes, Refusals};
use super::identity::PeerIdentity;
use super::leftover::Drained;
use super::{ApiError, Client, Code};
use crate::base::pki::Pki;
use crate::base::sockets;
use crate::observe::audit::AuditLog;

/// Time limit for the TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Time limit for the head of a request; an idle HTTP/1.1 connection is closed after it.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// Interval of pings to an idle HTTP/2 client, and time limit for its answer.
const PING_TIME: Duration = Duration::from_secs(30);
/// Delay before the next `accept` when no file descriptor is available.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long, and for how many reads, the input of a refused client is drained.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 64;
/// The answer to a client that uses plain HTTP.
const PLAIN_HTTP_HINT: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// A socket that listens but does not yet accept.
#[derive(Debug)]
pub struct BoundListener {
    socket: TcpListener,
    address: SocketAddr,
}

impl BoundListener {
    /// The address, with the port that the system assigned if 0 was requested.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Listens on an address. Retries, because a daemon that was just killed may still hold it. The error has the address.
pub async fn bind(address: SocketAddr) -> io::Result<BoundListener> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"));
    let socket = sockets::when_free(|| TcpListener::bind(address)).await.map_err(named)?;
    let address = socket.local_addr().map_err(named)?;
    Ok(BoundListener { socket, address })
}

/// Serves `app` on all `listeners` until `shutdown`; then waits for requests in progress, for at most `grace`.
pub async fn serve(
    listeners: Vec<BoundListener>,
    pki: Arc<Pki>,
    app: Router,
    audit: AuditLog,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let server = Arc::new(Server {
        pki,
        app,
        handshakes: Handshakes::default(),
        refusals: Refusals::new(audit),
        shutdown,
        cut_off: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    let accepting = listeners
        .into_iter()
        .map(|listener| Arc::clone(&server).accept(listener.socket));
    futures_util::future::join_all(accepting).await;
    server.tasks.close();
    if timeout(grace, server.tasks.wait()).await.is_err() {
        tracing::warn!(
            requests = server.tasks.len(),
            "shutting down although requests are in progress"
        );
        server.cut_off.cancel();
    }
}

struct Server {
    pki: Arc<Pki>,
    app: Router,
    handshakes: Handshakes,
    refusals: Refusals,
    /// Cancelled: accept no new connections and requests.
    shutdown: CancellationToken,
    /// Cancelled: close all connections.
    cut_off: CancellationToken,
    /// Open connections and requests in progress.
    tasks: TaskTracker,
}

impl Server {
    async fn accept(self: Arc<Self>, socket: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                () = self.shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, address)) => drop(self.tasks.spawn(Arc::clone(&self).connection(stream, address))),
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let Some(place) = self.handshakes.enter(address.ip()) else {
            return self
                .refusals
                .record(address, "too many unfinished handshakes from this address");
        };
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE_TIME, self.handshake(stream)) => shaken,
            () = self.shutdown.cancelled() => return,
        };
        drop(place);
        match shaken {
            Ok(Ok(Some(stream))) => self.http(stream, address).await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => self.refusals.record(address, &error.to_string()),
            Err(_) => self.refusals.record(address, "the TLS handshake took too long"),
        }
    }

    /// `None` if the client closed the connection without sending anything.
    async fn handshake(&self, mut stream: TcpStream) -> io::Result<Option<TlsStream<TcpStream>>> {
        stream.set_nodelay(true)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(None);
        }
        // The first byte of a TLS handshake record is 22; an HTTP request starts with the letters of its method.
        if first[0].is_ascii_uppercase() {
            stream.write_all(PLAIN_HTTP_HINT).await?;
            linger(stream).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a TLS port"));
        }
        let acceptor = TlsAcceptor::from(self.pki.server_config());
        match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => Ok(Some(stream)),
            Err((error, stream)) => {
                linger(stream).await;
                Err(error)
            }
        }
    }

    async fn http(self: Arc<Self>, stream: TlsStream<TcpStream>, address: SocketAddr) {
        let (_, tls) = stream.get_ref();
        let http2 = tls.alpn_protocol() == Some(b"h2");
        let leaf = tls.peer_certificates().and_then(|chain| chain.first());
        let peer = Arc::new(PeerIdentity::new(address, leaf.map(|der| der.as_ref())));

        let server = Arc::clone(&self);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Arc::clone(&peer));
            let client = Client::default();
            let presence = client.presence();
            request.extensions_mut().insert(client);
            let request = Drained::request(request, &server.shutdown);
            let answer = server.tasks.spawn(server.app.clone().oneshot(request.map(Body::new)));
            // Dropped if the connection closes before the answer.
            async move {
                let answer = answer.await;
                presence.answered();
                Ok::<_, Infallible>(answered(answer))
            }
        });

        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder = if http2 {
            builder.http2_only()
        } else {
            builder.http1_only()
        };
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_TIME)
            .keep_alive_timeout(PING_TIME);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);

        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = self.cut_off.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %address, %error, "connection ended");
        }
    }
}

fn answered(answer: Result<Result<Response<Body>, Infallible>, tokio::task::JoinError>) -> Response<Body> {
    match answer {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        // Panics of handlers are caught further in; this catches panics of the outer layers.
        Err(error) => {
            tracing::error!(%error, "a request failed unexpectedly");
            let message = "internal error: the request failed unexpectedly";
            ApiError::new(Code::Internal, message).into_response()
        }
    }
}

/// Closes a connection so that the last data arrives: closing a socket with unread input would discard it, and a client
/// has usually sent its request before it learns that it is refused.
async fn linger(mut stream: TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        let mut ignored = [0; 4096];
        for _ in 0..LINGER_READS {
            if stream.read(&mut ignored).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // The result does not matter.
    let _ = timeout(LINGER_TIME, drain).await;
}

/// Whether an error of `accept` concerns only one connection.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
