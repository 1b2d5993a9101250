use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::routing::get;
use rstest::rstest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::{WebSocketStream, tungstenite};

use super::*;

type Client = WebSocketStream<TcpStream>;

/// A terminal that the test simulates, and a server with one route that attaches to it.
struct Place {
    dir: tempfile::TempDir,
    listener: UnixListener,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("tty.sock")).unwrap();
        let (address, stop, server) = serve(dir.path()).await;
        Self {
            dir,
            listener,
            address,
            stop,
            server,
        }
    }

    async fn attach(&self) -> (Client, UnixStream) {
        let client = client(self.address).await;
        (client, self.listener.accept().await.unwrap().0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(directory: &Path) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let (directory, stop) = (directory.to_owned(), CancellationToken::new());
    let stopped = stop.clone();
    let attach = async move |entry: AuditEntry, upgrade: WebSocketUpgrade| {
        let terminal = Terminal::in_directory(&directory);
        upgrade.on_upgrade(move |socket| session(socket, terminal, entry, stopped))
    };
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let app = Router::new().route("/attach", get(attach));
    let server = tokio::spawn(async move { axum::serve(socket, app).await.unwrap() });
    (address, stop, server)
}

async fn client(address: SocketAddr) -> Client {
    let stream = TcpStream::connect(address).await.unwrap();
    let url = format!("ws://{address}/attach");
    tokio_tungstenite::client_async(url, stream).await.unwrap().0
}

fn binary(bytes: &[u8]) -> tungstenite::Message {
    tungstenite::Message::binary(bytes.to_vec())
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

/// The output until the close frame, and the close frame.
async fn rest(client: &mut Client) -> (Vec<u8>, u16, String) {
    let mut output = Vec::new();
    in_time(async {
        loop {
            match client.next().await.unwrap().unwrap() {
                tungstenite::Message::Binary(piece) => {
                    assert!(piece.len() <= PIECE);
                    output.extend(piece);
                }
                tungstenite::Message::Close(Some(frame)) => {
                    return (output, frame.code.into(), frame.reason.to_string());
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn bytes_go_both_ways_unchanged() {
    let place = Place::new().await;
    let (mut client, mut terminal) = place.attach().await;
    // Message boundaries have no meaning.
    for piece in [&b"\x01\0\0\0\x04\0\x18"[..], b"\0\x50\0\0", b"\0\0\x03ls\n"] {
        client.send(binary(piece)).await.unwrap();
    }
    client.send(tungstenite::Message::text("ignored")).await.unwrap();
    client.send(binary(b"\x07")).await.unwrap();
    let mut input = vec![0; 18];
    in_time(terminal.read_exact(&mut input)).await.unwrap();
    assert_eq!(input, b"\x01\0\0\0\x04\0\x18\0\x50\0\0\0\0\x03ls\n\x07");

    let output: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let expected = output.clone();
    let writing = tokio::spawn(async move { terminal.write_all(&output).await });
    let (received, code, reason) = rest(&mut client).await;
    writing.await.unwrap().unwrap();
    assert!(received == expected);
    assert_eq!((code, reason.as_str()), (1000, "stream closed"));
    assert!(in_time(client.next()).await.is_none(), "and the connection ends");
}

#[tokio::test]
async fn what_was_written_last_arrives_although_input_is_not_taken() {
    let place = Place::new().await;
    let (mut client, mut terminal) = place.attach().await;
    rustix::net::shutdown(&terminal, rustix::net::Shutdown::Read).unwrap();
    for _ in 0..5 {
        client.send(binary(b"nobody reads this")).await.unwrap();
    }
    // The pong shows that everything before it was processed.
    client.send(tungstenite::Message::Ping("x".into())).await.unwrap();
    let answer = in_time(client.next()).await.unwrap().unwrap();
    assert_eq!(answer, tungstenite::Message::Pong("x".into()));
    terminal.write_all(b"last words").await.unwrap();
    drop(terminal);
    let (received, code, _) = rest(&mut client).await;
    assert_eq!((received.as_slice(), code), (&b"last words"[..], 1000));
}

#[tokio::test]
async fn a_client_that_detaches_gets_its_own_code_back_and_the_terminal_an_end() {
    let place = Place::new().await;
    let (mut client, mut terminal) = place.attach().await;
    let frame = tungstenite::protocol::CloseFrame {
        code: 1001.into(),
        reason: "detached".into(),
    };
    client.close(Some(frame)).await.unwrap();
    let (_, code, reason) = rest(&mut client).await;
    assert_eq!((code, reason.as_str()), (1001, "detached"));
    assert_eq!(in_time(terminal.read(&mut [0; 8])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_is_an_end_too() {
    let place = Place::new().await;
    let (client, mut terminal) = place.attach().await;
    drop(client);
    assert_eq!(in_time(terminal.read(&mut [0; 8])).await.unwrap(), 0);
}

#[tokio::test]
async fn pings_are_answered() {
    let place = Place::new().await;
    let (mut client, _terminal) = place.attach().await;
    client
        .send(tungstenite::Message::Ping("are you there".into()))
        .await
        .unwrap();
    let answer = in_time(client.next()).await.unwrap().unwrap();
    assert_eq!(answer, tungstenite::Message::Pong("are you there".into()));
}

#[tokio::test]
async fn a_terminal_that_nobody_serves_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _, server) = serve(dir.path()).await;
    let mut client = client(address).await;
    let (_, code, reason) = rest(&mut client).await;
    assert_eq!((code, reason.as_str()), (1013, "target not ready"));
    server.abort();
}

#[tokio::test]
async fn at_the_end_of_the_daemon_sessions_end_and_the_terminal_stays() {
    let place = Place::new().await;
    let (mut client, mut terminal) = place.attach().await;
    place.stop.cancel();
    let (_, code, reason) = rest(&mut client).await;
    assert_eq!((code, reason.as_str()), (1001, "daemon is shutting down"));
    assert_eq!(in_time(terminal.read(&mut [0; 8])).await.unwrap(), 0);
    UnixStream::connect(place.dir.path().join("tty.sock")).await.unwrap();
}

#[rstest]
#[case(None, true)]
#[case(Some("https://localhost:7755"), true)]
#[case(Some("https://console.example"), true)]
#[case(Some("http://localhost:7755"), false)]
#[case(Some("https://localhost:8443"), false)]
#[case(Some("https://evil.example"), false)]
#[case(Some("null"), false)]
#[case(Some(""), false)]
fn only_known_sites_may_attach(#[case] origin: Option<&'static str>, #[case] allowed: bool) {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_static("localhost:7755"));
    if let Some(origin) = origin {
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
    }
    let checked = check_origin(&headers, &["https://console.example".into()]);
    assert_eq!(checked.is_ok(), allowed);
    if let Err(error) = checked {
        assert_eq!(error.status(), 403);
    }
}
