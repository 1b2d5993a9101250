//! Keeps the rules in sync with the store: a change of reachability is in the kernel within milliseconds.
//!
//! Operations that depend on a rule apply it themselves and wait; this controller handles other changes, such as a pod
//! that becomes ready or exits, or a policy name that begins to resolve. Changes that arrive together share one run of
//! the tool; changes that do not affect the rules cause none.

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

/// The only key of this controller.
const RULES: &str = "packet filter rules";

impl Firewall {
    /// Applies the rules after each store change that may affect them, and every [`controller::RESYNC`], until `stop`.
    /// Failures are logged and retried.
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
