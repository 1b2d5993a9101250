//! A socket that has a port and serves nobody.
//!
//! It is bound to the address, which conflicts with every other socket there, and then to an interface that no packet
//! comes in by ([`DNS_LINK`], a bridge without ports). So it keeps the port from others and is listed as its holder, but
//! the kernel never chooses it: whenever the rules that translate the port are not there, a client is refused at once, as
//! if nobody listened, and nothing has to accept and close connections. Should that interface be deleted, it stays so.
//!
//! The order matters: bound to an interface first, it would not conflict with a socket that is bound to another one.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt as options};

use super::HostPort;
use crate::model::Protocol;
use crate::net::bridges::DNS_LINK;

/// Takes a port. [`io::ErrorKind::AddrInUse`] when anybody has it, at this address or at all, also by IPv6.
pub(super) fn hold(port: HostPort) -> io::Result<OwnedFd> {
    let socket = bound(port, port.protocol == Protocol::Tcp)?;
    match setsockopt(&socket, sockopt::BindToDevice, &OsString::from(DNS_LINK)) {
        // Somebody has just deleted it. The port is held all the same, it is only not listed; without the option a
        // socket that does not listen is in everybody's way.
        Err(Errno::ENODEV) => {
            drop(socket);
            return bound(port, false);
        }
        done => done?,
    }
    if port.protocol == Protocol::Tcp {
        listen(&socket, 1)?;
    }
    Ok(socket)
}

/// Takes a port that nobody has, of the kernel's choice, for as long as the socket is there.
pub(super) fn any(port: HostPort) -> io::Result<(u16, OwnedFd)> {
    let unnumbered = HostPort {
        at: SocketAddrV4::new(*port.at.ip(), 0),
        ..port
    };
    let socket = bound(unnumbered, false)?;
    let address = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((address.port(), socket))
}

/// With `reuse` connections that have ended are not in the way. For UDP it would mean to share the port.
fn bound(port: HostPort, reuse: bool) -> io::Result<OwnedFd> {
    let kind = match port.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    options::set_socket_reuseaddr(&socket, reuse)?;
    bind(&socket, &port.at)?;
    Ok(socket)
}
