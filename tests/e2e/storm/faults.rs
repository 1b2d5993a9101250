//! The same with other things that break: the runtime's processes, the hook agent, the packet filter, the disk, the
//! number of descriptors.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use serde_json::json;

use super::driver::Storm;
use crate::support::{Lab, get, post};
use crate::{lab_with_busybox, until_term};

/// Processes of the lab that are neither the daemon nor in a container, with command line and name: what the runtime
/// started on the host.
fn processes(lab: &Lab) -> Vec<(Pid, String, String)> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let daemon = lab.daemon().pid();
    let ours = namespace(daemon.as_raw());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != daemon.as_raw() && namespace(*pid) == ours)
        .filter_map(|pid| {
            let read = |file| std::fs::read(format!("/proc/{pid}/{file}")).ok();
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned();
            Some((Pid::from_raw(pid), text(read("cmdline")?), text(read("comm")?)))
        })
        .collect()
}

/// A storm in which one of the processes that `is_target` names is killed again and again.
fn processes_are_killed(is_target: impl Fn(&str, &str) -> bool) {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let storm = Storm::new(&lab, &image);
    let mut killed = 0;
    storm.blow(|| {
        storm.strikes(8, |rng| {
            let mut targets = processes(&lab);
            targets.retain(|(_, line, name)| is_target(line, name));
            if !targets.is_empty() {
                // It may have ended meanwhile.
                killed += u32::from(kill(targets[rng.random_range(0..targets.len())].0, Signal::SIGKILL).is_ok());
            }
        });
    });
    println!("{killed} processes were killed");
    assert!(killed > 10, "{killed}");
    // Every failure has an answer that says what failed.
    storm.assert_failures(|failure| failure.contains("failed"));
    storm.clear();
    lab.assert_unchanged(&before);
}

#[test]
fn a_runtime_that_is_killed_all_the_time_leaves_nothing() {
    processes_are_killed(|line, name| line.contains("/droplet ") && !name.starts_with("droplet:"));
}

#[test]
fn monitors_that_are_killed_all_the_time_leave_nothing() {
    processes_are_killed(|_, name| name == "droplet:monitor");
}

#[test]
fn a_hook_agent_that_is_killed_all_the_time_leaves_nothing() {
    processes_are_killed(|line, _| line.contains("condenser-hook-agent"));
}
