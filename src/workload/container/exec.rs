//! Exec: runs another process in a running container, with or without waiting for its end.

use std::time::Duration;

use super::watch::wait_for_end;
use super::{ContainerError, ContainerService};
use crate::model::{Container, ContainerState};
use crate::observe::metrics::Verb;
use crate::runtime::RuntimeError;
use crate::runtime::exec::ExecOutcome;

/// Longest time-out of an exec that waits.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a container's process may take to exit.
const DYING: Duration = Duration::from_millis(200);

/// An exec that waits for its process.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// Argument vector, not empty.
    pub command: Vec<String>,
    /// When this has passed, the process and its descendants are killed. More than 0, at most an hour.
    pub timeout: Option<Duration>,
}

impl ContainerService {
    /// Starts a process and returns once it executes. Its output goes to `exec.log`, or to the exec terminal.
    pub async fn exec(&self, parameter: &str, tty: bool, command: Vec<String>) -> Result<(), ContainerError> {
        let container = self.check_exec(parameter, &command)?;
        let service = self.clone();
        self.detached(Verb::ContainerExec, async move {
            tracing::info!(container.id = %container.id, tty, "exec");
            service.confinement().await?;
            let executed = service.0.services.runtime.exec(&container.id, tty, &command).await;
            match executed {
                Ok(()) => Ok(()),
                Err(source) => Err(failed(&container, source).await),
            }
        })
        .await
    }

    /// Runs a process to its end. Dropping the future kills it, since only the caller needs it. A failing or
    /// non-executable program is not an error.
    pub async fn exec_wait(&self, parameter: &str, request: ExecRequest) -> Result<ExecOutcome, ContainerError> {
        if let Some(timeout) = request.timeout
            && (timeout.is_zero() || timeout > MAX_TIMEOUT)
        {
            let (given, most) = (timeout.as_secs_f64(), MAX_TIMEOUT.as_secs());
            return Err(ContainerError::InvalidOption(format!(
                "timeout {given} is not more than 0 and at most {most} seconds"
            )));
        }
        let container = self.check_exec(parameter, &request.command)?;
        self.confinement().await?;
        let (services, id) = (&self.0.services, &container.id);
        tracing::debug!(container.id = %id, timeout = ?request.timeout, "exec and wait");
        let outcome = services.runtime.exec_wait(id, &request.command, request.timeout);
        let outcome = services.activity.observe(Verb::ContainerExec, outcome).await;
        match outcome {
            Ok(outcome) => Ok(outcome),
            Err(source) => Err(failed(&container, source).await),
        }
    }

    fn check_exec(&self, parameter: &str, command: &[String]) -> Result<std::sync::Arc<Container>, ContainerError> {
        if command.first().is_none_or(String::is_empty) {
            return Err(ContainerError::EmptyCommand);
        }
        if command.iter().any(|word| word.contains('\0')) {
            return Err(ContainerError::InvalidOption("command contains a NUL character".into()));
        }
        let container = self.find(parameter)?;
        if container.status.state != ContainerState::Running {
            return Err(ContainerError::NotRunning(container.id.clone()));
        }
        Ok(container)
    }
}

/// The container may have ended at any step of the exec, so the step's error is not conclusive. An exiting process
/// gives up its namespaces before the kernel reports it dead.
async fn failed(container: &Container, source: RuntimeError) -> ContainerError {
    let ended = match &container.status.process {
        Some(process) => tokio::time::timeout(DYING, wait_for_end(process)).await.is_ok(),
        None => true,
    };
    match ended {
        true => ContainerError::NotRunning(container.id.clone()),
        false => ContainerError::Runtime {
            step: "exec failed",
            source,
        },
    }
}
