//! The one task that owns the kernel's rules.

use tokio::sync::{mpsc, oneshot, watch};

use super::conntrack::{self, Flow};
use super::plan::{JUMPS, JUMPS6, Jump, Scope, above_ours, applied, plan};
use super::state::{FirewallState, PublishedPort};
use super::tables::Tables;
use super::tool::{Family, Tool, Variant};
use super::{FirewallError, FirewallSettings, Ruleset, legacy, render};
use crate::network::Uplink;
use crate::store::{Protocol, Snapshot, Store};

/// Handle to the firewall. Clones share it; when the last one is dropped its task ends and the rules stay.
#[derive(Clone)]
pub struct Firewall {
    requests: mpsc::UnboundedSender<Request>,
    sources: Sources,
}

/// What the rules are computed from.
#[derive(Clone)]
struct Sources {
    store: Store,
    uplink: watch::Receiver<Option<Uplink>>,
    settings: FirewallSettings,
}

impl Sources {
    fn state_of(&self, snapshot: &Snapshot) -> FirewallState {
        FirewallState::compute(snapshot, self.uplink.borrow().as_ref(), &self.settings)
    }
}

enum Request {
    Apply(oneshot::Sender<Result<(), FirewallError>>),
    Verify(oneshot::Sender<Result<bool, FirewallError>>),
    Try(Change, oneshot::Sender<Result<Trial, FirewallError>>),
}

/// From the state of the store to the one whose rules are tried.
type Change = Box<dyn FnOnce(&Snapshot) -> Snapshot + Send>;

/// Rules are in the kernel that the store does not say yet. Until this is dropped the kernel gets no others; then it
/// gets those of the store.
#[must_use = "dropping it ends the trial"]
pub struct Trial {
    _end: oneshot::Sender<()>,
}

impl Firewall {
    /// Takes over whatever an earlier run or the original daemon left, applies the rules of the current snapshot, reads
    /// them back, and begins to follow the uplink. A host without working ip6tables is logged once and left at that.
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
        let variant = sources.settings.variant;
        let mut worker = Worker {
            v4: Side::new(Tool::find(variant, Family::V4)?, JUMPS),
            v6: Tool::find(variant, Family::V6).map(|tool| Side::new(tool, JUMPS6)),
            sources: sources.clone(),
            swept: None,
        };
        worker.take_over().await?;
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(worker.run(requests));
        Ok(Self {
            requests: sender,
            sources,
        })
    }

    /// What the rules of a snapshot are about, with the uplink as it is now.
    pub fn state_of(&self, snapshot: &Snapshot) -> FirewallState {
        self.sources.state_of(snapshot)
    }

    /// Brings the kernel to the rules of what `change` makes of the store's state, before the store has it: for changes
    /// that must not be stored when the kernel refuses them. On an error the kernel holds the rules of the store.
    pub async fn try_out(
        &self,
        change: impl FnOnce(&Snapshot) -> Snapshot + Send + 'static,
    ) -> Result<Trial, FirewallError> {
        self.ask(|answer| Request::Try(Box::new(change), answer)).await
    }

    /// Returns when the rules of the snapshot at the time of the call, or of a later one, are in the kernel. Calls that
    /// come together share one run of the tool; when the rules are there already nothing is run. On an error each table
    /// holds either its old or its new rules, entirely.
    pub async fn apply(&self) -> Result<(), FirewallError> {
        self.ask(Request::Apply).await
    }

    /// Ends the established flows that are denied now: the rules let them pass for ever. A failure leaves them, and is
    /// logged.
    pub async fn sever(&self, denied: impl Fn(&Flow) -> bool) {
        match conntrack::sever(denied).await {
            Ok(flows) => tracing::debug!(flows, "flows that are denied now are ended"),
            Err(error) => tracing::warn!(%error, "flows that are denied now may go on"),
        }
    }

    /// Compares the kernel's rules with ours and puts back what others changed, removed or flushed. `true` when
    /// something had to be put back.
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

/// Removes all our rules and chains, and those of the original daemon, for good: for an uninstallation. No daemon may be
/// running. The second family is tried even if the first fails.
pub async fn remove_all(variant: Variant) -> Result<(), FirewallError> {
    let v4 = match Tool::find(variant, Family::V4) {
        Ok(tool) => Side::new(tool, &[])
            .reconcile("", Scope::Takeover(legacy::is_leftover))
            .await
            .map(drop),
        Err(error) => Err(error),
    };
    if let Ok(tool) = Tool::find(variant, Family::V6) {
        let v6 = Side::new(tool, &[]).reconcile("", Scope::Upkeep).await;
        if let Err(error) = v6 {
            tracing::warn!(%error, "IPv6 rules are left");
        }
    }
    v4
}

struct Worker {
    sources: Sources,
    v4: Side,
    /// Or why there is none.
    v6: Result<Side, FirewallError>,
    /// The ways of UDP that the kernel's flows were last compared with.
    swept: Option<Vec<PublishedPort>>,
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
        // Nobody may wait for an answer any more; the work is done all the same.
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

    fn desired(&mut self) -> (FirewallState, Ruleset) {
        self.desired_of(&self.sources.store.snapshot())
    }

    fn desired_of(&mut self, snapshot: &Snapshot) -> (FirewallState, Ruleset) {
        self.sources.uplink.mark_unchanged();
        let state = self.sources.state_of(snapshot);
        let rules = render(&state);
        (state, rules)
    }

    async fn take_over(&mut self) -> Result<(), FirewallError> {
        let (state, rules) = self.desired();
        let changed = self
            .v4
            .reconcile(&rules.v4, Scope::Takeover(legacy::is_leftover))
            .await?;
        let again = self
            .v4
            .reconcile(&rules.v4, Scope::Takeover(legacy::is_leftover))
            .await?;
        if !again.is_empty() {
            return Err(FirewallError::Unverified(format!("{} differ", again.join(", "))));
        }
        if let Ok(v6) = &mut self.v6
            && let Err(error) = v6.reconcile(&rules.v6, Scope::Takeover(|_, _, _| false)).await
        {
            self.v6 = Err(error);
        }
        if let Err(error) = &self.v6 {
            tracing::error!(%error, "IPv6 between containers of one network is not filtered");
        }
        tracing::info!(?changed, "packet filter rules are in place");
        self.sweep(&state).await;
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), FirewallError> {
        self.bring_to(&self.sources.store.snapshot()).await
    }

    async fn bring_to(&mut self, snapshot: &Snapshot) -> Result<(), FirewallError> {
        let (state, rules) = self.desired_of(snapshot);
        self.v4.bring_to(&rules.v4).await?;
        if let Ok(v6) = &mut self.v6 {
            v6.bring_to(&rules.v6).await?;
        }
        self.sweep(&state).await;
        Ok(())
    }

    async fn verify(&mut self) -> Result<bool, FirewallError> {
        let (state, rules) = self.desired();
        let mut repaired = self.v4.verify(&rules.v4).await?;
        match &mut self.v6 {
            Ok(v6) => repaired.extend(v6.verify(&rules.v6).await?),
            Err(_) => self.try_v6(&rules.v6).await,
        }
        if !repaired.is_empty() {
            tracing::warn!(?repaired, "packet filter rules were changed by others and are put back");
        }
        self.sweep(&state).await;
        Ok(!repaired.is_empty())
    }

    /// Tools that were missing at start may be there now. That they are not has been told.
    async fn try_v6(&mut self, text: &str) {
        let Ok(tool) = Tool::find(self.sources.settings.variant, Family::V6) else {
            return;
        };
        let mut v6 = Side::new(tool, JUMPS6);
        if v6.reconcile(text, Scope::Takeover(|_, _, _| false)).await.is_ok() {
            tracing::info!("IPv6 between containers of one network is filtered now");
            self.v6 = Ok(v6);
        }
    }

    /// Only when the ways of UDP changed; a failure leaves stale flows, which end when their clients fall silent.
    async fn sweep(&mut self, state: &FirewallState) {
        let mut udp = state.ways();
        udp.retain(|way| way.protocol == Protocol::Udp);
        if self.swept.as_ref() == Some(&udp) {
            return;
        }
        match conntrack::sweep(state).await {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(flows, "stale UDP flows deleted"),
            Err(error) => tracing::warn!(%error, "stale UDP flows may be left"),
        }
        self.swept = Some(udp);
    }
}

/// The rules of one family: what we believe the kernel holds, and the tool to change it with.
struct Side {
    tool: Tool,
    jumps: &'static [Jump],
    /// The rendered text in force and the same as data; `None` when the kernel has to be asked.
    known: Option<(String, Tables)>,
    /// The rule of others that stood above ours at the last verification.
    above: Option<String>,
    /// Whether it is left there.
    yields: bool,
}

impl Side {
    fn new(tool: Tool, jumps: &'static [Jump]) -> Self {
        Self {
            tool,
            jumps,
            known: None,
            above: None,
            yields: false,
        }
    }

    /// Applies the difference to what we believe; one run of the tool or none. If that is refused, the belief may be
    /// wrong, and the kernel is asked.
    async fn bring_to(&mut self, text: &str) -> Result<(), FirewallError> {
        if let Some((known, tables)) = &self.known {
            if known == text {
                return Ok(());
            }
            let desired = Tables::parse(text);
            let outcome = match plan(tables, &desired, self.jumps, Scope::Change) {
                Some(plan) => self.tool.restore(&plan.input).await,
                None => Ok(()),
            };
            match outcome {
                Ok(()) => {
                    self.known = Some((text.to_owned(), applied(&desired, self.jumps)));
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "packet filter rules were refused; comparing with the kernel"),
            }
        }
        self.reconcile(text, Scope::Upkeep).await.map(drop)
    }

    /// Asks the kernel and applies the difference. Returns what differed, as `table/chain`.
    async fn reconcile(&mut self, text: &str, scope: Scope) -> Result<Vec<String>, FirewallError> {
        self.known = None;
        let kernel = Tables::parse(&self.tool.save().await?);
        self.bring_from(&kernel, text, scope).await
    }

    /// The same for the periodic comparison, which minds what others have put above ours.
    async fn verify(&mut self, text: &str) -> Result<Vec<String>, FirewallError> {
        self.known = None;
        let kernel = Tables::parse(&self.tool.save().await?);
        let scope = self.scope_below(above_ours(&kernel, self.jumps));
        self.bring_from(&kernel, text, scope).await
    }

    /// A rule above ours may bypass policy, so ours are moved back to the top (`docs/spec/policy.md` P-20). Is it above
    /// ours again at the next comparison, its program insists, and moving would go on for ever.
    fn scope_below(&mut self, above: Option<String>) -> Scope {
        let before = std::mem::replace(&mut self.above, above);
        match &self.above {
            None => {
                self.yields = false;
                Scope::Upkeep
            }
            Some(rule) if before.as_ref() == Some(rule) => {
                if !std::mem::replace(&mut self.yields, true) {
                    tracing::warn!(
                        rule,
                        "another program puts a rule above ours again and again; it may bypass policy"
                    );
                }
                Scope::Yield
            }
            Some(rule) => {
                self.yields = false;
                tracing::warn!(
                    rule,
                    "another program has put a rule above ours; ours are moved to the top"
                );
                Scope::Upkeep
            }
        }
    }

    async fn bring_from(&mut self, kernel: &Tables, text: &str, scope: Scope) -> Result<Vec<String>, FirewallError> {
        let desired = Tables::parse(text);
        let plan = plan(kernel, &desired, self.jumps, scope);
        if let Some(plan) = &plan {
            self.tool.restore(&plan.input).await?;
        }
        self.known = Some((text.to_owned(), applied(&desired, self.jumps)));
        Ok(plan.map(|p| p.differing).unwrap_or_default())
    }
}
