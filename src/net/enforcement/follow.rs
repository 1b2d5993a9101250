//! Keeps the rules up with the store: whatever changes who may be reached is in the kernel milliseconds later.
//!
//! Operations that depend on a rule apply it themselves and wait; this is for what happens by itself, as a pod that
//! becomes ready or ends, or a name in a policy that begins to mean somebody. Changes that come together are one run of
//! the tool, changes that make no difference to the rules are none.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Firewall;
use crate::model::{Change, Kind, Snapshot};
use crate::ops::conditions::{Conditions, Failure};
use crate::ops::controller::{Backoff, Outcome, Queue, Reconcile};
use crate::ops::{conditions, controller};
use crate::store::Store;

const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(200),
    most: Duration::from_secs(5),
};

/// The one thing to keep true.
const RULES: &str = "packet filter rules";

impl Firewall {
    /// Applies the rules after each change in the store that may concern them, and every [`controller::RESYNC`], until
    /// `stop`. What fails is logged and tried again.
    pub async fn follow(self, store: Store, conditions: Conditions, stop: CancellationToken) {
        let queue = Arc::new(Queue::new(BACKOFF));
        controller::run(Arc::new(self), queue, 1, store, conditions, stop).await;
    }
}

impl Reconcile for Firewall {
    type Key = &'static str;

    fn concerned(&self, change: &Change, _: &Snapshot) -> Vec<Self::Key> {
        match change.kind {
            Kind::Image => Vec::new(),
            _ => vec![RULES],
        }
    }

    fn all(&self, _: &Snapshot) -> Vec<Self::Key> {
        vec![RULES]
    }

    fn subject(&self, _: &Self::Key) -> Option<(Kind, String)> {
        let (kind, id) = conditions::RULES;
        Some((kind, id.to_owned()))
    }

    async fn reconcile(&self, _: &Self::Key) -> Outcome {
        match self.apply().await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                tracing::error!(%error, "the packet filter is out of date");
                Outcome::Failed(Failure::new(error.reason(), &error))
            }
        }
    }
}
