//! Things that break once, each at a known moment: the packet filter, the disk, the runtime. What breaks at random is in
//! `storm`.

use std::time::Duration;

use serde_json::json;

use crate::storm::checker::assert_agreement;
use crate::storm::faults::lab_with_bad_rules;
use crate::support::{ImageSpec, Lab, delete, get, post, wait_for};
use crate::until_term;

#[test]
fn a_packet_filter_that_hangs_is_given_up() {
    let (lab, image) = lab_with_bad_rules();
    let before = lab.inventory();
    let api = lab.api();
    let running = api.run(json!({ "image": image, "command": until_term(0) }));
    lab.machine().write("/run/storm/hang", "");
    let request = json!({ "image": image, "port": ["8080:80"] });
    std::thread::scope(|scope| {
        let create = scope.spawn(|| api.call(post("/v1/containers", request.clone())));
        wait_for("a tool that hangs", Duration::from_secs(10), || {
            match lab.machine().path("/run/storm/hang").exists() {
                true => Err("not started"),
                false => Ok(()),
            }
        });
        // What needs no rules does not wait for them.
        assert_eq!(api.exec(&running, "echo here").trim(), "here");
        api.stop(&running);
        assert_eq!(api.ok(get("/v1/containers")).as_array().unwrap().len(), 2);
        assert!(!create.is_finished());
        // The rules are in the kernel the next time: a refusal or a silence is compared with the kernel and tried again.
        let reply = create.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        api.delete(reply.json()["data"]["id"].as_str().unwrap());
    });
    api.delete(&running);
    lab.assert_unchanged(&before);
}

/// A lab whose root directory is a file system of 48 MiB.
pub fn lab_with_small_disk() -> (Lab, String) {
    let lab = Lab::start();
    lab.machine().run(&["truncate", "-s", "48M", "/mnt/disk"]);
    lab.machine().run(&["mkfs.ext4", "-q", "-m", "0", "/mnt/disk"]);
    lab.machine().run(&["mount", "-o", "loop", "/mnt/disk", "/etc/raind"]);
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    (lab, image)
}

pub fn fill(lab: &Lab) {
    // The last blocks only go to small files.
    let script = "mkdir /etc/raind/filler && cd /etc/raind/filler && cat /dev/zero > big; sync; n=0
        while echo x > $n; do n=$((n + 1)); done 2> /dev/null";
    lab.machine().output(&["sh", "-c", script]);
}

pub fn free(lab: &Lab) {
    lab.machine().run(&["rm", "-r", "/etc/raind/filler"]);
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let (lab, image) = lab_with_small_disk();
    let before = lab.inventory();
    let api = lab.api();
    let ends = api.run(json!({ "image": image, "name": "ends", "command": until_term(0) }));
    let stays = api.run(json!({ "image": image, "name": "stays", "command": until_term(0) }));
    let created = api.create(json!({ "image": image, "name": "created", "command": until_term(0) }));
    let pids = [&ends, &stays].map(|id| api.container(id)["pid"].clone());
    fill(&lab);

    // Refused with a sentence, and what is there can be seen.
    let refused = api.call(post("/v1/containers", json!({ "image": image, "name": "more" })));
    assert!(matches!(refused.status, 500 | 507), "{}", refused.text());
    assert!(
        refused.message().contains("full") || refused.message().contains("No space"),
        "{}",
        refused.text()
    );
    assert_eq!(api.container(&stays)["pid"], pids[1]);
    // An end that cannot be written down.
    lab.machine().run(&["kill", "-9", &pids[0].to_string()]);
    // A daemon that dies now; it may refuse to start, but only with a reason.
    lab.daemon().kill9();
    lab.daemon().launch();
    wait_for(
        "a daemon that serves or says why not",
        Duration::from_secs(30),
        || match (lab.daemon().ended(), lab.api().try_call(get("/v1/containers"))) {
            (Some(_), _) | (None, Ok(_)) => Ok(()),
            (None, Err(error)) => Err(error),
        },
    );
    free(&lab);
    match lab.daemon().ended() {
        Some(_) => lab.daemon().forget(),
        None => lab.daemon().kill9(),
    }
    lab.daemon().start();

    assert_agreement(&lab);
    assert_eq!(api.container(&stays)["pid"], pids[1]);
    // Its monitor has waited for room to write that down.
    wait_for("the exit code", Duration::from_secs(10), || {
        match api.container(&ends) {
            row if row["state"] == "stopped" && row["exitCode"] == 137 => Ok(()),
            row => Err(row),
        }
    });
    api.start(&created);
    api.start(&ends);
    for id in [&created, &ends, &stays] {
        api.stop(id);
        api.delete(id);
    }
    assert_eq!(api.ok(get("/v1/containers")), json!([]));
    lab.assert_unchanged(&before);
}

#[test]
fn a_removal_that_failed_is_finished_by_itself() {
    let lab = Lab::start();
    let program = format!(
        "#!/bin/sh\nif [ $1 = delete ] && [ -e /run/storm/refuse ]; then echo not now >&2; exit 1; fi\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_droplet")
    );
    lab.machine().write("/run/storm/droplet", program);
    lab.machine().run(&["chmod", "755", "/run/storm/droplet"]);
    lab.daemon().set("CONDENSER_DROPLET", "/run/storm/droplet").start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let before = lab.inventory();
    let api = lab.api();
    let id = api.create(json!({ "image": image, "name": "web", "port": ["8080:80"] }));
    lab.machine().write("/run/storm/refuse", "");
    let call = || delete(&format!("/v1/containers/{id}/actions/delete"));
    for _ in 0..2 {
        let message = "service failed: delete container failed: droplet delete failed: not now";
        api.call(call()).refused(500, message);
        // What the runtime knows of it is still there.
        assert!(
            !lab.machine()
                .read(&format!("/etc/raind/container/{id}/state.json"))
                .is_empty()
        );
    }
    lab.machine().run(&["rm", "/run/storm/refuse"]);
    wait_for("the end of the removal", Duration::from_secs(30), || {
        match api.ok(get("/v1/containers")) {
            rows if rows == json!([]) => Ok(()),
            rows => Err(rows),
        }
    });
    lab.assert_unchanged(&before);
}
