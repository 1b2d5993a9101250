//! One pull, from a reference to a row.
//!
//! ```text
//! manifest (index -> manifest) -> configuration -> pin -> layers, several at once -> documents -> sync -> row
//! ```
//! Each layer is one pass: network -> sha256 -> decompress -> sha256 -> staging directory -> rename. Nothing that
//! existed before changes until the row is committed; if a pull fails, its layers are swept.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::digest::Digest;
use super::manifest::{Descriptor, Document, ImageConfig, Manifest};
use super::platform::{choose, offered};
use super::receive::Arrived;
use super::registry::{Fetched, Session, Source};
use super::room::check_fits;
use super::stream::{BlobReader, Digests};
use super::track::Tracker;
use super::{ImageError, ImageRef, Inner, Platform, blocking, receive};
use crate::model::{Image, ImageLayer};
use crate::ops::task;

/// How many chunks of a blob are buffered between network and unpacking.
const PIECES: usize = 64;
/// Maximum nesting of indexes, and maximum number of manifests tried for one image.
const MAX_DEPTH: usize = 4;
const MAX_MANIFESTS: usize = 32;
/// How many platforms of an image a message names.
const MAX_SHOWN: usize = 10;

/// The parts of an image that is being pulled.
struct PullPlan {
    manifest: Fetched,
    config_descriptor: Descriptor,
    config_body: Vec<u8>,
    config: ImageConfig,
    layers: Vec<ImageLayer>,
    /// Each distinct layer once, the largest first, so that no large one starts last.
    work: Vec<(Digest, Descriptor)>,
}

/// Pulls `image` and writes its row.
pub(super) async fn pull(
    inner: &Arc<Inner>,
    image: &ImageRef,
    platform: &Platform,
    progress: &Tracker,
) -> Result<Arc<Image>, ImageError> {
    let session = inner.registry.session(image);
    let plan = plan(&session, image, platform).await?;
    let mut needed = vec![plan.manifest.digest, plan.config_descriptor.digest];
    needed.extend(plan.work.iter().map(|(diff_id, _)| *diff_id));
    let pins = inner.layers.pin(needed);
    let result = fetch_missing(inner, &session, image, plan, progress).await;
    drop(pins);
    // Layers that a failed pull left behind, or that only the replaced row used.
    inner
        .sweep_in_background()
        .await
        .unwrap_or_else(|error| tracing::warn!(%error, "unused layers stay for now"));
    result
}

/// A manifest and its configuration.
struct Found {
    manifest: Fetched,
    config_body: Vec<u8>,
    config: ImageConfig,
}

/// Follows indexes to the image for the platform. Entries without a platform are tried one after the other.
async fn find(session: &Session, image: &ImageRef, platform: &Platform) -> Result<Found, ImageError> {
    let bad = |message| ImageError::BadImage {
        image: image.canonical(),
        message,
    };
    // A stack: the next one is at the end.
    let mut ahead = vec![(image.reference().to_owned(), 0)];
    let (mut tried, mut refusal) = (0, None);
    let mut platforms = Vec::new();
    while let Some((reference, depth)) = ahead.pop() {
        tried += 1;
        if depth > MAX_DEPTH || tried > MAX_MANIFESTS {
            return Err(bad("its index leads to too many others".into()));
        }
        let fetched = session.manifest(&reference).await?;
        let refused = match &fetched.document {
            Document::Index(entries) => {
                platforms.extend(offered(entries));
                for entry in choose(platform, entries).into_iter().rev() {
                    let digest: Digest = entry.digest.parse().map_err(|e| bad(format!("{e}")))?;
                    ahead.push((digest.to_string(), depth + 1));
                }
                continue;
            }
            Document::Artifact(kind) => Some(format!(" but an OCI artifact (media type {kind})")),
            Document::Manifest(manifest) => manifest.artifact_kind.as_ref().map(|kind| format!(" but {kind}")),
        };
        let refused = match refused {
            None => match configuration(session, image, platform, &fetched).await? {
                Ok((config_body, config)) => {
                    return Ok(Found {
                        manifest: fetched,
                        config_body,
                        config,
                    });
                }
                Err(refused) => refused,
            },
            Some(what) => ImageError::NotAnImage {
                image: image.canonical(),
                what,
            },
        };
        refusal.get_or_insert(refused);
    }
    Err(refusal.unwrap_or_else(|| no_platform(platform, image, &platforms)))
}

/// The configuration of a manifest. The inner error means that it is for another platform or missing.
async fn configuration(
    session: &Session,
    image: &ImageRef,
    platform: &Platform,
    fetched: &Fetched,
) -> Result<Result<(Vec<u8>, ImageConfig), ImageError>, ImageError> {
    let Document::Manifest(manifest) = &fetched.document else {
        return Ok(Err(no_platform(platform, image, &[])));
    };
    let body = session.small_blob(&manifest.config).await?;
    if ImageConfig::is_empty(&body) {
        return Ok(Err(ImageError::NotAnImage {
            image: image.canonical(),
            what: ": its configuration is empty".into(),
        }));
    }
    let config = ImageConfig::parse(&body, manifest.layers.len()).map_err(|message| ImageError::BadImage {
        image: image.canonical(),
        message,
    })?;
    Ok(match config.is_for(platform) {
        true => Ok((body, config)),
        false => Err(no_platform(platform, image, &[config.platform()])),
    })
}

/// `offered`: the platforms that the image is for, as far as they are known.
fn no_platform(platform: &Platform, image: &ImageRef, offered: &[String]) -> ImageError {
    let shown = &offered[..offered.len().min(MAX_SHOWN)];
    ImageError::NoPlatform {
        offer: match shown {
            [] => String::new(),
            shown => format!("; {} is for {}", image.canonical(), shown.join(", ")),
        },
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
    }
}

async fn plan(session: &Session, image: &ImageRef, platform: &Platform) -> Result<PullPlan, ImageError> {
    let found = find(session, image, platform).await?;
    let Document::Manifest(Manifest { config, layers, .. }) = &found.manifest.document else {
        return Err(no_platform(platform, image, &[]));
    };
    let config_descriptor = config.clone();
    let config = &found.config;
    let pairs = || config.diff_ids.iter().zip(layers);
    let rows = pairs().map(|(diff_id, layer)| ImageLayer {
        diff_id: diff_id.to_string(),
        digest: layer.digest.to_string(),
        size: layer.size,
    });
    let rows: Vec<ImageLayer> = rows.collect();
    let mut seen = HashSet::new();
    let mut work: Vec<_> = pairs()
        .filter(|(id, _)| seen.insert(**id))
        .map(|(id, l)| (*id, l.clone()))
        .collect();
    work.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size));
    Ok(PullPlan {
        layers: rows,
        config_descriptor,
        config_body: found.config_body,
        config: found.config,
        work,
        manifest: found.manifest,
    })
}

/// Downloads everything that is missing and commits the row.
async fn fetch_missing(
    inner: &Arc<Inner>,
    session: &Session,
    image: &ImageRef,
    plan: PullPlan,
    progress: &Tracker,
) -> Result<Arc<Image>, ImageError> {
    progress.planned(&plan.work);
    check_space(inner, &plan.work).await?;
    fetch_layers(inner, session, &plan.work, progress).await?;
    progress.committing();
    let arrived = Arrived {
        manifest: (plan.manifest.digest, plan.manifest.body),
        config: (plan.config_descriptor.digest, plan.config_body),
        read: plan.config,
        layers: plan.layers,
    };
    let (row, pins) = receive::settle(inner, image, arrived).await?;
    let committed = inner.store.transact(move |t| Ok::<_, ImageError>(t.put(row)?)).await;
    drop(pins);
    committed
}

/// Fails if the missing layers cannot fit on the disk.
async fn check_space(inner: &Arc<Inner>, work: &[(Digest, Descriptor)]) -> Result<(), ImageError> {
    let layers = inner.layers.clone();
    let work: Vec<(Digest, u64)> = work.iter().map(|(diff_id, layer)| (*diff_id, layer.size)).collect();
    task::blocking(move || {
        let mut missing = 0_u64;
        for (diff_id, size) in work {
            if !layers.has_layer(&diff_id)? {
                missing = missing.saturating_add(size);
            }
        }
        check_fits(&layers, missing)
    })
    .await
}

/// Downloads the missing layers. After the first failure the others stop too. Returns only when all have ended and
/// their staging directories are gone.
async fn fetch_layers(
    inner: &Arc<Inner>,
    session: &Session,
    work: &[(Digest, Descriptor)],
    progress: &Tracker,
) -> Result<(), ImageError> {
    let stop = CancellationToken::new();
    let mut running: FuturesUnordered<_> = work
        .iter()
        .map(|(diff_id, layer)| fetch_layer(inner, session, diff_id, layer, &stop, progress))
        .collect();
    let mut outcome = Ok(());
    while let Some(result) = running.next().await {
        if outcome.is_ok() && result.is_err() {
            stop.cancel();
            outcome = result;
        }
    }
    outcome
}

async fn fetch_layer(
    inner: &Arc<Inner>,
    session: &Session,
    diff_id: &Digest,
    layer: &Descriptor,
    stop: &CancellationToken,
    progress: &Tracker,
) -> Result<(), ImageError> {
    let _turn = tokio::select! {
        turn = inner.layers.lock_layer(diff_id) => turn,
        () = stop.cancelled() => return Err(given_up()),
    };
    let (layers, wanted) = (inner.layers.clone(), *diff_id);
    let is_present = blocking(move || layers.has_layer(&wanted)).await?;
    if !is_present {
        let _permit = tokio::select! {
            permit = inner.downloads.acquire() => permit.map_err(|e| ImageError::Io(e.into()))?,
            () = stop.cancelled() => return Err(given_up()),
        };
        let expected = Digests {
            blob: layer.digest,
            diff_id: *diff_id,
        };
        let transfer = Transfer {
            inner,
            layer,
            expected,
            stop,
            progress,
        };
        transfer.run(session).await?;
    }
    progress.ready(diff_id, is_present);
    Ok(())
}

fn given_up() -> ImageError {
    ImageError::GivenUp
}

/// The download of one missing layer into the store.
struct Transfer<'a> {
    inner: &'a Arc<Inner>,
    layer: &'a Descriptor,
    expected: Digests,
    stop: &'a CancellationToken,
    progress: &'a Tracker,
}

impl Transfer<'_> {
    /// Downloads from the first mirror that has the valid layer, otherwise from the registry. Each source starts from
    /// the beginning: the data of another one may be wrong.
    async fn run(&self, session: &Session) -> Result<(), ImageError> {
        for mirror in session.mirrors() {
            match self.try_source(mirror).await {
                Err(error @ (ImageError::Registry { .. } | ImageError::BadLayer { .. })) => mirror.log_skipped(&error),
                done => return done,
            }
        }
        self.try_source(session.itself()).await
    }

    /// A blob that came in several ranges and is wrong is downloaded once more as one stream: the server may not know
    /// ranges as well as it says.
    async fn try_source(&self, source: &Source) -> Result<(), ImageError> {
        match self.download(source).await {
            Err(ImageError::BadLayer { .. }) if source.distrust_ranges() => self.download(source).await,
            done => done,
        }
    }

    async fn download(&self, source: &Source) -> Result<(), ImageError> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let unpacking = {
            let (inner, expected) = (self.inner.clone(), self.expected);
            tokio::task::spawn_blocking(move || unpack_layer(&inner, BlobReader::new(receiver), expected))
        };
        let came = AtomicU64::new(0);
        let received = |n| {
            self.inner.activity.pulled(n);
            came.fetch_add(n, Ordering::Relaxed);
            self.progress.received(&self.expected.diff_id, n);
        };
        let downloaded = tokio::select! {
            result = source.download(self.layer, sender, received) => result,
            () = self.stop.cancelled() => Err(given_up()),
        };
        // The sender is gone now, so unpacking comes to its end. If the download failed, that is the reason to tell.
        let unpacked = unpacking.await.map_err(ImageError::unfinished("unpacking failed"));
        let outcome = downloaded.and_then(|()| unpacked?);
        if outcome.is_err() {
            let lost = came.into_inner();
            self.progress.lost(&self.expected.diff_id, lost);
        }
        outcome
    }
}

/// Unpacks a layer from a channel and publishes it if its digests match.
fn unpack_layer(inner: &Inner, blob: BlobReader, expected: Digests) -> Result<(), ImageError> {
    let check = |found: &Digests| {
        if found.blob != expected.blob {
            return Err(format!("digest mismatch: the registry sent {}", found.blob));
        }
        if found.diff_id != expected.diff_id {
            let (wanted, found) = (expected.diff_id, found.diff_id);
            return Err(format!("diff id mismatch: {wanted} unpacks to {found}"));
        }
        Ok(())
    };
    receive::layer(inner, blob, &expected.blob.to_string(), check).map(drop)
}
