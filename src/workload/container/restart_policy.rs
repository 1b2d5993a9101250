//! When a restart policy is due. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::membership::infra_of;
use crate::model::retries::in_a_row;
use crate::model::{Container, ContainerState, PodGoal, RestartPolicy, Snapshot};
use crate::ops::controller::Backoff;

/// The delay between the end of a container and its restart.
pub const DELAYS: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(60),
};

/// When the policy restarts a container; `None` if it does not.
pub(super) fn due(c: &Container, snapshot: &Snapshot, now: Timestamp) -> Option<Timestamp> {
    due_by(policy(c, snapshot)?, c, now)
}

/// The same, judged by the row alone, for display.
pub fn next_start(c: &Container) -> Option<Timestamp> {
    due_by(c.spec.options.restart, c, Timestamp::MAX)
}

fn due_by(policy: RestartPolicy, c: &Container, now: Timestamp) -> Option<Timestamp> {
    let started_at = c.status.started_at?;
    if c.journal.operation.is_some() || c.journal.stopped_by_user || c.is_infra() {
        return None;
    }
    let in_a_row = in_a_row(c, started_at);
    let wanted = match (c.status.state, policy) {
        (_, RestartPolicy::No) => false,
        (ContainerState::Stopped, RestartPolicy::Always) => true,
        (ContainerState::Stopped, RestartPolicy::OnFailure { max_retries }) => {
            c.status.exit.as_ref().is_none_or(|exit| exit.code != 0) && (max_retries == 0 || in_a_row < max_retries)
        }
        // A start was interrupted after its first half.
        (ContainerState::Created, _) => true,
        (ContainerState::Creating | ContainerState::Running, _) => false,
    };
    if !wanted {
        return None;
    }
    let last = c.status.stopped_at.max(c.journal.retries.last).unwrap_or(started_at);
    if last > now {
        // The clock was set back: do not wait until it catches up.
        return Some(now);
    }
    Some(
        last.checked_add(DELAYS.delay(in_a_row.saturating_add(1)))
            .unwrap_or(now),
    )
}

/// The policy of the container. For a member it is the pod's, while the pod's goal is to run and its namespaces exist.
fn policy(c: &Container, snapshot: &Snapshot) -> Option<RestartPolicy> {
    let Some(id) = c.role.pod() else {
        return Some(c.spec.options.restart);
    };
    let pod = snapshot.pods().get(id)?;
    let host = infra_of(snapshot, id)?.status.process.as_ref();
    let is_ours = pod.goal == PodGoal::Running && host.is_some() && host == c.journal.joined.as_ref();
    is_ours.then_some(pod.template.spec.restart)
}

#[cfg(test)]
mod tests;
