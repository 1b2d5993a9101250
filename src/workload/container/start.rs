//! Start: of a created container, and restart of a stopped one.

use std::sync::Arc;

use jiff::Timestamp;

use super::{ContainerError, ContainerService, refuse_managed, transitions};
use crate::model::{Container, ContainerState, Kind, Operation, Retries, retries};
use crate::observe::metrics::Verb;
use crate::ops::conditions::{ConditionType, Failure};

/// Who starts a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starter {
    /// A request. It resets the restart counter and an earlier stop.
    User,
    /// The restart policy, which counts its tries.
    Policy,
}

impl Starter {
    fn note(self, c: &mut Container) {
        match self {
            // The pod controller counts the starts of infra containers.
            _ if c.is_infra() => c.journal.stopped_by_user = false,
            Self::User => {
                c.journal.stopped_by_user = false;
                c.status.restarts = 0;
                c.journal.retries = Retries::default();
            }
            Self::Policy => retries::count(c, Timestamp::now()),
        }
    }
}

impl ContainerService {
    /// Releases the process; returns the id. A stopped container is first created again.
    pub async fn start(&self, parameter: &str) -> Result<String, ContainerError> {
        let container = self.find(parameter)?;
        refuse_managed(&container, parameter, "operation", "start")?;
        self.start_found(container, parameter).await
    }

    /// The start itself, without the check for a managing bottle.
    pub(super) async fn start_found(
        &self,
        container: Arc<Container>,
        parameter: &str,
    ) -> Result<String, ContainerError> {
        let (service, parameter) = (self.clone(), parameter.to_owned());
        self.detached(Verb::ContainerStart, async move {
            let id = container.id.clone();
            let _lock = service.0.locks.lock(&id).await;
            // It may have been removed while this waited for the lock.
            let container = service.find(&id).map_err(|_| ContainerError::NotFound(parameter))?;
            transitions::check_allowed("start", &container)?;
            service.bring_up(&container, Starter::User).await?;
            tracing::info!(container.id = %id, "container started");
            Ok(id)
        })
        .await
    }

    /// Starts a container under its lock, and records a failure for clients to read.
    pub(super) async fn bring_up(&self, container: &Container, starter: Starter) -> Result<(), ContainerError> {
        let done = self.try_to_bring_up(container, starter).await;
        let (conditions, subject) = (&self.0.services.conditions, (Kind::Container, &container.id[..]));
        match &done {
            Ok(()) => conditions.clear(subject, ConditionType::Started),
            Err(error) => {
                let (snapshot, now) = (self.snapshot(), Timestamp::now());
                let row = snapshot.containers().get(&container.id);
                let next = row.and_then(|row| super::restart_policy::due(row, &snapshot, now));
                let failure = Failure::new(error.reason(), error);
                conditions.fail(subject, ConditionType::Started, &failure, next);
            }
        }
        done
    }

    async fn try_to_bring_up(&self, container: &Container, starter: Starter) -> Result<(), ContainerError> {
        if let Err(taken) = self.hold_ports(container) {
            if starter == Starter::Policy {
                // The try counts, and delays the next one.
                self.update(&container.id, move |c| {
                    starter.note(c);
                    Ok(())
                })
                .await?;
            }
            return Err(taken);
        }
        let done = self.run_again(container, starter).await;
        if done.is_err() {
            let over = self.update(&container.id, |c| {
                c.journal.starting = false;
                Ok(())
            });
            if let Err(error) = over.await {
                tracing::error!(container.id = %container.id, %error, "a failed start is not over for its ports");
            }
            self.unpublish(container).await;
        }
        done
    }

    async fn run_again(&self, container: &Container, starter: Starter) -> Result<(), ContainerError> {
        if container.status.state == ContainerState::Stopped {
            self.create_again(container, starter).await?;
        } else {
            self.update(&container.id, move |c| {
                starter.note(c);
                c.journal.starting = true;
                Ok(())
            })
            .await?;
            if !container.spec.forwards.is_empty() {
                self.follow_ports().await?;
            }
        }
        // A change of another container may have released the ports before the row claimed them.
        self.hold_ports(container)?;
        self.release(&container.id).await
    }

    /// The first half of a restart. On failure the container stays stopped and keeps everything it owns.
    async fn create_again(&self, container: &Container, starter: Starter) -> Result<(), ContainerError> {
        let row = self
            .update(&container.id, move |c| {
                starter.note(c);
                c.status.state = ContainerState::Creating;
                c.journal.starting = true;
                c.journal.operation = Some(Operation::Restart);
                c.journal.certificate_due = true;
                Ok(c.clone())
            })
            .await?;
        let Err(error) = self.set_up(&row).await else {
            return Ok(());
        };
        tracing::warn!(container.id = %row.id, %error, "restart failed, the container stays stopped");
        let before = container.clone();
        self.update(&container.id, move |c| {
            c.journal.operation = None;
            c.journal.certificate_due = false;
            c.journal.starting = false;
            c.status.state = ContainerState::Stopped;
            c.status.process = None;
            c.status.exit = before.status.exit;
            if starter == Starter::User {
                (c.journal.stopped_by_user, c.status.restarts, c.journal.retries) = (
                    before.journal.stopped_by_user,
                    before.status.restarts,
                    before.journal.retries,
                );
            }
            Ok(())
        })
        .await?;
        Err(error)
    }

    /// For a member whose program could not be executed: the restart policy of its pod retries, as the kubelet does,
    /// but ignores containers that were never started.
    async fn count_as_run(&self, id: &str) {
        let counted = self.update(id, |c| {
            if c.role.pod().is_some() && c.status.state == ContainerState::Stopped {
                c.status.started_at = c.status.started_at.or(c.status.stopped_at);
            }
            Ok(())
        });
        if let Err(error) = counted.await {
            tracing::error!(container.id = %id, %error, "a start that failed is not tried again");
        }
    }

    pub(super) async fn release(&self, id: &str) -> Result<(), ContainerError> {
        // The profile is applied at exec, which may be long after the create.
        self.confinement().await?;
        let started = self.0.services.runtime.start(id).await;
        if let Err(source) = started {
            // A program that cannot be executed ends the container with 126 or 127, as recorded by the runtime.
            if self.settle_exit(id).await {
                self.count_as_run(id).await;
            }
            return Err(ContainerError::Runtime {
                step: "start container failed",
                source,
            });
        }
        let process = self.runtime_process(id).await;
        self.update(id, move |c| {
            let now = Timestamp::now();
            transitions::running(c, process, now);
            // A process that has already ended was started nevertheless.
            c.status.started_at.get_or_insert(now);
            Ok(())
        })
        .await?;
        self.watch(id);
        Ok(())
    }
}
