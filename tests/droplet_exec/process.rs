//! Processes as the host sees them.

use crate::support::sandbox::processes;
use crate::support::{SOON, wait_for};

/// Waits for a process whose command line begins so; its pid.
pub fn find(command_line: &str) -> i32 {
    wait_for(command_line, SOON, || {
        let all = processes();
        let found = all.iter().find(|(_, line)| line.starts_with(command_line));
        found.map(|(pid, _)| *pid).ok_or(format!("{all:?}"))
    })
}

/// The parent of a process, which for an exec'd one is its monitor.
pub fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    fields.split(' ').nth(1).unwrap().parse().unwrap()
}
