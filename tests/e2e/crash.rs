//! The daemon goes away at the worst moments and comes back.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::manifests::{apply, remove};
use crate::support::{Call, HOST, Inventory, Lab, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

/// All containers, each as the API shows it.
fn containers(lab: &Lab) -> Vec<Value> {
    lab.api().ok(get("/v1/containers")).as_array().unwrap().clone()
}

/// Whatever is there is whole: it can be stopped where it runs, and deleted, and then nothing is left.
fn clear(lab: &Lab, before: &Inventory) {
    for container in containers(lab) {
        let id = container["containerId"].as_str().unwrap();
        let state = container["state"].as_str().unwrap();
        assert_ne!(state, "creating", "recovery left {container}");
        if state == "running" {
            lab.api().stop(id);
        }
        lab.api().delete(id);
    }
    lab.assert_unchanged(before);
}

/// Kills the daemon at that moment of an operation, starts it again and hands over to `check`.
pub fn interrupted(lab: &Lab, after: Duration, operation: impl FnOnce() + Send, check: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(operation);
        let begun = Instant::now();
        while begun.elapsed() < after {
            std::thread::yield_now();
        }
        lab.daemon().kill9();
    });
    lab.daemon().start();
    check();
}

/// Moments spread over how long the operation takes, a little beyond its end.
pub fn moments(whole: Duration) -> impl Iterator<Item = Duration> {
    (0..10).map(move |tenth| whole * tenth / 8)
}

#[test]
fn a_crash_during_a_create_leaves_all_or_nothing() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let request = json!({ "image": image, "name": "web", "port": ["8080:80"], "command": until_term(0) });
    let begun = Instant::now();
    lab.api().create(request.clone());
    let whole = begun.elapsed();
    clear(&lab, &before);
    for moment in moments(whole) {
        let api = lab.api();
        let create = || drop(api.try_call(post("/v1/containers", request.clone())));
        interrupted(&lab, moment, create, || {
            let left = containers(&lab);
            assert!(left.iter().all(|container| container["state"] == "created"), "{left:?}");
            if left.is_empty() {
                lab.assert_unchanged(&before);
            }
            // The name, the address and the port are free again.
            clear(&lab, &before);
            lab.api().create(request.clone());
            clear(&lab, &before);
        });
    }
}

#[test]
fn a_crash_during_a_delete_is_made_up_for() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let request = json!({ "image": image, "name": "web", "port": ["8080:80"], "command": until_term(0) });
    lab.api().create(request.clone());
    let begun = Instant::now();
    lab.api().delete("web");
    let whole = begun.elapsed();
    for moment in moments(whole) {
        lab.api().create(request.clone());
        let api = lab.api();
        let remove = || drop(api.try_call(send("DELETE", "/v1/containers/web/actions/delete", Vec::new())));
        interrupted(&lab, moment, remove, || clear(&lab, &before));
    }
}

#[test]
fn a_crash_during_start_or_stop_keeps_the_container() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let request = json!({ "image": image, "name": "web", "command": until_term(0) });
    for moment in moments(Duration::from_millis(60)) {
        lab.api().run(request.clone());
        lab.api().stop("web");
        let api = lab.api();
        let act = |action: &str| drop(api.try_call(post(&format!("/v1/containers/web/actions/{action}"), json!({}))));
        // Started from stopped: the runtime creates it again.
        interrupted(
            &lab,
            moment,
            || act("start"),
            || {
                let state = lab.api().container("web")["state"].as_str().unwrap().to_owned();
                assert!(["running", "created", "stopped"].contains(&state.as_str()), "{state}");
                if state != "running" {
                    lab.api().start("web");
                }
            },
        );
        interrupted(
            &lab,
            moment,
            || act("stop"),
            || {
                let state = lab.api().container("web")["state"].as_str().unwrap().to_owned();
                assert!(["running", "stopped"].contains(&state.as_str()), "{state}");
            },
        );
        clear(&lab, &before);
    }
}

/// A pod that holds whatever pods can hold: a port, a volume, several containers.
fn pod(image: &str, name: &str, port: u16, version: usize) -> String {
    let command = until_term(0);
    format!(
        r#"---
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, version: "{version}"}}}}
spec:
  volumes: [{{name: data, emptyDir: {{}}}}]
  containers:
  - {{name: web, image: "{image}", command: {command}, ports: [{{containerPort: 80, hostPort: {port}}}]}}
  - {{name: side, image: "{image}", command: {command}, volumeMounts: [{{name: data, mountPath: /data}}]}}
"#
    )
}

fn post_manifest(text: &str) -> Call {
    send("POST", "/v1/resource/apply", text)
}

/// All pods, once that many run, each with its infra container and two others, and nothing else is there.
#[track_caller]
fn whole_pods(lab: &Lab, count: usize) -> Vec<Value> {
    wait_for("whole pods", Duration::from_secs(30), || {
        let pods = lab.api().ok(get("/v1/pods")).as_array().unwrap().clone();
        let all = containers(lab);
        let is_whole = |pod: &Value| {
            let own = all.iter().filter(|container| container["podId"] == pod["podId"]);
            pod["state"] == "running" && own.filter(|container| container["state"] == "running").count() == 3
        };
        if pods.len() == count && all.len() == 3 * count && pods.iter().all(is_whole) {
            Ok(pods)
        } else {
            Err(format!("{pods:?} {all:?}"))
        }
    })
}

#[test]
fn a_crash_during_a_replacement_leaves_the_old_pod_or_the_new_one() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    apply(&lab.api(), &pod(&image, "shop", 8080, 0));
    let begun = Instant::now();
    apply(&lab.api(), &pod(&image, "shop", 8080, 1));
    let whole = begun.elapsed();
    let (mut version, mut finished) = (1, 0);
    for moment in moments(whole) {
        let old = whole_pods(&lab, 1)[0].clone();
        let (api, text) = (lab.api(), pod(&image, "shop", 8080, version + 1));
        let cut_off = AtomicBool::new(false);
        interrupted(
            &lab,
            moment,
            || cut_off.store(api.try_call(post_manifest(&text)).is_err(), Relaxed),
            || {
                // Without another apply.
                let now = whole_pods(&lab, 1)[0].clone();
                if now["podId"] == old["podId"] {
                    let untouched = ["startedAt", "networkNS", "labels"].map(|field| (&now[field], &old[field]));
                    assert!(untouched.iter().all(|(now, old)| now == old), "{now} is not {old}");
                } else {
                    (version, finished) = (version + 1, finished + usize::from(cut_off.load(Relaxed)));
                    assert_eq!(now["labels"]["version"], version.to_string());
                }
            },
        );
    }
    assert!(finished > 2, "only {finished} replacements were cut off");
    remove(&lab.api(), &pod(&image, "shop", 8080, version));
    lab.assert_unchanged(&before);
}

#[test]
fn a_crash_during_a_first_apply_leaves_whole_resources_as_far_as_it_came() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let container = |name: &str| format!("{{name: {name}, image: \"{image}\", command: {}}}", until_term(0));
    let (web, side) = (container("web"), container("side"));
    let text = [
        pod(&image, "a", 8080, 0),
        pod(&image, "b", 8081, 0),
        "---\nkind: Service\nmetadata: {name: s}\nspec: {selector: {app: a}, ports: [{port: 8082}]}\n".to_owned(),
        format!(
            "---\nkind: ReplicaSet\nmetadata: {{name: set}}\nspec:\n  replicas: 1\n  selector: {{matchLabels: {{app: set}}}}\n  \
             template:\n    metadata: {{labels: {{app: set}}}}\n    spec: {{containers: [{web}, {side}]}}\n"
        ),
    ]
    .concat();
    let begun = Instant::now();
    apply(&lab.api(), &text);
    let whole = begun.elapsed();
    remove(&lab.api(), &text);
    lab.assert_unchanged(&before);
    for moment in moments(whole) {
        let api = lab.api();
        interrupted(
            &lab,
            moment,
            || drop(api.try_call(post_manifest(&text))),
            || {
                let count = |kind: &str| lab.api().ok(get(&format!("/v1/{kind}"))).as_array().unwrap().len();
                let (services, sets) = (count("services"), count("replicasets"));
                let pods = lab.api().ok(get("/v1/pods")).as_array().unwrap().clone();
                let has = |name: &str| usize::from(pods.iter().any(|pod| pod["name"] == name));
                let came = [has("a"), has("b"), services, sets];
                assert!(came.is_sorted_by(|first, second| first >= second), "{came:?}");
                whole_pods(&lab, has("a") + has("b") + sets);
                // What is there stays, the rest is made.
                apply(&lab.api(), &text);
                whole_pods(&lab, 3);
                remove(&lab.api(), &text);
                lab.assert_unchanged(&before);
            },
        );
    }
}

#[test]
fn a_crash_during_a_pull_leaves_no_layer() {
    use crate::support::{ImageSpec, Layer};
    let lab = Lab::running();
    let spec = ImageSpec::busybox().layer(Layer::new().file("blob", 0o644, vec![7; 16 << 20]));
    let image = lab.push(&spec, "lab/big:1");
    let before = lab.inventory();
    for moment in moments(Duration::from_millis(200)) {
        let api = lab.api();
        let pull = || drop(api.try_call(post("/v1/images", json!({ "image": image }))));
        interrupted(&lab, moment, pull, || {
            let present = lab.api().ok(get("/v1/images"));
            if present.as_array().unwrap().is_empty() {
                lab.assert_unchanged(&before);
            } else {
                lab.api()
                    .ok(crate::support::delete("/v1/images").json(&json!({ "image": image })));
            }
        });
    }
    lab.assert_unchanged(&before);
}

#[test]
fn containers_outlive_the_daemon() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let api = lab.api();
    let web = api.run(json!({ "image": image, "command": ["/bin/httpd", "-f", "-h", "/www"], "port": ["8080:80"] }));
    let short = api.run(json!({ "image": image, "command": until_term(7) }));
    wait_for("a container at work", Duration::from_secs(5), || {
        if api.log(&short).contains("started") {
            Ok(())
        } else {
            Err("no line yet")
        }
    });
    let pid = api.container(&web)["pid"].clone();
    let answers = || lab.outside_get(&format!("{HOST}:8080"), "/").map(|reply| reply.text());
    wait_for("the web server", Duration::from_secs(5), answers);

    lab.daemon().stop();
    assert_eq!(answers().unwrap(), "hello from the lab\n");
    lab.daemon().start();
    assert_eq!(
        (&api.container(&web)["state"], &api.container(&web)["pid"]),
        (&json!("running"), &pid)
    );

    // An end that nobody saw is told with its code.
    let gone = api.container(&short)["pid"].to_string();
    lab.daemon().kill9();
    lab.machine().run(&["kill", &gone]);
    wait_for("the end of the process", Duration::from_secs(5), || {
        let command = lab.machine().read(&format!("/proc/{gone}/cmdline"));
        if command.is_empty() { Ok(()) } else { Err(command) }
    });
    lab.daemon().start();
    let ended = api.wait_state(&short, "stopped");
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(7), &json!("Error")));
    assert_eq!(answers().unwrap(), "hello from the lab\n");
    clear(&lab, &before);
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    let (lab, _) = lab_with_busybox();
    let before = lab.inventory();
    lab.machine().run(&["iptables", "-F", "FORWARD"]);
    lab.daemon().restart();
    lab.assert_unchanged(&before);
}

/// Found in an emulated machine, where a busy processor kept the monitor from running for more than three seconds.
#[test]
fn the_exit_status_of_a_slow_monitor_is_waited_for() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let id = lab.api().run(json!({ "image": image, "command": until_term(7) }));
    let init = lab.api().container(&id)["pid"].as_i64().unwrap();
    let monitor = parent_of(&lab, init);
    lab.machine().run(&["kill", "-STOP", &monitor]);
    lab.machine().run(&["kill", "-TERM", &init.to_string()]);
    wait_for("the daemon to notice", Duration::from_secs(30), || {
        let log = lab.daemon().log();
        log.contains("its monitor has not recorded the exit yet")
            .then_some(())
            .ok_or(log)
    });
    assert_eq!(lab.api().container(&id)["state"], "running");
    lab.machine().run(&["kill", "-CONT", &monitor]);
    lab.api().wait_state(&id, "stopped");
    assert_eq!(lab.api().container(&id)["exitCode"], 7);
    clear(&lab, &before);
}

fn parent_of(lab: &Lab, pid: i64) -> String {
    let stat = lab.machine().read(&format!("/proc/{pid}/stat"));
    let mut fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
    fields.nth(1).unwrap().to_owned()
}

#[test]
fn a_monitor_that_is_killed_does_not_hide_the_end() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let id = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let init = lab.api().container(&id)["pid"].as_i64().unwrap();
    let monitor = parent_of(&lab, init);
    assert_ne!(monitor, "1");
    lab.machine().run(&["kill", "-9", &monitor]);
    lab.machine().output(&["kill", "-9", &init.to_string()]);
    lab.api().wait_state(&id, "stopped");
    clear(&lab, &before);
}
