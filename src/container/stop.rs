//! Stop: TERM, KILL after the grace period, and the exit recorded.

use jiff::Timestamp;

use crate::metrics::Verb;

use super::{ContainerError, ContainerService, refuse_managed, restart, transitions};

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
            let awaits_restart = restart::due(&container, &service.snapshot(), Timestamp::now()).is_some();
            if !awaits_restart {
                transitions::check_allowed("stop", &container)?;
            }
            // Before the kill: from here on no policy starts it again, also after a crash.
            service
                .update(&id, |c| {
                    c.stopped_by_user = true;
                    Ok(())
                })
                .await?;
            if awaits_restart {
                tracing::info!(container.id = %id, "the restart of a container was called off");
                return Ok(id);
            }
            let stopped = service.0.services.runtime.stop(&id).await;
            service.settle_exit(&id).await;
            // It may have ended by itself a moment before: what was asked for is the case.
            if let Err(source) = stopped
                && service.find(&id)?.process.is_some()
            {
                return Err(ContainerError::Runtime {
                    step: "stop failed",
                    source,
                });
            }
            tracing::info!(container.id = %id, "container stopped");
            Ok(id)
        })
        .await
    }
}
