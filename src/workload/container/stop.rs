//! Stop: the signal, KILL after the grace period, and the exit recorded.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{ContainerError, ContainerService, refuse_managed, restart, transitions};
use crate::model::{Container, ContainerOptions};
use crate::observe::metrics::Verb;
use crate::runtime::StopRequest;

/// How long a stop waits until the end of a container is recorded that ended by itself: longer than a dead monitor is
/// waited for.
const RECORD_LIMIT: Duration = Duration::from_secs(5);

impl ContainerService {
    /// Ends the process of a running container for its user, so that no restart policy starts it again; returns the id.
    pub async fn stop(&self, parameter: &str) -> Result<String, ContainerError> {
        let container = self.find(parameter)?;
        refuse_managed(&container, parameter, "operation", "stop")?;
        self.stop_found(container, parameter).await
    }

    /// The same for everybody who may stop it.
    pub(super) async fn stop_found(
        &self,
        container: Arc<Container>,
        parameter: &str,
    ) -> Result<String, ContainerError> {
        let (service, parameter) = (self.clone(), parameter.to_owned());
        self.detached(Verb::ContainerStop, async move {
            let id = container.id.clone();
            let _lock = service.0.locks.lock(&id).await;
            service.find(&id).map_err(|_| ContainerError::NotFound(parameter))?;
            let snapshot = service.snapshot();
            // Before the end, which the restart policy sees.
            let awaits_restart = service
                .update(&id, move |c| {
                    let awaits_restart = restart::due(c, &snapshot, Timestamp::now()).is_some();
                    if !awaits_restart {
                        transitions::check_allowed("stop", c)?;
                    }
                    c.journal.stopped_by_user = true;
                    Ok(awaits_restart)
                })
                .await?;
            if awaits_restart {
                tracing::info!(container.id = %id, "the restart of a container was called off");
                return Ok(id);
            }
            service.end_process(&id).await?;
            tracing::info!(container.id = %id, "container stopped");
            Ok(id)
        })
        .await
    }

    /// Whoever calls this holds the lock of the container and has seen it run.
    pub(super) async fn end_process(&self, id: &str) -> Result<(), ContainerError> {
        let request = stop_request(&self.find(id)?.spec.options);
        let stopped = self.0.services.runtime.stop(id, &request).await;
        if !self.settle_exit(id).await && stopped.is_ok() {
            self.settle_unseen(id).await;
        }
        let row = self.find(id)?;
        self.unpublish(&row).await;
        // It may have ended by itself a moment before: what was asked for is the case.
        match (stopped, self.find(id)?.status.process.clone()) {
            (Err(source), Some(process)) if process.is_alive() => Err(ContainerError::Runtime {
                step: "stop failed",
                source,
            }),
            (Err(_), Some(process)) => {
                // The row is going to say so; whoever waits for the stop wants to see it.
                let _ = tokio::time::timeout(RECORD_LIMIT, self.ended(id, &process, process.parent())).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// What the container's creator chose, else the defaults of the contract.
fn stop_request(options: &ContainerOptions) -> StopRequest {
    let default = StopRequest::default();
    StopRequest {
        signal: options.stop_signal.clone().unwrap_or(default.signal),
        grace: options
            .stop_seconds
            .map_or(default.grace, |seconds| Duration::from_secs(seconds.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_as_the_creator_chose() {
        let seconds = |request: &StopRequest| request.grace.as_secs();
        let default = stop_request(&ContainerOptions::default());
        assert_eq!((default.signal.as_str(), seconds(&default)), ("SIGTERM", 3));
        let chosen = stop_request(&ContainerOptions {
            stop_signal: Some("SIGQUIT".into()),
            stop_seconds: Some(0),
            ..ContainerOptions::default()
        });
        assert_eq!((chosen.signal.as_str(), seconds(&chosen)), ("SIGQUIT", 0));
    }
}
