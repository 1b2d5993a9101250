//! Pods that are to be kept alive become whole again, whatever dies.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{number, seed};
use crate::lab_with_busybox;
use crate::manifests::{apply, remove};
use crate::support::{Api, HOST, Lab, get, wait_for};

/// How long the storm lasts, in seconds, and how often the daemon dies in it. The environment may ask for more.
const SECONDS: u64 = 15;
const DEATHS: u32 = 3;
/// The delay before a restart grows with their number.
const LIMIT: Duration = Duration::from_secs(180);

/// Sets of pods with two containers, and a service.
fn manifests(image: &str) -> String {
    let set = |kind: &str, name: &str, replicas: usize| {
        format!(
            "kind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  template:\n    \
             metadata: {{labels: {{app: {name}}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      \
             - {{name: web, image: \"{image}\", command: [/bin/httpd, -f, -p, '80', -h, /www]}}\n      \
             - {{name: side, image: \"{image}\", command: [/bin/sleep, '100000']}}\n---\n"
        )
    };
    let service =
        "kind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 11240, targetPort: 80}]}\n";
    set("ReplicaSet", "web", 4) + &set("Deployment", "roll", 2) + service
}

fn list(api: &Api, path: &str) -> Vec<Value> {
    api.ok(get(path)).as_array().unwrap().clone()
}

/// Kills a process of a container, as the last look at them had it.
fn kill_one(lab: &Lab, rng: &mut StdRng, pids: &[i64]) {
    if pids.is_empty() {
        return;
    }
    let pid = pids[rng.random_range(0..pids.len())];
    // It may be gone already.
    let _ = lab
        .machine()
        .command(crate::support::Place::Host, "kill")
        .args(["-9", &pid.to_string()])
        .output();
}

#[test]
fn everything_comes_back_and_nothing_is_left() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let text = manifests(&image);
    apply(&api, &text);
    let settled = || {
        let (sets, pods) = (list(&api, "/v1/replicasets"), list(&api, "/v1/pods"));
        let whole = |set: &Value| set["ready"] == set["desired"] && set["current"] == set["desired"];
        match sets.len() == 2 && sets.iter().all(whole) && pods.len() == 6 {
            true => Ok(()),
            false => Err(format!("{sets:?} {pods:?} {:?}", list(&api, "/v1/containers"))),
        }
    };
    wait_for("all pods", LIMIT, settled);

    let mut rng = StdRng::seed_from_u64(seed());
    let storm = Duration::from_secs(number("STORM_SECONDS", SECONDS));
    let deaths: u32 = number("STORM_DEATHS", DEATHS);
    let begun = Instant::now();
    let mut died = 0;
    while begun.elapsed() < storm {
        let pids: Vec<i64> = list(&api, "/v1/containers")
            .iter()
            .filter_map(|c| c["pid"].as_i64())
            .filter(|pid| *pid > 0)
            .collect();
        for _ in 0..3 {
            kill_one(&lab, &mut rng, &pids);
        }
        if begun.elapsed() > storm * died / deaths.max(1) {
            died += 1;
            lab.daemon().kill9();
            kill_one(&lab, &mut rng, &pids);
            lab.daemon().start();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let calm = Instant::now();
    wait_for("all pods after the storm", LIMIT, settled);
    println!(
        "whole again {:?} after {died} deaths of the daemon in {storm:?}",
        calm.elapsed()
    );
    let names: std::collections::BTreeSet<String> = list(&api, "/v1/pods")
        .iter()
        .map(|pod| pod["name"].to_string())
        .collect();
    assert_eq!(names.len(), 6);
    wait_for("the service", LIMIT, || lab.outside_get(&format!("{HOST}:11240"), "/"));
    assert_eq!(remove(&api, &text)["replicasets"].as_array().unwrap().len(), 2);
    assert_eq!(list(&api, "/v1/containers"), Vec::<Value>::new());
    assert_eq!(api.ok(get("/v1/pods")), json!([]));
    lab.assert_unchanged(&before);
}
