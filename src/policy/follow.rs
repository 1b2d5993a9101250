//! Rules follow pods and replica sets. Containers and networks need no follower: whoever changes them applies the rules
//! itself, before an address is used and before it is free again.

use std::fmt;

use crate::controller::{Outcome, Reconcile};
use crate::firewall::Firewall;
use crate::store::{Change, Object, Snapshot};

/// Keeps the rules up to date with who belongs to what.
pub struct Follower(Firewall);

/// All rules are one thing to reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rules;

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rules of policies")
    }
}

impl Follower {
    /// Of this firewall.
    pub fn new(firewall: Firewall) -> Self {
        Self(firewall)
    }
}

impl Reconcile for Follower {
    type Key = Rules;

    fn concerned(&self, change: &Change, now: &Snapshot) -> Vec<Rules> {
        if now.policies().is_empty() || !changes_names(change) {
            return Vec::new();
        }
        vec![Rules]
    }

    fn all(&self, now: &Snapshot) -> Vec<Rules> {
        if now.policies().is_empty() {
            return Vec::new();
        }
        vec![Rules]
    }

    async fn reconcile(&self, _: &Rules) -> Outcome {
        match self.0.apply().await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                tracing::error!(%error, "the rules of policies are out of date");
                Outcome::Failed
            }
        }
    }
}

/// Whether names may mean other interfaces than before.
fn changes_names(change: &Change) -> bool {
    match (&change.old, &change.new) {
        (Some(Object::Pod(old)), Some(Object::Pod(new))) => old.owner != new.owner,
        (Some(Object::ReplicaSet(old)), Some(Object::ReplicaSet(new))) => old.name != new.name,
        (None, Some(Object::Pod(_) | Object::ReplicaSet(_))) => true,
        (Some(Object::Pod(_) | Object::ReplicaSet(_)), None) => true,
        _ => false,
    }
}
