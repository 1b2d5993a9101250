//! One try of a check. An error is why it failed, for the log.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::model::{Container, HealthCheck, Probe};
use crate::workload::container::exec::MAX_TIMEOUT;
use crate::workload::container::{ContainerService, ExecRequest};

impl ContainerService {
    /// Asks once, for at most the check's time-out.
    pub(super) async fn probe(&self, row: &Container, check: &HealthCheck) -> Result<(), String> {
        let timeout = Duration::from_secs(check.timeout.into()).clamp(Duration::from_secs(1), MAX_TIMEOUT);
        let address = |port| {
            let address = self.address(row).ok_or("the container has no address")?;
            Ok::<_, String>(SocketAddr::from((address, port)))
        };
        match &check.probe {
            // The runtime watches the time, and kills what takes longer.
            Probe::Exec(command) => self.succeeds(&row.id, command, timeout).await,
            Probe::Tcp(port) => within(timeout, connect(address(*port)?)).await.map(drop),
            Probe::Http { path, port } => within(timeout, get(address(*port)?, path)).await,
        }
    }

    async fn succeeds(&self, id: &str, command: &[String], timeout: Duration) -> Result<(), String> {
        let request = ExecRequest {
            command: command.to_vec(),
            timeout: Some(timeout),
        };
        let outcome = self.exec_wait(id, request).await.map_err(|e| e.to_string())?;
        match outcome.exit_code {
            _ if outcome.timed_out => Err(format!("{command:?} took longer than {timeout:?}")),
            0 => Ok(()),
            code => Err(format!("{command:?} ended with {code}")),
        }
    }
}

async fn within<T>(limit: Duration, try_once: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let result = tokio::time::timeout(limit, try_once).await;
    result.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|e| format!("{address}: {e}"))
}

/// Redirections are not followed: they are a success.
async fn get(address: SocketAddr, path: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("GET {path} at {address}: {error}");
    let stream = TokioIo::new(connect(address).await?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|e| failed(&e))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "condenser-probe")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let status = sender.send_request(request).await.map_err(|e| failed(&e))?.status();
    match status.as_u16() {
        200..400 => Ok(()),
        _ => Err(failed(&status)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers one request with that text, and the request it got.
    async fn server(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (address, served)
    }

    #[rstest]
    #[case("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true)]
    #[case("HTTP/1.0 302 Found\r\nLocation: /elsewhere\r\n\r\n", true)]
    #[case("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false)]
    #[case("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", false)]
    #[case("SSH-2.0-nonsense\r\n", false)]
    #[case("", false)]
    #[tokio::test]
    async fn the_status_decides(#[case] answer: &'static str, #[case] healthy: bool) {
        let (address, served) = server(answer).await;
        assert_eq!(get(address, "/health?deep=1").await.is_ok(), healthy);
        let request = served.await.unwrap();
        assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: {address}\r\n")), "{request}");
    }

    #[tokio::test]
    async fn nobody_listens_and_nobody_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        connect(address).await.unwrap();
        let silent = within(Duration::from_millis(20), get(address, "/")).await.unwrap_err();
        assert_eq!(silent, "no answer within 20ms");
        drop(listener);
        assert!(connect(address).await.unwrap_err().starts_with(&format!("{address}: ")));
    }
}
