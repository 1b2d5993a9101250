//! Uploads to a registry (OCI distribution specification 1.1, push part): blobs in chunks, then manifests.
//!
//! ```text
//! POST uploads/ -> PATCH chunk, any number -> PUT ?digest=
//!                    | broken: GET how far it is -> PATCH the rest
//!                    +-> the registry has lost it: Sent::Lost, and the caller begins again
//! ```
//! A chunk stays in memory until the registry has it, so what was lost on the way can be sent again; nothing else of a
//! blob is held.

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use tokio::sync::mpsc;

use super::source::{Source, chain, temporary};
use crate::image::digest::Digest;
use crate::image::{ImageError, manifest};

/// Size of a chunk, in bytes; larger if the registry wants that.
pub(in crate::image) const CHUNK: usize = 4 << 20;
/// Largest chunk that a registry may want.
const MAX_CHUNK: usize = 64 << 20;
/// Least that is sent at once after failures, so that slow lines get something across.
const SMALLEST: usize = 256 << 10;
const OCTETS: &str = "application/octet-stream";
const MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a registry says to the request for an upload.
pub(in crate::image) enum Begun {
    /// It has taken the blob from another repository.
    Mounted,
    /// It waits for the bytes.
    Upload(Upload),
}

/// An upload in progress.
pub(in crate::image) struct Upload {
    location: Url,
    /// Bytes that the registry has.
    offset: u64,
    /// Size of the chunks to make.
    pub(in crate::image) chunk: usize,
}

/// How an upload went.
pub(in crate::image) enum Sent {
    /// The registry has all chunks.
    All,
    /// The registry has lost a part that is not in memory any more.
    Lost,
}

impl Source {
    /// Asks whether we may talk to the registry at all, so that a refusal comes with its words.
    pub(in crate::image) async fn greet(&self) -> Result<(), ImageError> {
        let url = format!("{}/v2/", self.base());
        let request = self.pair().await?.follows.get(url);
        let response = self.authenticated("/v2/", request).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.refusal("push", response).await),
            _ => Ok(()),
        }
    }

    /// Whether the repository has a blob. A registry that does not say has not.
    pub(in crate::image) async fn has_blob(&self, digest: &Digest) -> Result<bool, ImageError> {
        let tail = format!("blobs/{digest}");
        let request = self.pair().await?.follows.head(self.url(&tail));
        let response = self.authenticated(&tail, request).await?;
        Ok(response.status() == StatusCode::OK)
    }

    /// Whether a tag names that manifest already.
    pub(in crate::image) async fn has_manifest(&self, tag: &str, digest: &Digest) -> Result<bool, ImageError> {
        let tail = format!("manifests/{tag}");
        let request = self
            .pair()
            .await?
            .follows
            .head(self.url(&tail))
            .header(ACCEPT, manifest::ACCEPT);
        let response = self.authenticated(&tail, request).await?;
        let found = response
            .headers()
            .get(CONTENT_DIGEST)
            .and_then(|value| value.to_str().ok());
        Ok(response.status() == StatusCode::OK && found == Some(&digest.to_string()))
    }

    /// Begins an upload, or has the registry take the blob from another of its repositories.
    pub(in crate::image) async fn begin_upload(&self, mount: Option<(&Digest, &str)>) -> Result<Begun, ImageError> {
        let mut url = Url::parse(&self.url("blobs/uploads/")).map_err(|e| self.failed(e.to_string()))?;
        if let Some((digest, from)) = mount {
            let digest = digest.to_string();
            url.query_pairs_mut()
                .extend_pairs([("mount", &digest[..]), ("from", from)]);
        }
        let request = self.pair().await?.stays.post(url.clone()).body(Bytes::new());
        let response = self.authenticated("blobs/uploads/", request).await?;
        match response.status() {
            StatusCode::CREATED if mount.is_some() => Ok(Begun::Mounted),
            StatusCode::ACCEPTED | StatusCode::CREATED => {
                let wanted = response
                    .headers()
                    .get(MIN_LENGTH)
                    .and_then(|value| value.to_str().ok()?.parse().ok());
                let chunk = wanted.unwrap_or(CHUNK).clamp(CHUNK, MAX_CHUNK);
                let location = self.location(&url, &response)?;
                let offset = 0;
                Ok(Begun::Upload(Upload {
                    location,
                    offset,
                    chunk,
                }))
            }
            _ => Err(self.refusal("push of a blob", response).await),
        }
    }

    /// Uploads a blob that is in memory.
    pub(in crate::image) async fn put_small(&self, digest: &Digest, body: Bytes) -> Result<(), ImageError> {
        let mut attempt = 1;
        loop {
            let upload = match self.begin_upload(None).await? {
                Begun::Mounted => return Ok(()),
                Begun::Upload(upload) => upload,
            };
            match self.put(&upload.location, digest, body.clone()).await {
                Ok(()) => return Ok(()),
                Err(Interrupted::Final(error)) => return Err(error),
                Err(Interrupted::Broken(reason)) if attempt >= self.attempts => return Err(self.failed(reason)),
                Err(Interrupted::Broken(_)) if self.has_blob(digest).await? => return Ok(()),
                Err(Interrupted::Broken(_)) => tokio::time::sleep(self.backoff(attempt)).await,
            }
            attempt += 1;
        }
    }

    /// Sends all chunks that come. `sent` is called with the number of bytes that the registry has.
    pub(in crate::image) async fn send_chunks(
        &self,
        upload: &mut Upload,
        chunks: &mut mpsc::Receiver<Bytes>,
        sent: impl Fn(u64),
    ) -> Result<Sent, ImageError> {
        let mut start = 0;
        while let Some(chunk) = chunks.recv().await {
            if let Sent::Lost = self.send_chunk(upload, start, &chunk, &sent).await? {
                return Ok(Sent::Lost);
            }
            start += chunk.len() as u64;
        }
        Ok(Sent::All)
    }

    async fn send_chunk(
        &self,
        upload: &mut Upload,
        start: u64,
        chunk: &Bytes,
        sent: &impl Fn(u64),
    ) -> Result<Sent, ImageError> {
        let end = start + chunk.len() as u64;
        let (mut failures, mut most) = (0, chunk.len());
        while upload.offset < end {
            let from = (upload.offset - start) as usize;
            let piece = chunk.slice(from..chunk.len().min(from + most));
            let before = upload.offset;
            let reason = match self.patch(upload, piece).await {
                Ok(()) => {
                    sent(upload.offset);
                    continue;
                }
                Err(Interrupted::Final(error)) => return Err(error),
                Err(Interrupted::Broken(reason)) => reason,
            };
            failures += 1;
            if failures >= self.attempts {
                return Err(self.failed(format!("push of a blob: {reason}")));
            }
            tracing::debug!(
                registry = self.endpoint.host,
                upload.offset,
                reason,
                "upload is resumed"
            );
            tokio::time::sleep(self.backoff(failures)).await;
            most = (most / 2).max(SMALLEST);
            match self.state(upload).await? {
                // Of a first byte the registry cannot say whether it has it.
                Some(offset) if offset > start.max(1) && offset <= end => {
                    failures = if offset > before { 0 } else { failures };
                    upload.offset = offset;
                }
                Some(offset) if offset == start && start > 0 => upload.offset = start,
                _ if start == 0 => match self.begin_upload(None).await? {
                    Begun::Upload(fresh) => *upload = fresh,
                    Begun::Mounted => return Ok(Sent::Lost),
                },
                _ => return Ok(Sent::Lost),
            }
        }
        Ok(Sent::All)
    }

    /// Sends one piece at the offset of the upload.
    async fn patch(&self, upload: &mut Upload, piece: Bytes) -> Result<(), Interrupted> {
        let (from, length) = (upload.offset, piece.len() as u64);
        let request = self
            .pair()
            .await
            .map_err(Interrupted::Final)?
            .stays
            .patch(upload.location.clone());
        let request = request
            .header(CONTENT_TYPE, OCTETS)
            .header(CONTENT_RANGE, format!("{from}-{}", from + length - 1))
            .body(piece);
        let response = self.once(&upload.location, request).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                upload.location = self.location(&upload.location, &response).map_err(Interrupted::Final)?;
                upload.offset = from + length;
                match end_of(&response) {
                    Some(end) if end != upload.offset && end > 1 => {
                        Err(Interrupted::Broken(format!("it has {end} of {} bytes", from + length)))
                    }
                    _ => Ok(()),
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_FOUND => Err(Interrupted::Broken(format!(
                "{} to a chunk",
                response.status().as_u16()
            ))),
            status if temporary(status) => Err(Interrupted::Broken(format!("{} to a chunk", status.as_u16()))),
            _ => Err(Interrupted::Final(self.refusal("push of a blob", response).await)),
        }
    }

    /// How many bytes the registry has. `None` if it does not know the upload.
    async fn state(&self, upload: &mut Upload) -> Result<Option<u64>, ImageError> {
        let request = self.pair().await?.stays.get(upload.location.clone());
        let response = self.with_credentials(&upload.location, "upload", request).await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let end = end_of(&response);
        upload.location = self.location(&upload.location, &response)?;
        Ok(end)
    }

    /// Completes an upload of which all chunks were sent.
    pub(in crate::image) async fn finish_upload(&self, upload: &Upload, digest: &Digest) -> Result<Sent, ImageError> {
        let mut attempt = 1;
        loop {
            match self.put(&upload.location, digest, Bytes::new()).await {
                Ok(()) => return Ok(Sent::All),
                Err(Interrupted::Final(error)) => return Err(error),
                Err(Interrupted::Broken(reason)) if attempt >= self.attempts => return Err(self.failed(reason)),
                // It may have been completed before the answer was lost.
                Err(Interrupted::Broken(_)) if self.has_blob(digest).await? => return Ok(Sent::All),
                Err(Interrupted::Broken(reason)) if reason.starts_with("404") => return Ok(Sent::Lost),
                Err(Interrupted::Broken(_)) => tokio::time::sleep(self.backoff(attempt)).await,
            }
            attempt += 1;
        }
    }

    /// The error for something that cannot be pushed.
    pub(in crate::image) fn refuse(&self, message: &str) -> ImageError {
        self.failed(message.to_owned())
    }

    /// The error for an upload that was lost too often.
    pub(in crate::image) fn lost(&self) -> ImageError {
        self.failed("it loses uploads before they are complete".into())
    }

    /// Gives up an upload. The registry would do so itself some time.
    pub(in crate::image) async fn cancel_upload(&self, upload: &Upload) {
        if let Ok(pair) = self.pair().await {
            let request = pair.stays.delete(upload.location.clone());
            drop(self.once(&upload.location, request).await);
        }
    }

    async fn put(&self, location: &Url, digest: &Digest, body: Bytes) -> Result<(), Interrupted> {
        let mut url = location.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let request = self.pair().await.map_err(Interrupted::Final)?.stays.put(url);
        let request = request.header(CONTENT_TYPE, OCTETS).body(body);
        let response = self.once(location, request).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            status if temporary(status) || status == StatusCode::NOT_FOUND => Err(Interrupted::Broken(format!(
                "{} to the end of blob {digest}",
                status.as_u16()
            ))),
            _ => {
                let what = format!("push of blob {digest}");
                Err(Interrupted::Final(self.refusal(&what, response).await))
            }
        }
    }

    /// Uploads a manifest under a tag or its digest.
    pub(in crate::image) async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> Result<(), ImageError> {
        let tail = format!("manifests/{reference}");
        let request = self.pair().await?.stays.put(self.url(&tail));
        let content_type = HeaderValue::from_str(media_type).map_err(|e| self.failed(e.to_string()))?;
        let request = request.header(CONTENT_TYPE, content_type).body(Bytes::from(body));
        let response = self.authenticated(&tail, request).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK => Ok(()),
            _ => Err(self
                .refusal(&format!("push of the manifest {reference}"), response)
                .await),
        }
    }

    /// One attempt, whose failure may be of passage. A 401 renews the authentication, once.
    async fn once(&self, url: &Url, request: RequestBuilder) -> Result<Response, Interrupted> {
        let shown = self.shown_to(url).await;
        let with = |shown: &Option<HeaderValue>| match (request.try_clone(), shown) {
            (Some(request), Some(value)) => Some(request.header(AUTHORIZATION, value.clone())),
            (request, _) => request,
        };
        let send = async |shown: &Option<HeaderValue>| match with(shown) {
            Some(request) => request.send().await.map_err(|e| Interrupted::Broken(chain(e))),
            None => Err(Interrupted::Broken("the request cannot be made".into())),
        };
        let response = send(&shown).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.is_own(url) {
            return Ok(response);
        }
        let fresh = self
            .authenticate(shown, response.headers())
            .await
            .map_err(Interrupted::Final)?;
        send(&Some(fresh)).await
    }

    /// What may be shown to the host of a URL: another host than ours gets nothing.
    async fn shown_to(&self, url: &Url) -> Option<HeaderValue> {
        match self.is_own(url) {
            true => self.auth.shown().await,
            false => None,
        }
    }

    async fn with_credentials(&self, url: &Url, what: &str, request: RequestBuilder) -> Result<Response, ImageError> {
        match self.is_own(url) {
            true => self.authenticated(what, request).await,
            false => self.send(what, Some(request)).await,
        }
    }

    fn is_own(&self, url: &Url) -> bool {
        let own = Url::parse(&self.base());
        own.is_ok_and(|own| own.origin() == url.origin())
    }

    /// Where an upload goes on.
    fn location(&self, asked: &Url, response: &Response) -> Result<Url, ImageError> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let Some(location) = location else {
            // Only the first answer must have one.
            return match asked.path().ends_with("/uploads/") {
                true => Err(self.failed("it does not say where to upload to (no Location)".into())),
                false => Ok(asked.clone()),
            };
        };
        let url = asked
            .join(location)
            .map_err(|e| self.failed(format!("its Location is not a URL: {e}")))?;
        if self.endpoint.tls && url.scheme() != "https" {
            let message = "its Location leads from https to plain http; if it is behind a proxy, that must pass on \
                           X-Forwarded-Proto";
            return Err(self.failed(message.into()));
        }
        Ok(url)
    }
}

/// Why a request of an upload has no good answer.
enum Interrupted {
    /// The connection or the server failed.
    Broken(String),
    /// Trying again cannot help.
    Final(ImageError),
}

/// The end of the `Range` of an answer: how many bytes there are.
fn end_of(response: &Response) -> Option<u64> {
    let range = response.headers().get(RANGE)?.to_str().ok()?;
    let (_, last) = range.trim_start_matches("bytes=").split_once('-')?;
    last.trim().parse::<u64>().ok()?.checked_add(1)
}
