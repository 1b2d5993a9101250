//! Limits and process options of a create request, as the container feels them.
//!
//! Limits are looked up in the cgroup v1 hierarchies of the machine, where it has them, else in cgroup v2; a controller
//! that is in neither is said and left out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Lab, post, wait_for};
use crate::{lab_with_busybox, until_term};

/// A limit of a container as the kernel has it; `None` when this machine has no such controller.
fn limit(lab: &Lab, id: &str, controller: &str, v1: &str, v2: &str) -> Option<String> {
    let files = [
        format!("/sys/fs/cgroup/{controller}/raind/{id}/{v1}"),
        format!("/sys/fs/cgroup/raind/{id}/{v2}"),
    ];
    let found = files.iter().find(|file| lab.machine().path(file).exists());
    if found.is_none() {
        eprintln!("the limit of {controller} cannot be looked up: this machine has no such cgroup controller");
    }
    found.map(|file| lab.machine().read(file).trim().to_owned())
}

/// A line of `/proc/<pid>/status`.
fn status(lab: &Lab, pid: &Value, name: &str) -> String {
    let text = lab.machine().read(&format!("/proc/{pid}/status"));
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("{name} in {text}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn config(lab: &Lab, id: &str) -> Value {
    let text = lab.machine().read(&format!("/etc/raind/container/{id}/config.json"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_option_reaches_the_container() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let labels = json!({ "tier": "front", "team": "blue" });
    let id = api.run(json!({
        "image": image,
        "entrypoint": ["/bin/sh", "-c"],
        "command": [until_term(0)[2]],
        "user": "web:extra",
        "workingDir": "/var",
        "hostname": "box.example",
        "labels": labels,
        "memory": 64 << 20,
        "cpus": 0.25,
        "pidsLimit": 20,
        "capAdd": ["net_admin"],
        "capDrop": ["CAP_MKNOD", "kill"],
        "readOnly": true,
    }));
    let shown = api.container(&id);
    assert_eq!(shown["labels"], labels);
    assert_eq!(shown["command"], until_term(0));

    let config = config(&lab, &id);
    let resources = &config["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 64 << 20);
    assert_eq!(resources["cpu"], json!({ "quota": 25_000, "period": 100_000 }));
    assert_eq!(resources["pids"]["limit"], 20);
    assert_eq!(config["hostname"], "box.example");
    assert_eq!(config["root"]["readonly"], true);
    assert_eq!(config["process"]["cwd"], "/var");
    let user = &config["process"]["user"];
    assert_eq!((&user["uid"], &user["gid"]), (&json!(1000), &json!(2000)));

    let pid = &shown["pid"];
    let ids = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
    assert_eq!(
        (status(&lab, pid, "Uid"), status(&lab, pid, "Gid")),
        (ids(1000), ids(2000))
    );
    // The default set is CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5, SETGID 6, SETUID 7, SETPCAP 8,
    // NET_BIND_SERVICE 10, NET_RAW 13, SYS_CHROOT 18, MKNOD 27, AUDIT_WRITE 29, SETFCAP 31; NET_ADMIN is 12.
    let wanted = [0, 1, 3, 4, 6, 7, 8, 10, 12, 13, 18, 29, 31];
    let mask: u64 = wanted.into_iter().map(|bit| 1 << bit).sum();
    assert_eq!(status(&lab, pid, "CapBnd"), format!("{mask:016x}"));
    let cwd = std::fs::read_link(lab.machine().path(&format!("/proc/{pid}/cwd"))).unwrap();
    assert!(cwd.ends_with("var"), "{}", cwd.display());

    let said = api.exec(&id, "hostname; cat /etc/hostname; hostname -i");
    let address = shown["address"].as_str().unwrap();
    assert_eq!(said, format!("box.example\nbox.example\n{address}\n"));
    let said = api.exec(&id, "touch /x || echo refused");
    assert!(
        said.contains("Read-only file system") && said.contains("refused"),
        "{said}"
    );

    for (found, wanted) in [
        (
            limit(&lab, &id, "memory", "memory.limit_in_bytes", "memory.max"),
            "67108864",
        ),
        (limit(&lab, &id, "pids", "pids.max", "pids.max"), "20"),
    ] {
        assert!(found.is_none_or(|found| found == wanted));
    }
    let quota = limit(&lab, &id, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.is_none_or(|quota| quota == "25000" || quota == "25000 100000"));
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_container_without_options_has_the_defaults() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    let shown = api.container(&id);
    for absent in ["labels", "restartCount", "health"] {
        assert_eq!(shown.get(absent), None, "{shown}");
    }
    let resources = &config(&lab, &id)["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 1 << 30);
    assert_eq!(resources["cpu"]["quota"], 80_000);
    assert_eq!(resources["pids"]["limit"], 512);
    let memory = limit(&lab, &id, "memory", "memory.limit_in_bytes", "memory.max");
    assert!(memory.is_none_or(|found| found == "1073741824"));
    assert_eq!(
        api.exec(&id, "hostname; pwd; touch /x; echo $?"),
        format!("{id}\n/\n0\n")
    );
}

#[test]
fn root_without_capabilities_is_not_much() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let id = api.run(json!({
        "image": image, "command": until_term(0), "capDrop": ["ALL"], "capAdd": ["NET_BIND_SERVICE"],
    }));
    let pid = &api.container(&id)["pid"];
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(status(&lab, pid, set), format!("{:016x}", 1 << 10), "{set}");
    }
    let said = api.exec(&id, "touch /file; chown web /file || echo refused");
    assert!(said.contains("refused"), "{said}");
}

#[test]
fn limits_hold() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "command": until_term(0), "pidsLimit": 20 }));
    if limit(&lab, &id, "pids", "pids.max", "pids.max").is_some() {
        let said = api.exec(
            &id,
            "( i=0; while [ $i -lt 30 ]; do i=$((i+1)); sleep 1000 & done; echo all )",
        );
        assert!(said.contains("can't fork") && !said.contains("all"), "{said}");
    }
    api.stop(&id);
    api.delete(&id);
    let id = api.run(json!({ "image": image, "command": ["/bin/tail", "/dev/zero"], "memory": 16 << 20 }));
    if limit(&lab, &id, "memory", "memory.limit_in_bytes", "memory.max").is_some() {
        let ended = api.wait_state(&id, "stopped");
        assert_eq!(
            (&ended["exitCode"], &ended["reason"]),
            (&json!(137), &json!("OOMKilled"))
        );
    } else {
        api.stop(&id);
    }
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn the_creator_chooses_how_it_is_stopped() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let script = "trap 'exit 7' QUIT; trap '' TERM; echo started; while :; do sleep 1000 & wait $!; done";
    let id = api.run(json!({ "image": image, "command": ["/bin/sh", "-c", script], "stopSignal": "quit" }));
    wait_for_line(&lab, &id);
    api.stop(&id);
    assert_eq!(api.container(&id)["exitCode"], 7);

    let deaf = json!([
        "/bin/sh",
        "-c",
        "trap '' TERM; echo started; while :; do sleep 1000 & wait $!; done"
    ]);
    let id = api.run(json!({ "image": image, "command": deaf, "stopTimeout": 0 }));
    wait_for_line(&lab, &id);
    let begun = Instant::now();
    api.stop(&id);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(api.container(&id)["exitCode"], 137);
}

fn wait_for_line(lab: &Lab, id: &str) {
    wait_for("a container at work", Duration::from_secs(10), || {
        let log = lab.api().log(id);
        if log.contains("started\n") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn options_that_cannot_be_leave_nothing() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let refused = [
        (json!({ "memory": 1024 }), "memory 1024"),
        (json!({ "cpus": 0.001 }), "cpus 0.001"),
        (json!({ "cpus": -1 }), "cpus -1"),
        (json!({ "pidsLimit": 4294967295u32 }), "pidsLimit"),
        (json!({ "user": "nobody-knows" }), "nobody-knows"),
        (json!({ "user": "web:nobody-knows" }), "nobody-knows"),
        (json!({ "workingDir": "tmp" }), "workingDir"),
        (json!({ "hostname": "a_b" }), "hostname"),
        (json!({ "hostname": "x".repeat(64) }), "hostname"),
        (json!({ "labels": { "": "x" } }), "labels"),
        (json!({ "labels": { "x": "y".repeat(5000) } }), "labels"),
        (json!({ "capAdd": ["CAP_NOPE"] }), "CAP_NOPE"),
        (json!({ "capDrop": ["nope"] }), "nope"),
        (json!({ "stopSignal": "SIGNOPE" }), "stopSignal"),
        (json!({ "stopTimeout": 3601 }), "stopTimeout"),
        (json!({ "restartPolicy": { "name": "sometimes" } }), "sometimes"),
        (
            json!({ "restartPolicy": { "name": "always", "maxRetries": 1 } }),
            "maxRetries",
        ),
        (json!({ "healthCheck": {} }), "healthCheck"),
        (json!({ "healthCheck": { "tcp": 80, "exec": ["true"] } }), "healthCheck"),
        (json!({ "healthCheck": { "tcp": 80, "interval": 0 } }), "interval"),
    ];
    for (mut request, part) in refused {
        request["image"] = image.as_str().into();
        let reply = lab.api().call(post("/v1/containers", request.clone()));
        assert_eq!(reply.json()["data"], json!({ "id": "" }), "{request}");
        let said = reply.refused(400, "service failed: ");
        assert!(said.contains(part), "{request}: {said}");
        lab.assert_unchanged(&before);
    }
    for wrong in [
        json!({ "memory": -1 }),
        json!({ "memory": "1g" }),
        json!({ "pidsLimit": 1.5 }),
        json!({ "labels": { "a": 1 } }),
        json!({ "restartPolicy": "always" }),
        json!({ "restartPolicy": { "policy": "always" } }),
        json!({ "healthCheck": { "tcp": 65536 } }),
    ] {
        lab.api()
            .call(post("/v1/containers", wrong))
            .refused(400, "invalid json: ");
    }
    lab.assert_unchanged(&before);
}
