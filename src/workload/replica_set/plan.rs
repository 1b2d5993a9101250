//! The plan for a replica set. Pure: takes the desired and the current state, and returns the changes.
//!
//! The rules, in this order:
//! 1. Pods of an old template are removed: all at once with [`UpdateStrategy::Replace`]. With
//!    [`UpdateStrategy::Rolling`] only as many as available new pods can replace: unavailable ones first, as they are
//!    no loss, then others while enough are available. So new pods that never become available displace at most
//!    `max_unavailable` old ones, even if those do not work either (Kubernetes, `Deployment`).
//! 2. Surplus pods are removed, the least useful first: not running before not ready before ready, then those of an old
//!    template, then the youngest.
//! 3. Gaps are filled with matching pods without an owner, then with new ones. While pods of an old template exist,
//!    there may be `max_surge` surplus pods.
//!
//! Pods that are being removed do not count as current, so after a plan has been executed the next one is empty until
//! something changes.

use std::cmp::Reverse;

use jiff::Timestamp;

use crate::model::{Rollout, UpdateStrategy};

/// The desired state of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// How many pods.
    pub replicas: usize,
    /// How to replace pods of an old template.
    pub update: UpdateStrategy,
    /// The bounds of a rollout.
    pub rollout: Rollout,
}

/// How useful a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fitness {
    /// A part of it does not run, or a user stopped it.
    Down,
    /// It runs, but services cannot send clients to it.
    Unready,
    /// It works, and has done so for long enough to count as available.
    Ready,
}

/// A pod of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replica {
    /// Its id.
    pub id: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// How useful it is.
    pub fitness: Fitness,
    /// Whether it was created from a former template of the set.
    pub outdated: bool,
}

/// The changes, to be made all at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Changes {
    /// Ids of pods to remove.
    pub remove: Vec<String>,
    /// Ids of pods to adopt.
    pub adopt: Vec<String>,
    /// How many pods to create.
    pub create: usize,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The necessary changes. `orphans` are ids of pods that the set may adopt, in order of preference.
pub(super) fn changes(wanted: Wanted, replicas: &[Replica], orphans: &[String]) -> Changes {
    let mut kept: Vec<&Replica> = replicas.iter().collect();
    // Least useful first.
    kept.sort_by_key(|r| (r.fitness, !r.outdated, Reverse((r.created_at, &r.id))));
    let mut going = match wanted.update {
        UpdateStrategy::Replace => usize::MAX,
        UpdateStrategy::Rolling => 0,
    };
    let mut most = wanted.replicas;
    let mut remove: Vec<&Replica> = Vec::new();
    if wanted.update == UpdateStrategy::Rolling {
        let surplus = count(&kept, |r| !r.outdated).saturating_sub(wanted.replicas);
        take(&mut kept, &mut remove, surplus, |r| !r.outdated);
        going = dispensable(wanted, &kept);
    }
    take(&mut kept, &mut remove, going, |r| r.outdated);
    if kept.iter().any(|r| r.outdated) {
        most = wanted.rollout.bounds(wanted.replicas).1;
    }
    let surplus = match wanted.update {
        UpdateStrategy::Replace => kept.len().saturating_sub(wanted.replicas),
        // A rollout removes its surplus together with the old pods.
        UpdateStrategy::Rolling => 0,
    };
    remove.extend(kept.drain(..surplus));
    let missing = wanted.replicas.saturating_sub(count(&kept, |r| !r.outdated));
    let gap = missing.min(most.saturating_sub(kept.len()));
    let adopt: Vec<String> = orphans.iter().take(gap).cloned().collect();
    Changes {
        remove: remove.into_iter().map(|r| r.id.clone()).collect(),
        create: gap - adopt.len(),
        adopt,
    }
}

/// How many pods of an old template may be removed. `pods` is in order of removal.
fn dispensable(wanted: Wanted, pods: &[&Replica]) -> usize {
    let (least, _) = wanted.rollout.bounds(wanted.replicas);
    let is_available = |r: &Replica| r.fitness == Fitness::Ready;
    let (old, available) = (count(pods, |r| r.outdated), count(pods, is_available));
    let new_available = count(pods, |r| !r.outdated && is_available(r));
    let replaced = (old + new_available).saturating_sub(least);
    let broken = count(pods, |r| r.outdated && !is_available(r)).min(replaced);
    broken + available.saturating_sub(least).min(replaced - broken)
}

fn count(pods: &[&Replica], of: impl Fn(&Replica) -> bool) -> usize {
    pods.iter().filter(|r| of(r)).count()
}

/// Moves the first matching pods, at most `most`.
fn take<'a>(from: &mut Vec<&'a Replica>, to: &mut Vec<&'a Replica>, most: usize, of: impl Fn(&Replica) -> bool) {
    let mut left = most;
    to.extend(from.extract_if(.., |r| {
        let goes = left > 0 && of(r);
        left -= usize::from(goes);
        goes
    }));
}

#[cfg(test)]
mod tests;
