//! What has to be done with a replica set. Pure: what is wanted and what is there in, what to change out.
//!
//! The rules, in this order:
//! 1. Pods of an old template go: all at once with [`UpdateStrategy::Replace`]; with [`UpdateStrategy::Rolling`] those
//!    that are not ready, and of the others as many as leave all but one of the wanted pods ready.
//! 2. Of pods beyond the wanted number those go that are of least use: not running before not ready before ready, then
//!    those of an old template, then the youngest.
//! 3. Gaps are filled with pods that match and belong to nobody, then with new ones.
//!
//! A pod that is being removed is not among what is there, so a plan that has been carried out leads to one that does
//! nothing until something changes.

use std::cmp::Reverse;

use jiff::Timestamp;

use crate::store::UpdateStrategy;

/// What a set shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// How many pods.
    pub replicas: usize,
    /// How those of an old template are replaced.
    pub update: UpdateStrategy,
}

/// Of how much use a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fitness {
    /// Something of it does not run, or a user stopped it.
    Down,
    /// It runs, but cannot take clients.
    Unready,
    /// It does all it should.
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
    let ready = kept.iter().filter(|r| r.fitness == Fitness::Ready).count();
    let mut spare = match wanted.update {
        UpdateStrategy::Replace => ready,
        UpdateStrategy::Rolling => (ready + 1).saturating_sub(wanted.replicas),
    };
    let goes = |r: &mut &Replica| {
        if !r.outdated || r.fitness < Fitness::Ready {
            return r.outdated;
        }
        let may_go = spare > 0;
        spare = spare.saturating_sub(1);
        may_go
    };
    let mut remove: Vec<&Replica> = kept.extract_if(.., goes).collect();
    let surplus = kept.len().saturating_sub(wanted.replicas);
    remove.extend(kept.drain(..surplus));
    let gap = wanted.replicas.saturating_sub(kept.len());
    let adopt: Vec<String> = orphans.iter().take(gap).cloned().collect();
    Changes {
        remove: remove.into_iter().map(|r| r.id.clone()).collect(),
        create: gap - adopt.len(),
        adopt,
    }
}

#[cfg(test)]
mod tests;
