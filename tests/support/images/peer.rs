//! A registry in the test itself, with a token service, that can be told to misbehave. It serves real images; what is
//! bent is the transport and the tokens.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::get;
use bytes::Bytes;
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;

use super::content::{INDEX, MANIFEST, TestImage, digest};

#[path = "uploads.rs"]
mod uploads;

/// What happens to a request instead of a good answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status.
    Status(u16),
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// The token that was given so far is no longer taken.
    ExpireToken,
    /// Go there instead.
    Redirect(String),
    /// The body waits for this.
    Hold(Arc<tokio::sync::Notify>),
    /// Nothing comes after so many bytes of the body.
    Stall(usize),
    /// One byte of the body at a time, with this pause after it.
    Drip(std::time::Duration),
    /// The body never ends.
    Endless,
    /// This body instead.
    Body(Vec<u8>),
    /// This status with this header.
    With(u16, &'static str, String),
    /// This header besides those of a good answer.
    Header(&'static str, String),
    /// An answer to a request for a part has another part.
    WrongPart,
    /// A 500 that shows what it was sent as `Authorization`.
    Echo,
    /// This status with these words.
    Refuse(u16, &'static str),
    /// An upload is not known any more.
    Forget,
}

#[derive(Default)]
pub struct Behaviour {
    /// Faults for requests whose path ends so, used up one by one.
    pub faults: HashMap<String, VecDeque<Fault>>,
    /// `Range` headers are ignored.
    pub no_ranges: bool,
    /// Bodies of blobs come at this rate, in bytes per second.
    pub rate: Option<usize>,
    /// Requests for a part with a beginning and an end get a part that begins so much later.
    pub shifted_ranges: Option<usize>,
    /// They get one with a wrong byte.
    pub spoilt_ranges: bool,
    /// The bodies of their answers break after so many bytes.
    pub cut_ranges: Option<usize>,
    /// The `WWW-Authenticate` headers of a 401; none means that no token is needed. `{host}` is replaced.
    pub challenges: Vec<String>,
    /// Name of the member of the token reply.
    pub token_member: String,
    /// The `Authorization` that the token service wants, if it wants one.
    pub token_for: Option<String>,
    /// The refresh token that the token service wants in a form.
    pub refresh_token: Option<String>,
    /// The `Authorization` that is wanted instead of a token.
    pub basic: Option<String>,
    token: u64,
    manifests: HashMap<String, (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    /// Uploads in progress.
    uploads: HashMap<String, Vec<u8>>,
    next_upload: usize,
    /// Blobs of other repositories can be mounted.
    pub mounts: bool,
    /// Every request: path, `Range`, `Authorization`.
    pub requests: Vec<String>,
}

/// Handle of a running peer.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    state: Arc<Mutex<Behaviour>>,
}

impl Peer {
    /// Serves plain HTTP on a free port of loopback.
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// Serves TLS if a configuration is given.
    pub async fn serve(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(Behaviour::default()));
        let app = axum::Router::new()
            .route("/token", get(token).post(refreshed))
            .route("/v2/", get(uploads::version))
            .route(
                "/v2/{name}/manifests/{reference}",
                get(manifest).put(uploads::put_manifest),
            )
            .route("/v2/{name}/blobs/uploads/", axum::routing::post(uploads::begin))
            .route(
                "/v2/{name}/blobs/uploads/{id}",
                axum::routing::patch(uploads::patch)
                    .put(uploads::finish)
                    .get(uploads::state)
                    .delete(uploads::cancel),
            )
            .layer(axum::extract::DefaultBodyLimit::disable())
            .route("/v2/{name}/blobs/{digest}", get(blob))
            .with_state(state.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(app.clone());
                let tls = tls.clone();
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                                drop(http.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, state }
    }

    /// Changes how it behaves from now on.
    pub fn with<T>(&self, change: impl FnOnce(&mut Behaviour) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// Lets requests whose path ends in `path` go wrong, in this order, before they go right.
    pub fn fail(&self, path: &str, faults: &[Fault]) {
        self.with(|b| {
            b.faults
                .entry(path.to_owned())
                .or_default()
                .extend(faults.iter().cloned())
        });
    }

    /// The blob, if it was offered or pushed.
    pub fn blob(&self, digest: &str) -> Option<Bytes> {
        self.with(|b| b.blobs.get(digest).cloned())
    }

    /// The manifest of a tag, if it was offered or pushed, with its media type.
    pub fn manifest_of(&self, reference: &str) -> Option<(String, Bytes)> {
        self.with(|b| b.manifests.get(reference).cloned())
    }

    /// How many uploads are in progress.
    pub fn open_uploads(&self) -> usize {
        self.with(|b| b.uploads.len())
    }

    /// How many requests had a path that ends so.
    pub fn count(&self, path: &str) -> usize {
        self.with(|b| {
            b.requests
                .iter()
                .filter(|r| r.split(' ').next().unwrap().ends_with(path))
                .count()
        })
    }

    /// Offers an image as `app:<tag>` and tells the reference to pull it by.
    pub fn offer(&self, tag: &str, image: &TestImage) -> String {
        let body = image.manifest.to_string();
        for blob in image.blobs() {
            self.with(|b| b.blobs.insert(digest(&blob), blob.into()));
        }
        self.offer_document(&digest(body.as_bytes()), MANIFEST, body.clone().into_bytes());
        self.offer_document(tag, MANIFEST, body.into_bytes())
    }

    /// Offers any document as a manifest.
    pub fn offer_document(&self, reference: &str, media_type: &str, body: Vec<u8>) -> String {
        self.with(|b| {
            b.manifests
                .insert(reference.to_owned(), (media_type.to_owned(), body.into()))
        });
        format!("{}/app:{reference}", self.address)
    }

    /// Offers an index.
    pub fn offer_index(&self, tag: &str, index: &serde_json::Value) -> String {
        self.offer_document(tag, INDEX, index.to_string().into_bytes())
    }
}

fn endless() -> Body {
    let piece = Bytes::from(vec![b' '; 64 << 10]);
    Body::from_stream(futures_util::stream::repeat_with(move || {
        Ok::<_, std::io::Error>(piece.clone())
    }))
}

/// A beginning, and then nothing.
fn silence(start: Bytes) -> Body {
    let start = futures_util::stream::once(std::future::ready(Ok::<_, std::io::Error>(start)));
    Body::from_stream(start.chain(futures_util::stream::pending()))
}

type Shared = State<Arc<Mutex<Behaviour>>>;

async fn token(state: Shared, Query(query): Query<Vec<(String, String)>>, headers: HeaderMap) -> Response<Body> {
    let mut b = state.lock().unwrap();
    let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let shown = shown.map(str::to_owned);
    b.requests.push(format!("/token {query:?}"));
    if b.refresh_token.is_some() || b.token_for.is_some() && b.token_for != shown {
        return answer(401).body(format!("not for {shown:?}").into()).unwrap();
    }
    give_token(&mut b)
}

async fn refreshed(state: Shared, body: String) -> Response<Body> {
    let mut b = state.lock().unwrap();
    b.requests.push(format!("/token {body}"));
    let wanted = format!("refresh_token={}", b.refresh_token.clone().unwrap_or_default());
    if !body.split('&').any(|pair| pair == wanted) {
        return answer(401).body(format!("not for {body}").into()).unwrap();
    }
    give_token(&mut b)
}

fn give_token(b: &mut Behaviour) -> Response<Body> {
    match fault(b, "/token") {
        Some(Fault::Status(status)) => return answer(status).body("go away".into()).unwrap(),
        Some(Fault::Body(body)) => return answer(200).body(body.into()).unwrap(),
        Some(Fault::Endless) => return answer(200).body(endless()).unwrap(),
        Some(Fault::Stall(_)) => return answer(200).body(silence(Bytes::new())).unwrap(),
        Some(Fault::Redirect(to)) => return answer(307).header(header::LOCATION, to).body(Body::empty()).unwrap(),
        _ => {}
    }
    let reply = serde_json::json!({b.token_member.clone(): format!("token-{}", b.token)});
    answer(200).body(reply.to_string().into()).unwrap()
}

async fn manifest(state: Shared, Path((_, reference)): Path<(String, String)>, headers: HeaderMap) -> Response<Body> {
    let mut b = state.lock().unwrap();
    let found = b.manifests.get(&reference).cloned();
    respond(&mut b, &format!("/manifests/{reference}"), &headers, found)
}

async fn blob(state: Shared, Path((_, digest)): Path<(String, String)>, headers: HeaderMap) -> Response<Body> {
    let mut b = state.lock().unwrap();
    let found = b
        .blobs
        .get(&digest)
        .cloned()
        .map(|body| ("application/octet-stream".to_owned(), body));
    respond(&mut b, &format!("/blobs/{digest}"), &headers, found)
}

fn respond(b: &mut Behaviour, path: &str, headers: &HeaderMap, found: Option<(String, Bytes)>) -> Response<Body> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let range = text(header::RANGE).to_owned();
    b.requests
        .push(format!("{path} {range} {}", text(header::AUTHORIZATION)));
    let fault = fault(b, path);
    if matches!(fault, Some(Fault::ExpireToken)) {
        b.token += 1;
    }
    if let Some(refused) = unknown(b, headers) {
        return refused;
    }
    let Some((media_type, body)) = found else {
        return answer(404).body("no such thing".into()).unwrap();
    };
    let asked = range.strip_prefix("bytes=").and_then(|r| r.split_once('-'));
    if let Some((from, to)) = asked.filter(|(_, to)| !to.is_empty() && !b.no_ranges) {
        return part(b, &body, from.parse().unwrap(), to.parse().unwrap());
    }
    let from = match asked {
        Some((from, _)) if !b.no_ranges => from.parse().unwrap(),
        _ => 0,
    };
    if from >= body.len() && from > 0 {
        return answer(416).body(Body::empty()).unwrap();
    }
    let rest = body.slice(from..);
    let mut response = answer(200);
    if from > 0 {
        let start = if matches!(fault, Some(Fault::WrongPart)) {
            0
        } else {
            from
        };
        let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
        response = answer(206).header(header::CONTENT_RANGE, range);
    }
    let mut response = response.header(header::CONTENT_TYPE, media_type);
    if !b.no_ranges && path.starts_with("/blobs/") {
        response = response.header(header::ACCEPT_RANGES, "bytes");
    }
    let body = match fault {
        Some(Fault::Status(status)) => return answer(status).body("not now".into()).unwrap(),
        Some(Fault::Redirect(to)) => {
            return answer(307).header(header::LOCATION, to).body(Body::empty()).unwrap();
        }
        Some(Fault::Cut(at)) => {
            let start = rest.slice(..at);
            // What was sent before the break shall arrive: the pause lets it go out.
            let cut = async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            };
            let start = futures_util::stream::once(std::future::ready(Ok(start)));
            let body = Body::from_stream(start.chain(futures_util::stream::once(cut)));
            return response.header(header::CONTENT_LENGTH, rest.len()).body(body).unwrap();
        }
        Some(Fault::Hold(gate)) => {
            let held = async move {
                gate.notified().await;
                Ok::<_, std::io::Error>(rest)
            };
            Body::from_stream(futures_util::stream::once(held))
        }
        Some(Fault::Stall(at)) => silence(rest.slice(..at.min(rest.len()))),
        Some(Fault::Drip(pause)) => {
            let bytes = futures_util::stream::iter((0..rest.len()).map(move |at| rest.slice(at..at + 1)));
            Body::from_stream(bytes.then(move |byte| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, std::io::Error>(byte)
            }))
        }
        Some(Fault::WrongPart) if from > 0 => body.into(),
        Some(Fault::Endless) => return answer(200).body(endless()).unwrap(),
        Some(Fault::Body(body)) => return answer(200).body(body.into()).unwrap(),
        Some(Fault::With(status, name, value)) => {
            return answer(status).header(name, value).body("not now".into()).unwrap();
        }
        Some(Fault::Header(name, value)) => return response.header(name, value).body(rest.into()).unwrap(),
        Some(Fault::Echo) => {
            let said = text(header::AUTHORIZATION).to_owned();
            return answer(400).body(format!("what is {said}?").into()).unwrap();
        }
        Some(Fault::Refuse(status, words)) => return answer(status).body(words.into()).unwrap(),
        Some(Fault::ExpireToken | Fault::WrongPart | Fault::Forget) | None if path.starts_with("/blobs/") => {
            slowly(b, rest)
        }
        Some(Fault::ExpireToken | Fault::WrongPart | Fault::Forget) | None => rest.into(),
    };
    response.body(body).unwrap()
}

/// The bytes from `from` to `to`, both included.
fn part(b: &Behaviour, body: &Bytes, from: usize, to: usize) -> Response<Body> {
    let shift = b.shifted_ranges.unwrap_or(0);
    let (from, end) = (from + shift, (to + 1).min(body.len()));
    let mut bytes = body[from.min(end)..end].to_vec();
    if b.spoilt_ranges {
        bytes[0] ^= 1;
    }
    let response = answer(206).header(
        header::CONTENT_RANGE,
        format!("bytes {from}-{}/{}", end - 1, body.len()),
    );
    match b.cut_ranges {
        None => response.body(slowly(b, bytes.into())).unwrap(),
        Some(at) => {
            let start = std::future::ready(Ok(Bytes::copy_from_slice(&bytes[..at])));
            // What was sent before the break shall arrive.
            let cut = async {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut"))
            };
            let body = futures_util::stream::once(start).chain(futures_util::stream::once(cut));
            response
                .header(header::CONTENT_LENGTH, bytes.len())
                .body(Body::from_stream(body))
                .unwrap()
        }
    }
}

/// At the rate that is set.
fn slowly(b: &Behaviour, body: Bytes) -> Body {
    const PIECE: usize = 64 << 10;
    let Some(rate) = b.rate else { return body.into() };
    let pause = std::time::Duration::from_secs_f64(PIECE as f64 / rate as f64);
    let pieces = (0..body.len()).step_by(PIECE);
    let pieces: Vec<Bytes> = pieces.map(|at| body.slice(at..body.len().min(at + PIECE))).collect();
    let begun = std::time::Instant::now();
    let stream = futures_util::stream::iter(pieces.into_iter().enumerate());
    Body::from_stream(stream.then(move |(n, piece)| async move {
        tokio::time::sleep_until((begun + pause * n as u32).into()).await;
        Ok::<_, std::io::Error>(piece)
    }))
}

/// The 401 for a client that does not show what is wanted.
fn unknown(b: &Behaviour, headers: &HeaderMap) -> Option<Response<Body>> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let wanted = b.basic.clone().unwrap_or_else(|| format!("Bearer token-{}", b.token));
    if b.challenges.is_empty() || text(header::AUTHORIZATION) == wanted {
        return None;
    }
    let host = text(header::HOST).to_owned();
    let challenges = b.challenges.iter().map(|c| c.replace("{host}", &host));
    let response = challenges.fold(answer(401), |r, c| r.header(header::WWW_AUTHENTICATE, c));
    Some(response.body("who are you".into()).unwrap())
}

fn fault(b: &mut Behaviour, path: &str) -> Option<Fault> {
    let (_, faults) = b.faults.iter_mut().find(|(end, _)| path.ends_with(&***end))?;
    faults.pop_front()
}

fn answer(status: u16) -> axum::http::response::Builder {
    Response::builder().status(StatusCode::from_u16(status).unwrap())
}
