//! Replica sets: as many pods of a template as are wanted, kept alive.
//!
//! ```text
//! kept true --remove--> removing --last pod gone--> (gone)
//! ```
//!
//! This module owns the rows of sets, and which pods there are of each. What to change is decided (`set_plan`) and
//! written in one transaction: rows of new pods with names of their own, owners of adopted ones, goals of those that go.
//! So nothing is ever made twice for one gap, and a crash leaves either all of a decision or nothing. Carrying out the
//! goals is the [`PodController`](super::PodController)'s, as are pods that fail: a set counts them and waits.
//!
//! What it never does: start, stop or restart a container, or touch a pod that belongs to nobody unless it adopts it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;

use super::plan;
use super::plan::{Changes, Fitness, Replica, Wanted};
use crate::model::{
    Claim, Kind, Pod, PodGoal, PodProblem, PodState, PodStatus, PodTemplate, ReplicaSet, Rollout, Snapshot, Txn,
    UpdateStrategy, by_creation, fresh_ulid, pod_status, pod_statuses,
};
use crate::ops::task::{Operations, Unfinished};
use crate::store::{Store, StoreError};
use crate::workload::pod::{PodError, PodService, fresh_id};

/// Most pods of one set: more than one host can run.
pub const MAX_REPLICAS: u32 = 10_000;
/// How many pods of a set are removed at a time for a client that waits.
const REMOVALS: usize = 8;

/// Why an operation on a replica set failed. The texts are the contract's (`docs/spec/api.md` 9); the API adds its
/// prefix.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// No set of that id, and none that the name means.
    #[error("replicaSetId={0} not found")]
    NotFound(String),
    /// The set is going away.
    #[error("replica set {0} is being removed")]
    BeingRemoved(String),
    /// Its pods could not be made, or not all of them removed; what is left is tried again.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operation ended without an answer: a defect, which the log describes.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for SetError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

/// What a set is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSet {
    /// What identifies it in the namespace.
    pub manifest_name: String,
    /// The name that is shown and that its pods' names begin with.
    pub name: String,
    /// Namespace of the set and of its pods.
    pub namespace: String,
    /// How many pods.
    pub replicas: u32,
    /// Labels of pods that may be adopted; empty matches none.
    pub selector: BTreeMap<String, String>,
    /// What its pods are made from. Its id counts only when the set has no template like it.
    pub template: PodTemplate,
    /// How pods of an old template are replaced.
    pub update: UpdateStrategy,
    /// Within which bounds.
    pub rollout: Rollout,
}

/// What became of a set that was applied.
#[derive(Debug, Clone)]
pub struct AppliedSet {
    /// As it is now.
    pub set: Arc<ReplicaSet>,
    /// As it was; `None` when it is new.
    pub before: Option<Arc<ReplicaSet>>,
}

/// How a set is doing. All numbers are without the pods that are being removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetStatus {
    /// Pods that it has.
    pub current: usize,
    /// Those of them that services may send clients to, and that have not just ended by themselves.
    pub ready: usize,
    /// Those that have been so for long enough to take the place of others.
    pub available: usize,
    /// Those that were made from its template.
    pub updated: usize,
    /// What is wrong with one of its pods, of those of its template if there is one; the message begins with the name of
    /// the pod.
    pub problem: Option<PodProblem>,
    /// Whether that pod was made from its template.
    pub of_template: bool,
}

/// All operations on replica sets. Clones share one service.
#[derive(Clone)]
pub struct ReplicaSets {
    store: Store,
    pods: PodService,
    operations: Operations,
}

impl ReplicaSets {
    /// A service over pods.
    pub fn new(store: Store, pods: PodService) -> Self {
        let operations = Operations::default();
        Self {
            store,
            pods,
            operations,
        }
    }

    /// All sets by creation time, then id.
    pub fn list(&self) -> Vec<(Arc<ReplicaSet>, SetStatus)> {
        let (snapshot, now) = (self.store.snapshot(), Timestamp::now());
        let mut by_set: BTreeMap<String, SetStatus> = BTreeMap::new();
        for (pod, status) in pod_statuses(&snapshot) {
            let set = pod.owner.as_ref().and_then(|owner| snapshot.replicasets().get(owner));
            if let Some(set) = set {
                by_set.entry(set.id.clone()).or_default().count(set, &pod, &status, now);
            }
        }
        let sets = by_creation(snapshot.replicasets().iter().cloned());
        let with_status = |set: Arc<ReplicaSet>| {
            let status = by_set.remove(&set.id).unwrap_or_default();
            (set, status)
        };
        sets.into_iter().map(with_status).collect()
    }

    /// How a set is doing.
    pub fn status(&self, set: &ReplicaSet) -> SetStatus {
        let (mut sum, now) = (SetStatus::default(), Timestamp::now());
        for (pod, status) in pod_statuses(&self.store.snapshot()) {
            if pod.owner.as_deref() == Some(&set.id) {
                sum.count(set, &pod, &status, now);
            }
        }
        sum
    }

    /// The set of that id, else of that name in the namespace: the one that identifies it, else the shown one if it
    /// means one set only.
    pub fn find(&self, parameter: &str, namespace: &str) -> Result<Arc<ReplicaSet>, SetError> {
        let found = self.store.snapshot().replicasets().get(parameter).cloned();
        found
            .or_else(|| self.named(parameter, namespace))
            .ok_or_else(|| SetError::NotFound(parameter.to_owned()))
    }

    /// The set of that name alone.
    pub fn named(&self, name: &str, namespace: &str) -> Option<Arc<ReplicaSet>> {
        named(&self.store.snapshot(), name, namespace)
    }

    /// Makes a set, or makes an existing one of that identity what is asked for. It keeps its id, and its template as
    /// long as that says the same. Pods follow.
    pub async fn apply(&self, wish: NewSet) -> Result<AppliedSet, SetError> {
        self.pods.check_template(&wish.template)?;
        self.store.transact(move |t| apply_in(t, wish)).await
    }

    /// Puts an updated set back to what it was.
    pub async fn restore(&self, before: Arc<ReplicaSet>) -> Result<(), SetError> {
        let id = before.id.clone();
        self.change(&id, move |set| *set = ReplicaSet::clone(&before)).await
    }

    /// Changes the number of pods. They follow.
    pub async fn scale(&self, id: &str, replicas: u32) -> Result<(), SetError> {
        self.change(id, move |set| set.replicas = replicas).await?;
        tracing::info!(replicaset.id = %id, replicas, "replica set scaled");
        Ok(())
    }

    /// Takes a set away with its pods. After a failure or a crash the controller finishes it.
    pub async fn remove(&self, id: &str) -> Result<(), SetError> {
        let (service, id) = (self.clone(), id.to_owned());
        self.operations.run(async move { service.remove_now(&id).await }).await
    }

    /// Waits until no operation is in progress.
    pub async fn finish_operations(&self) {
        self.operations.finish().await;
    }

    async fn remove_now(&self, id: &str) -> Result<(), SetError> {
        let key = id.to_owned();
        let mark = self.store.transact(move |t| {
            let set = t.get::<ReplicaSet>(&key).ok_or(SetError::NotFound(key))?;
            put(
                t,
                ReplicaSet {
                    removing: true,
                    ..ReplicaSet::clone(&set)
                },
            )?;
            reconcile_in(t, &set.id, Timestamp::now())
        });
        mark.await?;
        let pods: Vec<String> = owned(&self.store.snapshot(), id).map(|pod| pod.id.clone()).collect();
        let removals = stream::iter(pods).map(|pod| async move { self.pods.remove(&pod).await });
        let results: Vec<_> = removals.buffer_unordered(REMOVALS).collect().await;
        for result in results {
            match result {
                Ok(()) | Err(PodError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The controller may have been faster.
        self.reconcile(id).await?;
        tracing::info!(replicaset.id = %id, "replica set removed");
        Ok(())
    }

    async fn change(&self, id: &str, change: impl FnOnce(&mut ReplicaSet) + Send + 'static) -> Result<(), SetError> {
        let id = id.to_owned();
        let update = self.store.transact(move |t| {
            let mut set = match t.get::<ReplicaSet>(&id) {
                Some(set) if set.removing => return Err(SetError::BeingRemoved(set.name.clone())),
                Some(set) => ReplicaSet::clone(&set),
                None => return Err(SetError::NotFound(id)),
            };
            change(&mut set);
            put(t, set).map(drop)
        });
        update.await
    }

    /// Decides and writes what a set needs; nothing for one that needs nothing or is gone. Returns when time alone may
    /// make a difference.
    pub(super) async fn reconcile(&self, id: &str) -> Result<Option<Duration>, SetError> {
        if decide(&self.store.snapshot(), id, Timestamp::now()).is_some() {
            let id = id.to_owned();
            self.store
                .transact(move |t| reconcile_in(t, &id, Timestamp::now()))
                .await?;
        }
        Ok(next_look(&self.store.snapshot(), id, Timestamp::now()))
    }
}

/// What a set needs.
enum Decision {
    /// Its pods have to change.
    Pods(Arc<ReplicaSet>, Changes),
    /// It is being removed and has no pods any more.
    Forget,
}

/// Pure. `None` when there is nothing to do.
fn decide(snapshot: &Snapshot, id: &str, now: Timestamp) -> Option<Decision> {
    let set = snapshot.replicasets().get(id)?;
    let replicas: Vec<Replica> = pod_statuses(snapshot)
        .iter()
        .filter(|(pod, _)| pod.owner.as_deref() == Some(id) && pod.goal != PodGoal::Removed)
        .map(|(pod, status)| replica(set, pod, status, now))
        .collect();
    if set.removing {
        let remove: Vec<String> = replicas.into_iter().map(|replica| replica.id).collect();
        if !remove.is_empty() {
            let changes = Changes {
                remove,
                ..Changes::default()
            };
            return Some(Decision::Pods(set.clone(), changes));
        }
        return owned(snapshot, id).next().is_none().then_some(Decision::Forget);
    }
    let wanted = Wanted {
        replicas: set.replicas as usize,
        update: set.update,
        rollout: set.rollout,
    };
    let orphans: Vec<String> = match replicas.len() < wanted.replicas {
        true => orphans(snapshot, set),
        false => Vec::new(),
    };
    let changes = plan::changes(wanted, &replicas, &orphans);
    (!changes.is_empty()).then(|| Decision::Pods(set.clone(), changes))
}

/// When the next pod of a rollout becomes available if nothing happens to it; `None` when none will, or nothing waits for
/// it.
fn next_look(snapshot: &Snapshot, id: &str, now: Timestamp) -> Option<Duration> {
    let set = snapshot.replicasets().get(id).filter(|set| !set.removing)?;
    let pods: Vec<_> = pod_statuses(snapshot)
        .into_iter()
        .filter(|(pod, _)| pod.owner.as_deref() == Some(id))
        .collect();
    if pods.iter().all(|(pod, _)| pod.template.id == set.template.id) {
        return None;
    }
    let due = pods
        .iter()
        .filter_map(|(_, status)| status.available_from(set.rollout.min_ready_seconds));
    let next = due.filter(|due| *due > now).min()?;
    next.duration_since(now).try_into().ok()
}

fn replica(set: &ReplicaSet, pod: &Pod, status: &PodStatus, now: Timestamp) -> Replica {
    let available = status.available_from(set.rollout.min_ready_seconds);
    Replica {
        id: pod.id.clone(),
        created_at: pod.created_at,
        fitness: match status.state {
            PodState::Running if available.is_some_and(|from| from <= now) => Fitness::Ready,
            PodState::Running => Fitness::Unready,
            PodState::Created | PodState::Degraded | PodState::Stopped | PodState::Succeeded | PodState::Failed => {
                Fitness::Down
            }
        },
        outdated: pod.template.id != set.template.id,
    }
}

fn owned<'a>(snapshot: &'a Snapshot, set: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
    snapshot
        .pods()
        .iter()
        .filter(move |pod| pod.owner.as_deref() == Some(set))
}

/// Pods that run, belong to nobody and have the labels of the selector, the oldest first.
fn orphans(snapshot: &Snapshot, set: &ReplicaSet) -> Vec<String> {
    let is_over = |pod: &Pod| matches!(pod_status(snapshot, pod).state, PodState::Succeeded | PodState::Failed);
    let fits = |pod: &&Arc<Pod>| is_orphan_of(set, pod) && !is_over(pod);
    let pods = by_creation(snapshot.pods().iter().filter(fits).cloned());
    pods.into_iter().map(|pod| pod.id.clone()).collect()
}

pub(super) fn is_orphan_of(set: &ReplicaSet, pod: &Pod) -> bool {
    let has = |(key, value): (&String, &String)| pod.template.labels.get(key) == Some(value);
    pod.owner.is_none()
        && pod.goal == PodGoal::Running
        && pod.namespace == set.namespace
        && !set.selector.is_empty()
        && set.selector.iter().all(has)
}

fn reconcile_in(t: &mut Txn, id: &str, now: Timestamp) -> Result<(), SetError> {
    match decide(t.snapshot(), id, now) {
        None => {}
        Some(Decision::Forget) => drop(t.remove::<ReplicaSet>(id)),
        Some(Decision::Pods(set, changes)) => {
            tracing::info!(
                replicaset.id = %set.id, remove = changes.remove.len(), adopt = changes.adopt.len(),
                create = changes.create, "replica set changes its pods"
            );
            for pod in &changes.remove {
                change_pod(t, pod, |pod| pod.goal = PodGoal::Removed)?;
            }
            for pod in &changes.adopt {
                // What it consists of stays; it counts as one of the set's pods until the set's template changes.
                change_pod(t, pod, |pod| {
                    pod.owner = Some(set.id.clone());
                    pod.template.id = set.template.id.clone();
                })?;
            }
            for _ in 0..changes.create {
                create_pod(t, &set)?;
            }
        }
    }
    Ok(())
}

fn change_pod(t: &mut Txn, id: &str, change: impl FnOnce(&mut Pod)) -> Result<(), SetError> {
    t.update::<Pod>(id, change).map(drop).map_err(|_| taken(id))
}

fn create_pod(t: &mut Txn, set: &ReplicaSet) -> Result<(), SetError> {
    let now = Timestamp::now();
    let pod = Pod {
        id: fresh_id(t.snapshot()),
        name: fresh_name(t.snapshot(), set),
        namespace: set.namespace.clone(),
        uid: fresh_ulid(),
        owner: Some(set.id.clone()),
        template: set.template.clone(),
        goal: PodGoal::Running,
        created_at: now,
        started_at: Some(now),
        stopped_at: None,
        problem: None,
        successor: None,
    };
    let name = pod.name.clone();
    t.put(pod).map(drop).map_err(|_| taken(&name))
}

/// `<set>-<8 random characters>` that no pod of the namespace has (`docs/spec/api.md` 9.6).
fn fresh_name(snapshot: &Snapshot, set: &ReplicaSet) -> String {
    loop {
        let ulid = fresh_ulid();
        let name = format!("{}-{}", set.name, &ulid[ulid.len() - 8..]);
        let claim = Claim::Name(Kind::Pod, set.namespace.clone(), name.clone());
        if snapshot.holder(&claim).is_none() {
            return name;
        }
    }
}

fn apply_in(t: &mut Txn, wish: NewSet) -> Result<AppliedSet, SetError> {
    let claim = Claim::Name(Kind::ReplicaSet, wish.namespace.clone(), wish.manifest_name.clone());
    let holder = t.snapshot().holder(&claim).cloned();
    let before = holder.and_then(|holder| t.get::<ReplicaSet>(&holder.id));
    if let Some(set) = before.as_ref().filter(|set| set.removing) {
        return Err(SetError::BeingRemoved(set.name.clone()));
    }
    let mut template = wish.template;
    if let Some(id) = before
        .as_ref()
        .and_then(|set| known_version(t.snapshot(), set, &template))
    {
        template.id = id;
    }
    let set = ReplicaSet {
        id: before.as_ref().map_or_else(fresh_ulid, |set| set.id.clone()),
        name: wish.name,
        manifest_name: wish.manifest_name,
        namespace: wish.namespace,
        replicas: wish.replicas,
        selector: wish.selector,
        template,
        update: wish.update,
        rollout: wish.rollout,
        removing: false,
        created_at: before.as_ref().map_or_else(Timestamp::now, |set| set.created_at),
    };
    match before {
        Some(before) if *before == set => Ok(AppliedSet {
            set: before.clone(),
            before: Some(before),
        }),
        before => Ok(AppliedSet {
            set: put(t, set)?,
            before,
        }),
    }
}

/// The version of a template that says the same: that of the set, else one that pods of the set were made from and still
/// have, so that a change that is taken back leaves those pods alone.
fn known_version(snapshot: &Snapshot, set: &ReplicaSet, template: &PodTemplate) -> Option<String> {
    let says_the_same = |other: &PodTemplate| {
        (&other.labels, &other.annotations, &other.spec) == (&template.labels, &template.annotations, &template.spec)
    };
    if says_the_same(&set.template) {
        return Some(set.template.id.clone());
    }
    let mut versions: BTreeMap<&str, bool> = BTreeMap::new();
    for pod in owned(snapshot, &set.id).filter(|pod| pod.goal != PodGoal::Removed) {
        // A pod that was adopted has the version of its set and says something else.
        *versions.entry(&pod.template.id).or_insert(true) &= says_the_same(&pod.template);
    }
    let mut same = versions
        .into_iter()
        .filter(|(id, same)| *same && *id != set.template.id);
    same.next().map(|(id, _)| id.to_owned())
}

fn put(t: &mut Txn, set: ReplicaSet) -> Result<Arc<ReplicaSet>, SetError> {
    let name = set.manifest_name.clone();
    t.put(set).map_err(|_| taken(&name))
}

/// A name that was free when it was drawn in the same transaction, or that the record had already.
fn taken(name: &str) -> SetError {
    SetError::Pod(PodError::Unsettled(name.to_owned()))
}

fn named(snapshot: &Snapshot, name: &str, namespace: &str) -> Option<Arc<ReplicaSet>> {
    let claim = Claim::Name(Kind::ReplicaSet, namespace.to_owned(), name.to_owned());
    if let Some(holder) = snapshot.holder(&claim) {
        return snapshot.replicasets().get(&holder.id).cloned();
    }
    let mut shown = snapshot
        .replicasets()
        .iter()
        .filter(|set| set.name == name && set.namespace == namespace);
    match (shown.next(), shown.next()) {
        (Some(set), None) => Some(set.clone()),
        _ => None,
    }
}

impl SetStatus {
    fn count(&mut self, set: &ReplicaSet, pod: &Pod, status: &PodStatus, now: Timestamp) {
        if pod.goal == PodGoal::Removed {
            return;
        }
        let by_now = |from: Option<Timestamp>| usize::from(from.is_some_and(|from| from <= now));
        let updated = pod.template.id == set.template.id;
        self.current += 1;
        self.ready += by_now(status.steady_from());
        self.available += by_now(status.available_from(set.rollout.min_ready_seconds));
        let counts = self.problem.is_none() || (updated && !self.of_template);
        if let Some(problem) = status.problem.as_ref().filter(|_| counts) {
            self.of_template = updated;
            self.problem = Some(PodProblem {
                reason: problem.reason.clone(),
                message: format!("pod {}: {}", pod.name, problem.message),
            });
        }
        self.updated += usize::from(updated);
    }
}

#[cfg(test)]
mod tests;
