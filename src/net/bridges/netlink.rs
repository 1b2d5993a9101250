//! The netlink requests that we need, as plain types over `rtnetlink`.
//!
//! A netlink socket belongs to the network namespace of the thread that opened it, so [`Netlink::connect`] determines
//! the namespace of all requests.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec, RouteMessageBuilder};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::NetworkError;
use crate::base::cause::Cause;

/// The kernel answers at once; only a lost message would make a request wait forever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub is_bridge: bool,
    pub is_veth: bool,
    pub is_up: bool,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// Interface alias: free text of the administrator, or our mark.
    pub alias: Option<String>,
    /// Its flags as a bridge port, if it is one.
    pub port: Port,
}

/// Flags of a bridge port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Port {
    /// Frames may leave through the port on which they arrived.
    pub hairpin: bool,
    /// No frames from or to other isolated ports.
    pub isolated: bool,
}

/// An IPv4 address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub link: u32,
    pub address: Ipv4Addr,
    pub prefix: u8,
}

/// A snapshot of all interfaces and their addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
}

impl Seen {
    /// The interface with that name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// A unicast route of the main IPv4 table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub destination: Ipv4Net,
    pub link: u32,
    pub metric: u32,
}

/// A connection to the kernel.
pub(super) struct Netlink {
    /// Locked during each request: the kernel refuses two concurrent dumps on one socket.
    handle: Mutex<Handle>,
    _connection: AbortOnDropHandle<()>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn connect() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| failed("open a netlink socket", e))?;
        Ok(Self {
            handle: Mutex::new(handle),
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        })
    }

    /// All interfaces.
    pub async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let all = self
            .request("list interfaces", |h| h.link().get().execute().try_collect::<Vec<_>>())
            .await?;
        Ok(all.into_iter().filter_map(link).collect())
    }

    /// The interface with that name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let one = |h: &Handle| {
            let found = h.link().get().match_name(name).execute().try_collect::<Vec<_>>();
            found.map(|answer| match answer {
                Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(Vec::new()),
                answer => answer,
            })
        };
        Ok(self
            .request("look up an interface", one)
            .await?
            .into_iter()
            .find_map(link))
    }

    /// All IPv4 addresses, per interface in the order of assignment.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetworkError> {
        let all = self
            .request("list addresses", |h| {
                h.address().get().execute().try_collect::<Vec<_>>()
            })
            .await?;
        Ok(all.into_iter().filter_map(address).collect())
    }

    /// All interfaces and addresses.
    pub async fn look(&self) -> Result<Seen, NetworkError> {
        Ok(Seen {
            links: self.links().await?,
            addresses: self.addresses().await?,
        })
    }

    /// All unicast routes of the main table, in the kernel's order.
    pub async fn routes(&self) -> Result<Vec<Route>, NetworkError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all = self
            .request("list routes", |h| {
                h.route().get(query).execute().try_collect::<Vec<_>>()
            })
            .await?;
        Ok(all.into_iter().filter_map(route).collect())
    }

    /// Creates a bridge, down and without an address.
    pub async fn add_bridge(&self, name: &str, hardware_address: [u8; 6]) -> Result<(), NetworkError> {
        let message = LinkBridge::new(name).down().address(hardware_address.to_vec()).build();
        self.request(&format!("make the bridge {name}"), |h| h.link().add(message).execute())
            .await
    }

    /// Sets an interface up and sets its alias.
    pub async fn set_up(&self, link: &Link, alias: &str) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).up().alias(alias).build();
        self.request(&format!("set {} up", link.name), |h| h.link().change(message).execute())
            .await
    }

    /// Adds an address to an interface.
    pub async fn add_address(&self, link: &Link, address: Ipv4Addr, prefix: u8) -> Result<(), NetworkError> {
        let action = format!("give {} the address {address}/{prefix}", link.name);
        self.request(&action, |h| {
            h.address().add(link.index, address.into(), prefix).execute()
        })
        .await
    }

    /// Makes an interface a port of a bridge.
    pub async fn set_controller(&self, link: &Link, bridge: &Link) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).controller(bridge.index).build();
        let action = format!("attach {} to {}", link.name, bridge.name);
        self.request(&action, |h| h.link().change(message).execute()).await
    }

    /// Sets the flags of a bridge port.
    pub async fn set_port(&self, link: &Link, port: Port) -> Result<(), NetworkError> {
        let message = LinkBridgePort::new(link.index)
            .hairpin(port.hairpin)
            .append_info_data(InfoBridgePort::Isolated(port.isolated))
            .build();
        let action = format!("set the bridge port flags of {}", link.name);
        self.request(&action, |h| h.link().set_port(message).execute()).await
    }

    /// Deletes an interface.
    pub async fn delete(&self, link: &Link) -> Result<(), NetworkError> {
        let action = format!("delete the interface {}", link.name);
        self.request(&action, |h| h.link().del(link.index).execute()).await
    }

    async fn request<T, F>(&self, action: &str, request: impl FnOnce(&Handle) -> F) -> Result<T, NetworkError>
    where
        F: Future<Output = Result<T, rtnetlink::Error>>,
    {
        let handle = self.handle.lock().await;
        match tokio::time::timeout(TIMEOUT, request(&handle)).await {
            Ok(Ok(value)) => Ok(value),
            // The kernel's own error, without the library's wrapper.
            Ok(Err(rtnetlink::Error::NetlinkError(message))) => Err(failed(action, message.to_io())),
            Ok(Err(error)) => Err(failed(action, error)),
            Err(_) => Err(failed(
                action,
                format!("no answer from the kernel within {} s", TIMEOUT.as_secs()),
            )),
        }
    }
}

fn failed(action: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> NetworkError {
    NetworkError::Kernel {
        action: action.to_owned(),
        source: Cause::new(error),
    }
}

fn link(message: LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        is_bridge: false,
        is_veth: false,
        is_up: message.header.flags.contains(LinkFlags::Up),
        controller: None,
        alias: None,
        port: Port::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| describe(&mut link, info)),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn describe(link: &mut Link, info: &LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => {
            link.is_bridge = *kind == InfoKind::Bridge;
            link.is_veth = *kind == InfoKind::Veth;
        }
        LinkInfo::PortData(InfoPortData::BridgePort(flags)) => {
            for flag in flags {
                match flag {
                    InfoBridgePort::HairpinMode(on) => link.port.hairpin = *on,
                    InfoBridgePort::Isolated(on) => link.port.isolated = *on,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn address(message: AddressMessage) -> Option<Address> {
    // On a point-to-point link, `Address` is the peer's address and `Local` is ours.
    let own = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    })?;
    Some(Address {
        link: message.header.index,
        address: own,
        prefix: message.header.prefix_len,
    })
}

fn route(message: RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut link = None;
    let mut metric = 0;
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = address,
            RouteAttribute::Oif(index) => link = Some(index),
            RouteAttribute::MultiPath(hops) => link = link.or(hops.first().map(|hop| hop.interface_index)),
            RouteAttribute::Priority(priority) => metric = priority,
            _ => {}
        }
    }
    Some(Route {
        destination: Ipv4Net::new(destination, message.header.destination_prefix_length).ok()?,
        link: link?,
        metric,
    })
}
