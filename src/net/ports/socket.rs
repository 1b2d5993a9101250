//! A socket that reserves a port without serving it.
//!
//! It is bound to the address, where it conflicts with every other socket, and then to an interface that never
//! receives packets ([`DNS_LINK`], a bridge without ports). So it reserves the port and is listed as its owner, but
//! the kernel never delivers to it: if the translation rules are missing, clients are refused at once, as if nobody
//! listened, and we do not have to accept and close connections. This remains so if the interface is deleted.
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

/// Binds a port. [`io::ErrorKind::AddrInUse`] if another socket has it, at this address or at all of them, IPv6
/// included.
pub(super) fn hold(port: HostPort) -> io::Result<OwnedFd> {
    let socket = bound(port, port.protocol == Protocol::Tcp)?;
    match setsockopt(&socket, sockopt::BindToDevice, &OsString::from(DNS_LINK)) {
        // The interface has just been deleted. The port is reserved nevertheless, it is only not listed; without the
        // option a socket that does not listen conflicts with every other.
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

/// Reserves a free port that the kernel chooses, for as long as the socket exists.
pub(super) fn any(port: HostPort) -> io::Result<(u16, OwnedFd)> {
    let unnumbered = HostPort {
        at: SocketAddrV4::new(*port.at.ip(), 0),
        ..port
    };
    let socket = bound(unnumbered, false)?;
    let address = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((address.port(), socket))
}

/// With `reuse`, connections in TIME_WAIT do not conflict. For UDP it would allow sharing the port.
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
