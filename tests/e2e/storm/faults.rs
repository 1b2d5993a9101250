//! The same with other things that break: the runtime's processes, the hook agent, the packet filter, the disk, the clock, the
//! number of descriptors.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use serde_json::json;

use super::driver::Storm;
use crate::faults::{fill, free, lab_with_small_disk};
use crate::lab_with_busybox;
use crate::support::{ImageSpec, Lab, post, wait_for};

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

/// A program before iptables-restore on the daemon's PATH. While the file `hang` is there it takes it away and hangs;
/// while `refuse` is there it refuses one call in five.
const RESTORE: &str = r#"#!/bin/sh
if [ -e /run/storm/hang ]; then rm /run/storm/hang; exec sleep 1000; fi
if [ -e /run/storm/refuse ] && [ $(($(od -An -N1 -tu1 /dev/urandom) % 5)) -eq 0 ]; then
    echo "${0##*/}: refused by the storm" >&2
    exit 4
fi
exec "/usr/sbin/${0##*/}" "$@"
"#;

/// A lab whose daemon starts [`RESTORE`].
pub fn lab_with_bad_rules() -> (Lab, String) {
    let lab = Lab::start();
    for tool in ["iptables-restore", "ip6tables-restore"] {
        let path = format!("/run/storm/{tool}");
        lab.machine().write(&path, RESTORE);
        lab.machine().run(&["chmod", "755", &path]);
    }
    lab.daemon()
        .set("PATH", "/run/storm:/usr/sbin:/usr/bin:/sbin:/bin")
        .start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    (lab, image)
}

#[test]
fn rules_that_are_refused_at_random_leave_nothing() {
    let (lab, image) = lab_with_bad_rules();
    let before = lab.inventory();
    let storm = Storm::new(&lab, &image);
    lab.machine().write("/run/storm/refuse", "");
    storm.blow(|| {
        storm.strikes(8, |_| {});
        lab.machine().run(&["rm", "/run/storm/refuse"]);
    });
    storm.assert_failures(|failure| failure.contains("refused by the storm"));
    storm.clear();
    lab.assert_unchanged(&before);
}

#[test]
fn a_disk_that_is_full_now_and_then_loses_and_leaves_nothing() {
    let (lab, image) = lab_with_small_disk();
    let before = lab.inventory();
    let storm = Storm::new(&lab, &image);
    storm.blow(|| {
        let mut is_full = false;
        storm.strikes(10, |rng| {
            match (is_full, rng.random_ratio(1, 8)) {
                (_, false) => return,
                (false, true) => fill(&lab),
                (true, true) => free(&lab),
            }
            is_full = !is_full;
        });
        if is_full {
            free(&lab);
        }
    });
    storm.assert_failures(|failure| failure.contains(" 50"));
    storm.clear();
    lab.assert_unchanged(&before);
}

#[test]
fn a_daemon_with_few_descriptors_serves_again() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let storm = Storm::new(&lab, &image);
    let pid = lab.daemon().pid().to_string();
    let used = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = |soft: usize| {
        let limit = format!("--nofile={soft}:4096");
        lab.machine().output(&["true"]);
        let set = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        assert!(set.unwrap().success());
    };
    limit(used + 6);
    storm.blow(|| {
        storm.strikes(8, |_| {});
        limit(1024);
    });
    // A connection may be closed, or wait until there is a descriptor.
    storm.assert_failures(|failure| failure.contains("Too many open files") || failure.contains("os error 24"));
    storm.clear();
    lab.assert_unchanged(&before);
}

/// The file that says what the daemon's clock shows, in the words of libfaketime.
const CLOCK: &str = "/run/storm/clock";

/// A lab whose daemon sees another time of day: the machine's clock cannot be set for it alone, and namespaces of time do
/// not cover it. What measures spans of time goes on as it is, and so do all other programs.
fn lab_with_a_clock() -> (Lab, String) {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut libraries = libraries.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    let library = libraries
        .find(|path| path.exists())
        .expect("libfaketime; install the package faketime");
    let lab = Lab::start();
    lab.machine().write(CLOCK, "+0");
    // The library leaves files there.
    lab.machine().run(&["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]);
    lab.daemon()
        .set("LD_PRELOAD", library.to_str().unwrap())
        .set("FAKETIME_TIMESTAMP_FILE", CLOCK)
        .set("FAKETIME_NO_CACHE", "1")
        .set("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .set("NO_FAKE_STAT", "1")
        .start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    (lab, image)
}

#[test]
fn a_clock_that_jumps_loses_and_leaves_nothing() {
    let (lab, image) = lab_with_a_clock();
    let before = lab.inventory();
    let api = lab.api();
    // It does jump, and a restart does not wait until the clock has caught up with what it showed.
    let restarting = json!({
        "image": image, "name": "restarting", "command": ["/bin/sh", "-c", "sleep 0.2"],
        "restartPolicy": { "name": "always" },
    });
    lab.machine().write(CLOCK, "+1d");
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(23);
    api.run(restarting);
    let created: jiff::Timestamp = api.container("restarting")["createdAt"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(created > tomorrow, "{created}");
    lab.machine().write(CLOCK, "+0");
    let restarts = || api.container("restarting")["restartCount"].as_u64().unwrap_or(0);
    let then = restarts();
    wait_for("more restarts", Duration::from_secs(20), || match restarts() {
        now if now >= then + 2 => Ok(()),
        now => Err(now),
    });
    wait_for("a stop", Duration::from_secs(10), || {
        let reply = api.call(post("/v1/containers/restarting/actions/stop", json!({})));
        if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
    });
    api.delete("restarting");

    let storm = Storm::new(&lab, &image);
    storm.blow(|| {
        storm.strikes(8, |rng| {
            let clocks = ["+0", "-200", "+1h", "+1d"];
            lab.machine().write(CLOCK, clocks[rng.random_range(0..clocks.len())]);
        });
        lab.machine().write(CLOCK, "+0");
    });
    // A certificate that was issued a moment ago, in the future, is not valid yet: that create fails and is undone.
    storm.assert_failures(|failure| failure.contains("create failed: hook"));
    storm.clear();
    lab.assert_unchanged(&before);
}
