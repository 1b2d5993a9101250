//! Restart policies: what ended by itself comes back, later each time, and a stop is a stop.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ImageSpec, Lab, Layer, wait_for};
use crate::{lab_with_busybox, until_term};

/// Says when it started, in seconds since boot, and ends.
fn crash(code: u8) -> Value {
    json!(["/bin/sh", "-c", format!("cat /proc/uptime; exit {code}")])
}

/// When each run of [`crash`] began.
fn runs(lab: &Lab, id: &str) -> Vec<f64> {
    let log = lab.api().log(id);
    let first = |line: &str| line.split(' ').next().unwrap().parse().unwrap();
    log.lines().map(first).collect()
}

/// Waits until the container has begun that many runs.
fn wait_for_runs(lab: &Lab, id: &str, count: usize) -> Vec<f64> {
    wait_for("runs", Duration::from_secs(30), || {
        let runs = runs(lab, id);
        if runs.len() >= count {
            Ok(runs)
        } else {
            Err(format!("{runs:?}"))
        }
    })
}

/// Waits until a container has been started again that often and runs.
fn wait_for_restart(lab: &Lab, id: &str, restarts: u64) -> Value {
    wait_for("a restart", Duration::from_secs(30), || {
        let found = lab.api().container(id);
        let done = found["state"] == "running" && found["restartCount"] == restarts;
        if done { Ok(found) } else { Err(found) }
    })
}

/// Time for restarts that must not come: as long as another container takes for six runs in a row, whose delays come to
/// more than the one that is left of a container with fewer.
fn let_others_restart(lab: &Lab, image: &str) {
    let id = lab
        .api()
        .run(json!({ "image": image, "command": crash(1), "restartPolicy": { "name": "always" } }));
    wait_for_runs(lab, &id, 6);
    lab.api().stop(&id);
    lab.api().delete(&id);
}

fn kill_process(lab: &Lab, id: &str) {
    let pid = lab.api().container(id)["pid"].to_string();
    lab.machine().run(&["kill", "-9", &pid]);
}

#[test]
fn a_crash_loop_backs_off_and_a_stop_ends_it() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "command": crash(1), "restartPolicy": { "name": "always" } }));
    let begun = wait_for_runs(&lab, &id, 5);
    let pauses: Vec<f64> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, delay) in pauses.iter().zip([0.1, 0.2, 0.4, 0.8]) {
        // A run and a start take some time themselves; uptime has two decimals.
        assert!(*pause >= delay - 0.02, "{pauses:?}");
    }

    // Now it waits for its restart, or is just being started: a stop works either way.
    api.stop(&id);
    let stopped = api.container(&id);
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["exitCode"], 1);
    let count = runs(&lab, &id).len();
    let_others_restart(&lab, &image);
    assert_eq!(runs(&lab, &id).len(), count, "it was started again after the stop");
    assert_eq!(stopped["restartCount"], count - 1);

    // A start by the user begins anew.
    api.start(&id);
    wait_for_runs(&lab, &id, count + 2);
    let restarts = api.container(&id)["restartCount"].as_u64().unwrap();
    assert!(restarts < 4, "{restarts}");
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn always_is_after_a_crash_and_after_a_restart_of_the_daemon() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let always = |name: &str| json!({ "image": image, "name": name, "command": until_term(0), "restartPolicy": { "name": "always" } });
    let web = api.run(always("web"));
    let stopped = api.run(always("stopped"));
    let created = api.create(always("created"));
    api.stop(&stopped);

    let first = api.container(&web);
    kill_process(&lab, &web);
    let second = wait_for_restart(&lab, &web, 1);
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(second["address"], first["address"]);
    assert_eq!(second.get("exitCode"), None);

    // It ends while nobody looks; an end with 0 counts too.
    lab.daemon().kill9();
    let pid = second["pid"].to_string();
    lab.machine().run(&["kill", &pid]);
    wait_for("the end of the process", Duration::from_secs(5), || {
        let command = lab.machine().read(&format!("/proc/{pid}/cmdline"));
        if command.is_empty() { Ok(()) } else { Err(command) }
    });
    lab.daemon().start();
    let third = wait_for_restart(&lab, &web, 2);

    // One that runs is left alone.
    lab.daemon().restart();
    let_others_restart(&lab, &image);
    assert_eq!(api.container(&web)["pid"], third["pid"]);
    assert_eq!(api.container(&stopped)["state"], "stopped");
    assert_eq!(api.container(&created)["state"], "created");
    api.stop(&web);
    assert_eq!(api.container(&web)["restartCount"], 2);
    api.start(&web);
    assert_eq!(
        api.container(&web).get("restartCount"),
        None,
        "a user's start counts from the beginning"
    );
    api.stop(&web);
    for id in [&web, &stopped, &created] {
        api.delete(id);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn on_failure_is_for_failures_and_has_a_maximum() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let policy = json!({ "name": "on-failure", "maxRetries": 2 });
    let fails = api.run(json!({ "image": image, "command": crash(3), "restartPolicy": policy }));
    let succeeds = api.run(json!({ "image": image, "command": crash(0), "restartPolicy": policy }));
    let never = api.run(json!({ "image": image, "command": crash(1) }));
    wait_for_runs(&lab, &fails, 3);
    let_others_restart(&lab, &image);
    let counts = [&fails, &succeeds, &never].map(|id| runs(&lab, id).len());
    assert_eq!(counts, [3, 1, 1]);
    let ended = api.container(&fails);
    assert_eq!((&ended["state"], &ended["exitCode"]), (&json!("stopped"), &json!(3)));
    assert_eq!(ended["restartCount"], 2);
    for id in [&fails, &succeeds, &never] {
        api.delete(id);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn a_daemon_that_is_killed_while_it_restarts_goes_on() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let id = lab
        .api()
        .run(json!({ "image": image, "command": until_term(0), "restartPolicy": { "name": "always" } }));
    for moment in 0..8 {
        // So that the delay is the first one again.
        lab.api().stop(&id);
        lab.api().start(&id);
        kill_process(&lab, &id);
        // The restart begins 100 ms later and takes about as long.
        std::thread::sleep(Duration::from_millis(90 + 15 * moment));
        lab.daemon().kill9();
        lab.daemon().start();
        let running = lab.api().wait_state(&id, "running");
        let pid = running["pid"].to_string();
        assert!(
            lab.machine().read(&format!("/proc/{pid}/cmdline")).contains("trap"),
            "{running}"
        );
    }
    lab.api().stop(&id);
    lab.api().delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_restart_that_cannot_succeed_is_tried_later_and_later_and_can_be_deleted() {
    let lab = Lab::running();
    // Its program is gone after the first run.
    let spec = ImageSpec::busybox().layer(Layer::new().script("once", "rm /once; exit 3"));
    let image = lab.pull(&spec, "lab/once:1");
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "command": ["/once"], "restartPolicy": { "name": "always" } }));
    wait_for("three failed tries", Duration::from_secs(30), || {
        let found = api.container(&id);
        let tried = found["restartCount"].as_u64().is_some_and(|count| count >= 4);
        if tried && found["state"] == "stopped" {
            Ok(())
        } else {
            Err(found)
        }
    });
    assert_eq!(api.container(&id)["exitCode"], 127);
    api.delete(&id);
    lab.assert_unchanged(&before);
}
