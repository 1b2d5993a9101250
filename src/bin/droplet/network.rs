//! The container's network (`docs/spec/runtime.md` 10): a veth pair, made by `create` after init exists.
//!
//! The host end is attached to the bridge, the other end appears in the container's network namespace as `eth0`.
//! Addresses are given by the daemon; no firewall, forwarding or MTU work is done here. Nothing is left behind by a
//! failure: the pair goes with the host end, and at the latest with the container's namespace.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::config::{Config, NamespaceKind, NetConfig};

/// The kernel's limit for interface names, without the terminating NUL.
const MAX_NAME: usize = 15;
/// How long an interface of the run before may take to vanish.
const LEAVING: Duration = Duration::from_secs(2);
/// How long interface and bridge may take until they carry packets. A kernel that is not busy needs a millisecond; it may
/// put off what it thinks is not urgent by a second.
const CARRYING: Duration = Duration::from_secs(5);
/// How often is looked whether they do.
const LOOK: Duration = Duration::from_millis(1);
/// Name of the interface in the container.
const INTERFACE: &str = "eth0";

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The annotation has an impossible value.
    #[error("annotation io.raind.net.config: {0}")]
    Plan(String),
    /// The kernel refused.
    #[error("{action} {object}: {source}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// With which interface, address or route.
        object: String,
        /// Reason.
        source: std::io::Error,
    },
    /// The name is taken by something that is not ours to delete.
    #[error("interface {0} exists and is in use")]
    Taken(String),
    /// The kernel does not get it going.
    #[error("interface {0} carries no packets after {limit} s; is it up, and its bridge?", limit = CARRYING.as_secs())]
    Silent(String),
}

/// What is to be set up in a new network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Joined or host network: nothing.
    Nothing,
    /// Only the loopback interface.
    Loopback,
    /// Loopback and a veth pair.
    Veth(Veth),
}

/// A veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Name of the host end.
    pub name: String,
    bridge: String,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
}

/// Decides what a container needs, and checks names and addresses.
pub fn plan(config: &Config, net: Option<&NetConfig>) -> Result<Plan, NetworkError> {
    match config.namespace(NamespaceKind::Network) {
        None => return Ok(Plan::Nothing),
        Some(namespace) if namespace.path.is_some() => return Ok(Plan::Nothing),
        Some(_) => {}
    }
    let Some(net) = net.filter(|net| !net.interface.ipv4.address.is_empty()) else {
        return Ok(Plan::Loopback);
    };
    let ipv4 = &net.interface.ipv4;
    let invalid = |what: &str, value: &str| NetworkError::Plan(format!("invalid {what} {value:?}"));
    let interface_name = |name: &str| -> Result<String, NetworkError> {
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
        let valid = (1..=MAX_NAME).contains(&name.len()) && name.chars().all(plain) && name != "." && name != "..";
        valid
            .then(|| name.to_owned())
            .ok_or_else(|| invalid("interface name", name))
    };
    let (address, prefix) = ipv4
        .address
        .split_once('/')
        .ok_or_else(|| invalid("address", &ipv4.address))?;
    Ok(Plan::Veth(Veth {
        name: interface_name(&net.interface.name)?,
        bridge: interface_name(&net.bridge_interface)?,
        address: address.parse().map_err(|_| invalid("address", &ipv4.address))?,
        prefix: prefix
            .parse()
            .ok()
            .filter(|prefix| *prefix <= 32)
            .ok_or_else(|| invalid("address", &ipv4.address))?,
        gateway: match ipv4.gateway.as_str() {
            "" => None,
            gateway => Some(gateway.parse().map_err(|_| invalid("gateway", gateway))?),
        },
    }))
}

/// Carries a plan out. `namespace` is the container's network namespace. On failure no interface of ours is left.
pub fn connect(plan: &Plan, namespace: &File) -> Result<(), NetworkError> {
    match plan {
        Plan::Nothing => Ok(()),
        Plan::Loopback => block_on(async { set_up(&enter(namespace, open)?, "lo").await }),
        Plan::Veth(veth) => block_on(async {
            let host = link_to_host()?;
            veth.attach(&host, namespace).await?;
            let connected = async {
                veth.connect(namespace).await?;
                veth.wait_until_carrying(&host).await
            };
            let connected = connected.await;
            if connected.is_err() {
                let _ = remove(&host, &veth.name).await;
            }
            connected
        }),
    }
}

/// Deletes the host end, and with it the pair. Not an error when there is none.
pub fn disconnect(name: &str) -> Result<(), NetworkError> {
    block_on(async { remove(&link_to_host()?, name).await })
}

/// Deletes what an earlier run may have left under this name, but nothing that is in use.
pub fn sweep(name: &str) -> Result<(), NetworkError> {
    block_on(async { remove_stale(&link_to_host()?, name).await.map(drop) })
}

impl Veth {
    /// Makes the pair: one end up on the bridge, the other in the container.
    async fn attach(&self, host: &Handle, namespace: &File) -> Result<(), NetworkError> {
        let bridge = find(host, &self.bridge).await?.ok_or_else(|| NetworkError::Kernel {
            action: "attach to bridge",
            object: self.bridge.clone(),
            source: std::io::Error::from_raw_os_error(libc::ENODEV),
        })?;
        match self.add(host, &bridge, namespace).await {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.wait_until_free(host).await?;
                self.add(host, &bridge, namespace).await
            }
            other => other,
        }
        .map_err(|source| self.failed("create veth", &self.name, source))
    }

    /// The kernel takes a network namespace down some time after its last process has gone, so the interface of the run
    /// before may still look used.
    async fn wait_until_free(&self, host: &Handle) -> Result<(), NetworkError> {
        let end = Instant::now() + LEAVING;
        while !remove_stale(host, &self.name).await? {
            if Instant::now() >= end {
                return Err(NetworkError::Taken(self.name.clone()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn add(&self, host: &Handle, bridge: &LinkMessage, namespace: &File) -> std::io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(INTERFACE)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(&self.name, INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(bridge.header.index)
            .up()
            .build();
        host.link().add(pair).execute().await.map_err(into_io)
    }

    /// That a link has a carrier makes the kernel put its queue to work, make it a forwarding port and give its bridge a
    /// carrier, each a little later. Until then it drops what is sent there, as the answer to the container's first
    /// question. The operational state (RFC 2863) changes when that is done.
    async fn wait_until_carrying(&self, host: &Handle) -> Result<(), NetworkError> {
        let end = Instant::now() + CARRYING;
        for name in [&self.name, &self.bridge] {
            while !find(host, name).await?.is_some_and(|link| is_operational(&link)) {
                if Instant::now() >= end {
                    return Err(NetworkError::Silent(name.clone()));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Everything inside the container's namespace.
    async fn connect(&self, namespace: &File) -> Result<(), NetworkError> {
        // The socket belongs to the namespace it was opened in.
        let container = enter(namespace, open)?;
        set_up(&container, "lo").await?;
        self.configure(&container).await
    }

    /// Address, state and default route of the container's end.
    async fn configure(&self, container: &Handle) -> Result<(), NetworkError> {
        let link = find(container, INTERFACE).await?;
        let index = link.map_or(0, |link| link.header.index);
        let text = format!("{}/{} to {INTERFACE}", self.address, self.prefix);
        let added = container
            .address()
            .add(index, self.address.into(), self.prefix)
            .execute()
            .await;
        added.map_err(|e| self.failed("add address", &text, into_io(e)))?;
        set_up(container, INTERFACE).await?;
        let Some(gateway) = self.gateway else {
            return Ok(());
        };
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build();
        let added = container.route().add(route).execute().await;
        added.map_err(|e| self.failed("add default route via", &gateway.to_string(), into_io(e)))
    }

    fn failed(&self, action: &'static str, object: &str, source: std::io::Error) -> NetworkError {
        NetworkError::Kernel {
            action,
            object: object.to_owned(),
            source,
        }
    }
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await.map_err(into_io) {
        Ok(link) => Ok(link),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(NetworkError::Kernel {
            action: "look up interface",
            object: name.to_owned(),
            source,
        }),
    }
}

async fn remove(host: &Handle, name: &str) -> Result<(), NetworkError> {
    match find(host, name).await? {
        Some(link) if is_veth(&link) => delete(host, &link, name).await,
        _ => Ok(()),
    }
}

/// `false` when there is an interface of this name that belongs to somebody: no veth, or one with both ends up.
async fn remove_stale(host: &Handle, name: &str) -> Result<bool, NetworkError> {
    let Some(link) = find(host, name).await? else {
        return Ok(true);
    };
    let has_peer_elsewhere = link
        .attributes
        .iter()
        .any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
    if !is_veth(&link) || (has_peer_elsewhere && link.header.flags.contains(LinkFlags::LowerUp)) {
        return Ok(false);
    }
    delete(host, &link, name).await.map(|()| true)
}

async fn delete(handle: &Handle, link: &LinkMessage, name: &str) -> Result<(), NetworkError> {
    match handle.link().del(link.header.index).execute().await.map_err(into_io) {
        Err(source) if source.raw_os_error() != Some(libc::ENODEV) => Err(NetworkError::Kernel {
            action: "delete interface",
            object: name.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

async fn set_up(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_name(name).up().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|e| NetworkError::Kernel {
            action: "set up interface",
            object: name.to_owned(),
            source: into_io(e),
        })
}

fn is_operational(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::OperState(State::Up))
}

fn is_veth(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
    })
}

fn into_io(error: rtnetlink::Error) -> std::io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => std::io::Error::other(other.to_string()),
    }
}

fn link_to_host() -> Result<Handle, NetworkError> {
    open().map_err(|source| NetworkError::Kernel {
        action: "open",
        object: "netlink socket".to_owned(),
        source,
    })
}

fn open() -> std::io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Calls `action` in another network namespace. This process has one thread, so nothing else is affected.
fn enter<T>(namespace: &File, action: impl FnOnce() -> std::io::Result<T>) -> Result<T, NetworkError> {
    let failed = |source| NetworkError::Kernel {
        action: "enter",
        object: "network namespace".to_owned(),
        source,
    };
    let own = fs_err::File::open("/proc/self/ns/net").map_err(failed)?;
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).map_err(|e| failed(e.into()))?;
    let result = action();
    move_into_link_name_space(own.file().as_fd(), kind).map_err(|e| failed(e.into()))?;
    result.map_err(failed)
}

/// Runs to completion on this thread; no other is started.
fn block_on<T>(work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    let runtime = runtime.map_err(|source| NetworkError::Kernel {
        action: "start",
        object: "event loop".to_owned(),
        source,
    })?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(namespaces: &str, net: &str) -> Result<Plan, NetworkError> {
        let text = format!(r#"{{"linux":{{"namespaces":{namespaces}}},"annotations":{{}}}}"#);
        let config = Config::parse(text.as_bytes(), std::path::Path::new("config.json")).unwrap();
        let net: NetConfig = serde_json::from_str(net).unwrap();
        plan(&config, Some(&net))
    }

    const NEW: &str = r#"[{"type":"network"}]"#;

    #[test]
    fn only_a_new_namespace_with_an_address_gets_an_interface() {
        let net = r#"{"bridgeInterface":"raind0","interface":{"name":"rd_x","ipv4":{"address":"10.1.2.3/24","gateway":"10.1.2.254"}}}"#;
        let Plan::Veth(veth) = planned(NEW, net).unwrap() else {
            panic!("no interface planned");
        };
        assert_eq!((veth.name.as_str(), veth.prefix), ("rd_x", 24));
        assert_eq!(veth.gateway, Some(Ipv4Addr::new(10, 1, 2, 254)));
        assert_eq!(
            planned(NEW, r#"{"interface":{"ipv4":{"address":""}}}"#).unwrap(),
            Plan::Loopback
        );
        assert_eq!(planned("[]", net).unwrap(), Plan::Nothing);
        assert_eq!(
            planned(r#"[{"type":"network","path":"/p"}]"#, net).unwrap(),
            Plan::Nothing
        );
    }

    #[test]
    fn impossible_values_are_named() {
        let with = |name: &str, address: &str, gateway: &str| {
            let net = format!(
                r#"{{"bridgeInterface":"b","interface":{{"name":"{name}","ipv4":{{"address":"{address}","gateway":"{gateway}"}}}}}}"#
            );
            planned(NEW, &net).unwrap_err().to_string()
        };
        for (error, expected) in [
            (
                with("sixteen_letters_", "1.2.3.4/8", ""),
                r#"invalid interface name "sixteen_letters_""#,
            ),
            (with("a/b", "1.2.3.4/8", ""), r#"invalid interface name "a/b""#),
            (with("rd", "1.2.3.4", ""), r#"invalid address "1.2.3.4""#),
            (with("rd", "1.2.3.4/33", ""), r#"invalid address "1.2.3.4/33""#),
            (with("rd", "1.2.3.4/8", "x"), r#"invalid gateway "x""#),
        ] {
            assert_eq!(error, format!("annotation io.raind.net.config: {expected}"));
        }
    }
}
