//! Stop: sends the signal, sends KILL after the grace period, and records the exit.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{ContainerError, ContainerService, refuse_managed, restart_policy, transitions};
use crate::model::{Container, ContainerOptions, Kind};
use crate::observe::metrics::Verb;
use crate::ops::conditions::ConditionType;
use crate::runtime::StopRequest;

/// How long a stop waits for the record of an exit that happened by itself; longer than the wait for a dead monitor.
const RECORD_LIMIT: Duration = Duration::from_secs(5);

impl ContainerService {
    /// Stops a running container for its user, so that no restart policy restarts it; returns the id.
    pub async fn stop(&self, parameter: &str) -> Result<String, ContainerError> {
        let container = self.find(parameter)?;
        refuse_managed(&container, parameter, "operation", "stop")?;
        self.stop_found(container, parameter).await
    }

    /// The stop itself, without the check for a managing bottle.
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
            // Set this before the process ends, because the end triggers the restart policy.
            let awaits_restart = service
                .update(&id, move |c| {
                    let awaits_restart = restart_policy::due(c, &snapshot, Timestamp::now()).is_some();
                    if !awaits_restart {
                        transitions::check_allowed("stop", c)?;
                    }
                    c.journal.stopped_by_user = true;
                    Ok(awaits_restart)
                })
                .await?;
            // No more restarts are due.
            let conditions = &service.0.services.conditions;
            conditions.clear((Kind::Container, &id), ConditionType::Started);
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

    /// Ends the process. The caller holds the lock of the container and has seen it run.
    pub(super) async fn end_process(&self, id: &str) -> Result<(), ContainerError> {
        let request = stop_request(&self.find(id)?.spec.options);
        let stopped = self.0.services.runtime.stop(id, &request).await;
        if !self.settle_exit(id).await && stopped.is_ok() {
            self.settle_unseen(id).await;
        }
        let row = self.find(id)?;
        self.unpublish(&row).await;
        // It may have just ended by itself: then the stop has succeeded.
        match (stopped, self.find(id)?.status.process.clone()) {
            (Err(source), Some(process)) if process.is_alive() => Err(ContainerError::Runtime {
                step: "stop failed",
                source,
            }),
            (Err(_), Some(process)) => {
                // The exit is about to be recorded; clients expect to see it when the stop returns.
                let _ = tokio::time::timeout(RECORD_LIMIT, self.ended(id, &process, process.parent())).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The choice of the container's creator, else the defaults of the contract.
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
