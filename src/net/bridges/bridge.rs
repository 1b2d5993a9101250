//! Creates and repairs bridges (`docs/spec/network.md` 4, N-06).

use std::net::Ipv4Addr;

use super::netlink::{Link, Netlink, Seen};
use super::{DNS_ADDRESS, DNS_LINK, NetworkError, ipam};
use crate::model::Network;

/// Alias of interfaces that we created.
const ALIAS: &str = "condenser";

/// The desired state of a bridge: of type bridge, with this address, up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BridgeLink {
    pub name: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl BridgeLink {
    /// The bridge of a network.
    pub fn of(network: &Network) -> Self {
        Self {
            name: network.name.clone(),
            address: network.gateway,
            prefix: ipam::NETWORK_PREFIX,
        }
    }

    /// The link with the address of the DNS forwarder.
    pub fn of_dns() -> Self {
        Self {
            name: DNS_LINK.into(),
            address: DNS_ADDRESS,
            prefix: 32,
        }
    }

    /// Creates or repairs the bridge and returns the changes, usually none. A bridge created here is deleted if a
    /// later step fails; an existing one is kept.
    pub async fn ensure(&self, netlink: &Netlink, seen: &Seen) -> Result<Vec<String>, NetworkError> {
        match seen.link(&self.name) {
            Some(link) if !link.is_bridge => Err(NetworkError::Foreign(self.name.clone())),
            Some(link) => self.configure(netlink, link, seen).await,
            None => {
                let link = self.make(netlink).await?;
                let configured = self.configure(netlink, &link, seen).await;
                if configured.is_err()
                    && let Err(undo) = netlink.delete(&link).await
                {
                    tracing::warn!(network = %self.name, error = %undo, "cannot delete an incomplete bridge");
                }
                configured.map(|done| [vec!["made".to_owned()], done].concat())
            }
        }
    }

    async fn make(&self, netlink: &Netlink) -> Result<Link, NetworkError> {
        netlink.add_bridge(&self.name, self.hardware_address()).await?;
        let made = netlink.link(&self.name).await?;
        made.ok_or_else(|| NetworkError::NoLink(self.name.clone()))
    }

    async fn configure(&self, netlink: &Netlink, link: &Link, seen: &Seen) -> Result<Vec<String>, NetworkError> {
        let mut done = Vec::new();
        let mut of_link = seen.addresses.iter().filter(|a| a.link == link.index);
        if !of_link.any(|a| (a.address, a.prefix) == (self.address, self.prefix)) {
            netlink.add_address(link, self.address, self.prefix).await?;
            done.push(format!("address {}/{} added", self.address, self.prefix));
        }
        if !link.is_up || !is_ours(link) {
            netlink.set_up(link, ALIAS).await?;
            done.push("set up".to_owned());
        }
        Ok(done)
    }

    /// Fixed and locally administered. By default a bridge uses the lowest address of its ports, which changes as
    /// containers come and go and leaves stale neighbour entries for the gateway in the others.
    fn hardware_address(&self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x02, 0x52, a, b, c, d]
    }
}

/// Whether an interface is a bridge that we created or adopted.
pub(super) fn is_ours(link: &Link) -> bool {
    link.is_bridge && link.alias.as_deref() == Some(ALIAS)
}
