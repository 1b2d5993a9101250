//! Finds the program that uses a port, for the error message. Best effort: a program may hide in a network namespace
//! of its own, or exit meanwhile.

use std::path::Path;

use super::HostPort;
use crate::model::Protocol;

/// `sshd (pid 812)`; `another program of this host` if it is not found.
pub(super) fn of(port: HostPort) -> String {
    let found = sockets(port).iter().find_map(|inode| program_with(inode));
    match found {
        Some((pid, _)) if pid == std::process::id() => "condenser itself".to_owned(),
        Some((pid, name)) => format!("{name} (pid {pid})"),
        None => "another program of this host".to_owned(),
    }
}

/// Inodes of the sockets with that port, from `/proc/net/{tcp,udp}{,6}` (proc_pid_net(5)): field 1 is the local
/// address in hexadecimal, 3 the state, 9 the inode.
fn sockets(port: HostPort) -> Vec<String> {
    let (files, state) = match port.protocol {
        Protocol::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], Some("0A")),
        Protocol::Udp => (["/proc/net/udp", "/proc/net/udp6"], None),
    };
    let own = format!(":{:04X}", port.at.port());
    let address = format!("{:08X}", u32::from_ne_bytes(port.at.ip().octets()));
    let is_any = |host: &str| host.bytes().all(|digit| digit == b'0');
    let matches = |host: &str| is_any(&address) || is_any(host) || host.ends_with(&address);
    let mut found = Vec::new();
    for text in files.iter().filter_map(|file| fs_err::read_to_string(file).ok()) {
        found.extend(text.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [_, address, _, now, _, _, _, _, _, inode, ..] = fields[..] else {
                return None;
            };
            let host = address.strip_suffix(&own)?;
            let is_meant = matches(host) && state.is_none_or(|state| state == now);
            is_meant.then(|| format!("socket:[{inode}]"))
        }));
    }
    found
}

/// Pid and name of a process with that socket.
fn program_with(socket: &str) -> Option<(u32, String)> {
    let processes = fs_err::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            has(&entry.path(), socket).then_some(())?;
            let name = fs_err::read_to_string(entry.path().join("comm")).ok()?;
            Some((pid, name.trim().to_owned()))
        })
        .next()
}

fn has(process: &Path, socket: &str) -> bool {
    let Ok(descriptors) = fs_err::read_dir(process.join("fd")) else {
        return false;
    };
    let targets = descriptors.flatten().filter_map(|fd| fs_err::read_link(fd.path()).ok());
    targets.into_iter().any(|target| target.as_os_str() == socket)
}
