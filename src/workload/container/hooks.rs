//! Reports of the runtime (`docs/spec/api.md` 16), and the permission for one certificate per operation (17).
//!
//! Reports arrive while the operation that caused them waits for the runtime, so this module takes no container lock.

use jiff::Timestamp;

use super::{ContainerError, ContainerService, cgroup, transitions};
use crate::model::{Container, ContainerState, Exit, ProcessId};
use crate::runtime::hook::{HookEvent, HookState};
use crate::runtime::state::RuntimeState;

impl ContainerService {
    /// Applies a report. The caller has authenticated the reporter as this container.
    pub async fn hook(&self, event: HookEvent, report: HookState) -> Result<(), ContainerError> {
        let id = report.id;
        let process = match event {
            HookEvent::CreateContainer | HookEvent::Poststart => self.runtime_process(&id).await,
            _ => None,
        };
        let code = report.exit_code;
        let exit = Exit {
            code,
            reason: report.reason,
            message: report.message,
        };
        let row = self
            .update(&id, move |c| {
                transitions::apply_event(c, event, process, exit, Timestamp::now())?;
                Ok(c.clone())
            })
            .await?;
        match event {
            HookEvent::CreateContainer => self.attached(&row).await,
            HookEvent::StopContainer => {
                tracing::info!(container.id = %id, exit.code = code, "container ended");
                self.unwatch(&id);
            }
            HookEvent::Poststop if row.journal.operation.is_none() => {
                tracing::warn!(container.id = %id, "poststop without a removal in progress; nothing is removed");
            }
            _ => {}
        }
        Ok(())
    }

    /// Uses up the one certificate that a create or restart in progress may request, and records the identity.
    pub async fn take_certificate_slot(&self, id: &str) -> Result<(), ContainerError> {
        let taken = self.update(id, |c| {
            if c.status.state != ContainerState::Creating || !c.journal.certificate_due {
                return Err(ContainerError::NoCertificateDue);
            }
            c.journal.certificate_due = false;
            c.status.spiffe_id = Some(format!("spiffe://raind/container/{}", c.id));
            Ok(())
        });
        taken.await.map_err(|error| match error {
            ContainerError::NotFound(_) => ContainerError::NoCertificateDue,
            other => other,
        })
    }

    /// Applies the settings that need the network and cgroup of a container to exist.
    async fn attached(&self, container: &Container) {
        if container.status.attachment.is_some()
            && let Err(error) = self.0.services.networks.container_attached(&container.veth()).await
        {
            tracing::warn!(container.id = %container.id, %error, "a container cannot reach its own published ports");
        }
        cgroup::seal(&container.id);
    }

    /// The process named in `state.json`. Retries while the file is being replaced.
    pub(super) async fn runtime_process(&self, id: &str) -> Option<ProcessId> {
        self.runtime_state(id).await.and_then(|state| state.process())
    }

    pub(super) async fn runtime_state(&self, id: &str) -> Option<RuntimeState> {
        let path = self.dir(id).state();
        for _ in 0..3 {
            match RuntimeState::read(&path) {
                Ok(state) => return state,
                Err(error) => {
                    tracing::debug!(container.id = %id, %error, "reading the runtime state again");
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
        }
        None
    }
}
