//! Identity and liveness of processes. A pid alone is not an identity: it is reused, also after a reboot.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

use crate::model::ProcessId;

impl ProcessId {
    /// The identity of the process that has this pid now; `None` if there is none or it is a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, start_time) = stat(pid).ok()??;
        (!is_dead(state)).then(|| Self {
            pid,
            start_time,
            boot_id: boot_id(),
        })
    }

    /// Whether this exact process still runs. A zombie does not. Unknown parts of the identity are not compared.
    pub fn is_alive(&self) -> bool {
        let boot = boot_id();
        if !self.boot_id.is_empty() && !boot.is_empty() && self.boot_id != boot {
            return false;
        }
        match stat(self.pid) {
            Ok(found) => found.is_some_and(|(state, start_time)| {
                !is_dead(state) && (self.start_time == 0 || self.start_time == start_time)
            }),
            // If we are out of file descriptors, do not report the process as dead.
            Err(_) => Pid::from_raw(self.pid).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH)),
        }
    }

    /// The process that reaps this one when it exits: for a container, its monitor. A zombie still has a parent.
    /// `None` if this process is gone, or if its parent is gone and init has adopted it.
    #[expect(clippy::disallowed_methods, reason = "fs_err hides the number of the error")]
    pub fn parent(&self) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let (_, start_time) = parse_stat(&text)?;
        let parent = text.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let is_same = self.start_time == 0 || self.start_time == start_time;
        Self::of(parent).filter(|parent| is_same && parent.pid > 1)
    }

    /// A descriptor of this exact process. It becomes readable when the process exits. `None` if the process is gone,
    /// or if we are out of file descriptors: [`ProcessId::is_alive`] tells which.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Checked after opening: from now on the descriptor cannot refer to another process.
        self.is_alive().then_some(fd)
    }
}

/// State letter and start time (field 22, clock ticks since boot) of `/proc/<pid>/stat`. `None` if there is no such
/// process.
#[expect(clippy::disallowed_methods, reason = "fs_err hides the number of the error")]
fn stat(pid: i32) -> std::io::Result<Option<(char, u64)>> {
    if pid <= 0 {
        return Ok(None);
    }
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => Ok(parse_stat(&text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    // The command in field 2 may contain blanks and parentheses; the other fields follow the last one.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// `/proc/sys/kernel/random/boot_id`: different after every boot. Empty if it cannot be read.
pub fn boot_id() -> String {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return known.clone();
    }
    let read = fs_err::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map_or_else(
        |_| String::new(),
        |text| KNOWN.get_or_init(|| text.trim().to_owned()).clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_an_impostor_is_not() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive() && me.pidfd().is_some());
        assert!(
            !ProcessId {
                start_time: me.start_time + 1,
                ..me.clone()
            }
            .is_alive()
        );
        assert!(
            !ProcessId {
                boot_id: "another boot".into(),
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn the_parent_of_a_child_is_this_process() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        assert_eq!(id.parent(), Some(me));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(id.parent(), None);
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let id = child.id() as i32;
        while ProcessId::of(id).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
