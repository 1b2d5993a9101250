//! What is sent to a build goes to the disk as it comes.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Lab, get, wait_for};

/// Size of the one file of the context, in bytes.
const SIZE: u64 = 1 << 30;
/// What the daemon may need more than at rest, in KiB.
const MOST: u64 = 64 << 10;

/// A figure of `/proc/<pid>/status` of the daemon, in KiB.
fn memory(lab: &Lab, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.daemon().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_gigabyte_of_context_does_not_go_through_memory() {
    let lab = Lab::running();
    let machine = lab.machine();
    machine.write("/run/big/Dockerfile", "FROM scratch\nCOPY file /file\n");
    std::fs::File::create(machine.path("/run/big/file"))
        .unwrap()
        .set_len(SIZE)
        .unwrap();
    let idle = memory(&lab, "VmRSS");
    // Resets the peak (proc_pid_clear_refs(5)).
    std::fs::write(format!("/proc/{}/clear_refs", lab.daemon().pid()), "5").unwrap();
    let script = "tar -cf - -C /run/big . | curl -sS --cacert /etc/raind/cert/raind.crt --cert \
                  /etc/raind/cert/raindClient.crt --key /etc/raind/cert/raindClient.key -X POST -T - \
                  'https://localhost:7755/v1/images/build?tag=big:1&dockerfile=Dockerfile'";
    let mut sending = machine.command(crate::support::Place::Host, "sh");
    let output = sending.args(["-c", script]).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["status"], "success", "{answer}");
    let used = lab.api().ok(get("/v1/images/fs?image=big:1"))["usedBytes"]
        .as_u64()
        .unwrap();
    let peak = memory(&lab, "VmHWM");
    println!("idle {idle} KiB, peak {peak} KiB, image {used} bytes");
    assert!(peak < idle + MOST, "idle {idle} KiB, peak {peak} KiB");
    // Nothing of the context is kept.
    wait_for("the context to be removed", Duration::from_secs(10), || {
        let staged = std::fs::read_dir(machine.path("/etc/raind/image/staging"))
            .unwrap()
            .count();
        if staged == 0 { Ok(()) } else { Err(staged) }
    });
}
