//! When published ports reach a container: from shortly before its program runs until it ends.
//!
//! ```text
//! start: held by sockets -> row says so (`starting`) -> rules -> program runs -> ends: row -> rules and sockets go
//! ```
//! At other times the host refuses clients at once, as on any unused port, and any program may take the port. If
//! another program has it when the container starts, the start fails.

use super::ports::parse_ports;
use super::{ContainerError, ContainerService};
use crate::model::{Container, Forward, Protocol};

impl ContainerService {
    /// Refuses port strings that [`ContainerService::create`] would refuse.
    pub fn check_published(&self, ports: &[String]) -> Result<(), ContainerError> {
        self.check_ports(&parse_ports(ports)?)
    }

    /// Refuses ports that the daemon itself needs or that a program of the host uses now.
    pub(super) fn check_ports(&self, forwards: &[Forward]) -> Result<(), ContainerError> {
        let reserved = &self.0.settings.reserved_ports;
        let is_reserved = |f: &&Forward| f.protocol == Protocol::Tcp && reserved.contains(&f.host_port);
        if let Some(forward) = forwards.iter().find(is_reserved) {
            return Err(ContainerError::PortTaken {
                port: forward.host_port,
                protocol: forward.protocol,
                holder: "condenser itself".to_owned(),
            });
        }
        Ok(self.0.services.ports.check(forwards)?)
    }

    /// Binds the ports of a container that is about to start; after a failure it holds none.
    pub(super) fn hold_ports(&self, container: &Container) -> Result<(), ContainerError> {
        Ok(self.0.services.ports.hold(&container.spec.forwards)?)
    }

    /// Returns when rules and sockets match the rows.
    pub(super) async fn follow_ports(&self) -> Result<(), ContainerError> {
        let applied = self.0.services.firewall.apply().await;
        self.0.services.ports.keep();
        Ok(applied?)
    }

    /// Does the same after the end of a container with ports. Failed rules are retried automatically.
    pub(super) async fn unpublish(&self, container: &Container) {
        if !container.spec.forwards.is_empty()
            && let Err(error) = self.follow_ports().await
        {
            tracing::warn!(container.id = %container.id, %error, "ports of a container that ended are still published");
        }
    }
}
