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

use super::membership::infra_of;
use super::start::Starter;
use super::{ContainerError, ContainerService};
use crate::model::retries::in_a_row;
use crate::model::{Change, Container, ContainerState, Kind, PodGoal, RestartPolicy, Snapshot};
use crate::observe::metrics::Verb;
use crate::ops::controller::{Backoff, Outcome, Reconcile};

/// How long the container stays ended before it is started again.
pub const DELAYS: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(60),
};
/// When the policy of a container starts it again; `None` when it does not.
pub(super) fn due(c: &Container, snapshot: &Snapshot, now: Timestamp) -> Option<Timestamp> {
    let started_at = c.status.started_at?;
    if c.journal.operation.is_some() || c.journal.stopped_by_user || c.is_infra() {
        return None;
    }
    let policy = policy(c, snapshot)?;
    let in_a_row = in_a_row(c, started_at);
    let wanted = match (c.status.state, policy) {
        (_, RestartPolicy::No) => false,
        (ContainerState::Stopped, RestartPolicy::Always) => true,
        (ContainerState::Stopped, RestartPolicy::OnFailure { max_retries }) => {
            c.status.exit.as_ref().is_none_or(|exit| exit.code != 0) && (max_retries == 0 || in_a_row < max_retries)
        }
        // A start was cut off after its first half.
        (ContainerState::Created, _) => true,
        (ContainerState::Creating | ContainerState::Running, _) => false,
    };
    if !wanted {
        return None;
    }
    let last = c.status.stopped_at.max(c.journal.retries.last).unwrap_or(started_at);
    if last > now {
        // The clock was set back; it must not wait until that has caught up.
        return Some(now);
    }
    Some(
        last.checked_add(DELAYS.delay(in_a_row.saturating_add(1)))
            .unwrap_or(now),
    )
}

/// That of the pod for a member, as long as the pod is meant to run and its namespaces are there.
fn policy(c: &Container, snapshot: &Snapshot) -> Option<RestartPolicy> {
    let Some(id) = c.role.pod() else {
        return Some(c.spec.options.restart);
    };
    let pod = snapshot.pods().get(id)?;
    let host = infra_of(snapshot, id)?.status.process.as_ref();
    let is_ours = pod.goal == PodGoal::Running && host.is_some() && host == c.journal.joined.as_ref();
    is_ours.then_some(pod.template.spec.restart)
}

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

    async fn reconcile(&self, id: &String) -> Outcome {
        let Some(wait) = self.0.wait_for_restart(id) else {
            return Outcome::Done;
        };
        if !wait.is_zero() {
            return Outcome::Again(wait);
        }
        if let Err(error) = self.0.restart(id).await {
            tracing::warn!(container.id = %id, %error, "the restart policy could not start a container");
        }
        // A failed try is in the row, and with it when the next one is due.
        match self.0.wait_for_restart(id) {
            Some(wait) if wait.is_zero() => Outcome::Failed,
            Some(wait) => Outcome::Again(wait),
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

#[cfg(test)]
mod tests;
