//! Start: services in order, each when its dependencies have reached the required state.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BottleError, Bottles, plan};
use crate::model::{Bottle, Condition, Container, ContainerState, Health, HealthCheck, RestartPolicy};
use crate::workload::container::ContainerError;

/// Margin for delays that the times of a health check do not cover: starting the probe, noticing and recording the
/// result.
const SLACK: Duration = Duration::from_secs(10);

/// State of the wait for a healthy service.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    /// It is healthy.
    Over,
    /// It may become so.
    GoOn,
    /// It cannot become healthy, for this reason.
    Hopeless(&'static str),
}

fn judge(container: Option<&Container>) -> Wait {
    let Some(c) = container else {
        return Wait::Hopeless("its container is gone");
    };
    match (c.status.state, c.status.health) {
        (ContainerState::Running, Some(Health::Healthy)) => Wait::Over,
        (ContainerState::Running, Some(Health::Unhealthy)) => Wait::Hopeless("it is unhealthy"),
        (ContainerState::Stopped, _) if c.journal.stopped_by_user || c.spec.options.restart == RestartPolicy::No => {
            Wait::Hopeless("it has ended")
        }
        _ => Wait::GoOn,
    }
}

/// A health check has a result after this time, unless the service keeps restarting.
fn patience(check: Option<&HealthCheck>) -> Duration {
    let seconds = |check: &HealthCheck| {
        let tries = u64::from(check.retries) * u64::from(check.interval.saturating_add(check.timeout));
        u64::from(check.start_period) + tries
    };
    Duration::from_secs(check.map_or(0, seconds)) + SLACK
}

impl Bottles {
    pub(super) async fn start_in_order(&self, bottle: &Bottle, stop: &CancellationToken) -> Result<(), BottleError> {
        let mut failed = BTreeSet::new();
        let mut result = Ok(());
        for name in &bottle.start_order {
            let needed = &bottle.services[name].depends_on;
            if let Some(cause) = needed.iter().find(|needed| failed.contains(&needed.service)) {
                tracing::warn!(bottle.id = %bottle.id, service = %name, cause = %cause.service, "service not started");
                failed.insert(name.clone());
            } else if let Err(error) = self.start_service(bottle, name, stop).await {
                tracing::warn!(bottle.id = %bottle.id, service = %name, %error, "service not started");
                failed.insert(name.clone());
                result = result.and(Err(error));
            }
        }
        result
    }

    async fn start_service(&self, bottle: &Bottle, name: &str, stop: &CancellationToken) -> Result<(), BottleError> {
        for needed in &bottle.services[name].depends_on {
            if needed.condition == Condition::Healthy {
                self.wait_until_healthy(bottle, &needed.service, stop).await?;
            }
        }
        let Some(id) = bottle.containers.get(name) else {
            return Ok(());
        };
        match self.0.parts.containers.start_in_bottle(id).await {
            Ok(()) | Err(ContainerError::AlreadyStarted(_)) => Ok(()),
            Err(ContainerError::NotFound(_)) => {
                tracing::warn!(bottle.id = %bottle.id, service = %name, "the container of a service is gone");
                Ok(())
            }
            Err(source) => {
                let service = name.to_owned();
                Err(BottleError::Service { service, source })
            }
        }
    }

    async fn wait_until_healthy(
        &self,
        bottle: &Bottle,
        name: &str,
        stop: &CancellationToken,
    ) -> Result<(), BottleError> {
        let hopeless = |reason: String| {
            let service = name.to_owned();
            Err(BottleError::NotHealthy { service, reason })
        };
        // Subscribe before the first check, so that no change is missed.
        let mut commits = self.0.parts.store.subscribe();
        let container = || plan::container(&self.snapshot(), bottle, name).cloned();
        if container().is_some_and(|c| c.spec.options.health_check.is_none()) {
            return hopeless("neither the file nor its image has a healthcheck for it".to_owned());
        }
        let limit = patience(container().as_ref().and_then(|c| c.spec.options.health_check.as_ref()));
        let deadline = Instant::now() + limit;
        loop {
            match judge(container().as_deref()) {
                Wait::Over => return Ok(()),
                Wait::Hopeless(reason) => return hopeless(reason.to_owned()),
                Wait::GoOn => {}
            }
            tokio::select! {
                commit = commits.recv() => if matches!(commit, Err(RecvError::Closed)) {
                    return hopeless("the daemon is ending".to_owned());
                },
                () = stop.cancelled() => return hopeless("the bottle is being stopped".to_owned()),
                () = tokio::time::sleep_until(deadline) => return hopeless(format!("{limit:?} have passed")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Probe;
    use crate::model::fixtures::container;

    fn in_state(state: ContainerState, health: Option<Health>) -> Container {
        let mut c = container("a", "db").in_state(state);
        c.status.health = health;
        c
    }

    #[test]
    fn a_wait_ends_when_there_is_something_to_say() {
        use ContainerState::{Creating, Running, Stopped};
        let said = |c: &Container| judge(Some(c));
        assert_eq!(said(&in_state(Running, Some(Health::Starting))), Wait::GoOn);
        assert_eq!(said(&in_state(Running, Some(Health::Healthy))), Wait::Over);
        assert_eq!(
            said(&in_state(Running, Some(Health::Unhealthy))),
            Wait::Hopeless("it is unhealthy")
        );
        assert_eq!(said(&in_state(Stopped, None)), Wait::Hopeless("it has ended"));
        assert_eq!(judge(None), Wait::Hopeless("its container is gone"));
        let mut restarted = in_state(Stopped, None);
        restarted.spec.options.restart = RestartPolicy::Always;
        assert_eq!(said(&restarted), Wait::GoOn);
        restarted.journal.stopped_by_user = true;
        assert_eq!(said(&restarted), Wait::Hopeless("it has ended"));
        assert_eq!(said(&in_state(Creating, None)), Wait::GoOn);
    }

    #[test]
    fn patience_lasts_as_long_as_the_check_may_take() {
        let check = HealthCheck {
            probe: Probe::Tcp(80),
            interval: 5,
            timeout: 2,
            retries: 3,
            successes: 1,
            start_period: 20,
            start_interval: None,
        };
        assert_eq!(patience(Some(&check)), Duration::from_secs(20 + 21 + 10));
        assert_eq!(patience(None), SLACK);
    }
}
