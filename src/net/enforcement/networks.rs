//! Networks together with their rules: a network has default deny and DNS from its first packet on.

use std::sync::Arc;

use super::Firewall;
use crate::model::Network;
use crate::net::bridges::{NetworkError, NetworkService};
use crate::net::firewall::FirewallError;

/// Creates and removes networks.
#[derive(Clone)]
pub struct Networks {
    links: NetworkService,
    firewall: Firewall,
}

/// Why a network could not be created or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// The network itself.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The rules.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

impl Networks {
    /// Manages these bridges, with their rules in this firewall.
    pub fn new(links: NetworkService, firewall: Firewall) -> Self {
        Self { links, firewall }
    }

    /// Creates a network and its rules; a failed attempt leaves nothing behind. Errors: as [`NetworkService::create`],
    /// and [`NetworksError::Firewall`].
    pub async fn create(&self, name: &str) -> Result<Arc<Network>, NetworksError> {
        let network = self.links.create(name).await?;
        if let Err(error) = self.firewall.apply().await {
            if let Err(undo) = self.links.delete(name).await {
                tracing::error!(network = name, error = %undo, "a network without rules is left");
            }
            return Err(error.into());
        }
        Ok(network)
    }

    /// Removes a network without containers, and its rules. Errors: as [`NetworkService::delete`]. If the packet filter
    /// fails, the rules of the removed bridge stay until the next change of rules.
    pub async fn delete(&self, name: &str) -> Result<(), NetworksError> {
        self.links.delete(name).await?;
        if let Err(error) = self.firewall.apply().await {
            tracing::error!(network = name, %error, "the rules of a deleted network are left for now");
        }
        Ok(())
    }
}
