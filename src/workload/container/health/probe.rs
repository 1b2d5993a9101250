//! A single try of a check.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::model::{Container, HealthCheck, Probe};
use crate::workload::container::exec::MAX_TIMEOUT;
use crate::workload::container::{ContainerService, ExecRequest};

/// How much of a command's output or a server's answer is kept, in bytes.
const MAX_OUTPUT: usize = 4096;
/// How long to wait for the rest of an answer whose status is already a failure.
const BODY_PATIENCE: Duration = Duration::from_millis(250);

/// Why a try failed; displays as text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ProbeError {
    why: String,
    /// The end of the command's output, or the beginning of the server's answer.
    output: Vec<u8>,
}

impl ProbeError {
    /// The error text with the output, if there is any.
    pub(super) fn into_output(self) -> String {
        match String::from_utf8_lossy(&self.output).trim() {
            "" => self.why,
            output => format!("{}: {output}", self.why),
        }
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<String> for ProbeError {
    fn from(why: String) -> Self {
        let output = Vec::new();
        Self { why, output }
    }
}

impl ContainerService {
    /// Probes once, for at most the check's time-out.
    pub(super) async fn probe(&self, row: &Container, check: &HealthCheck) -> Result<(), ProbeError> {
        let timeout = Duration::from_secs(check.timeout.into()).clamp(Duration::from_secs(1), MAX_TIMEOUT);
        let address = |port| {
            let address = self.address(row).ok_or("the container has no address")?;
            Ok::<_, String>(SocketAddr::from((address, port)))
        };
        match &check.probe {
            // The runtime enforces the time-out and kills the process.
            Probe::Exec(command) => self.succeeds(&row.id, command, timeout).await,
            Probe::Tcp(port) => {
                let connected = within(timeout, connect(address(*port)?)).await;
                Ok(connected.map(drop)?)
            }
            Probe::Http { path, port } => within(timeout, get(address(*port)?, path)).await,
        }
    }

    async fn succeeds(&self, id: &str, command: &[String], timeout: Duration) -> Result<(), ProbeError> {
        let request = ExecRequest {
            command: command.to_vec(),
            timeout: Some(timeout),
        };
        let outcome = self.exec_wait(id, request).await.map_err(|e| e.to_string())?;
        let why = match outcome.exit_code {
            _ if outcome.timed_out => format!("{command:?} took longer than {timeout:?}"),
            0 => return Ok(()),
            code => format!("{command:?} ended with {code}"),
        };
        let output = end_of([outcome.stdout, outcome.stderr].concat());
        Err(ProbeError { why, output })
    }
}

fn end_of(mut output: Vec<u8>) -> Vec<u8> {
    output.drain(..output.len().saturating_sub(MAX_OUTPUT));
    output
}

async fn within<T, E: From<String>>(limit: Duration, try_once: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let result = tokio::time::timeout(limit, try_once).await;
    result.unwrap_or_else(|_| Err(format!("no answer within {limit:?}").into()))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|e| format!("{address}: {e}"))
}

/// Does not follow redirections; they count as success.
async fn get(address: SocketAddr, path: &str) -> Result<(), ProbeError> {
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
    let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let status = answer.status();
    if (200..400).contains(&status.as_u16()) {
        return Ok(());
    }
    Err(ProbeError {
        why: failed(&status),
        output: beginning_of(answer.into_body()).await,
    })
}

async fn beginning_of(mut body: Incoming) -> Vec<u8> {
    let mut beginning = Vec::new();
    let read = async {
        while beginning.len() < MAX_OUTPUT
            && let Some(Ok(frame)) = body.frame().await
        {
            beginning.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
        }
    };
    // A partial answer is good enough.
    let _ = tokio::time::timeout(BODY_PATIENCE, read).await;
    beginning.truncate(MAX_OUTPUT);
    beginning
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers one request with that text and returns the request.
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

    #[rstest]
    #[case("Content-Length: 18\r\n\r\ndatabase is away\r\n", ": database is away")]
    #[case("Content-Length: 0\r\n\r\n", "")]
    #[case("Content-Length: 1000\r\n\r\nhalf", ": half")]
    #[tokio::test]
    async fn what_is_answered_is_kept(#[case] rest: &'static str, #[case] kept: &str) {
        let answer: &str = Box::leak(format!("HTTP/1.1 503 Busy\r\n{rest}").into_boxed_str());
        let (address, _served) = server(answer).await;
        let said = get(address, "/").await.unwrap_err().into_output();
        assert_eq!(said, format!("GET / at {address}: 503 Service Unavailable{kept}"));
    }

    #[test]
    fn the_end_of_an_output_is_kept() {
        let output = end_of([vec![b'a'; 5000], vec![b'z'; 10]].concat());
        assert_eq!((output.len(), output.ends_with(b"zz")), (MAX_OUTPUT, true));
    }

    #[tokio::test]
    async fn nobody_listens_and_nobody_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        connect(address).await.unwrap();
        let silent = within(Duration::from_millis(20), get(address, "/")).await.unwrap_err();
        assert_eq!(silent.into_output(), "no answer within 20ms");
        drop(listener);
        assert!(connect(address).await.unwrap_err().starts_with(&format!("{address}: ")));
    }
}
