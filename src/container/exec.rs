//! Exec: one more process in a running container.

use crate::runtime::RuntimeError;
use crate::store::ContainerState;

use super::{ContainerError, ContainerService};

impl ContainerService {
    /// Starts a process and returns when it was executed. Its output goes to `exec.log`, or to the exec terminal.
    pub async fn exec(&self, parameter: &str, tty: bool, command: Vec<String>) -> Result<(), ContainerError> {
        if command.first().is_none_or(String::is_empty) {
            return Err(ContainerError::EmptyCommand);
        }
        let container = self.find(parameter)?;
        if container.state != ContainerState::Running {
            return Err(ContainerError::NotRunning(container.id.clone()));
        }
        let service = self.clone();
        self.detached(async move {
            tracing::info!(container.id = %container.id, tty, "exec");
            service
                .0
                .services
                .runtime
                .exec(&container.id, tty, &command)
                .await
                .map_err(|source| match &source {
                    // It ended since the row was read.
                    RuntimeError::Failed { detail, .. } if detail.contains("not running") => {
                        ContainerError::NotRunning(container.id.clone())
                    }
                    _ => ContainerError::Runtime {
                        step: "exec failed",
                        source,
                    },
                })
        })
        .await
    }
}
