//! Answers that go on: bodies read as they come, and terminals over WebSocket.
//!
//! Nothing is read between two calls: a test that does not call is a client that does not read.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use tokio::runtime::Runtime;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};

use super::api::{Api, Call};

/// Longer than anything takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Longer than any text that is waited for, in bytes.
const MEMORY: usize = 1000;

/// An answer of which the head has come.
pub struct Answer {
    runtime: Runtime,
    /// The connection lives as long.
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    seen: Vec<u8>,
}

impl Api {
    /// Sends a request that is answered with 200 and a body that goes on.
    #[track_caller]
    pub fn open(&self, call: Call) -> Answer {
        let mut session = self.session().unwrap();
        let response = session.runtime.block_on(async {
            session.sender.ready().await.unwrap();
            session
                .sender
                .send_request(call.into_request("localhost"))
                .await
                .unwrap()
        });
        assert_eq!(response.status(), 200);
        Answer {
            body: response.into_body(),
            runtime: session.runtime,
            _sender: session.sender,
            seen: Vec::new(),
        }
    }

    /// Sends a request, and goes away without its answer as soon as `now` says so.
    #[track_caller]
    pub fn abandon(&self, call: Call, mut now: impl FnMut() -> bool) {
        let mut session = self.session().unwrap();
        let answer = session.sender.send_request(call.into_request("localhost"));
        let mut answer = std::pin::pin!(answer);
        let deadline = std::time::Instant::now() + LIMIT;
        while !now() {
            // The connection is driven only here.
            let turn = async { tokio::time::timeout(Duration::from_millis(20), answer.as_mut()).await };
            assert!(session.runtime.block_on(turn).is_err(), "an answer came");
            assert!(std::time::Instant::now() < deadline, "waited in vain");
        }
    }

    /// Attaches to a terminal: `path` is that of a WebSocket.
    #[track_caller]
    pub fn attach(&self, path: &str) -> Terminal {
        let (runtime, stream) = self.dial().unwrap();
        let request = format!("wss://localhost{path}");
        let connecting = tokio_tungstenite::client_async(request, stream);
        let (socket, _) = runtime.block_on(connecting).unwrap();
        Terminal {
            runtime,
            socket,
            seen: String::new(),
        }
    }
}

impl Answer {
    /// Reads until `text` has come; what came up to its end, since the last call.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> String {
        loop {
            let seen = String::from_utf8_lossy(&self.seen);
            if let Some(at) = seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return String::from_utf8(std::mem::replace(&mut self.seen, rest)).unwrap();
            }
            let seen = seen.into_owned();
            match self.piece() {
                Ok(Some(piece)) => self.seen.extend_from_slice(&piece),
                other => panic!("{other:?} instead of {text:?} after {seen:?}"),
            }
        }
    }

    /// The next piece; `None` at the end, and `Err` when it was cut off.
    pub fn piece(&mut self) -> Result<Option<Bytes>, String> {
        let body = &mut self.body;
        let piece = async {
            loop {
                match body.frame().await {
                    None => return Ok(None),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            return Ok(Some(data));
                        }
                    }
                    Some(Err(error)) => return Err(error.to_string()),
                }
            }
        };
        self.runtime.block_on(async {
            tokio::time::timeout(LIMIT, piece)
                .await
                .map_err(|_| "nothing comes".to_owned())?
        })
    }

    /// All that comes until the end.
    #[track_caller]
    pub fn rest(mut self) -> String {
        let mut all = std::mem::take(&mut self.seen);
        while let Some(piece) = self.piece().unwrap() {
            all.extend_from_slice(&piece);
        }
        String::from_utf8(all).unwrap()
    }
}

/// An attached client.
pub struct Terminal {
    runtime: Runtime,
    socket: WebSocketStream<TlsStream<tokio::net::TcpStream>>,
    seen: String,
}

impl Terminal {
    /// Sends a frame of input.
    pub fn type_in(&mut self, text: &str) {
        self.frame(0, text.as_bytes());
    }

    /// Sends a frame with a window size.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.frame(1, &[rows.to_be_bytes(), columns.to_be_bytes()].concat());
    }

    /// Reads until `text` was shown since the last call.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            // Of what was seen before, only a part of the text can matter.
            let old = self.seen.len().saturating_sub(MEMORY);
            let old = (old..).find(|at| self.seen.is_char_boundary(*at)).unwrap();
            self.seen.drain(..old);
            match self.message() {
                Some(Message::Binary(piece)) => self.seen += &String::from_utf8_lossy(&piece),
                other => panic!("{other:?} instead of {text:?} after {:?}", self.seen),
            }
        }
        self.seen = self.seen.split_once(text).unwrap().1.to_owned();
    }

    /// What is shown until the server closes, the code and the reason.
    #[track_caller]
    pub fn rest(mut self) -> (String, u16, String) {
        loop {
            match self.message() {
                Some(Message::Binary(piece)) => self.seen += &String::from_utf8_lossy(&piece),
                Some(Message::Close(Some(CloseFrame { code, reason }))) => {
                    return (self.seen, code.into(), reason.to_string());
                }
                other => panic!("{other:?} after {} bytes", self.seen.len()),
            }
        }
    }

    /// Leaves as the CLI does.
    pub fn detach(mut self) {
        let frame = CloseFrame {
            code: 1001.into(),
            reason: "detached".into(),
        };
        self.runtime.block_on(self.socket.close(Some(frame))).unwrap();
        let (_, code, reason) = self.rest();
        assert_eq!((code, reason.as_str()), (1001, "detached"));
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&[kind], &length[..], payload].concat();
        self.runtime.block_on(self.socket.send(Message::binary(frame))).unwrap();
    }

    fn message(&mut self) -> Option<Message> {
        let next = async { tokio::time::timeout(LIMIT, self.socket.next()).await };
        match self.runtime.block_on(next).expect("nothing is shown") {
            Some(Ok(message)) => Some(message),
            None | Some(Err(tungstenite::Error::ConnectionClosed)) => None,
            Some(Err(error)) => panic!("{error}"),
        }
    }
}
