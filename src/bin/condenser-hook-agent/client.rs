//! Sends one POST request over mutual TLS 1.3, within a time limit and without a proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use condenser::base::pki::trust::client_config as tls_config;

/// Time limit for the connection, including the handshake.
pub const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Time limit for the whole request.
pub const TOTAL_TIME: Duration = Duration::from_secs(20);
/// Maximum size of a response, in bytes.
const RESPONSE_LIMIT: usize = 1 << 20;

/// The response.
#[derive(Debug)]
pub struct Response {
    /// HTTP status.
    pub status: StatusCode,
    /// Response body.
    pub body: Bytes,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The URL is not an `https` URL with a host.
    #[error("{0} is not an https URL")]
    Url(String),
    /// The connection failed, or took longer than [`CONNECT_TIME`].
    #[error("cannot connect to {0}: {1}")]
    Connect(String, String),
    /// The exchange failed after the connection was made.
    #[error("{0}: {1}")]
    Exchange(String, String),
    /// The request took longer than [`TOTAL_TIME`].
    #[error("{0}: no answer within {seconds} s", seconds = TOTAL_TIME.as_secs())]
    TimedOut(String),
    /// The event loop could not be started.
    #[error("cannot start: {0}")]
    EventLoop(#[from] std::io::Error),
}

impl Response {
    /// Returns whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// Returns the status and, if the response has one, its message.
    pub fn error_message(&self) -> String {
        let body: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        match body.as_ref().and_then(|body| body["message"].as_str()) {
            Some(message) => format!("{}: {message}", self.status),
            None => self.status.to_string(),
        }
    }
}

/// Posts `body` and waits for the response.
pub fn post(url: &str, tls: ClientConfig, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Response, PostError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let response = runtime.block_on(async { timeout(TOTAL_TIME, exchange(url, tls, headers, body)).await });
    // Do not wait for a name lookup that is still running.
    runtime.shutdown_background();
    response.unwrap_or_else(|_| Err(PostError::TimedOut(url.to_owned())))
}

async fn exchange(
    url: &str,
    tls: ClientConfig,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<Response, PostError> {
    let invalid_url = || PostError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| invalid_url())?;
    let authority = uri
        .authority()
        .filter(|_| uri.scheme_str() == Some("https"))
        .ok_or_else(invalid_url)?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|_| invalid_url())?;

    let connect_error = |reason: String| PostError::Connect(authority.to_string(), reason);
    let stream = timeout(
        CONNECT_TIME,
        connect(authority.host(), authority.port_u16().unwrap_or(443), tls),
    )
    .await
    .map_err(|_| connect_error(format!("it took longer than {} s", CONNECT_TIME.as_secs())))?
    .map_err(|e| connect_error(e.to_string()))?;

    let exchange_error = |reason: String| PostError::Exchange(url.to_owned(), reason);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| exchange_error(with_causes(&e)))?;
    let connection = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| exchange_error(with_causes(&e)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), RESPONSE_LIMIT).collect().await;
    connection.abort();
    Ok(Response {
        status,
        body: body.map_err(|e| exchange_error(e.to_string()))?.to_bytes(),
    })
}

async fn connect(host: &str, port: u16, tls: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let invalid = |e: rustls::pki_types::InvalidDnsNameError| std::io::Error::new(std::io::ErrorKind::InvalidInput, e);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(invalid)?;
    let addresses = addresses(host, port).await?;
    let stream = TcpStream::connect(&addresses[..]).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::new(tls)).connect(name, stream).await
}

/// Resolves a host. Does not look up `localhost` (RFC 6761 6.3): a hook must not depend on a resolver.
async fn addresses(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(loopback.map(|address| SocketAddr::new(address, port)).to_vec());
    }
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

/// Returns the text of an error and of its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
