//! Making a bridge what it should be, whatever is there (`contract/network.md` 4, N-06).

use std::net::Ipv4Addr;

use super::netlink::{Link, Netlink};
use super::{DNS_ADDRESS, DNS_LINK, NetworkError, ipam};
use crate::store::Network;

/// Marks an interface as made by us.
const ALIAS: &str = "condenser";

/// A bridge as it should be: of type bridge, with this address, up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bridge {
    pub name: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Bridge {
    /// The bridge of a network.
    pub fn of(network: &Network) -> Self {
        Self {
            name: network.name.clone(),
            address: network.gateway,
            prefix: ipam::NETWORK_PREFIX,
        }
    }

    /// The link that carries the address of the DNS forwarder.
    pub fn of_dns() -> Self {
        Self {
            name: DNS_LINK.into(),
            address: DNS_ADDRESS,
            prefix: 32,
        }
    }

    /// Makes it or repairs it. A bridge made here is gone again when a later step fails; one that was there stays.
    pub async fn ensure(&self, netlink: &Netlink) -> Result<Link, NetworkError> {
        let existing = netlink.link(&self.name).await?;
        let is_new = existing.is_none();
        let link = match existing {
            Some(link) if !link.is_bridge => return Err(NetworkError::Foreign(self.name.clone())),
            Some(link) => link,
            None => self.make(netlink).await?,
        };
        match self.configure(netlink, &link).await {
            Ok(()) => Ok(link),
            Err(error) => {
                if is_new && let Err(undo) = netlink.delete(&link).await {
                    tracing::warn!(network = %self.name, error = %undo, "a half-made bridge is left");
                }
                Err(error)
            }
        }
    }

    async fn make(&self, netlink: &Netlink) -> Result<Link, NetworkError> {
        netlink.add_bridge(&self.name, self.hardware_address()).await?;
        let made = netlink.link(&self.name).await?;
        made.ok_or_else(|| NetworkError::NoLink(self.name.clone()))
    }

    async fn configure(&self, netlink: &Netlink, link: &Link) -> Result<(), NetworkError> {
        let addresses = netlink.addresses().await?;
        let mut of_link = addresses.iter().filter(|a| a.link == link.index);
        if !of_link.any(|a| (a.address, a.prefix) == (self.address, self.prefix)) {
            netlink.add_address(link, self.address, self.prefix).await?;
        }
        if !link.is_up || !is_ours(link) {
            netlink.set_up(link, ALIAS).await?;
        }
        Ok(())
    }

    /// Fixed and locally administered. Left to itself a bridge takes the lowest address of its ports, which changes as
    /// containers come and go and leaves the others with a stale neighbour entry for their gateway.
    fn hardware_address(&self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x02, 0x52, a, b, c, d]
    }
}

/// Whether an interface is a bridge that we made or took over.
pub(super) fn is_ours(link: &Link) -> bool {
    link.is_bridge && link.alias.as_deref() == Some(ALIAS)
}
