//! The restart policy: a container that ended by itself is started again, later each time.
//!
//! ```text
//! ends -> waits (100 ms, 200 ms, … 1 min) -> started again -> ran for 10 s: the next wait is the first one again
//! ```
//!
//! When it is due follows from its row alone, so a daemon that was killed goes on where it was: an end that nobody saw
//! and a start that was cut off count like any other. A user's stop wins. A try is counted before it is made; one that
//! brings the daemon down backs off too.
//!
//! Members of a pod are started again by the policy of the pod, while the pod is meant to run and in the namespaces that
//! they were in. Infra containers, and members whose infra container ended, are the pod controller's. What was never
//! started is nobody's here.

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

    /// What came of a start is told where it is tried, whoever wanted it.
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
        // A failed try is in the row, and with it when the next one is due.
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
    /// How long until the policy of a container starts it again; `None` when it does not.
    fn wait_for_restart(&self, id: &str) -> Option<Duration> {
        let (snapshot, now) = (self.snapshot(), Timestamp::now());
        let due = due(snapshot.containers().get(id)?, &snapshot, now)?;
        Some(due.duration_since(now).try_into().unwrap_or(Duration::ZERO))
    }

    /// Starts a container again if its policy still says so when its turn comes.
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
