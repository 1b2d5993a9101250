//! Processes as the host sees them.

use crate::sandbox::{processes, wait_for};

/// Waits for a process whose command line begins so; its pid.
pub fn find(command_line: &str) -> i32 {
    wait_for(command_line, || {
        let (pid, _) = processes()
            .into_iter()
            .find(|(_, line)| line.starts_with(command_line))?;
        Some(pid)
    })
}

/// The parent of a process, which for an exec'd one is its monitor.
pub fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    fields.split(' ').nth(1).unwrap().parse().unwrap()
}
