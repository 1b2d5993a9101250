//! Health: probes running containers and records changes of the result.
//!
//! ```text
//! starts -> starting -> healthy <-> unhealthy
//!               \-------------------^
//! ```
//!
//! A container may have two checks of the same kind. The health check ends an unhealthy container if its creator wants
//! that (a liveness probe; the restart policy then decides). The readiness check decides whether services send it
//! clients. Each has one task per process. Consecutive answers are counted in memory: a restarted daemon counts anew,
//! from the state in the row.

mod probe;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;

use self::probe::ProbeError;
use super::{ContainerError, ContainerService};
use crate::model::{Change, CheckFailure, Container, ContainerState, Health, HealthCheck, Kind, ProcessId, Snapshot};
use crate::observe::metrics::Verb;
use crate::ops::controller::{Outcome, Reconcile};

/// Longest pause between two tries during the start period, until the first success.
const STARTING_INTERVAL: Duration = Duration::from_secs(1);

/// The controller of checks: runs one task for each check of a process.
pub struct Prober {
    containers: ContainerService,
    probed: Mutex<HashMap<String, (ProcessId, JoinSet<()>)>>,
}

impl Prober {
    /// Probes all containers of that service.
    pub fn new(containers: ContainerService) -> Self {
        Self {
            containers,
            probed: Mutex::default(),
        }
    }
}

impl Reconcile for Prober {
    type Key = String;

    fn concerned(&self, change: &Change, _: &Snapshot) -> Vec<String> {
        (change.kind == Kind::Container)
            .then(|| change.id.clone())
            .into_iter()
            .collect()
    }

    fn all(&self, now: &Snapshot) -> Vec<String> {
        now.containers().iter().map(|c| c.id.clone()).collect()
    }

    /// The row holds the results of checks.
    fn subject(&self, _: &String) -> Option<(Kind, String)> {
        None
    }

    async fn reconcile(&self, id: &String) -> Outcome {
        let snapshot = self.containers.snapshot();
        let row = snapshot
            .containers()
            .get(id)
            .filter(|c| c.status.state == ContainerState::Running);
        let process = row.and_then(|c| c.status.process.as_ref());
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(row), Some(process)) = (row, process) else {
            // Dropping it ends its tasks.
            probed.remove(id);
            return Outcome::Done;
        };
        if probed.get(id).is_some_and(|(known, _)| known == process) {
            return Outcome::Done;
        }
        let mut tasks = JoinSet::new();
        for aspect in [Aspect::Health, Aspect::Readiness] {
            if let Some(check) = aspect.check(row) {
                let (containers, process) = (self.containers.clone(), process.clone());
                tasks.spawn(containers.keep_asking(row.clone(), process, aspect, check.clone()));
            }
        }
        probed.insert(id.clone(), (process.clone(), tasks));
        Outcome::Done
    }
}

/// The purpose of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Health,
    Readiness,
}

impl Aspect {
    fn check(self, c: &Container) -> Option<&HealthCheck> {
        match self {
            Self::Health => c.spec.options.health_check.as_ref(),
            Self::Readiness => c.spec.options.readiness_check.as_ref(),
        }
    }

    fn of(self, c: &Container) -> Option<Health> {
        match self {
            Self::Health => c.status.health,
            Self::Readiness => c.status.readiness,
        }
    }

    fn failure(self, c: &Container) -> Option<&CheckFailure> {
        match self {
            Self::Health => c.status.health_failure.as_ref(),
            Self::Readiness => c.status.readiness_failure.as_ref(),
        }
    }

    /// Records the result, and since when it holds.
    fn note(self, c: &mut Container, health: Health, output: Option<String>, now: Timestamp) {
        let since = self.failure(c).map_or(now, |known| known.since);
        let (of, failure) = match self {
            Self::Health => (&mut c.status.health, &mut c.status.health_failure),
            Self::Readiness => (&mut c.status.readiness, &mut c.status.readiness_failure),
        };
        *failure = output.map(|output| CheckFailure { output, since });
        let is_new = of.replace(health) != Some(health);
        if self == Self::Readiness && is_new {
            c.status.ready_at = (health == Health::Healthy).then_some(now);
        }
    }
}

/// The result of the answers so far.
#[derive(Debug)]
struct Tally {
    health: Health,
    successes: u32,
    failures: u32,
}

impl Tally {
    fn from(health: Health) -> Self {
        Self {
            health,
            successes: 0,
            failures: 0,
        }
    }

    /// Adds an answer. In the start period failures do not count until the first success.
    fn note(&mut self, check: &HealthCheck, success: bool, in_start_period: bool) {
        if success {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= check.successes {
                self.health = Health::Healthy;
            }
        } else {
            self.successes = 0;
            if in_start_period && self.health == Health::Starting {
                return;
            }
            self.failures = self.failures.saturating_add(1);
            if self.failures >= check.retries {
                self.health = Health::Unhealthy;
            }
        }
    }

    /// The pause from the end of one try to the next.
    fn pause(&self, check: &HealthCheck, in_start_period: bool) -> Duration {
        let interval = Duration::from_secs(check.interval.into());
        if in_start_period && self.health == Health::Starting {
            let starting = check.start_interval.map(|seconds| Duration::from_secs(seconds.into()));
            starting.unwrap_or_else(|| interval.min(STARTING_INTERVAL))
        } else {
            interval
        }
    }
}

impl ContainerService {
    /// Probes one process until it is gone, or until this is dropped.
    async fn keep_asking(self, row: Arc<Container>, process: ProcessId, aspect: Aspect, check: HealthCheck) {
        let id = &row.id;
        let mut tally = Tally::from(aspect.of(&row).unwrap_or(Health::Starting));
        let start_period = Duration::from_secs(check.start_period.into());
        let in_start_period = || {
            let age = row
                .status
                .started_at
                .map(|started_at| Timestamp::now().duration_since(started_at));
            age.and_then(|age| Duration::try_from(age).ok())
                .is_some_and(|age| age < start_period)
        };
        loop {
            let answer = self.probe(&row, &check).await;
            tally.note(&check, answer.is_ok(), in_start_period());
            let snapshot = self.snapshot();
            let Some(now) = snapshot.containers().get(id) else {
                return;
            };
            if now.status.process.as_ref() != Some(&process) {
                return;
            }
            // A single failure of a healthy container is not reported yet.
            let failed = answer.err().filter(|_| tally.health != Health::Healthy);
            let is_new = aspect.of(now) != Some(tally.health);
            if is_new {
                let reason = failed.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::info!(container.id = %id, ?aspect, health = ?tally.health, reason, "a check has a new result");
            }
            let output = failed.map(ProbeError::into_output);
            if is_new || aspect.failure(now).map(|known| &known.output) != output.as_ref() {
                self.record_health(id, process.clone(), aspect, tally.health, output)
                    .await;
            }
            if aspect == Aspect::Health && tally.health == Health::Unhealthy && row.spec.options.end_unhealthy {
                self.end_unhealthy(id, process.clone()).await;
            }
            tokio::time::sleep(tally.pause(&check, in_start_period())).await;
        }
    }

    async fn record_health(
        &self,
        id: &str,
        process: ProcessId,
        aspect: Aspect,
        health: Health,
        output: Option<String>,
    ) {
        let recorded = self.update(id, move |c| {
            if c.status.state == ContainerState::Running && c.status.process == Some(process) {
                aspect.note(c, health, output, Timestamp::now());
            }
            Ok(())
        });
        match recorded.await {
            Ok(()) | Err(ContainerError::NotFound(_)) => {}
            Err(error) => {
                tracing::error!(container.id = %id, %error, "the health of a container could not be recorded")
            }
        }
    }

    /// Ends a process that does not work. This does not count as a user's stop.
    async fn end_unhealthy(&self, id: &str, process: ProcessId) {
        let (service, name) = (self.clone(), id.to_owned());
        let ended = self.detached(Verb::ContainerStop, async move {
            let _lock = service.0.locks.lock(&name).await;
            let container = service.find(&name)?;
            // It may have ended or recovered while this waited for the lock.
            if container.status.process != Some(process) || container.status.health != Some(Health::Unhealthy) {
                return Ok(());
            }
            tracing::warn!(container.id = %name, "ending a container that is unhealthy");
            service.end_process(&name).await
        });
        if let Err(error) = ended.await {
            tracing::error!(container.id = %id, %error, "an unhealthy container could not be ended");
        }
    }
}

#[cfg(test)]
mod tests;
