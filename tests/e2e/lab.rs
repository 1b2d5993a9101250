//! The lab itself: what a test must be able to rely on.

use std::time::Duration;

use serde_json::json;

use crate::support::{ImageSpec, Lab, Layer, post, wait_for};

#[test]
fn a_pushed_image_can_be_fetched_by_other_tools() {
    let lab = Lab::start();
    let layer = Layer::new().file("greeting", 0o644, "hello");
    let name = lab.push(&ImageSpec::busybox().layer(layer), "lab/app:1");
    lab.hub();
    for source in [format!("docker://{name}"), "docker://docker.io/lab/app:1".into()] {
        let said = lab.machine().run(&[
            "ip",
            "netns",
            "exec",
            "outside",
            "skopeo",
            "inspect",
            "--tls-verify=false",
            &source,
        ]);
        assert!(said.contains("\"Architecture\""), "{said}");
    }
}

#[test]
fn an_inventory_sees_what_is_left_behind() {
    let lab = Lab::start();
    let before = lab.inventory();
    let machine = lab.machine();
    let leaks: [(&str, &[&str]); 7] = [
        ("iptables", &["iptables", "-A", "INPUT", "-j", "ACCEPT"]),
        ("addresses", &["ip", "address", "add", "10.1.2.3/32", "dev", "lo"]),
        ("links", &["ip", "link", "add", "left", "type", "bridge"]),
        ("mounts", &["mount", "-t", "tmpfs", "tmpfs", "/mnt"]),
        ("cgroups", &["mkdir", "-p", "/sys/fs/cgroup/pids/raind/left"]),
        ("files", &["mkdir", "-p", "/etc/raind/container/left"]),
        ("processes", &["sh", "-c", "sleep 1000 < /dev/null > /dev/null 2>&1 &"]),
    ];
    for (kind, leak) in leaks {
        machine.run(leak);
        let found = before.same_as(&lab.inventory()).unwrap_err();
        assert!(found.contains(&format!("{kind}: +")), "{kind}: {found}");
    }
}

/// What the daemon runs for a moment is no part of it, or it would be missed later.
#[test]
fn an_inventory_waits_for_the_tools_of_the_daemon() {
    let lab = Lab::start();
    let slow = "#!/bin/sh\nsleep 0.3\nexec /usr/sbin/iptables-restore \"$@\"\n";
    lab.machine().write("/run/tools/iptables-restore", slow);
    lab.machine().run(&["chmod", "755", "/run/tools/iptables-restore"]);
    lab.daemon().set(
        "PATH",
        "/run/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    lab.daemon().start();
    let before = lab.inventory();
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for name in ["one", "two", "three"] {
                lab.api().ok(post("/v1/networks", json!({ "bridge": name })));
            }
        });
        while !changes.is_finished() {
            assert_eq!(lab.inventory().lines("processes"), before.lines("processes"));
        }
    });
}

#[test]
fn nothing_of_a_lab_outlives_it() {
    let lab = Lab::start();
    let groups = lab.machine().run(&["cat", "/proc/self/cgroup"]);
    assert!(groups.lines().all(|line| line.ends_with(":/")), "{groups}");
    let mut left = lab
        .machine()
        .command(crate::support::Place::Host, "sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    drop(lab);
    wait_for("the end of a process of the lab", Duration::from_secs(5), || {
        left.try_wait().unwrap().ok_or("it runs")
    });
}
