//! Health checks: what a container says of itself, and what comes of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Lab, wait_for};
use crate::{lab_with_busybox, until_term};

fn wait_for_health(lab: &Lab, id: &str, health: &str) -> Value {
    wait_for(health, Duration::from_secs(20), || {
        let found = lab.api().container(id);
        if found["health"] == health {
            Ok(found)
        } else {
            Err(found)
        }
    })
}

#[test]
fn a_server_that_comes_late_is_healthy_then() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let script = "while [ ! -e /go ]; do sleep 0.1; done; exec httpd -f -p 8080 -h /www";
    let check = json!({ "tcp": 8080, "interval": 1, "timeout": 1, "retries": 2, "startPeriod": 2 });
    let request = json!({ "image": image, "command": ["/bin/sh", "-c", script], "healthCheck": check });
    let id = api.create(request);
    assert_eq!(api.container(&id).get("health"), None, "it does not run yet");
    api.start(&id);
    assert_eq!(api.container(&id)["health"], "starting");
    let unhealthy = wait_for_health(&lab, &id, "unhealthy");
    assert_eq!(unhealthy["state"], "running", "nobody wanted it to be ended");
    api.exec(&id, "touch /go");
    wait_for_health(&lab, &id, "healthy");

    // What is known outlives the daemon.
    lab.daemon().restart();
    assert_eq!(api.container(&id)["health"], "healthy");
    let pid = api.container(&id)["pid"].to_string();
    lab.machine().run(&["kill", "-9", &pid]);
    api.wait_state(&id, "stopped");
    assert_eq!(api.container(&id).get("health"), None);
    api.start(&id);
    wait_for_health(&lab, &id, "healthy");
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_command_says_how_it_is() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let check = json!({ "exec": ["test", "!", "-e", "/dev/shm/broken"], "interval": 1, "retries": 1 });
    let id = api.run(json!({ "image": image, "command": until_term(0), "healthCheck": check }));
    wait_for_health(&lab, &id, "healthy");
    api.exec(&id, "touch /dev/shm/broken");
    wait_for_health(&lab, &id, "unhealthy");
    api.exec(&id, "rm /dev/shm/broken");
    wait_for_health(&lab, &id, "healthy");
    api.stop(&id);
    api.delete(&id);

    // A command that takes too long is a failure, and does not stay.
    let check = json!({ "exec": ["sleep", "1234"], "interval": 1, "timeout": 1, "retries": 1 });
    let id = api.run(json!({ "image": image, "command": until_term(0), "healthCheck": check }));
    wait_for_health(&lab, &id, "unhealthy");
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn an_unhealthy_container_is_ended_and_its_policy_starts_it_again() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let script = "httpd -p 8080 -h /www; trap 'exit 1' TERM; while :; do sleep 1000 & wait $!; done";
    let check =
        json!({ "tcp": 8080, "interval": 1, "timeout": 1, "retries": 2, "startPeriod": 5, "endUnhealthy": true });
    let id = api.run(json!({
        "image": image, "command": ["/bin/sh", "-c", script], "healthCheck": check,
        "restartPolicy": { "name": "on-failure" },
    }));
    let first = wait_for_health(&lab, &id, "healthy");
    api.exec(&id, "killall httpd");
    wait_for("a restart", Duration::from_secs(20), || {
        let found = api.container(&id);
        if found["restartCount"] == 1 && found["state"] == "running" {
            Ok(())
        } else {
            Err(found)
        }
    });
    let second = wait_for_health(&lab, &id, "healthy");
    assert_ne!(second["pid"], first["pid"]);
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}
