//! Kills the session of a process.

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::sandbox::cgroup::Cgroup;

/// Maximum number of searches. Processes may fork meanwhile, but without its leader a session shrinks with each search.
const KILL_ROUNDS: usize = 10;

/// Kills the leader of a session, and all processes in `cgroup` that are still in its session. The leader must not be
/// reaped yet.
pub fn kill_session(leader: Pid, cgroup: &Cgroup) {
    let _ = kill_process_group(leader, Signal::KILL);
    for _ in 0..KILL_ROUNDS {
        let others = cgroup.processes().into_iter().filter(|pid| *pid != leader);
        let killed = others.filter(|pid| kill_member(*pid, leader)).count();
        if killed == 0 {
            return;
        }
    }
}

/// Kills a process if it belongs to the session.
fn kill_member(pid: Pid, session: Pid) -> bool {
    // Check the session after opening: from now on the pidfd cannot refer to another process.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    session_of(pid) == Some(session) && pidfd_send_signal(&process, Signal::KILL).is_ok()
}

/// Returns the session of a process. Returns `None` if the process is gone or its session leader is in a PID namespace
/// that this process cannot see.
fn session_of(pid: Pid) -> Option<Pid> {
    // Do not use rustix here: it assumes that the kernel never returns 0, but for such a leader the kernel returns 0.
    let process = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
    Pid::from_raw(nix::unistd::getsid(Some(process)).ok()?.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One session has a member in another process group. Another session must not be affected.
    #[test]
    fn all_process_groups_of_a_session_are_killed() {
        use std::io::{BufRead, BufReader};
        use std::os::unix::process::CommandExt;
        let session = |script: &str| {
            let mut command = std::process::Command::new("bash");
            command.args(["-c", script]).stdout(std::process::Stdio::piped());
            // SAFETY: only a system call between fork and execve.
            unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
            command.spawn().unwrap()
        };
        let pid = |child: &std::process::Child| Pid::from_raw(child.id().cast_signed()).unwrap();
        // Job control gives the background job its own process group.
        let mut leader = session("set -m; sleep 1000 & echo $!; wait $!; exit 7");
        let mut stranger = session("exec sleep 1000");
        let mut line = String::new();
        BufReader::new(leader.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let member = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        assert_ne!(rustix::process::getpgid(Some(member)).unwrap(), pid(&leader));
        assert!(kill_member(member, pid(&leader)));
        assert_eq!(leader.wait().unwrap().code(), Some(7));
        assert!(!kill_member(pid(&stranger), pid(&leader)));
        assert!(stranger.try_wait().unwrap().is_none());
        assert!(kill_member(pid(&stranger), pid(&stranger)));
        stranger.wait().unwrap();
    }
}
