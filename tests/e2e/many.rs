//! Hundreds at once with nothing that breaks: no error at all, and nobody waits for what does not concern him.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use crate::support::{get, post, wait_for};
use crate::{lab_with_busybox, until_term};

const CONTAINERS: u32 = 200;
const AT_A_TIME: usize = 16;

#[test]
fn two_hundred_containers_sixteen_at_a_time_live_and_die_without_an_error() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let api = lab.api();
    let waiting = Mutex::new(0..CONTAINERS);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(number) = { waiting.lock().unwrap().next() } {
                    // Ends at once when asked to.
                    let command = json!(["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]);
                    let id = api.run(json!({ "image": image, "name": format!("c{number}"), "command": command }));
                    api.stop(&id);
                    api.delete(&id);
                }
            });
        }
    });
    assert_eq!(api.ok(get("/v1/containers")), json!([]));
    lab.assert_unchanged(&before);
}

#[test]
fn nobody_waits_for_a_container_that_is_busy() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    // Deaf to the signal, so that a stop lasts as long as its grace period: much longer than this test.
    let deaf = json!(["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1000; done"]);
    let busy = api.run(json!({ "image": image, "command": deaf, "stopTimeout": 600 }));
    let other = api.create(json!({ "image": image, "name": "other", "command": until_term(0) }));
    wait_for("a container that is deaf", Duration::from_secs(10), || {
        let log = api.log(&busy);
        if log.contains("deaf") { Ok(()) } else { Err(log) }
    });
    let is_stopping = || {
        lab.machine()
            .output(&["pgrep", "-f", &format!("droplet kill .*{busy}")])
            .status
            .success()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| drop(api.try_call(post(&format!("/v1/containers/{busy}/actions/stop"), json!({})))));
        wait_for("a stop in progress", Duration::from_secs(10), || {
            if is_stopping() { Ok(()) } else { Err("none") }
        });
        let rows = api.ok(get("/v1/containers"));
        assert_eq!(rows.as_array().unwrap().len(), 2);
        for path in [
            format!("/v1/containers/{busy}"),
            format!("/v1/containers/{busy}/log"),
            "/v1/images".into(),
            "/v1/networks".into(),
        ] {
            assert_eq!(api.call(get(&path)).status, 200, "{path}");
        }
        let exec = json!({ "command": ["/bin/echo", "here"], "wait": true });
        let said = api.ok(post(&format!("/v1/containers/{busy}/actions/exec"), exec));
        assert_eq!(said["stdout"], "here\n");
        api.start(&other);
        api.stop(&other);
        api.delete(&other);
        // All of that while the stop still waits.
        assert!(is_stopping() && api.container(&busy)["state"] == "running");
        let pid = api.container(&busy)["pid"].to_string();
        lab.machine().run(&["kill", "-9", &pid]);
    });
    api.wait_state(&busy, "stopped");
    api.delete(&busy);
}
