//! Downloads one blob into a channel and resumes after interruptions.
//!
//! The receiver hashes the data, so a resumed download is verified as a whole like any other. The channel provides
//! backpressure: only data that the receiver has not taken yet is held in memory.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::source::{Source, chain};
use crate::image::ImageError;
use crate::image::manifest::Descriptor;

/// Minimum rate in bytes per second. A slower sender would occupy one of the few download slots without progress.
const SLOWEST: f64 = 1024.0;
/// The rate is measured over this multiple of the idle limit, which exceeds all pauses that a registry may ask for.
const SLOW_PATIENCE: u32 = 10;

/// Why one attempt ended before the blob did.
enum Interrupted {
    /// The connection or the server failed. The download can be resumed.
    Broken(String),
    /// Retrying cannot help.
    Final(ImageError),
}

/// A download in progress.
struct Download<'a> {
    source: &'a Source,
    blob: &'a Descriptor,
    /// Bytes received so far.
    offset: u64,
    /// Whether the server supports range requests.
    ranges: bool,
    sink: mpsc::Sender<Bytes>,
    pace: Pace,
}

/// Bytes received since a point in time. Excludes the time that the receiver needed.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Whether less than the minimum arrived during `patience`; checked once per period.
    fn is_slow(&mut self, length: u64, patience: Duration) -> bool {
        self.bytes += length;
        let (time, bytes) = (self.since.elapsed(), self.bytes);
        if time < patience {
            return false;
        }
        *self = Self::new();
        (bytes as f64) < time.as_secs_f64() * SLOWEST
    }
}

impl Source {
    /// Sends the blob's bytes to `sink`, in order, each exactly once. Returns `Ok` early if the receiver is gone: the
    /// receiver knows the reason. `received` is called with the length of each chunk.
    pub(in crate::image) async fn download(
        &self,
        blob: &Descriptor,
        sink: mpsc::Sender<Bytes>,
        received: impl Fn(u64),
    ) -> Result<(), ImageError> {
        let mut download = Download {
            source: self,
            blob,
            offset: 0,
            ranges: true,
            sink,
            pace: Pace::new(),
        };
        let mut failures = 0;
        loop {
            let before = download.offset;
            let reason = match download.part(&received).await {
                Ok(()) => return Ok(()),
                Err(Interrupted::Final(error)) => return Err(error),
                Err(Interrupted::Broken(reason)) => reason,
            };
            failures = if download.offset > before { 1 } else { failures + 1 };
            // Allow a mirror one interruption after a good start too.
            if failures >= self.attempts.max(2) {
                self.set_down();
                return Err(self.failed(format!("blob {}: {reason}", blob.digest)));
            }
            tracing::debug!(blob = %blob.digest, download.offset, reason, "download is resumed");
            tokio::time::sleep(self.backoff(failures)).await;
        }
    }
}

impl Download<'_> {
    async fn part(&mut self, received: &impl Fn(u64)) -> Result<(), Interrupted> {
        let mut response = self.open().await?;
        // A server without range support starts from the beginning; skip the data that we already have.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            _ => self.offset,
        };
        while let Some(mut chunk) = response.chunk().await.map_err(|e| Interrupted::Broken(chain(e)))? {
            let patience = self.source.settings.patience.idle * SLOW_PATIENCE;
            let slow = self.pace.is_slow(chunk.len() as u64, patience);
            let passed = skip.min(chunk.len() as u64);
            skip -= passed;
            let chunk = chunk.split_off(passed as usize);
            let length = chunk.len() as u64;
            if length == 0 {
                continue;
            }
            if self.offset + length > self.blob.size {
                return Err(Interrupted::Final(self.bad(format!(
                    "{} sends more than the {} bytes of the manifest",
                    self.source.endpoint.host, self.blob.size
                ))));
            }
            self.offset += length;
            received(length);
            if slow && self.offset < self.blob.size {
                self.source.set_down();
                let (digest, seconds) = (&self.blob.digest, patience.as_secs_f32());
                return Err(Interrupted::Final(self.source.failed(format!(
                    "blob {digest}: less than {SLOWEST} bytes per second came for {seconds} s"
                ))));
            }
            let sending = Instant::now();
            if self.sink.send(chunk).await.is_err() {
                return Ok(());
            }
            self.pace.since += sending.elapsed();
        }
        if self.offset < self.blob.size {
            let (offset, size) = (self.offset, self.blob.size);
            return Err(Interrupted::Broken(format!("{offset} of {size} bytes came")));
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<Response, Interrupted> {
        let from = if self.ranges { self.offset } else { 0 };
        let opened = self.source.blob(&self.blob.digest, from).await;
        // A restarting registry refuses connections for a moment: after a good start, try again.
        let response = opened.map_err(|error| match error {
            ImageError::Registry { message, .. } if self.offset > 0 => Interrupted::Broken(message),
            error => Interrupted::Final(error),
        })?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let content_range = response.headers().get(CONTENT_RANGE);
            let content_range = content_range
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            // If a server sends a different range than requested, do not use ranges with it again.
            if !content_range.starts_with(&format!("bytes {from}-")) {
                self.ranges = false;
                return Err(Interrupted::Broken(format!(
                    "asked for bytes {from}-, it sent {content_range:?}"
                )));
            }
        }
        Ok(response)
    }

    fn bad(&self, message: String) -> ImageError {
        ImageError::BadLayer {
            layer: self.blob.digest.to_string(),
            message,
        }
    }
}
