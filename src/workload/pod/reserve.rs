//! Reservation of pod names, inside one transaction and without I/O.
//!
//! ```text
//! old          --replace-->  old (Removed, successor: new)  --last container gone-->  new
//! ```

use std::sync::Arc;

use jiff::Timestamp;

use super::{NewPod, PodError};
use crate::model::{Claim, Kind, Pod, PodGoal, Snapshot, Txn, fresh_ulid, member_name};
use crate::ops::lock::{KeyGuard, KeyedLocks};

/// The result of a reservation.
pub(super) enum Reserved {
    /// The pod: a new one with its lock, or an existing one with the same uid.
    Pod(Arc<Pod>, Option<KeyGuard>),
    /// A pod that must be removed first.
    After {
        /// Its id.
        old: String,
        /// Id and lock of the new pod, now the old one's successor.
        next: Option<(String, KeyGuard)>,
    },
}

/// Stores a pod, or records it as the successor of the pod that has the name and must go: because it has another uid,
/// or because `instead_of` is the id of the pod that would keep the name.
pub(super) fn reserve(
    t: &mut Txn,
    wish: NewPod,
    instead_of: Option<&str>,
    locks: &KeyedLocks,
) -> Result<Reserved, PodError> {
    let claim = Claim::Name(Kind::Pod, wish.namespace.clone(), wish.name.clone());
    let holder = t.snapshot().holder(&claim).cloned();
    let Some(old) = holder.and_then(|holder| t.get::<Pod>(&holder.id)) else {
        let (pod, lock) = row(t.snapshot(), wish, locks);
        return Ok(Reserved::Pod(put(t, pod)?, Some(lock)));
    };
    let wait = |next| Reserved::After {
        old: old.id.clone(),
        next,
    };
    let Some(standing) = old.standing() else {
        return Ok(wait(None));
    };
    match &wish.uid {
        Some(uid) if *uid == standing.uid && standing.id == old.id => return Ok(Reserved::Pod(old, None)),
        Some(uid) if *uid == standing.uid => return Ok(wait(None)),
        None if instead_of != Some(&standing.id) => {
            return Err(PodError::NameTaken {
                namespace: wish.namespace,
                name: wish.name,
            });
        }
        _ => {}
    }
    let (next, lock) = row(t.snapshot(), wish, locks);
    let reserved = wait(Some((next.id.clone(), lock)));
    let going = Pod {
        goal: PodGoal::Removed,
        successor: Some(Box::new(next)),
        ..Pod::clone(&old)
    };
    put(t, going)?;
    Ok(reserved)
}

/// Deletes a pod and stores its successor, if any.
pub(super) fn hand_over(t: &mut Txn, id: &str, now: Timestamp) -> Result<(), PodError> {
    let successor = t.remove::<Pod>(id).and_then(|old| old.successor.clone());
    let Some(mut pod) = successor.map(|pod| *pod) else {
        return Ok(());
    };
    pod.created_at = now;
    pod.started_at = pod.started_at.map(|_| now);
    put(t, pod).map(drop)
}

/// A row with a fresh id, locked before anyone else can see it.
fn row(snapshot: &Snapshot, wish: NewPod, locks: &KeyedLocks) -> (Pod, KeyGuard) {
    let (id, lock) = loop {
        let id = fresh_id(snapshot);
        if let Some(lock) = locks.try_lock(&id) {
            break (id, lock);
        }
    };
    let now = Timestamp::now();
    let pod = Pod {
        uid: wish.uid.unwrap_or_else(fresh_ulid),
        id,
        name: wish.name,
        namespace: wish.namespace,
        owner: wish.owner,
        template: wish.template,
        goal: wish.goal,
        created_at: now,
        started_at: (wish.goal == PodGoal::Running).then_some(now),
        stopped_at: None,
        problem: None,
        successor: None,
    };
    (pod, lock)
}

/// An id whose beginning and end are unique among pods, because they become part of container names.
pub(crate) fn fresh_id(snapshot: &Snapshot) -> String {
    let infra = |id: &str| id.get(..12).unwrap_or(id).to_owned();
    loop {
        let id = fresh_ulid();
        let is_like = |other: &str| infra(other) == infra(&id) || member_name(other, "") == member_name(&id, "");
        let clashes = |pod: &Arc<Pod>| is_like(&pod.id) || pod.successor.as_ref().is_some_and(|next| is_like(&next.id));
        if !snapshot.pods().iter().any(clashes) {
            return id;
        }
    }
}

pub(super) fn put(t: &mut Txn, pod: Pod) -> Result<Arc<Pod>, PodError> {
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    t.put(pod).map_err(|_| PodError::NameTaken { namespace, name })
}

#[cfg(test)]
mod tests;
