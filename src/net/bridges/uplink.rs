//! Tracks the interface of the default route (`docs/spec/network.md` 2, N-03, N-28).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::netlink::{Address, Link, Netlink, Route};
use super::{NetworkError, Uplink};

/// Changes come in bursts; check once after each burst.
const SETTLE: Duration = Duration::from_millis(50);
/// Notifications are lost when the socket's buffer overflows, so check periodically too.
const RELOOK: Duration = Duration::from_secs(15);

/// The uplink as of the last check.
pub(super) struct UplinkWatch {
    netlink: Arc<Netlink>,
    current: watch::Sender<Option<Uplink>>,
}

impl UplinkWatch {
    /// Checks for the first time.
    pub async fn new(netlink: Arc<Netlink>) -> Result<Self, NetworkError> {
        let watch = Self {
            netlink,
            current: watch::Sender::new(None),
        };
        watch.look().await?;
        if watch.current.borrow().is_none() {
            tracing::warn!("no IPv4 default route yet; rules that need it are added when it appears");
        }
        Ok(watch)
    }

    /// The uplink and its changes.
    pub fn subscribe(&self) -> watch::Receiver<Option<Uplink>> {
        self.current.subscribe()
    }

    /// Checks again and publishes a change.
    pub async fn look(&self) -> Result<(), NetworkError> {
        let routes = self.netlink.routes().await?;
        let found = choose(&routes, &self.netlink.links().await?, &self.netlink.addresses().await?);
        self.current.send_if_modified(|current| {
            let changed = *current != found;
            if changed {
                tracing::info!(old = ?current, new = ?found, "uplink changed");
                *current = found;
            }
            changed
        });
        Ok(())
    }

    /// Follows the kernel's notifications until the handle is dropped.
    pub fn follow(self: &Arc<Self>) -> Result<AbortOnDropHandle<()>, NetworkError> {
        // Link events too: the kernel removes the IPv4 routes of an interface that goes down without route events.
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ];
        let (connection, _, mut events) = new_multicast_connection(&groups).map_err(|e| NetworkError::Kernel {
            action: "listen to route changes".into(),
            source: e.into(),
        })?;
        let watch = self.clone();
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
            loop {
                if let Ok(None) = tokio::time::timeout(RELOOK, events.next()).await {
                    // The stream ends only if the socket fails. The periodic check remains.
                    tokio::time::sleep(RELOOK).await;
                }
                tokio::time::sleep(SETTLE).await;
                while events.try_recv().is_ok() {}
                if let Err(error) = watch.look().await {
                    tracing::warn!(%error, "cannot look up the uplink");
                }
            }
        })))
    }
}

/// The device of the best IPv4 default route, with its first address. Skips a device without an IPv4 address, or with
/// a name that the packet filter would not take literally.
fn choose(routes: &[Route], links: &[Link], addresses: &[Address]) -> Option<Uplink> {
    let mut defaults: Vec<_> = routes.iter().filter(|r| r.destination.prefix_len() == 0).collect();
    // A stable sort: among equal metrics the first in the kernel's order wins.
    defaults.sort_by_key(|r| r.metric);
    defaults.into_iter().find_map(|route| {
        let link = links.iter().find(|l| l.index == route.link && is_literal(&l.name))?;
        let address = addresses.iter().find(|a| a.link == route.link)?;
        Some(Uplink {
            interface: link.name.clone(),
            address: address.address,
        })
    })
}

fn is_literal(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "_.:@-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::bridges::netlink::Port;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            is_bridge: false,
            is_veth: false,
            is_up: true,
            controller: None,
            alias: None,
            port: Port::default(),
        }
    }

    fn route(destination: &str, link: u32, metric: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            link,
            metric,
        }
    }

    fn address(link: u32, address: &str) -> Address {
        Address {
            link,
            address: address.parse().unwrap(),
            prefix: 24,
        }
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let routes = [
            route("192.0.2.0/24", 2, 0),
            route("0.0.0.0/0", 3, 600),
            route("0.0.0.0/0", 2, 100),
        ];
        let links = [link(2, "eth0"), link(3, "wlan0")];
        let addresses = [
            address(3, "198.51.100.3"),
            address(2, "192.0.2.2"),
            address(2, "192.0.2.9"),
        ];
        let uplink = choose(&routes, &links, &addresses).unwrap();
        assert_eq!(
            (&uplink.interface[..], uplink.address.to_string()),
            ("eth0", "192.0.2.2".into())
        );
    }

    #[test]
    fn no_default_route_is_no_uplink() {
        let routes = [route("192.0.2.0/24", 2, 0)];
        assert_eq!(choose(&routes, &[link(2, "eth0")], &[address(2, "192.0.2.2")]), None);
    }

    #[test]
    fn a_device_without_address_or_with_an_odd_name_is_passed_over() {
        let routes = [
            route("0.0.0.0/0", 1, 0),
            route("0.0.0.0/0", 2, 1),
            route("0.0.0.0/0", 3, 2),
        ];
        let links = [link(1, "ppp0"), link(2, "eth+"), link(3, "eth0.7")];
        let addresses = [address(2, "192.0.2.2"), address(3, "192.0.2.3")];
        assert_eq!(choose(&routes, &links, &addresses).unwrap().interface, "eth0.7");
    }
}
