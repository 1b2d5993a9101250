//! Takes images from an archive that a client sends.
//!
//! ```text
//! upload -> (gzip | zstd) -> spool -> images -> pin -> missing layers -> documents -> sync -> all rows at once
//! ```
//! Nothing is visible before the rows are committed, all in one transaction. After a failure or a crash, the sweep
//! removes the layers, and the start empties the staging area.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::index::{Found, images};
use super::spool::{Spool, SpoolError, Spooled};
use crate::image::digest::Digest;
use crate::image::layers::{Pins, Staged};
use crate::image::names::under;
use crate::image::printable::printable;
use crate::image::receive::{self, Arrived};
use crate::image::room::Room;
use crate::image::stream::{BlobReader, LayerLimits, LayerReader};
use crate::image::{ImageError, ImageRef, ImageService, Inner, Platform, blocking, stack};
use crate::model::Image;
use crate::observe::metrics::Verb;
use crate::ops::progress::{ProgressEvent, Reporter, Transfer, TransferState};
use crate::ops::task::{self, detached};

/// How many chunks of an upload are buffered.
const PIECES: usize = 16;
/// Idle timeout of a client that sends an archive.
const IDLE: Duration = Duration::from_secs(60);
/// An archive may have so many times the bytes that one layer may have.
const LAYERS: u64 = 4;
/// How many layers are unpacked at once.
const AT_ONCE: usize = 2;
const BUFFER: usize = 128 << 10;

/// An archive as it arrives.
pub(super) type Upload = BoxStream<'static, io::Result<Bytes>>;

/// What became of an archive.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The images, one for each name.
    pub images: Vec<Arc<Image>>,
}

impl ImageService {
    /// Loads all images of an archive, which replace images of the same names. `tag` is the name of an image that the
    /// archive does not name, or names by a tag only. Continues if its caller is dropped after the upload has ended.
    pub async fn load(
        &self,
        upload: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        tag: Option<ImageRef>,
        reporter: Reporter,
    ) -> Result<Loaded, ImageError> {
        let (service, mut upload) = (self.clone(), upload.boxed());
        detached(async move {
            let load = service.run_load(&mut upload, tag, &reporter);
            let loaded = service.0.activity.observe(Verb::ImageLoad, load).await;
            if let Err(error) = &loaded {
                tracing::warn!(%error, "load failed");
                discard(upload, service.0.settings.max_layer_bytes).await;
            }
            service.sweep_or_warn().await;
            loaded
        })
        .await
    }

    async fn run_load(
        &self,
        upload: &mut Upload,
        tag: Option<ImageRef>,
        reporter: &Reporter,
    ) -> Result<Loaded, ImageError> {
        let inner = &self.0;
        reporter.report(ProgressEvent::Phase("receiving")).await;
        let (spool, _directory) = receive_archive(inner, upload).await?;
        let found = task::blocking(move || images(&spool, &Platform::host()).map_err(refused)).await?;
        let found = named(found, tag)?;
        reporter.report(ProgressEvent::Phase("layers")).await;
        let _pins = pin(inner, &found);
        unpack(inner, &found, reporter).await?;
        reporter.report(ProgressEvent::Phase("committing")).await;
        let (mut rows, mut pins) = (Vec::new(), Vec::new());
        for (names, image) in found {
            let arrived = Arrived {
                manifest: image.manifest,
                config: image.config,
                read: image.read,
                layers: image.layers.into_iter().map(|(layer, _)| layer).collect(),
            };
            let (row, pinned) = receive::settle(inner, &names[0], arrived).await?;
            pins.push(pinned);
            rows.extend(names.iter().map(|name| under(&row, name)));
        }
        let committed = inner.store.transact(move |t| {
            let rows = rows.into_iter().map(|row| t.put(row));
            Ok::<_, ImageError>(rows.collect::<Result<Vec<_>, _>>()?)
        });
        let images = committed.await?;
        for image in &images {
            tracing::info!(image = image.id, digest = image.manifest_digest, "image loaded");
        }
        Ok(Loaded { images })
    }
}

/// Every image with its names; `tag` goes to the one that has none.
fn named(found: Vec<Found>, mut tag: Option<ImageRef>) -> Result<Vec<(Vec<ImageRef>, Found)>, ImageError> {
    let number = found.len();
    let mut all = Vec::new();
    for image in found {
        let mut names = image.names.clone();
        if names.is_empty() {
            let name = tag.take().ok_or_else(|| {
                let said = match &image.tag {
                    Some(tag) => format!("names an image only \"{}\"", printable(tag.as_bytes())),
                    None => "does not name an image".to_owned(),
                };
                ImageError::BadArchive(format!(
                    "it {said} ({number} in all); say what it is to be called, as in ?tag=team/app:1.0"
                ))
            })?;
            names.push(name);
        }
        all.push((names, image));
    }
    match tag {
        Some(tag) => Err(ImageError::BadArchive(format!(
            "every image in it has a name, so none can be called {tag}; load it without tag, and use POST /v1/images/tag"
        ))),
        None => Ok(all),
    }
}

pub(super) fn refused(error: SpoolError) -> ImageError {
    match error {
        SpoolError::Refused(message) => ImageError::BadArchive(message),
        SpoolError::System(error) => error.into(),
    }
}

/// Takes an upload apart. The files exist as long as the directory does.
async fn receive_archive(inner: &Arc<Inner>, upload: &mut Upload) -> Result<(Spool, Staged), ImageError> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let working = inner.clone();
    let work = task::blocking(move || {
        let directory = working.layers.stage()?;
        let each = receive::limits(&working);
        let limits = LayerLimits {
            bytes: each.bytes.saturating_mul(LAYERS),
            ..each
        };
        let read = |e: io::Error| ImageError::BadArchive(e.to_string());
        let room = Room::new(&working.layers)?;
        let reader = Roomy {
            reader: LayerReader::new(BlobReader::new(receiver), limits).map_err(read)?,
            room: &room,
            read: 0,
        };
        let spooled = Spool::fill(BufReader::with_capacity(BUFFER, reader), directory.path());
        let spool = spooled.map_err(|error| {
            let is_system = matches!(error, SpoolError::System(_));
            room.reason(is_system).unwrap_or_else(|| refused(error))
        })?;
        Ok::<_, ImageError>((spool, directory))
    });
    let (sent, spooled) = tokio::join!(send(upload, sender), work);
    // A broken upload looks like a short archive.
    match (sent, spooled) {
        (Err(broken), Ok(_) | Err(ImageError::BadArchive(_))) => Err(broken),
        (_, spooled) => spooled,
    }
}

/// Fails when what is read would fill the disk.
struct Roomy<'a, R> {
    reader: R,
    room: &'a Room,
    read: u64,
}

impl<R: Read> Read for Roomy<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let before = self.read;
        self.read += read as u64;
        self.room.check(before, self.read)?;
        Ok(read)
    }
}

/// Passes an upload on, as long as somebody takes it.
pub(super) async fn send(upload: &mut Upload, pieces: mpsc::Sender<Bytes>) -> Result<u64, ImageError> {
    let ended = |why: String| ImageError::BadArchive(format!("the upload ended early: {why}"));
    let mut sent = 0;
    loop {
        match tokio::time::timeout(IDLE, upload.next()).await {
            Ok(None) => return Ok(sent),
            Ok(Some(Ok(piece))) => {
                sent += piece.len() as u64;
                if pieces.send(piece).await.is_err() {
                    return Ok(sent);
                }
            }
            Ok(Some(Err(error))) => return Err(ended(error.to_string())),
            Err(_) => return Err(ended(format!("no data for {} s", IDLE.as_secs()))),
        }
    }
}

/// Reads the rest of a client's upload, at most `left` bytes: most clients read the answer only after they have sent
/// everything.
pub(super) async fn discard(mut upload: Upload, mut left: u64) {
    while let Ok(Some(Ok(piece))) = tokio::time::timeout(IDLE, upload.next()).await {
        match left.checked_sub(piece.len() as u64) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

fn pin(inner: &Arc<Inner>, found: &[(Vec<ImageRef>, Found)]) -> Pins {
    let digests = found.iter().flat_map(|(_, image)| {
        let ids: Vec<String> = image.layers.iter().map(|(layer, _)| layer.diff_id.clone()).collect();
        [image.manifest.0, image.config.0]
            .into_iter()
            .chain(stack::digests(&ids))
    });
    inner.layers.pin(digests.collect())
}

/// Unpacks the layers that are not in the store, each once.
async fn unpack(inner: &Arc<Inner>, found: &[(Vec<ImageRef>, Found)], reporter: &Reporter) -> Result<(), ImageError> {
    let mut work: HashMap<Digest, Spooled> = HashMap::new();
    for (_, image) in found {
        let files = image.layers.iter().map(|(_, file)| file.clone());
        work.extend(image.read.diff_ids.iter().copied().zip(files));
    }
    let one = |(diff_id, file)| unpack_one(inner.clone(), diff_id, file, reporter.clone());
    stream::iter(work)
        .map(one)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
}

async fn unpack_one(inner: Arc<Inner>, diff_id: Digest, file: Spooled, reporter: Reporter) -> Result<(), ImageError> {
    let _turn = inner.layers.lock_layer(&diff_id).await;
    let event = {
        let (digest, total): (Arc<str>, u64) = (file.digest.to_string().into(), file.size);
        move |state, done| {
            let digest = digest.clone();
            ProgressEvent::Transfer(Transfer {
                digest,
                state,
                done,
                total,
            })
        }
    };
    let store = inner.layers.clone();
    if blocking(move || store.has_layer(&diff_id)).await? {
        reporter.report(event(TransferState::Present, file.size)).await;
        return Ok(());
    }
    let (pieces, receiver) = mpsc::channel(PIECES);
    let (name, size) = (file.digest.to_string(), file.size);
    let (told, telling) = (reporter.clone(), event.clone());
    let reading = blocking(move || {
        let (mut opened, mut done) = (fs_err::File::open(&file.path)?, 0);
        loop {
            let mut piece = vec![0; BUFFER];
            let read = opened.read(&mut piece)?;
            piece.truncate(read);
            // Without a receiver the unpacker has ended, and knows why.
            if read == 0 || pieces.blocking_send(piece.into()).is_err() {
                return Ok(());
            }
            done += read as u64;
            told.report_lossy(telling(TransferState::Downloading, done));
        }
    });
    let unpacking = task::blocking(move || {
        let check = |found: &crate::image::stream::Digests| match found.diff_id == diff_id {
            true => Ok(()),
            false => Err(format!("diff id mismatch: {diff_id} unpacks to {}", found.diff_id)),
        };
        receive::layer(&inner, BlobReader::new(receiver), &name, check)
    });
    let (read, unpacked) = tokio::join!(reading, unpacking);
    read?;
    unpacked.map_err(|error| match error {
        ImageError::BadLayer { layer, message } => ImageError::BadArchive(format!("its layer {layer}: {message}")),
        other => other,
    })?;
    reporter.report(event(TransferState::Done, size)).await;
    Ok(())
}
