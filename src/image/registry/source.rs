//! One source of an image: a registry or a mirror of it, for one pull.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::sync::OnceCell;

use super::auth::Auth;
use super::client::{Clients, Pair};
use super::credentials::Credentials;
use super::settings::RegistryEndpoint;
use super::{Fetched, RegistrySettings};
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, Document, MAX_DOCUMENT};
use crate::image::{ImageError, ImageRef, RegistryTrouble, manifest};

/// Number of attempts per request when the failure looks temporary. A mirror gets one.
pub(super) const ATTEMPTS: u32 = 4;
/// Longest pause accepted from `Retry-After`; beyond that, give up.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// How much of an error answer is read, so that no secret is cut in two before it is redacted, and how much is shown.
const MAX_ERROR_READ: u64 = 64 << 10;
const MAX_ERROR_SHOWN: usize = 4 << 10;
/// Time limit of a document, as a multiple of the idle limit: many small chunks are not progress.
const DOCUMENT_PATIENCE: u32 = 4;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A registry or a mirror, its credentials and its state in this pull.
pub(in crate::image) struct Source {
    pub(super) settings: Arc<RegistrySettings>,
    pub(super) endpoint: RegistryEndpoint,
    /// The repository's name there.
    pub(super) path: String,
    pub(super) auth: Auth,
    /// What a token must allow; if not given, what the source asks for.
    pub(super) scopes: Option<String>,
    pub(super) attempts: u32,
    image: ImageRef,
    clients: Arc<Clients>,
    pair: OnceCell<Pair>,
    /// Set after it failed to answer: do not ask it again in this pull if there is another source.
    down: AtomicBool,
    /// Set once several ranges of a blob were requested at the same time.
    has_sent_ranges: AtomicBool,
    /// Set when a blob that came in such ranges was wrong.
    no_ranges: AtomicBool,
}

/// Why a body could not be read.
enum Unread {
    Broken(String),
    TooLong(String),
}

impl Source {
    pub(super) fn new(
        settings: &Arc<RegistrySettings>,
        clients: &Arc<Clients>,
        image: &ImageRef,
        endpoint: RegistryEndpoint,
        attempts: u32,
    ) -> Self {
        Self {
            settings: settings.clone(),
            path: format!("{}{}", endpoint.prefix, image.path()),
            auth: Auth::default(),
            scopes: None,
            attempts,
            image: image.clone(),
            clients: clients.clone(),
            pair: OnceCell::new(),
            down: AtomicBool::new(false),
            has_sent_ranges: AtomicBool::new(false),
            no_ranges: AtomicBool::new(false),
            endpoint,
        }
    }

    /// For a push: with the right to write, and to read `others` of its repositories, from which blobs may be taken.
    pub(super) fn for_push(mut self, others: &[String], given: Option<&Credentials>) -> Self {
        let mut scopes = vec![format!("repository:{}:pull,push", self.path)];
        scopes.extend(others.iter().map(|path| format!("repository:{path}:pull")));
        self.scopes = Some(scopes.join(" "));
        if let Some(given) = given {
            self.auth.found = OnceCell::new_with(Some(Some(given.found())));
        }
        self
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    pub(super) fn set_down(&self) {
        self.down.store(true, Ordering::Relaxed);
    }

    pub(super) fn ranges_are_trusted(&self) -> bool {
        !self.no_ranges.load(Ordering::Relaxed)
    }

    pub(super) fn note_ranges(&self) {
        self.has_sent_ranges.store(true, Ordering::Relaxed);
    }

    /// Requests no more ranges at the same time, after a blob was wrong. Whether that may help.
    pub(in crate::image) fn distrust_ranges(&self) -> bool {
        self.has_sent_ranges.load(Ordering::Relaxed) && !self.no_ranges.swap(true, Ordering::Relaxed)
    }

    /// Logs why another source is used instead of this mirror.
    pub(in crate::image) fn log_skipped(&self, error: &ImageError) {
        tracing::warn!(mirror = self.endpoint.host, image = %self.image, %error, "skipping the mirror");
    }

    /// Fetches a manifest by tag or digest, and verifies it against every digest given for it.
    pub(super) async fn manifest(&self, reference: &str) -> Result<Fetched, ImageError> {
        let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(manifest::ACCEPT))]);
        let (headers, body) = self
            .document(&format!("manifests/{reference}"), accept, "manifest fetch failed")
            .await?;
        let digest = Digest::of(&body);
        if reference.starts_with("sha256:") && reference != digest.to_string() {
            return Err(self.bad(format!(
                "the manifest {reference} that {} sent has the digest {digest}",
                self.endpoint.host
            )));
        }
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let header_digest = text(CONTENT_DIGEST);
        if header_digest.starts_with("sha256:") && header_digest != digest.to_string() {
            return Err(self.bad(format!(
                "{} calls its manifest {header_digest}, but it has the digest {digest}",
                self.endpoint.host
            )));
        }
        let document = Document::parse(&body, text(CONTENT_TYPE)).map_err(|e| self.bad(e))?;
        Ok(Fetched { digest, body, document })
    }

    /// Fetches a small blob whole and verifies its size and digest.
    pub(super) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let wanted = &blob.digest;
        if blob.size > MAX_DOCUMENT {
            return Err(self.bad(format!("the configuration {wanted} has {} bytes", blob.size)));
        }
        let what = format!("blob {wanted}");
        let (_, body) = self
            .document(&format!("blobs/{wanted}"), HeaderMap::new(), &what)
            .await?;
        let digest = Digest::of(&body);
        if body.len() as u64 != blob.size || digest != blob.digest {
            let (size, found) = (blob.size, body.len());
            return Err(self.bad(format!(
                "configuration {wanted} of {size} bytes came as {digest} of {found} bytes"
            )));
        }
        Ok(body)
    }

    /// Opens a blob at `offset`, to its end or to `end`, which is not part of it. The answer is 200 with all of it, or 206
    /// with that part.
    pub(super) async fn blob(&self, digest: &Digest, offset: u64, end: Option<u64>) -> Result<Response, ImageError> {
        let mut headers = HeaderMap::new();
        let is_part = offset > 0 || end.is_some();
        if is_part {
            let last = end.map_or_else(String::new, |end| end.saturating_sub(1).to_string());
            let range = HeaderValue::from_str(&format!("bytes={offset}-{last}"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let response = self.get(&format!("blobs/{digest}"), headers).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if is_part => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(ImageError::BadLayer {
                layer: digest.to_string(),
                message: format!("{} has no more than {offset} bytes of it", self.endpoint.host),
            }),
            _ => Err(self.refusal(&format!("blob {digest}"), response).await),
        }
    }

    /// A document of limited size with its response headers; fetched again when the connection breaks.
    async fn document(&self, tail: &str, headers: HeaderMap, what: &str) -> Result<(HeaderMap, Vec<u8>), ImageError> {
        let mut attempt = 1;
        loop {
            let response = self.get(tail, headers.clone()).await?;
            if response.status() != StatusCode::OK {
                return Err(self.refusal(what, response).await);
            }
            let received = response.headers().clone();
            match self.read(response, MAX_DOCUMENT).await {
                Ok(body) => return Ok((received, body)),
                Err(Unread::TooLong(reason)) => return Err(self.failed(format!("{tail}: {reason}"))),
                Err(Unread::Broken(reason)) if attempt >= self.attempts => {
                    self.set_down();
                    return Err(self.failed(format!("{tail}: {reason}")));
                }
                Err(Unread::Broken(_)) => tokio::time::sleep(self.backoff(attempt)).await,
            }
            attempt += 1;
        }
    }

    /// A GET that authenticates once the source has asked for it. A 401 to that renews the authentication, once.
    async fn get(&self, tail: &str, headers: HeaderMap) -> Result<Response, ImageError> {
        let request = self.pair().await?.follows.get(self.url(tail)).headers(headers);
        self.authenticated(tail, request).await
    }

    /// The URL of the host.
    pub(super) fn base(&self) -> String {
        let scheme = if self.endpoint.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.endpoint.host)
    }

    /// The URL of something in the repository.
    pub(super) fn url(&self, tail: &str) -> String {
        format!("{}/v2/{}/{tail}", self.base(), self.path)
    }

    /// Sends a request to the source's own host, with authentication as for a GET. The request must be one that can be
    /// repeated.
    pub(super) async fn authenticated(&self, tail: &str, request: RequestBuilder) -> Result<Response, ImageError> {
        let with = |shown: &Option<HeaderValue>| match (request.try_clone(), shown) {
            (Some(request), Some(value)) => Some(request.header(AUTHORIZATION, value.clone())),
            (request, _) => request,
        };
        let shown = self.auth.shown().await;
        let response = self.send(tail, with(&shown)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let fresh = self.authenticate(shown, response.headers()).await?;
        self.send(tail, with(&Some(fresh))).await
    }

    /// Sends a request and repeats it after a pause when the failure looks temporary: 429, 5xx, a broken connection.
    /// If the host cannot be connected to, it is not tried again, so that the user gets the error soon.
    pub(super) async fn send(&self, what: &str, request: Option<RequestBuilder>) -> Result<Response, ImageError> {
        let mut attempt = 1;
        loop {
            let Some(request) = request.as_ref().and_then(RequestBuilder::try_clone) else {
                return Err(self.failed(format!("{what}: the request cannot be made")));
            };
            let pause = match request.send().await {
                Ok(response) if attempt < self.attempts && temporary(response.status()) => {
                    match retry_after(response.headers(), Timestamp::now()) {
                        Some(wait) if wait > MAX_RETRY_AFTER => return Ok(response),
                        wait => wait.unwrap_or_else(|| self.backoff(attempt)),
                    }
                }
                Ok(response) => return Ok(response),
                Err(error) => {
                    let lasting = error.is_connect() || error.is_builder() || error.is_redirect();
                    if lasting || attempt >= self.attempts {
                        self.set_down();
                        if untrusted(&error) {
                            self.clients.forget(self.pair().await?);
                        }
                        let hint = match plain_http(&error) {
                            true => self.plain_http_hint(),
                            false => String::new(),
                        };
                        return Err(self.failed(format!("{what}: {}{hint}", chain(error))));
                    }
                    self.backoff(attempt)
                }
            };
            tracing::debug!(registry = self.endpoint.host, attempt, ?pause, "retrying the request");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    pub(super) async fn pair(&self) -> Result<&Pair, ImageError> {
        let make = async || {
            let (clients, host, ca) = (
                self.clients.clone(),
                self.endpoint.host.clone(),
                self.endpoint.ca.clone(),
            );
            let made = tokio::task::spawn_blocking(move || clients.get(&host, &ca)).await;
            made.map_err(|e| e.to_string()).flatten().map_err(|e| self.failed(e))
        };
        self.pair.get_or_try_init(make).await
    }

    /// Pause after that many attempts: 0.2, 0.6, 1.8 s with the default settings.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        self.settings.patience.pause * 3_u32.pow(attempt.saturating_sub(1).min(3))
    }

    /// The body of a small answer, as bytes.
    pub(super) async fn small_body(&self, response: Response, limit: u64) -> Result<Vec<u8>, ImageError> {
        let read = self.read(response, limit).await;
        read.map_err(|(Unread::Broken(reason) | Unread::TooLong(reason))| self.failed(reason))
    }

    async fn read(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, Unread> {
        let mut body = Vec::new();
        let all = async {
            while let Some(chunk) = response.chunk().await.map_err(|e| Unread::Broken(chain(e)))? {
                if body.len() as u64 + chunk.len() as u64 > limit {
                    return Err(Unread::TooLong(format!("the answer is longer than {limit} bytes")));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(())
        };
        let limit = self.settings.patience.idle * DOCUMENT_PATIENCE;
        let timed_out = |_| Unread::Broken(format!("the answer did not end within {} s", limit.as_secs_f32()));
        tokio::time::timeout(limit, all).await.map_err(timed_out)??;
        Ok(body)
    }

    /// The error for an answer with an unexpected status.
    pub(super) async fn refusal(&self, what: &str, response: Response) -> ImageError {
        let (status, wait) = (response.status(), retry_after(response.headers(), Timestamp::now()));
        let body = self.error_body(response).await;
        if status == StatusCode::NOT_FOUND && what.starts_with("manifest") {
            let (body, image, host) = (body.trim_end(), &self.image, &self.endpoint.host);
            let message = format!("{body} ({host} has no image {image}; check its name and tag)");
            return ImageError::ManifestNotFound(self.auth.scrub(&message));
        }
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.auth.hint(&self.endpoint.host),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => wait
                .map(|wait| format!(" (it asks to wait {} s)", wait.as_secs()))
                .unwrap_or_default(),
            _ => String::new(),
        };
        let trouble = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryTrouble::Denied,
            StatusCode::TOO_MANY_REQUESTS => RegistryTrouble::Limited,
            _ => RegistryTrouble::Other,
        };
        self.trouble(trouble, format!("{what}: {}: {body}{hint}", status.as_u16()))
    }

    /// The beginning of an error answer, as text.
    async fn error_body(&self, mut response: Response) -> String {
        let mut body = Vec::new();
        let all = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                body.extend_from_slice(&chunk);
                if body.len() as u64 > MAX_ERROR_READ {
                    break;
                }
            }
        };
        // On a timeout, show what arrived until then.
        let _ = tokio::time::timeout(self.settings.patience.idle, all).await;
        let mut text = self.auth.scrub(&String::from_utf8_lossy(&body));
        let is_boundary = |end: &usize| text.is_char_boundary(*end);
        let end = (0..=MAX_ERROR_SHOWN).rev().find(is_boundary).unwrap_or(0);
        text.truncate(end);
        one_line(&text)
    }

    /// The credential files.
    pub(super) fn credential_files(&self) -> &[PathBuf] {
        &self.settings.credential_files
    }

    pub(super) fn failed(&self, message: String) -> ImageError {
        self.trouble(RegistryTrouble::Other, message)
    }

    pub(super) fn denied(&self, message: String) -> ImageError {
        self.trouble(RegistryTrouble::Denied, message)
    }

    /// A text only, without what caused it: that may hold a secret.
    fn trouble(&self, trouble: RegistryTrouble, message: String) -> ImageError {
        ImageError::Registry {
            registry: self.endpoint.host.clone(),
            trouble,
            message: self.auth.scrub(&message),
        }
    }

    fn plain_http_hint(&self) -> String {
        let host = &self.endpoint.host;
        format!(
            "; it seems to speak plain HTTP: to allow that, add \"{host}\" to insecure_registries in the configuration"
        )
    }

    fn bad(&self, message: String) -> ImageError {
        ImageError::BadImage {
            image: self.image.canonical(),
            message: self.auth.scrub(&message),
        }
    }
}

/// Untrusted text with the characters escaped that are special to a terminal or a log. A final line break is kept:
/// many bodies end in one, clients expect it, and nothing can follow it.
fn one_line(text: &str) -> String {
    let (text, end) = text.strip_suffix('\n').map_or((text, ""), |text| (text, "\n"));
    let mut line = String::new();
    for letter in text.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line + end
}

/// Whether the host's certificate was rejected.
fn untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    says(error, &|error| matches!(error, rustls::Error::InvalidCertificate(_)))
}

/// Whether what came in the place of a TLS handshake was none.
fn plain_http(error: &(dyn std::error::Error + 'static)) -> bool {
    says(error, &|error| {
        matches!(
            error,
            rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)
        )
    })
}

/// Whether TLS failed in such a way.
fn says(error: &(dyn std::error::Error + 'static), way: &dyn Fn(&rustls::Error) -> bool) -> bool {
    if error.downcast_ref().is_some_and(way) {
        return true;
    }
    // The error inside an I/O error is not among its sources.
    let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    within.is_some_and(|error| says(error, way)) || error.source().is_some_and(|error| says(error, way))
}

pub(super) fn temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// The requested delay of an answer (RFC 9110, 10.2.3: seconds or a date).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(then.duration_since(now)).unwrap_or_default())
}

/// An error with its causes. Without the URL, which may contain the signature of a redirect.
pub(super) fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_cannot_begin_a_line_of_the_log() {
        assert_eq!(one_line("{\"a\": \"b\"}\n"), "{\"a\": \"b\"}\n");
        assert_eq!(
            one_line("no\n2026-11-24 ERROR \u{1b}[31mforged\r\n\n"),
            "no\\n2026-11-24 ERROR \\u{1b}[31mforged\\r\\n\n"
        );
    }

    #[rstest::rstest]
    #[case("7", Some(7))]
    #[case(" 120 ", Some(120))]
    #[case("Sun, 06 Nov 1994 08:49:47 GMT", Some(10))]
    #[case("Sun, 06 Nov 1994 08:49:27 GMT", Some(0))]
    #[case("-1", None)]
    #[case("soon", None)]
    fn the_pause_that_is_asked_for(#[case] value: &str, #[case] seconds: Option<u64>) {
        let now: Timestamp = "1994-11-06T08:49:37Z".parse().unwrap();
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())]);
        assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs));
    }
}
