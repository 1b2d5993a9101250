//! Stop: TERM, KILL after the grace period, and the exit recorded.

use crate::metrics::Verb;

use super::{ContainerError, ContainerService, refuse_managed, transitions};

impl ContainerService {
    /// Ends the process of a running container; returns the id.
    pub async fn stop(&self, parameter: &str) -> Result<String, ContainerError> {
        let container = self.find(parameter)?;
        refuse_managed(&container, parameter, "operation", "stop")?;
        let (service, parameter) = (self.clone(), parameter.to_owned());
        self.detached(Verb::ContainerStop, async move {
            let id = container.id.clone();
            let _lock = service.0.locks.lock(&id).await;
            let container = service.find(&id).map_err(|_| ContainerError::NotFound(parameter))?;
            transitions::check_allowed("stop", &container)?;
            service.stop_locked(&id).await?;
            tracing::info!(container.id = %id, "container stopped");
            Ok(id)
        })
        .await
    }
    /// The caller holds the container's lock and has seen it run.
    pub(super) async fn stop_locked(&self, id: &str) -> Result<(), ContainerError> {
        let stopped = self.0.services.runtime.stop(id).await;
        self.settle_exit(id).await;
        // It may have ended by itself a moment before: what was asked for is the case.
        if let Err(source) = stopped
            && self.find(id)?.process.is_some()
        {
            return Err(ContainerError::Runtime {
                step: "stop failed",
                source,
            });
        }
        Ok(())
    }
}
