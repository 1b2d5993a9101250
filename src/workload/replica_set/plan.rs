//! What has to be done with a replica set. Pure: what is wanted and what is there in, what to change out.
//!
//! The rules, in this order:
//! 1. Pods of an old template go: all at once with [`UpdateStrategy::Replace`]. With [`UpdateStrategy::Rolling`] as many
//!    as the available ones of the new template make up for: those that are not available first, because nothing is lost
//!    with them, then others as long as enough are available. New pods that never become available so push out no more
//!    than `max_unavailable` old ones, also when the old ones do not work either (Kubernetes, `Deployment`).
//! 2. Of pods beyond the wanted number those go that are of least use: not running before not ready before ready, then
//!    those of an old template, then the youngest.
//! 3. Gaps are filled with pods that match and belong to nobody, then with new ones. While pods of an old template are
//!    there, there may be `max_surge` pods beyond the wanted number.
//!
//! A pod that is being removed is not among what is there, so a plan that has been carried out leads to one that does
//! nothing until something changes.

use std::cmp::Reverse;

use jiff::Timestamp;

use crate::model::{Rollout, UpdateStrategy};

/// What a set shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// How many pods.
    pub replicas: usize,
    /// How those of an old template are replaced.
    pub update: UpdateStrategy,
    /// Within which bounds.
    pub rollout: Rollout,
}

/// Of how much use a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fitness {
    /// Something of it does not run, or a user stopped it.
    Down,
    /// It runs, but cannot take clients.
    Unready,
    /// It does all it should, and has done so long enough to rely on it.
    Ready,
}

/// A pod of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replica {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Of how much use it is.
    pub fitness: Fitness,
    /// Whether it was made from a template that is no more the set's.
    pub outdated: bool,
}

/// What to change, all of it at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Changes {
    /// Ids of pods to remove.
    pub remove: Vec<String>,
    /// Ids of pods to adopt.
    pub adopt: Vec<String>,
    /// How many pods to make.
    pub create: usize,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What has to change. `orphans` are ids of pods that the set may adopt, in order of preference.
pub(super) fn changes(wanted: Wanted, replicas: &[Replica], orphans: &[String]) -> Changes {
    let mut kept: Vec<&Replica> = replicas.iter().collect();
    // The least useful first.
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
        // What is too much of a rollout goes with its old pods.
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

/// How many pods of an old template may go. `pods` in the order in which they are taken.
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

/// Moves the first of those that match, at most so many.
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
