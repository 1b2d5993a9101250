//! The restart policy: restarts containers that ended by themselves, with a growing delay.
//!
//! ```text
//! ends -> waits (100 ms, 200 ms, … 1 min) -> started again -> ran for 10 s: the next wait is the first one again
//! ```
//!
//! The due time depends only on the row, so a daemon that was killed continues where it was: unseen ends and
//! interrupted starts count like all others. A user's stop takes precedence. A try is counted before it is made, so one
//! that crashes the daemon backs off too.
//!
//! Members restart by the policy of their pod, while the pod's goal is to run and only in the same namespaces. Infra
//! containers, and members whose infra container ended, are left to the pod controller. This controller ignores
//! containers that were never started.

use std::time::Duration;

use jiff::Timestamp;

use super::restart_policy::{DELAYS, due};
use super::start::Starter;
use super::{ContainerError, ContainerService};
use crate::model::{Change, Kind, Snapshot};
use crate::observe::metrics::Verb;
use crate::ops::conditions::Failure;
use crate::ops::controller::{Outcome, Reconcile};

/// The controller of restart policies.
pub struct Restarter(pub ContainerService);

impl Reconcile for Restarter {
    type Key = String;

    fn concerned(&self, change: &Change, now: &Snapshot) -> Vec<String> {
        match change.kind {
            Kind::Container => vec![change.id.clone()],
            Kind::Pod => now
                .containers()
                .iter()
                .filter(|c| c.role.pod() == Some(&change.id))
                .map(|c| c.id.clone())
                .collect(),
            _ => Vec::new(),
        }
    }

    fn all(&self, now: &Snapshot) -> Vec<String> {
        now.containers().iter().map(|c| c.id.clone()).collect()
    }

    /// The start itself records its outcome, whoever requested it.
    fn subject(&self, _: &String) -> Option<(Kind, String)> {
        None
    }

    async fn reconcile(&self, id: &String) -> Outcome {
        let Some(wait) = self.0.wait_for_restart(id) else {
            return Outcome::Done;
        };
        if !wait.is_zero() {
            return Outcome::Again(wait);
        }
        let tried = self.0.restart(id).await;
        if let Err(error) = &tried {
            tracing::warn!(container.id = %id, %error, "the restart policy could not start a container");
        }
        // The row records a failed try, which determines the time of the next one.
        match self.0.wait_for_restart(id) {
            Some(wait) if !wait.is_zero() => Outcome::Again(wait),
            Some(_) => match tried {
                Err(error) => Outcome::Failed(Failure::new(error.reason(), &error)),
                Ok(()) => Outcome::Again(DELAYS.first),
            },
            None => Outcome::Done,
        }
    }
}

impl ContainerService {
    /// The delay until the policy restarts a container; `None` if it does not.
    fn wait_for_restart(&self, id: &str) -> Option<Duration> {
        let (snapshot, now) = (self.snapshot(), Timestamp::now());
        let due = due(snapshot.containers().get(id)?, &snapshot, now)?;
        Some(due.duration_since(now).try_into().unwrap_or(Duration::ZERO))
    }

    /// Restarts a container if its policy still requires it once the lock is held.
    async fn restart(&self, id: &str) -> Result<(), ContainerError> {
        let (service, id) = (self.clone(), id.to_owned());
        self.detached(Verb::ContainerStart, async move {
            let _lock = service.0.locks.lock(&id).await;
            if service.wait_for_restart(&id).is_none_or(|wait| !wait.is_zero()) {
                return Ok(());
            }
            let container = service.find(&id)?;
            service.bring_up(&container, Starter::Policy).await?;
            tracing::info!(container.id = %id, restarts = container.status.restarts + 1, "container started again by its policy");
            Ok(())
        })
        .await
    }
}
