//! Networks together with their rules: a network is there only with default deny and DNS, from the first packet on.

use std::sync::Arc;

use super::Firewall;
use crate::model::Network;
use crate::net::bridges::{NetworkError, NetworkService};
use crate::net::firewall::FirewallError;

/// Makes and removes networks.
#[derive(Clone)]
pub struct Networks {
    links: NetworkService,
    firewall: Firewall,
}

/// Why a network could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// The network itself.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Its rules.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

impl Networks {
    /// Of these bridges, with their rules in this firewall.
    pub fn new(links: NetworkService, firewall: Firewall) -> Self {
        Self { links, firewall }
    }

    /// Makes a network and its rules; nothing is left of a failed attempt. Errors: as [`NetworkService::create`], and
    /// [`NetworksError::Firewall`].
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

    /// Removes a network that no container is in, and its rules. Errors: as [`NetworkService::delete`]. Rules that stay
    /// because the packet filter fails are about a bridge that is gone; they go with the next change of rules.
    pub async fn delete(&self, name: &str) -> Result<(), NetworksError> {
        self.links.delete(name).await?;
        if let Err(error) = self.firewall.apply().await {
            tracing::error!(network = name, %error, "the rules of a deleted network are left for now");
        }
        Ok(())
    }
}
