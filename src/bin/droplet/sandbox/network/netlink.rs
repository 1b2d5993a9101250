//! Netlink requests about interfaces.

use std::fs::File;
use std::os::fd::AsFd;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State};
use rtnetlink::{Handle, LinkUnspec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::NetworkError;

/// Looks up an interface by name.
pub async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await.map_err(into_io) {
        Ok(link) => Ok(link),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(kernel_error("look up interface", name, source)),
    }
}

/// Deletes a veth pair. Succeeds if there is none.
pub async fn delete_veth(host: &Handle, name: &str) -> Result<(), NetworkError> {
    match find(host, name).await? {
        Some(link) if is_veth(&link) => delete(host, &link, name).await,
        _ => Ok(()),
    }
}

/// Deletes an interface that an earlier run has left. Returns `false` if it exists and is in use: it is no veth, or both ends are up.
pub async fn delete_if_stale(host: &Handle, name: &str) -> Result<bool, NetworkError> {
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
        Err(source) if source.raw_os_error() != Some(libc::ENODEV) => {
            Err(kernel_error("delete interface", name, source))
        }
        _ => Ok(()),
    }
}

/// Sets an interface up.
pub async fn set_up(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_name(name).up().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|e| kernel_error("set up interface", name, into_io(e)))
}

/// Returns whether the operational state (RFC 2863) is `up`.
pub fn is_operational(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::OperState(State::Up))
}

fn is_veth(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
    })
}

/// Converts an error of rtnetlink.
pub fn into_io(error: rtnetlink::Error) -> std::io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => std::io::Error::other(other.to_string()),
    }
}

/// Opens a netlink socket in the host's namespace.
pub fn open_host() -> Result<Handle, NetworkError> {
    open().map_err(|source| kernel_error("open", "netlink socket", source))
}

/// Opens a netlink socket in the current network namespace.
pub fn open() -> std::io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Calls `action` in another network namespace. This process has one thread, so nothing else is affected.
pub fn in_namespace<T>(namespace: &File, action: impl FnOnce() -> std::io::Result<T>) -> Result<T, NetworkError> {
    let to_error = |source| kernel_error("enter", "network namespace", source);
    let own = fs_err::File::open("/proc/self/ns/net").map_err(to_error)?;
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).map_err(|e| to_error(e.into()))?;
    let result = action();
    move_into_link_name_space(own.file().as_fd(), kind).map_err(|e| to_error(e.into()))?;
    result.map_err(to_error)
}

/// Runs a future to completion on this thread. No other thread is started.
pub fn block_on<T>(work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    let runtime = runtime.map_err(|source| kernel_error("start", "event loop", source))?;
    runtime.block_on(work)
}

/// Makes an error that names the operation.
pub fn kernel_error(action: &'static str, object: &str, source: std::io::Error) -> NetworkError {
    NetworkError::Kernel {
        action,
        object: object.to_owned(),
        source,
    }
}
