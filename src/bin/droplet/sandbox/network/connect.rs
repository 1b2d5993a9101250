//! Sets up and removes the network of a container.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::error::{NetworkError, OPERATIONAL_LIMIT};
use super::netlink::{
    block_on, delete_if_stale, delete_veth, find, in_namespace, into_io, is_operational, kernel_error, open, open_host,
    set_up,
};
use super::plan::{NetworkPlan, Veth};

/// Time limit for the interface of an earlier run to disappear.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two checks.
const POLL_PAUSE: Duration = Duration::from_millis(1);
/// Name of the interface in the container.
const INTERFACE: &str = "eth0";

/// Sets up the network. `namespace` is the container's network namespace. If this fails, no interface of ours is left.
pub fn connect(plan: &NetworkPlan, namespace: &File) -> Result<(), NetworkError> {
    match plan {
        NetworkPlan::Nothing => Ok(()),
        NetworkPlan::Loopback => block_on(async { set_up(&in_namespace(namespace, open)?, "lo").await }),
        NetworkPlan::Veth(veth) => block_on(async {
            let host = open_host()?;
            veth.attach(&host, namespace).await?;
            let connected = async {
                veth.connect(namespace).await?;
                veth.wait_until_operational(&host).await
            };
            let connected = connected.await;
            if connected.is_err() {
                let _ = delete_veth(&host, &veth.name).await;
            }
            connected
        }),
    }
}

/// Deletes the host end, and with it the pair. Succeeds if there is none.
pub fn disconnect(name: &str) -> Result<(), NetworkError> {
    block_on(async { delete_veth(&open_host()?, name).await })
}

/// Deletes an interface that an earlier run has left, unless it is in use.
pub fn remove_stale(name: &str) -> Result<(), NetworkError> {
    block_on(async { delete_if_stale(&open_host()?, name).await.map(drop) })
}

impl Veth {
    /// Makes the pair, with the host end up and attached to the bridge.
    async fn attach(&self, host: &Handle, namespace: &File) -> Result<(), NetworkError> {
        let bridge = find(host, &self.bridge).await?.ok_or_else(|| {
            let missing = std::io::Error::from_raw_os_error(libc::ENODEV);
            kernel_error("attach to bridge", &self.bridge, missing)
        })?;
        match self.add(host, &bridge, namespace).await {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.wait_until_free(host).await?;
                self.add(host, &bridge, namespace).await
            }
            other => other,
        }
        .map_err(|source| kernel_error("create veth", &self.name, source))
    }

    /// Waits for a leftover interface. The kernel removes a network namespace some time after its last process, so the
    /// interface of an earlier run may still look used.
    async fn wait_until_free(&self, host: &Handle) -> Result<(), NetworkError> {
        let end = Instant::now() + RELEASE_LIMIT;
        while !delete_if_stale(host, &self.name).await? {
            if Instant::now() >= end {
                return Err(NetworkError::InUse(self.name.clone()));
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

    /// Waits until the interface and its bridge are operational. After a link gets its carrier, the kernel activates
    /// its queue, its bridge port and the bridge, each a little later, and drops packets until then. The operational
    /// state (RFC 2863) tells when that is done.
    async fn wait_until_operational(&self, host: &Handle) -> Result<(), NetworkError> {
        let end = Instant::now() + OPERATIONAL_LIMIT;
        for name in [&self.name, &self.bridge] {
            while !find(host, name).await?.is_some_and(|link| is_operational(&link)) {
                if Instant::now() >= end {
                    return Err(NetworkError::NotOperational(name.clone()));
                }
                tokio::time::sleep(POLL_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Configures everything inside the container's namespace.
    async fn connect(&self, namespace: &File) -> Result<(), NetworkError> {
        // A netlink socket belongs to the namespace in which it was opened.
        let container = in_namespace(namespace, open)?;
        set_up(&container, "lo").await?;
        self.configure(&container).await
    }

    /// Sets address, state and default route of the container's end.
    async fn configure(&self, container: &Handle) -> Result<(), NetworkError> {
        let link = find(container, INTERFACE).await?;
        let index = link.map_or(0, |link| link.header.index);
        let text = format!("{}/{} to {INTERFACE}", self.address, self.prefix);
        let added = container
            .address()
            .add(index, self.address.into(), self.prefix)
            .execute()
            .await;
        added.map_err(|e| kernel_error("add address", &text, into_io(e)))?;
        set_up(container, INTERFACE).await?;
        let Some(gateway) = self.gateway else {
            return Ok(());
        };
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build();
        let added = container.route().add(route).execute().await;
        added.map_err(|e| kernel_error("add default route via", &gateway.to_string(), into_io(e)))
    }
}
