//! Downloads one blob into a channel and resumes after interruptions.
//!
//! ```text
//! one stream --- the network is slower than the receiver, and the server knows ranges ---> several ranges at once
//!     ^                                                                                            |
//!     +------------------- a range fails, or is not what was asked for ----------------------------+  (for good)
//! ```
//! The receiver hashes the data, so a download in parts is verified as a whole like any other. The channel provides
//! backpressure: only data that the receiver has not taken yet is held in memory, and a few ranges that came too early.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::header::{ACCEPT_RANGES, CONTENT_RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::source::{Source, chain};
use crate::image::ImageError;
use crate::image::manifest::Descriptor;

/// Minimum rate in bytes per second. A slower sender would occupy one of the few download slots without progress.
const SLOWEST: f64 = 1024.0;
/// The rate is measured over this multiple of the idle limit, which exceeds all pauses that a registry may ask for.
const SLOW_PATIENCE: u32 = 10;

/// Size of a range, and how many of one blob are under way at the same time: what comes too early is held in memory.
const RANGE_BYTES: u64 = 4 << 20;
const RANGES: usize = 3;
/// Only with at least this much to go: each range is a request of its own, often with a redirect.
const RANGES_FROM: u64 = 4 * RANGE_BYTES;
/// For how long one stream is watched before ranges are tried, and which part of this time it must have kept its receiver
/// waiting, in percent.
const WATCH: Duration = Duration::from_millis(300);
const WAITING: u32 = 70;

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
    /// Whether several ranges may be requested at once. Not again after this failed.
    in_parallel: bool,
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
            in_parallel: self.ranges_are_trusted(),
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

/// How long a stream has been waited for.
struct Watch {
    since: Instant,
    waited: Duration,
}

impl Watch {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// Whether the sender is what everything waits for.
    fn is_slow(&self) -> bool {
        let time = self.since.elapsed();
        time >= WATCH && self.waited * 100 >= time * WAITING
    }
}

impl Source {
    /// One range of a blob, whole. The error says what was wrong.
    async fn range(&self, blob: &Descriptor, start: u64, end: u64) -> Result<Vec<Bytes>, String> {
        let opened = self.blob(&blob.digest, start, Some(end)).await;
        let mut response = opened.map_err(|e| e.to_string())?;
        let said = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        let wanted = format!("bytes {start}-{}/{}", end - 1, blob.size);
        if response.status() != StatusCode::PARTIAL_CONTENT || said != Some(&*wanted) {
            let status = response.status().as_u16();
            return Err(format!("asked for {wanted}, it sent {status} with {said:?}"));
        }
        let (mut chunks, mut left) = (Vec::new(), end - start);
        while let Some(chunk) = response.chunk().await.map_err(chain)? {
            left = left
                .checked_sub(chunk.len() as u64)
                .ok_or_else(|| format!("more than {wanted} came"))?;
            chunks.push(chunk);
        }
        match left {
            0 => Ok(chunks),
            left => Err(format!("{left} bytes of {wanted} are missing")),
        }
    }
}

impl Download<'_> {
    async fn part(&mut self, received: &impl Fn(u64)) -> Result<(), Interrupted> {
        let mut response = self.open().await?;
        let knows_ranges = response.status() == StatusCode::PARTIAL_CONTENT
            || response
                .headers()
                .get(ACCEPT_RANGES)
                .is_some_and(|unit| unit == "bytes");
        // A server without range support starts from the beginning; skip the data that we already have.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            _ => self.offset,
        };
        let mut watch = Watch::new();
        loop {
            let waiting = Instant::now();
            let chunk = response.chunk().await;
            watch.waited += waiting.elapsed();
            let Some(mut chunk) = chunk.map_err(|e| Interrupted::Broken(chain(e)))? else {
                break;
            };
            let passed = skip.min(chunk.len() as u64);
            skip -= passed;
            let arrived = chunk.len() as u64;
            if !self
                .forward(chunk.split_off(passed as usize), arrived, received)
                .await?
            {
                return Ok(());
            }
            let rest = self.blob.size - self.offset;
            if self.in_parallel && knows_ranges && skip == 0 && rest >= RANGES_FROM && watch.is_slow() {
                drop(response);
                return self.in_ranges(received).await;
            }
        }
        self.check_end()
    }

    /// The rest, several ranges at once, in order. Falls back to one stream after any failure.
    async fn in_ranges(&mut self, received: &impl Fn(u64)) -> Result<(), Interrupted> {
        tracing::debug!(blob = %self.blob.digest, self.offset, "several ranges of the blob are requested at once");
        self.in_parallel = false;
        self.source.note_ranges();
        let (source, blob) = (self.source, self.blob);
        let starts = (self.offset..blob.size).step_by(RANGE_BYTES as usize);
        let ranges = starts.map(|start| source.range(blob, start, blob.size.min(start + RANGE_BYTES)));
        let mut ranges = stream::iter(ranges).buffered(RANGES);
        while let Some(range) = ranges.next().await {
            for chunk in range.map_err(Interrupted::Broken)? {
                let arrived = chunk.len() as u64;
                if !self.forward(chunk, arrived, received).await? {
                    return Ok(());
                }
            }
        }
        self.check_end()
    }

    /// Sends a chunk on. `arrived`: how many bytes came for it. Whether the receiver wants more.
    async fn forward(&mut self, chunk: Bytes, arrived: u64, received: &impl Fn(u64)) -> Result<bool, Interrupted> {
        let patience = self.source.settings.patience.idle * SLOW_PATIENCE;
        let slow = self.pace.is_slow(arrived, patience);
        let length = chunk.len() as u64;
        if length == 0 {
            return Ok(true);
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
        let is_wanted = self.sink.send(chunk).await.is_ok();
        self.pace.since += sending.elapsed();
        Ok(is_wanted)
    }

    fn check_end(&self) -> Result<(), Interrupted> {
        let (offset, size) = (self.offset, self.blob.size);
        match offset < size {
            true => Err(Interrupted::Broken(format!("{offset} of {size} bytes came"))),
            false => Ok(()),
        }
    }

    async fn open(&mut self) -> Result<Response, Interrupted> {
        let from = if self.ranges { self.offset } else { 0 };
        let opened = self.source.blob(&self.blob.digest, from, None).await;
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
