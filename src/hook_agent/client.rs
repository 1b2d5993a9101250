//! One POST over mutual TLS 1.3, within a time limit, without a proxy.

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

pub use crate::base::pki::trust::client_config as tls_config;

/// How long a connection, handshake included, may take.
pub const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long all of it may take.
pub const TOTAL_TIME: Duration = Duration::from_secs(20);
/// Largest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Body.
    pub body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Not an `https` URL with a host.
    #[error("{0} is not an https URL")]
    Url(String),
    /// No connection within [`CONNECT_TIME`].
    #[error("cannot connect to {0}: {1}")]
    Connect(String, String),
    /// The exchange broke off.
    #[error("{0}: {1}")]
    Exchange(String, String),
    /// It is not over after [`TOTAL_TIME`].
    #[error("{0}: no answer within {seconds} s", seconds = TOTAL_TIME.as_secs())]
    Time(String),
    /// This process cannot do input and output.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

impl Answer {
    /// Any 2xx.
    pub fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// Status and, if the daemon gave one, its sentence.
    pub fn refusal(&self) -> String {
        let envelope: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        match envelope.as_ref().and_then(|e| e["message"].as_str()) {
            Some(message) => format!("{}: {message}", self.status),
            None => self.status.to_string(),
        }
    }
}

/// Posts `body` and waits for the answer.
pub fn post(url: &str, tls: ClientConfig, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, PostError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { timeout(TOTAL_TIME, exchange(url, tls, headers, body)).await });
    // A name that is still being looked up must not keep the process alive.
    runtime.shutdown_background();
    answer.unwrap_or_else(|_| Err(PostError::Time(url.to_owned())))
}

async fn exchange(url: &str, tls: ClientConfig, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, PostError> {
    let wrong = || PostError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri
        .authority()
        .filter(|_| uri.scheme_str() == Some("https"))
        .ok_or_else(wrong)?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|_| wrong())?;

    let unreachable = |why: String| PostError::Connect(authority.to_string(), why);
    let stream = timeout(
        CONNECT_TIME,
        connect(authority.host(), authority.port_u16().unwrap_or(443), tls),
    )
    .await
    .map_err(|_| unreachable(format!("it took longer than {} s", CONNECT_TIME.as_secs())))?
    .map_err(|e| unreachable(e.to_string()))?;

    let broken = |why: String| PostError::Exchange(url.to_owned(), why);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(explain(&e)))?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|e| broken(explain(&e)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
    connection.abort();
    Ok(Answer {
        status,
        body: body.map_err(|e| broken(e.to_string()))?.to_bytes(),
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

/// `localhost` is not looked up (RFC 6761 6.3): a hook must not depend on a resolver.
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

/// The text of an error and of what caused it.
fn explain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
