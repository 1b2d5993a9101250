//! What a pull tells on the way. Several callers may wait for one pull; each is told what it has not been told yet.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::digest::Digest;
use super::manifest::Descriptor;
use crate::ops::progress::{ProgressEvent, Reporter, Transfer, TransferState};

/// Shortest time between two reports to one caller.
const PACE: Duration = Duration::from_millis(100);

/// Progress of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Compressed bytes to download, known once the manifest is.
    pub total_bytes: u64,
    /// Bytes received so far.
    pub received_bytes: u64,
    /// Layers to unpack.
    pub total_layers: usize,
    /// Layers unpacked so far.
    pub ready_layers: usize,
}

/// Where a pull says how far it is.
#[derive(Debug)]
pub(super) struct Tracker {
    totals: watch::Sender<Progress>,
    details: watch::Sender<Details>,
}

/// Where others see it.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub totals: watch::Receiver<Progress>,
    details: watch::Receiver<Details>,
}

/// Phases and layers of a pull.
#[derive(Debug, Clone, Default)]
struct Details {
    /// By diff id; known once the manifest is. Those that were told are compared by their place, which does not change.
    layers: Option<Vec<(Digest, Transfer)>>,
    committing: bool,
}

impl Tracker {
    pub(super) fn new() -> (Self, Watched) {
        let (totals, totals_seen) = watch::channel(Progress::default());
        let (details, details_seen) = watch::channel(Details::default());
        let watched = Watched {
            totals: totals_seen,
            details: details_seen,
        };
        (Self { totals, details }, watched)
    }

    /// The layers are known, each once, with their diff ids.
    pub(super) fn planned(&self, work: &[(Digest, Descriptor)]) {
        self.totals.send_modify(|p| {
            p.total_layers = work.len();
            // The sizes are those in the manifest.
            p.total_bytes = work.iter().map(|(_, layer)| layer.size).fold(0, u64::saturating_add);
        });
        let layers = work.iter().map(|(diff_id, layer)| {
            let transfer = Transfer {
                digest: layer.digest.to_string().into(),
                state: TransferState::Waiting,
                done: 0,
                total: layer.size,
            };
            (*diff_id, transfer)
        });
        let layers = Some(layers.collect());
        self.details.send_modify(|details| details.layers = layers);
    }

    /// All layers are there; documents and row are written.
    pub(super) fn committing(&self) {
        self.details.send_modify(|details| details.committing = true);
    }

    /// So many bytes of a layer have come.
    pub(super) fn received(&self, diff_id: &Digest, bytes: u64) {
        self.totals.send_modify(|p| p.received_bytes += bytes);
        self.change(diff_id, |layer| {
            layer.state = TransferState::Downloading;
            layer.done += bytes;
        });
    }

    /// So many of them are of no use.
    pub(super) fn lost(&self, diff_id: &Digest, bytes: u64) {
        self.totals.send_modify(|p| p.received_bytes -= bytes);
        self.change(diff_id, |layer| layer.done = layer.done.saturating_sub(bytes));
    }

    /// A layer is unpacked.
    pub(super) fn ready(&self, diff_id: &Digest, was_present: bool) {
        self.totals.send_modify(|p| p.ready_layers += 1);
        self.change(diff_id, |layer| {
            layer.state = match was_present {
                true => TransferState::Present,
                false => TransferState::Done,
            };
        });
    }

    fn change(&self, diff_id: &Digest, change: impl FnOnce(&mut Transfer)) {
        self.details.send_modify(|details| {
            let mut layers = details.layers.iter_mut().flatten();
            if let Some((_, layer)) = layers.find(|(id, _)| id == diff_id) {
                change(layer);
            }
        });
    }
}

impl Watched {
    /// Waits for `done` and reports meanwhile: first what has happened so far, then what changes.
    pub(super) async fn report<T>(mut self, reporter: &Reporter, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        reporter.report(ProgressEvent::Phase("resolving")).await;
        let mut told = Details::default();
        loop {
            let now = self.details.borrow_and_update().clone();
            told = tell(told, now, reporter).await;
            tokio::select! {
                biased;
                result = &mut done => {
                    let last = self.details.borrow_and_update().clone();
                    tell(told, last, reporter).await;
                    return result;
                }
                // After the end of the pull there are no changes, and `done` follows in a moment.
                _ = async { tokio::join!(self.details.changed(), sleep(PACE)) } => {}
            }
        }
    }
}

/// Reports the difference.
async fn tell(before: Details, now: Details, reporter: &Reporter) -> Details {
    if before.layers.is_none() && now.layers.is_some() {
        reporter.report(ProgressEvent::Phase("layers")).await;
    }
    let told = before.layers.unwrap_or_default();
    for (n, (_, layer)) in now.layers.iter().flatten().enumerate() {
        let told = told.get(n).map(|(_, layer)| layer);
        if told == Some(layer) {
            continue;
        }
        let event = ProgressEvent::Transfer(layer.clone());
        match told.map(|told| told.state) == Some(layer.state) {
            true => reporter.report_lossy(event),
            false => reporter.report(event).await,
        }
    }
    if now.committing && !before.committing {
        reporter.report(ProgressEvent::Phase("committing")).await;
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(event: &ProgressEvent) -> String {
        match event {
            ProgressEvent::Phase(phase) => (*phase).to_owned(),
            ProgressEvent::Transfer(t) => format!("{} {:?} {}/{}", &t.digest[7..9], t.state, t.done, t.total),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_late_is_told_what_has_happened_and_all_are_told_the_end() {
        let (tracker, watched) = Tracker::new();
        let [a, b] = ["a", "b"].map(|text| Digest::of(text.as_bytes()));
        let descriptor = |digest, size| Descriptor { digest, size };
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let ended = futures_util::FutureExt::shared(async { ended.await.is_ok() });
        let listen = |watched: Watched| {
            let (reporter, mut events) = Reporter::channel();
            let ended = ended.clone();
            let reporting = tokio::spawn(async move { watched.report(&reporter, ended).await });
            tokio::spawn(async move {
                let mut all = Vec::new();
                while let Some(event) = events.recv().await {
                    all.push(said(&event));
                }
                assert!(reporting.await.unwrap());
                all
            })
        };
        let early = listen(watched.clone());
        sleep(PACE * 2).await;
        tracker.planned(&[(a, descriptor(a, 10)), (b, descriptor(b, 20))]);
        tracker.ready(&b, true);
        tracker.received(&a, 4);
        sleep(PACE * 2).await;
        let late = listen(watched.clone());
        sleep(PACE * 2).await;
        tracker.lost(&a, 4);
        tracker.received(&a, 10);
        tracker.ready(&a, false);
        tracker.committing();
        end.send(()).unwrap();
        let [a, b] = [a, b].map(|digest| digest.to_string()[7..9].to_owned());
        let common = [
            "resolving".to_owned(),
            "layers".to_owned(),
            format!("{a} Downloading 4/10"),
            format!("{b} Present 0/20"),
            format!("{a} Done 10/10"),
            "committing".to_owned(),
        ];
        for told in [early, late] {
            assert_eq!(told.await.unwrap(), common);
        }
        let totals = Progress {
            total_bytes: 30,
            received_bytes: 10,
            total_layers: 2,
            ready_layers: 2,
        };
        assert_eq!(*watched.totals.borrow(), totals);
    }
}
