//! The client of registries (OCI distribution specification 1.1, pull part): requests with token authentication,
//! bounded retries and time-outs.
//!
//! It stands on `reqwest`, not on `oci-client`: that one reads manifests and token replies of any size into memory,
//! does not retry, keeps a token past a 401, matches challenge parameters by case and hides the status and body that
//! our error texts promise; what would be left of it is URL building.
//!
//! Trust is the system's CA store (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), read at the first request. Hosts
//! named in the configuration are spoken to in plain HTTP, exactly as written there; nothing else ever is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::{Mutex, OnceCell};

use super::digest::Digest;
use super::manifest::{self, Descriptor, Document, MAX_DOCUMENT};
use super::{ImageError, ImageRef, token};

/// For name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence within an answer. There is no limit on the whole: a large layer on a slow line is fine.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often one request is sent when the trouble looks temporary.
pub(super) const ATTEMPTS: u32 = 4;
/// Longest pause that a registry may ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN_REPLY: u64 = 64 << 10;
/// How much of an error answer is read and shown.
const MAX_ERROR_BODY: u64 = 4 << 10;

/// The token of one repository, locked while a new one is asked for.
type Slot = Arc<Mutex<Option<String>>>;

/// Client of all registries. Connections and tokens are shared.
pub(super) struct Registry {
    insecure: Vec<String>,
    client: OnceCell<Client>,
    /// By registry and repository. Each has a lock of its own: a token service that does not answer holds up only those
    /// who need it.
    tokens: std::sync::Mutex<HashMap<(String, String), Slot>>,
}

/// A manifest as it was fetched.
pub(super) struct Fetched {
    pub digest: Digest,
    pub body: Vec<u8>,
    pub document: Document,
}

impl Registry {
    pub(super) fn new(insecure: Vec<String>) -> Self {
        Self {
            insecure,
            client: OnceCell::new(),
            tokens: Default::default(),
        }
    }

    /// Fetches a manifest by tag or digest. By digest, the answer is checked against it.
    pub(super) async fn manifest(&self, image: &ImageRef, reference: &str) -> Result<Fetched, ImageError> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(manifest::ACCEPT))]);
        let response = self.get(image, &format!("manifests/{reference}"), headers).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let body = error_body(response).await;
            return Err(match status {
                StatusCode::NOT_FOUND => ImageError::ManifestNotFound(body),
                _ => failed(image, format!("manifest fetch failed: {}: {body}", status.as_u16())),
            });
        }
        let content_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let content_type = content_type.to_owned();
        let body = read(response, MAX_DOCUMENT)
            .await
            .map_err(|e| failed(image, format!("manifest {reference}: {e}")))?;
        let digest = Digest::of(&body);
        if reference.starts_with("sha256:") && reference != digest.to_string() {
            return Err(bad(
                image,
                format!("the manifest {reference} that the registry sent has the digest {digest}"),
            ));
        }
        let document = Document::parse(&body, &content_type).map_err(|e| bad(image, e))?;
        Ok(Fetched { digest, body, document })
    }

    /// Fetches a small blob whole, and checks size and digest.
    pub(super) async fn small_blob(&self, image: &ImageRef, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if blob.size > MAX_DOCUMENT {
            return Err(bad(
                image,
                format!("the configuration {} has {} bytes", blob.digest, blob.size),
            ));
        }
        let response = self.blob(image, &blob.digest, 0).await?;
        let body = read(response, MAX_DOCUMENT)
            .await
            .map_err(|e| failed(image, format!("blob {}: {e}", blob.digest)))?;
        let digest = Digest::of(&body);
        if body.len() as u64 != blob.size || digest != blob.digest {
            let (wanted, size, found) = (&blob.digest, blob.size, body.len());
            let message = format!("configuration {wanted} of {size} bytes came as {digest} of {found} bytes");
            return Err(bad(image, message));
        }
        Ok(body)
    }

    /// Opens a blob at `offset`. The answer is 200 with all of it, or 206 with the rest.
    pub(super) async fn blob(&self, image: &ImageRef, digest: &Digest, offset: u64) -> Result<Response, ImageError> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let response = self.get(image, &format!("blobs/{digest}"), headers).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if offset > 0 => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(ImageError::BadLayer {
                layer: digest.to_string(),
                message: format!("the registry has no more than {offset} bytes of it"),
            }),
            status => {
                let body = error_body(response).await;
                Err(failed(image, format!("blob {digest}: {}: {body}", status.as_u16())))
            }
        }
    }

    /// A GET with the repository's token. A 401 makes it ask for a new token, once.
    async fn get(&self, image: &ImageRef, tail: &str, headers: HeaderMap) -> Result<Response, ImageError> {
        let url = format!(
            "{}://{}/v2/{}/{tail}",
            self.scheme(image),
            image.registry(),
            image.path()
        );
        let client = self.client().await?;
        let request = client.get(url).headers(headers);
        let with = |token: &Option<String>| {
            let request = request.try_clone();
            match (request, token) {
                (Some(request), Some(token)) => Some(request.bearer_auth(token)),
                (request, _) => request,
            }
        };
        let token = self.token(image).lock().await.clone();
        let response = self.send(image, tail, with(&token)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let token = self.refresh(image, token, response.headers()).await?;
        self.send(image, tail, with(&Some(token))).await
    }

    /// A token that is not `stale`. Whoever comes while another asks gets the other's.
    async fn refresh(
        &self,
        image: &ImageRef,
        stale: Option<String>,
        headers: &HeaderMap,
    ) -> Result<String, ImageError> {
        let current = self.token(image);
        let mut current = current.lock().await;
        if let Some(token) = current.as_ref().filter(|t| Some(*t) != stale.as_ref()) {
            return Ok(token.clone());
        }
        let scope = format!("repository:{}:pull", image.path());
        let asked = token::token_request(headers, &scope).map_err(|e| failed(image, e))?;
        if asked.url.scheme() != "https" && self.scheme(image) == "https" {
            return Err(failed(image, format!("its token service {} is not https", asked.url)));
        }
        let client = self.client().await?;
        let response = self.send(image, "token service", Some(client.get(asked.url))).await?;
        let status = response.status();
        if !status.is_success() {
            let body = error_body(response).await;
            return Err(failed(
                image,
                format!("it gives no token for {}: {}: {body}", image.path(), status.as_u16()),
            ));
        }
        let reply = read(response, MAX_TOKEN_REPLY).await;
        let token = reply
            .and_then(|reply| token::token_of(&reply))
            .map_err(|e| failed(image, e))?;
        *current = Some(token.clone());
        Ok(token)
    }

    fn token(&self, image: &ImageRef) -> Slot {
        let key = (image.registry().to_owned(), image.path().to_owned());
        let mut tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.entry(key).or_default().clone()
    }

    /// Sends a request, again after a pause when the trouble looks temporary: 429, 5xx, a broken connection. A host
    /// that cannot be connected to is not tried again; its user should know soon.
    async fn send(
        &self,
        image: &ImageRef,
        what: &str,
        request: Option<RequestBuilder>,
    ) -> Result<Response, ImageError> {
        let mut attempt = 1;
        loop {
            let Some(request) = request.as_ref().and_then(RequestBuilder::try_clone) else {
                return Err(failed(image, format!("{what}: the request cannot be made")));
            };
            let pause = match request.send().await {
                Ok(response) if attempt < ATTEMPTS && temporary(response.status()) => {
                    retry_after(&response).unwrap_or_else(|| backoff(attempt))
                }
                Ok(response) => return Ok(response),
                Err(error)
                    if attempt == ATTEMPTS || error.is_connect() || error.is_builder() || error.is_redirect() =>
                {
                    return Err(failed(image, format!("{what}: {}", chain(error))));
                }
                Err(_) => backoff(attempt),
            };
            tracing::debug!(registry = image.registry(), attempt, ?pause, "request is repeated");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    fn scheme(&self, image: &ImageRef) -> &'static str {
        if self.insecure.iter().any(|host| host == image.registry()) {
            "http"
        } else {
            "https"
        }
    }

    async fn client(&self) -> Result<&Client, ImageError> {
        self.client.get_or_try_init(build_client).await
    }
}

async fn build_client() -> Result<Client, ImageError> {
    let roots = tokio::task::spawn_blocking(system_roots)
        .await
        .map_err(|e| ImageError::Io(e.to_string()))?;
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| ImageError::Io(format!("TLS cannot be set up: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
        .redirect(redirect::Policy::custom(follow))
        .user_agent(concat!("condenser/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| ImageError::Io(format!("the HTTP client cannot be set up: {e}")))
}

fn system_roots() -> rustls::RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "part of the system's CA store cannot be read");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!("the system has no CA certificates; registries can only be reached in plain HTTP");
    }
    roots
}

/// Blobs often live elsewhere. `reqwest` drops the token when the host changes.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from_tls = attempt
        .previous()
        .last()
        .is_some_and(|url: &Url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if from_tls && attempt.url().scheme() != "https" {
        attempt.error("redirected from https to plain http")
    } else {
        attempt.follow()
    }
}

fn temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// Pause before the next attempt: 0.2, 0.6, 1.8 s.
pub(super) fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(200) * 3_u32.pow(attempt.saturating_sub(1).min(3))
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// The body, unless it is longer than `limit` bytes.
async fn read(mut response: Response, limit: u64) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(chain)? {
        if body.len() as u64 + chunk.len() as u64 > limit {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The beginning of an error answer, as text.
async fn error_body(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > MAX_ERROR_BODY {
            body.truncate(MAX_ERROR_BODY as usize);
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// An error with its causes. Without the URL, which may carry the signature of a redirect.
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

pub(super) fn failed(image: &ImageRef, message: String) -> ImageError {
    ImageError::Registry {
        registry: image.registry().to_owned(),
        message,
    }
}

fn bad(image: &ImageRef, message: String) -> ImageError {
    ImageError::BadImage {
        image: image.canonical(),
        message,
    }
}
