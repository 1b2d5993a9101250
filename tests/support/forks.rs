//! Counts the processes, threads not included, that a process and its descendants start: the kernel's process events.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::unistd::Pid;
use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

/// Index and value of process events at the connector (`linux/cn_proc.h`).
const PROC: [u32; 2] = [1, 1];
/// `PROC_CN_MCAST_LISTEN`
const LISTEN: u32 = 1;
/// `PROC_EVENT_FORK`
const FORK: u32 = 1;
/// `PROC_EVENT_EXEC`
const EXEC: u32 = 2;
/// Netlink header and connector header before an event.
const HEADERS: usize = 16 + 20;

/// A count that is running.
pub struct Forks {
    over: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<u32, String>>,
}

impl Forks {
    /// Begins to count what that process starts. `None` when the kernel or the namespace gives no process events.
    pub fn below(root: Pid) -> Option<Self> {
        let socket = subscribe().ok()?;
        let over = Arc::new(AtomicBool::new(false));
        let seen_over = over.clone();
        let root = u32::try_from(root.as_raw()).ok()?;
        let thread = std::thread::spawn(move || count(&socket, root, &seen_over));
        Some(Self { over, thread })
    }

    /// Ends the count. One name per process: of the program that it became, else of what it was forked from.
    pub fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().into_values().collect()
    }
}

fn subscribe() -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(CONNECTOR),
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, PROC[0]))?;
    set_socket_recv_buffer_size(&socket, 1 << 20)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(50)))?;
    let length = HEADERS as u32 + 4;
    let mut message = Vec::new();
    // struct nlmsghdr, type NLMSG_DONE; struct cn_msg; enum proc_cn_mcast_op.
    for word in [length, 3, 0, 0, PROC[0], PROC[1], 0, 0, 4, LISTEN] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    send(&socket, &message, SendFlags::empty())?;
    Ok(socket)
}

/// Until told to end, and then until nothing more comes.
fn count(socket: &OwnedFd, root: u32, over: &AtomicBool) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, _)) = recv(socket, &mut buffer[..], RecvFlags::empty()) else {
            if over.load(Ordering::Relaxed) {
                return found;
            }
            continue;
        };
        let word = |index: usize| {
            let at = HEADERS + 4 * index;
            let bytes = buffer[..length].get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        // What; processor and time stamp; then pid and thread group of the parent and of the child.
        let (parent, child) = (word(5), [word(6), word(7)]);
        match word(0) {
            FORK if child[0] == child[1] && (parent == root || found.contains_key(&parent)) => {
                found.insert(child[0], format!("fork of {}", name(parent)));
            }
            EXEC if found.contains_key(&parent) => {
                found.insert(parent, name(parent));
            }
            _ => {}
        }
    }
}

/// Command line of a process, as long as it is there.
fn name(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()
}
