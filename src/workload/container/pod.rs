//! Containers of pods: the infra container, which holds the namespaces and the address, and the members, which join
//! them (`docs/spec/runtime.md` 14).
//!
//! A member never joins any other namespaces: the infra process (by pid, start time and boot) must be alive both before
//! and after the member's create. Then the paths used in between were its own, even if its pid is reused later.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::membership::{infra_of, place_of};
use super::part::{Part, PodPart};
use super::ports::parse_ports;
use super::{ContainerError, ContainerService, transitions};
use crate::model::{Container, ContainerRequest, ContainerState, Operation, ProcessId, Role};
use crate::observe::metrics::Verb;

impl ContainerService {
    /// Makes a container of a pod that waits for its start, and returns its id.
    pub async fn create_in_pod(
        &self,
        name: String,
        request: ContainerRequest,
        part: PodPart,
    ) -> Result<String, ContainerError> {
        self.create_as(name, request, Part::Pod(part)).await
    }

    /// Address of a container; for a member, that of its pod.
    pub fn address(&self, container: &Container) -> Option<Ipv4Addr> {
        Some(place_of(&self.snapshot(), container)?.address)
    }

    /// Replaces the published ports of a container, all or none.
    pub async fn publish(&self, id: &str, ports: &[String]) -> Result<(), ContainerError> {
        let forwards = parse_ports(ports)?;
        let row = self.row(id)?;
        let forwards = self
            .0
            .services
            .ports
            .assign(&self.snapshot(), forwards, &row.spec.forwards)?;
        self.check_ports(&forwards)?;
        if row.is_published() {
            self.0.services.ports.hold(&forwards)?;
        }
        let published = self.update(id, move |c| {
            c.spec.forwards = forwards;
            Ok(())
        });
        // Release the unused ports after a failure as well.
        let published = published.await;
        self.follow_ports().await?;
        published
    }

    /// Brings a running or created container of a pod to `stopped`. Its restart policy does not start it again: the pod
    /// decides that.
    pub async fn end(&self, id: &str) -> Result<(), ContainerError> {
        let (service, id) = (self.clone(), id.to_owned());
        self.detached(Verb::ContainerStop, async move {
            let _lock = service.0.locks.lock(&id).await;
            service.end_locked(&id).await
        })
        .await
    }

    /// Removes a container of a pod, whatever its state.
    pub async fn end_and_delete(&self, id: &str) -> Result<(), ContainerError> {
        let (service, id) = (self.clone(), id.to_owned());
        self.detached(Verb::ContainerDelete, async move {
            let _lock = service.0.locks.lock(&id).await;
            let ended = service.end_locked(&id).await;
            let container = service.row(&id)?;
            if container.status.state == ContainerState::Running {
                return ended;
            }
            service.dismantle(&container).await
        })
        .await
    }

    async fn end_locked(&self, id: &str) -> Result<(), ContainerError> {
        match self.row(id)?.status.state {
            ContainerState::Running => {
                self.update(id, |c| {
                    c.journal.stopped_by_user = true;
                    Ok(())
                })
                .await?;
                self.end_process(id).await
            }
            ContainerState::Created => {
                self.delete_in_runtime(id).await?;
                self.unwatch(id);
                self.update(id, |c| {
                    transitions::stopped(c, transitions::unseen_exit(), jiff::Timestamp::now());
                    Ok(())
                })
                .await
            }
            ContainerState::Creating | ContainerState::Stopped => Ok(()),
        }
    }

    /// The row with exactly that id.
    pub(super) fn row(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        let row = self.snapshot().containers().get(id).cloned();
        row.ok_or_else(|| ContainerError::NotFound(id.to_owned()))
    }

    /// The infra process that a member is about to join; `None` for other containers. An infra container that is being
    /// dismantled does not count.
    pub(super) fn host_of(&self, container: &Container) -> Result<Option<ProcessId>, ContainerError> {
        let Role::Member { pod } = &container.role else {
            return Ok(None);
        };
        let snapshot = self.snapshot();
        let infra = infra_of(&snapshot, pod).filter(|infra| infra.journal.operation != Some(Operation::Delete));
        let process = infra.and_then(|infra| infra.status.process.clone());
        process
            .filter(ProcessId::is_alive)
            .map(Some)
            .ok_or_else(|| ContainerError::NoInfra(pod.clone()))
    }
}
