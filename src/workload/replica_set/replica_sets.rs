//! Replica sets: keep a desired number of pods of a template alive.
//!
//! ```text
//! kept true --remove--> removing --last pod gone--> (gone)
//! ```
//!
//! This module owns the rows of sets and decides which pods belong to each. It decides (`set_plan`) and writes all
//! changes in one transaction: rows of new pods with unique names, owners of adopted ones, goals of removed ones. So a
//! gap is never filled twice, and a crash leaves either a whole decision or nothing. The
//! [`PodController`](super::PodController) realizes the goals and handles failing pods: a set counts them and waits.
//!
//! This module never starts, stops or restarts a container, or touches a pod without an owner except to adopt it.

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

/// Maximum number of pods of one set: more than one host can run.
pub const MAX_REPLICAS: u32 = 10_000;
/// How many pods of a set to remove in parallel while a client waits.
const REMOVALS: usize = 8;

/// Why an operation on a replica set failed. The texts are part of the contract (`docs/spec/api.md` 9); the API adds
/// its prefix.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// No set has that id, or the name identifies none.
    #[error("replicaSetId={0} not found")]
    NotFound(String),
    /// The set is being removed.
    #[error("replica set {0} is being removed")]
    BeingRemoved(String),
    /// Its pods could not be created, or some not removed; the controller retries the rest.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operation ended without a result: a defect, which the log describes.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for SetError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

impl SetError {
    /// A stable one-word reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pod(error) => error.reason(),
            Self::Store(_) => "StoreFailed",
            Self::NotFound(_) | Self::BeingRemoved(_) | Self::Panicked => "FailedCreate",
        }
    }
}

/// The desired state of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSet {
    /// The name that identifies it in the namespace.
    pub manifest_name: String,
    /// The displayed name and prefix of its pods' names.
    pub name: String,
    /// Namespace of the set and of its pods.
    pub namespace: String,
    /// How many pods.
    pub replicas: u32,
    /// Labels of pods that may be adopted; empty matches none.
    pub selector: BTreeMap<String, String>,
    /// The template of its pods. Its id only counts if the set has no equal template.
    pub template: PodTemplate,
    /// How to replace pods of an old template.
    pub update: UpdateStrategy,
    /// The bounds of a rollout.
    pub rollout: Rollout,
}

/// The result of applying a set.
#[derive(Debug, Clone)]
pub struct AppliedSet {
    /// Its new state.
    pub set: Arc<ReplicaSet>,
    /// Its previous state; `None` if it is new.
    pub before: Option<Arc<ReplicaSet>>,
}

/// The status of a set. No number includes pods that are being removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetStatus {
    /// The number of its pods.
    pub current: usize,
    /// Pods that services may send clients to, and that have not just ended by themselves.
    pub ready: usize,
    /// Pods that have been ready for long enough to replace others.
    pub available: usize,
    /// Pods created from its current template.
    pub updated: usize,
    /// The problem of one of its pods, preferably one of its current template; the message begins with the pod's name.
    pub problem: Option<PodProblem>,
    /// Whether that pod was created from its current template.
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
    /// Creates a service over pods.
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
        let snapshot = self.store.snapshot();
        set_statuses(&snapshot, &pod_statuses(&snapshot), Timestamp::now())
    }

    /// The status of a set.
    pub fn status(&self, set: &ReplicaSet) -> SetStatus {
        let (mut sum, now) = (SetStatus::default(), Timestamp::now());
        for (pod, status) in pod_statuses(&self.store.snapshot()) {
            if pod.owner.as_deref() == Some(&set.id) {
                sum.count(set, &pod, &status, now);
            }
        }
        sum
    }

    /// The set with that id, else with that name in the namespace: an identifying name, else a displayed one if it is
    /// unique.
    pub fn find(&self, parameter: &str, namespace: &str) -> Result<Arc<ReplicaSet>, SetError> {
        let found = self.store.snapshot().replicasets().get(parameter).cloned();
        found
            .or_else(|| self.named(parameter, namespace))
            .ok_or_else(|| SetError::NotFound(parameter.to_owned()))
    }

    /// The set with that name, not id.
    pub fn named(&self, name: &str, namespace: &str) -> Option<Arc<ReplicaSet>> {
        named(&self.store.snapshot(), name, namespace)
    }

    /// Creates a set, or updates the set with the same identity. An update keeps the id, and the template if its
    /// content is the same. The pods follow later.
    pub async fn apply(&self, wish: NewSet) -> Result<AppliedSet, SetError> {
        self.pods.check_template(&wish.template)?;
        self.store.transact(move |t| apply_in(t, wish)).await
    }

    /// Restores the previous state of an updated set.
    pub async fn restore(&self, before: Arc<ReplicaSet>) -> Result<(), SetError> {
        let id = before.id.clone();
        self.change(&id, move |set| *set = ReplicaSet::clone(&before)).await
    }

    /// Changes the number of pods. The pods follow later.
    pub async fn scale(&self, id: &str, replicas: u32) -> Result<(), SetError> {
        self.change(id, move |set| set.replicas = replicas).await?;
        tracing::info!(replicaset.id = %id, replicas, "replica set scaled");
        Ok(())
    }

    /// Removes a set with its pods. After a failure or a crash the controller finishes the removal.
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
        // The controller may have done it already.
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

    /// Decides and writes the changes of a set, if any. Returns when to reconcile again if only time passes.
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

/// All sets of a snapshot with their status, by creation time, then id.
pub fn set_statuses(
    snapshot: &Snapshot,
    pods: &[(Arc<Pod>, PodStatus)],
    now: Timestamp,
) -> Vec<(Arc<ReplicaSet>, SetStatus)> {
    let mut by_set: BTreeMap<&str, SetStatus> = BTreeMap::new();
    for (pod, status) in pods {
        let set = pod.owner.as_ref().and_then(|owner| snapshot.replicasets().get(owner));
        if let Some(set) = set {
            by_set.entry(&set.id).or_default().count(set, pod, status, now);
        }
    }
    let mut sets: Vec<_> = snapshot.replicasets().iter().cloned().collect();
    sets.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    let with_status = |set: Arc<ReplicaSet>| {
        let status = by_set.remove(&set.id[..]).unwrap_or_default();
        (set, status)
    };
    sets.into_iter().map(with_status).collect()
}

/// The next action for a set.
enum Decision {
    /// Change its pods.
    Pods(Arc<ReplicaSet>, Changes),
    /// Delete its row: it is being removed and has no pods any more.
    Forget,
}

/// Decides the next action. Pure. `None` if there is nothing to do.
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

/// When the next pod of a rollout becomes available if nothing else happens; `None` without such a pod, or without a
/// rollout.
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

/// Running pods without an owner that have the labels of the selector, oldest first.
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
                // Its content stays; it counts as a current pod of the set until the set's template changes.
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

/// An unused name in the namespace, `<set>-<8 random characters>` (`docs/spec/api.md` 9.6).
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

/// The id of an existing version with the same content: the set's, else one that pods of the set still have, so that
/// reverting a change leaves those pods alone.
fn known_version(snapshot: &Snapshot, set: &ReplicaSet, template: &PodTemplate) -> Option<String> {
    let says_the_same = |other: &PodTemplate| {
        (&other.labels, &other.annotations, &other.spec) == (&template.labels, &template.annotations, &template.spec)
    };
    if says_the_same(&set.template) {
        return Some(set.template.id.clone());
    }
    let mut versions: BTreeMap<&str, bool> = BTreeMap::new();
    for pod in owned(snapshot, &set.id).filter(|pod| pod.goal != PodGoal::Removed) {
        // An adopted pod has the version id of its set but other content.
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

/// Unlikely error: the name was checked in the same transaction, or belonged to the record already.
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
