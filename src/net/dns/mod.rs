//! DNS for containers: a forwarder over UDP and TCP (`docs/spec/observability.md` 3).
//!
//! The packet filter redirects packets of containers to port 53 of any address to this forwarder, so the client
//! address is the container's. A query is forwarded to one of the configured servers; the answer is returned
//! unchanged except for the id and the recursion available flag. Only clients inside the runtime subnet are answered
//! (`docs/spec/network.md` N-31).
//!
//! This module never resolves names itself, never answers from local data, and never caches.

mod message;
mod upstream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use message::{Received, Request};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use upstream::{Upstreams, read_message, write_message};

use crate::base::sockets;

/// Maximum number of queries in flight. Further UDP queries are dropped, as on a congested link; clients retry.
const MAX_QUERIES: usize = 1024;
/// Maximum number of TCP clients; further ones wait.
const MAX_CONNECTIONS: usize = 256;
/// Idle timeout of a TCP client.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a failed accept or receive, so that a lack of memory or descriptors does not cause a busy loop.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum size of a query over UDP; a longer one is not a valid query.
const MAX_QUERY: usize = 4096;

/// Why the forwarder cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Cannot listen on the address.
    #[error("cannot listen for DNS on {transport} {address}: {source}")]
    Bind {
        /// `udp` or `tcp`.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// There is no server to forward to.
    #[error("no DNS server to forward to is configured; name at least one in dns_upstreams")]
    NoUpstream,
}

/// A bound forwarder that does not serve yet.
#[derive(Debug)]
pub struct Forwarder {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstreams: Upstreams,
    allowed: Ipv4Net,
    queries: Arc<Semaphore>,
}

impl Forwarder {
    /// Binds `address` over UDP and TCP, for clients inside `allowed`. Nothing is answered before [`Forwarder::run`].
    pub async fn bind(address: SocketAddr, upstreams: Vec<SocketAddr>, allowed: Ipv4Net) -> Result<Self, DnsError> {
        if upstreams.is_empty() {
            return Err(DnsError::NoUpstream);
        }
        let failed = |transport| {
            move |source| DnsError::Bind {
                transport,
                address,
                source,
            }
        };
        let tcp = sockets::when_free(|| TcpListener::bind(address))
            .await
            .map_err(failed("tcp"))?;
        // The same port for both, even if the system chooses it.
        let chosen = tcp.local_addr().map_err(failed("tcp"))?;
        let udp = sockets::when_free(|| UdpSocket::bind(chosen))
            .await
            .map_err(failed("udp"))?;
        Ok(Self {
            udp: Arc::new(udp),
            tcp,
            shared: Arc::new(Shared {
                upstreams: Upstreams::new(upstreams),
                allowed,
                queries: Arc::new(Semaphore::new(MAX_QUERIES)),
            }),
        })
    }

    /// The bound address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until cancelled. Queries in flight are then dropped.
    pub async fn run(self, cancel: CancellationToken) {
        let tasks = TaskTracker::new();
        let serve = async {
            tokio::join!(self.serve_udp(&tasks, &cancel), self.serve_tcp(&tasks, &cancel));
        };
        cancel.run_until_cancelled(serve).await;
        tasks.close();
        tasks.wait().await;
    }

    async fn serve_udp(&self, tasks: &TaskTracker, cancel: &CancellationToken) {
        let mut buffer = vec![0; MAX_QUERY];
        loop {
            let (length, client) = match self.udp.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%error, "cannot receive DNS queries");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if !self.shared.answers(client) {
                continue;
            }
            let Ok(permit) = self.shared.queries.clone().try_acquire_owned() else {
                continue;
            };
            let (socket, shared, cancel) = (self.udp.clone(), self.shared.clone(), cancel.clone());
            let query = buffer[..length].to_vec();
            tasks.spawn(async move {
                let _permit = permit;
                let work = shared.answer(&query, Request::answer_by_udp);
                if let Some(Some(answer)) = cancel.run_until_cancelled(work).await
                    && let Err(error) = socket.send_to(&answer, client).await
                {
                    tracing::debug!(%client, %error, "cannot send a DNS answer");
                }
            });
        }
    }

    async fn serve_tcp(&self, tasks: &TaskTracker, cancel: &CancellationToken) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed, so this never fails.
            let Ok(permit) = connections.clone().acquire_owned().await else {
                return;
            };
            let (stream, client) = match self.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a DNS connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if !self.shared.answers(client) {
                continue;
            }
            let (shared, cancel) = (self.shared.clone(), cancel.clone());
            tasks.spawn(async move {
                let _permit = permit;
                if let Some(Err(error)) = cancel.run_until_cancelled(serve_stream(stream, &shared)).await {
                    tracing::debug!(%client, %error, "a DNS connection was closed");
                }
            });
        }
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    while let Some(query) = tokio::time::timeout(IDLE, read_message(&mut stream)).await?? {
        let Ok(_permit) = shared.queries.acquire().await else {
            return Ok(());
        };
        let Some(answer) = shared.answer(&query, Request::answer_by_tcp).await else {
            return Ok(());
        };
        tokio::time::timeout(IDLE, write_message(&mut stream, &answer)).await??;
    }
    Ok(())
}

impl Shared {
    fn answers(&self, client: SocketAddr) -> bool {
        match client.ip() {
            IpAddr::V4(ip) => self.allowed.contains(&ip),
            IpAddr::V6(_) => false,
        }
    }

    /// The answer to a message from a client; `None` if it gets none.
    async fn answer(&self, received: &[u8], fit: impl FnOnce(&Request, Vec<u8>) -> Vec<u8>) -> Option<Vec<u8>> {
        match Received::parse(received) {
            Received::Noise => None,
            Received::Refused(answer) => Some(answer),
            Received::Query(request) => Some(match self.upstreams.ask(&request, received).await {
                Ok(answer) => fit(&request, answer),
                Err(error) => {
                    let question = request.question().map(tracing::field::display);
                    tracing::warn!(question, %error, "no DNS server answered");
                    request.failure()
                }
            }),
        }
    }
}

#[cfg(test)]
mod tests;
