//! The only task that changes the kernel's rules.

use tokio::sync::{mpsc, oneshot, watch};

use super::desired;
use crate::model::Snapshot;
use crate::net::bridges::Uplink;
use crate::net::firewall::{DesiredRules, FirewallError, FirewallSettings, Flow, PacketFilter, sever};
use crate::store::Store;

/// Handle to the firewall. Clones share it; when the last one is dropped, its task ends and the rules stay.
#[derive(Clone)]
pub struct Firewall {
    requests: mpsc::UnboundedSender<Request>,
    sources: Sources,
}

/// The inputs of the rules.
#[derive(Clone)]
struct Sources {
    store: Store,
    uplink: watch::Receiver<Option<Uplink>>,
    settings: FirewallSettings,
}

impl Sources {
    fn desired_of(&self, snapshot: &Snapshot) -> DesiredRules {
        desired(snapshot, self.uplink.borrow().as_ref(), &self.settings)
    }
}

enum Request {
    Apply(oneshot::Sender<Result<(), FirewallError>>),
    Verify(oneshot::Sender<Result<bool, FirewallError>>),
    Try(Change, oneshot::Sender<Result<Trial, FirewallError>>),
}

/// Computes a proposed state, whose rules are tried first, from the current state.
type Change = Box<dyn FnOnce(&Snapshot) -> Snapshot + Send>;

/// The kernel holds rules that are not in the store yet. Until this is dropped, the kernel gets no other rules;
/// afterwards it gets those of the store.
#[must_use = "dropping it ends the trial"]
pub struct Trial {
    _end: oneshot::Sender<()>,
}

impl Firewall {
    /// Takes over the rules that an earlier run or the original daemon left, applies those of the current snapshot,
    /// reads them back, and starts to watch the uplink. If the host has no working ip6tables, log that once and skip
    /// IPv6.
    pub async fn start(
        store: Store,
        uplink: watch::Receiver<Option<Uplink>>,
        settings: FirewallSettings,
    ) -> Result<Self, FirewallError> {
        let sources = Sources {
            store,
            uplink,
            settings,
        };
        let mut worker = Worker {
            filter: PacketFilter::find(sources.settings.variant)?,
            sources: sources.clone(),
        };
        let now = worker.sources.store.snapshot();
        let desired = worker.desired_of(&now);
        worker.filter.take_over(&desired).await?;
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(worker.run(requests));
        Ok(Self {
            requests: sender,
            sources,
        })
    }

    /// The inputs of the rules for a snapshot, with the current uplink.
    pub fn desired_of(&self, snapshot: &Snapshot) -> DesiredRules {
        self.sources.desired_of(snapshot)
    }

    /// Applies the rules of the state that `change` would produce before that state is stored: for changes that must
    /// not be stored if the kernel refuses them. On an error the kernel holds the rules of the store.
    pub async fn try_out(
        &self,
        change: impl FnOnce(&Snapshot) -> Snapshot + Send + 'static,
    ) -> Result<Trial, FirewallError> {
        self.ask(|answer| Request::Try(Box::new(change), answer)).await
    }

    /// Returns when the kernel holds the rules of the snapshot at the time of the call, or of a later one. Concurrent
    /// calls share one run of the tool; if the rules are already in place, nothing is run. On an error each table holds
    /// either all of its old or all of its new rules.
    pub async fn apply(&self) -> Result<(), FirewallError> {
        self.ask(Request::Apply).await
    }

    /// Ends established flows that the rules now deny; otherwise they would pass forever. If this fails, the flows stay
    /// and the failure is logged.
    pub async fn sever(&self, denied: impl Fn(&Flow) -> bool) {
        match sever(denied).await {
            Ok(flows) => tracing::debug!(flows, "flows that are denied now are ended"),
            Err(error) => tracing::warn!(%error, "flows that are denied now may go on"),
        }
    }

    /// Compares the kernel's rules with ours and restores what others changed, removed or flushed. `true` if anything
    /// had to be restored.
    pub async fn verify_and_repair(&self) -> Result<bool, FirewallError> {
        self.ask(Request::Verify).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, FirewallError>>) -> Request,
    ) -> Result<T, FirewallError> {
        let (sender, answer) = oneshot::channel();
        self.requests
            .send(request(sender))
            .map_err(|_| FirewallError::Stopped)?;
        answer.await.unwrap_or(Err(FirewallError::Stopped))
    }
}

struct Worker {
    sources: Sources,
    filter: PacketFilter,
}

impl Worker {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut timer = tokio::time::interval(self.sources.settings.verify_every);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.reset();
        let mut uplink_is_followed = true;
        loop {
            let trouble = tokio::select! {
                request = requests.recv() => {
                    let Some(first) = request else { return };
                    let mut batch = vec![first];
                    while let Ok(next) = requests.try_recv() {
                        batch.push(next);
                    }
                    self.serve(batch).await;
                    None
                }
                changed = self.sources.uplink.changed(), if uplink_is_followed => {
                    uplink_is_followed = changed.is_ok();
                    self.apply().await.err()
                }
                _ = timer.tick() => self.verify().await.err(),
            };
            if let Some(error) = trouble {
                tracing::error!(%error, "the packet filter is out of date");
            }
        }
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let mut applies = Vec::new();
        let mut verifications = Vec::new();
        let mut trials = Vec::new();
        for request in batch {
            match request {
                Request::Apply(answer) => applies.push(answer),
                Request::Verify(answer) => verifications.push(answer),
                Request::Try(change, answer) => trials.push((change, answer)),
            }
        }
        // The caller may have stopped waiting; the work is done anyway.
        if !applies.is_empty() {
            let result = self.apply().await;
            applies.into_iter().for_each(|answer| drop(answer.send(result.clone())));
        }
        if !verifications.is_empty() {
            let result = self.verify().await;
            verifications
                .into_iter()
                .for_each(|answer| drop(answer.send(result.clone())));
        }
        for (change, answer) in trials {
            self.try_out(change, answer).await;
        }
    }

    async fn try_out(&mut self, change: Change, answer: oneshot::Sender<Result<Trial, FirewallError>>) {
        let candidate = change(&self.sources.store.snapshot());
        match self.bring_to(&candidate).await {
            Ok(()) => {
                let (end, ended) = oneshot::channel();
                drop(answer.send(Ok(Trial { _end: end })));
                // Nothing is ever sent: it ends when the other side is dropped.
                let _ = ended.await;
            }
            Err(error) => drop(answer.send(Err(error))),
        }
        if let Err(error) = self.apply().await {
            tracing::error!(%error, "the packet filter is out of date");
        }
    }

    fn desired_of(&mut self, snapshot: &Snapshot) -> DesiredRules {
        self.sources.uplink.mark_unchanged();
        self.sources.desired_of(snapshot)
    }

    async fn apply(&mut self) -> Result<(), FirewallError> {
        let now = self.sources.store.snapshot();
        self.bring_to(&now).await
    }

    async fn bring_to(&mut self, snapshot: &Snapshot) -> Result<(), FirewallError> {
        let desired = self.desired_of(snapshot);
        self.filter.apply(&desired).await
    }

    async fn verify(&mut self) -> Result<bool, FirewallError> {
        let now = self.sources.store.snapshot();
        let desired = self.desired_of(&now);
        self.filter.verify(&desired).await
    }
}
