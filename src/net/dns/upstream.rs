//! Queries the upstream servers.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{Request, is_truncated, set_id, set_truncated};

/// Timeout of one server (O-23).
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Timeout of a query over all attempts.
const TOTAL: Duration = Duration::from_secs(4);
/// Number of servers tried, or number of attempts if there is only one.
const ATTEMPTS: usize = 2;
/// Maximum size of an answer over UDP from a server; a longer one is requested again over TCP.
const MAX_UDP: usize = 4096;

/// The servers, and the index of the one that answered last.
#[derive(Debug)]
pub(super) struct Upstreams {
    servers: Vec<SocketAddr>,
    preferred: AtomicUsize,
}

impl Upstreams {
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            preferred: AtomicUsize::new(0),
        }
    }

    /// The answer of the preferred server, otherwise of the next one, which becomes the preferred one. Over UDP first; a
    /// truncated answer is requested again over TCP, and returned as it is if that fails.
    pub async fn ask(&self, request: &Request, query: &[u8]) -> io::Result<Vec<u8>> {
        timeout(TOTAL, self.ask_in_turn(request, query))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn ask_in_turn(&self, request: &Request, query: &[u8]) -> io::Result<Vec<u8>> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut result = Err(io::ErrorKind::NotConnected.into());
        for attempt in 0..ATTEMPTS {
            let index = (first + attempt) % self.servers.len();
            let server = self.servers[index];
            result = by_udp(server, request, query).await;
            match &result {
                Ok(answer) if is_truncated(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return by_tcp(server, request, query).await.or(result);
                }
                Ok(_) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return result;
                }
                Err(error) => tracing::debug!(%server, %error, "no answer from a DNS server"),
            }
        }
        result
    }
}

/// A new socket and a new random id for each query: to forge an answer, an attacker has to guess both.
async fn by_udp(server: SocketAddr, request: &Request, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let (id, query) = with_fresh_id(query);
    let exchange = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(&query).await?;
        let mut buffer = vec![0; MAX_UDP];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if request.is_answered_by(id, &buffer[..length]) {
                buffer.truncate(length);
                if length == MAX_UDP {
                    // The answer may be cut off.
                    set_truncated(&mut buffer);
                }
                return Ok(buffer);
            }
        }
    };
    timeout(ATTEMPT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn by_tcp(server: SocketAddr, request: &Request, query: &[u8]) -> io::Result<Vec<u8>> {
    let (id, query) = with_fresh_id(query);
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        write_message(&mut stream, &query).await?;
        let answer = read_message(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if request.is_answered_by(id, &answer) {
            Ok(answer)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    };
    timeout(ATTEMPT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn with_fresh_id(query: &[u8]) -> (u16, Vec<u8>) {
    let id = rand::random();
    let mut query = query.to_vec();
    set_id(&mut query, id);
    (id, query)
}

/// Reads one message with its length prefix (RFC 1035, 4.2.2); `None` at the end of the stream.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message with its length prefix, in one write.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
