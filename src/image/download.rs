//! The download of one blob into a channel, resumed where it broke off.
//!
//! The receiver hashes what it gets, so a resumed download is verified as a whole like any other. Backpressure is the
//! channel: nothing is held in memory but what the receiver has not taken yet.

use bytes::Bytes;
use reqwest::StatusCode;
use tokio::sync::mpsc;

use super::manifest::Descriptor;
use super::registry::{ATTEMPTS, Registry, backoff, chain, failed};
use super::{ImageError, ImageRef};

/// Why one try ended before the blob did.
enum Interrupted {
    /// The connection or the server. Can be resumed.
    Broken(String),
    /// Nothing will make this right.
    Final(ImageError),
}

/// Sends the blob's bytes to `sink`, in order, each once. Returns early with `Ok` when the receiver is gone: then the
/// receiver knows why. `received` is called with the length of each piece.
pub(super) async fn download(
    registry: &Registry,
    image: &ImageRef,
    blob: &Descriptor,
    sink: mpsc::Sender<Bytes>,
    received: impl Fn(u64),
) -> Result<(), ImageError> {
    let (mut offset, mut failures) = (0, 0);
    loop {
        let before = offset;
        let reason = match part(registry, image, blob, &mut offset, &sink, &received).await {
            Ok(()) => return Ok(()),
            Err(Interrupted::Final(error)) => return Err(error),
            Err(Interrupted::Broken(reason)) => reason,
        };
        failures = if offset > before { 1 } else { failures + 1 };
        if failures == ATTEMPTS {
            return Err(failed(image, format!("blob {}: {reason}", blob.digest)));
        }
        tracing::debug!(blob = %blob.digest, offset, reason, "download is resumed");
        tokio::time::sleep(backoff(failures)).await;
    }
}

async fn part(
    registry: &Registry,
    image: &ImageRef,
    blob: &Descriptor,
    offset: &mut u64,
    sink: &mpsc::Sender<Bytes>,
    received: &impl Fn(u64),
) -> Result<(), Interrupted> {
    // A registry that restarts refuses connections for a moment: after a good start that is no reason to give up.
    let mut response = registry
        .blob(image, &blob.digest, *offset)
        .await
        .map_err(|error| match error {
            ImageError::Registry { message, .. } if *offset > 0 => Interrupted::Broken(message),
            error => Interrupted::Final(error),
        })?;
    // A server without ranges begins again; what is here already is passed over.
    let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT {
        0
    } else {
        *offset
    };
    while let Some(mut chunk) = response.chunk().await.map_err(|e| Interrupted::Broken(chain(e)))? {
        let passed = skip.min(chunk.len() as u64);
        skip -= passed;
        let chunk = chunk.split_off(passed as usize);
        let length = chunk.len() as u64;
        if length == 0 {
            continue;
        }
        if *offset + length > blob.size {
            return Err(Interrupted::Final(ImageError::BadLayer {
                layer: blob.digest.to_string(),
                message: format!("the registry sends more than the {} bytes of the manifest", blob.size),
            }));
        }
        *offset += length;
        received(length);
        if sink.send(chunk).await.is_err() {
            return Ok(());
        }
    }
    if *offset < blob.size {
        return Err(Interrupted::Broken(format!("{offset} of {} bytes came", blob.size)));
    }
    Ok(())
}
