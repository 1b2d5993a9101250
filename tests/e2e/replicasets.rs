//! Replica sets: as many pods as are wanted, whatever happens.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab_with_busybox;
use crate::manifests::{apply, manifest, remove};
use crate::support::{Api, HOST, Lab, delete, get, post, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// A set of web servers that tell their host name and a word, of which so many.
fn set(kind: &str, image: &str, word: &str, replicas: usize) -> String {
    let serve =
        format!("mkdir /tmp/w; echo {word} $(hostname) > /tmp/w/index.html; exec /bin/httpd -f -p 80 -h /tmp/w");
    format!(
        r#"apiVersion: apps/v1
kind: {kind}
metadata:
  name: web
spec:
  replicas: {replicas}
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: httpd
        image: {image}
        command: ["/bin/sh", "-c", "{serve}"]
        ports:
        - containerPort: 80
"#
    )
}

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
  - {port: 11240, targetPort: 80}
";

fn detail(api: &Api) -> Value {
    api.ok(get("/v1/replicasets/web"))
}

fn pods(api: &Api) -> Vec<Value> {
    api.ok(get("/v1/pods")).as_array().unwrap().clone()
}

fn names(api: &Api) -> BTreeSet<String> {
    pods(api)
        .iter()
        .map(|pod| pod["name"].as_str().unwrap().to_owned())
        .collect()
}

#[track_caller]
fn scale(api: &Api, replicas: usize) {
    let scaled = api.ok(post(
        "/v1/replicasets/web/actions/scale",
        json!({ "replicas": replicas }),
    ));
    assert_eq!(scaled["replicas"], replicas);
}

/// Waits until the set has exactly so many pods, all ready, and there are no others.
#[track_caller]
fn settled(api: &Api, replicas: usize) {
    wait_for(&format!("{replicas} ready pods"), LIMIT, || {
        let (set, pods) = (detail(api), pods(api));
        let wanted = json!(replicas);
        let counts = [&set["desired"], &set["current"], &set["ready"]];
        if counts.iter().all(|count| **count == wanted) && pods.len() == replicas {
            Ok(())
        } else {
            let states: Vec<_> = pods
                .iter()
                .map(|pod| format!("{} {}", pod["name"], pod["state"]))
                .collect();
            Err(format!("{counts:?} {states:?}"))
        }
    });
    assert_eq!(names(api).len(), replicas, "two pods have one name");
}

/// The words of those that answer on the service's port.
fn words(lab: &Lab, requests: usize) -> BTreeSet<String> {
    let ask = |_| lab.outside_get(&format!("{HOST}:11240"), "/").ok();
    let answers = (0..requests).filter_map(ask).filter(|reply| reply.status == 200);
    answers.map(|reply| reply.text().trim().to_owned()).collect()
}

/// Waits until that many different pods answer.
#[track_caller]
fn answered_by(lab: &Lab, count: usize, word: &str) {
    wait_for(&format!("answers from {count} pods"), LIMIT, || {
        let words = words(lab, 8 * count);
        if words.len() == count && words.iter().all(|said| said.starts_with(word)) {
            Ok(())
        } else {
            Err(format!("{words:?}"))
        }
    });
}

#[test]
fn a_set_behind_a_service_grows_heals_and_shrinks() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let text = set("ReplicaSet", &image, "one", 2) + SERVICE;
    let applied = apply(&api, &text);
    let set_id = applied["pods"][0]["replicaSetId"].clone();
    let entry =
        json!([{ "podId": "", "replicaSetId": set_id, "name": "web", "namespace": "default", "containerIds": [] }]);
    assert_eq!(applied["pods"], entry);
    settled(&api, 2);
    answered_by(&lab, 2, "one ");
    for name in names(&api) {
        assert!(name.starts_with("web-") && name.len() == "web-".len() + 8, "{name}");
    }
    let listed = api.ok(get("/v1/replicasets"));
    let template = listed[0]["templateId"].as_str().unwrap().to_owned();
    assert_eq!(listed[0]["selector"], json!({ "app": "web" }));
    assert_eq!(detail(&api)["template"]["containers"][0]["name"], "httpd");

    // The same again: the same pods.
    let known = names(&api);
    assert_eq!(apply(&api, &text), applied);
    settled(&api, 2);
    assert_eq!(names(&api), known);

    scale(&api, 4);
    settled(&api, 4);
    answered_by(&lab, 4, "one ");
    assert!(names(&api).is_superset(&known), "those that were there stay");

    // One is deleted, another one is killed with all that is in it.
    let victim = pods(&api)[0]["podId"].as_str().unwrap().to_owned();
    api.ok(delete(&format!("/v1/pods/{victim}")));
    settled(&api, 4);
    let victim = pods(&api)[1].clone();
    let of_victim = |c: &&Value| c["podId"] == victim["podId"];
    let containers = api.ok(get("/v1/containers"));
    for container in containers.as_array().unwrap().iter().filter(of_victim) {
        lab.machine().run(&["kill", "-9", &container["pid"].to_string()]);
    }
    wait_for("the killed pod", LIMIT, || {
        let now = pods(&api)
            .into_iter()
            .find(|pod| pod["podId"] == victim["podId"])
            .unwrap();
        let renewed = now["state"] == "running" && now["networkNS"] != victim["networkNS"];
        if renewed { Ok(()) } else { Err(now) }
    });
    settled(&api, 4);
    answered_by(&lab, 4, "one ");

    // Another template: other pods, the same set.
    let known = names(&api);
    let changed = apply(&api, &(set("ReplicaSet", &image, "two", 3) + SERVICE));
    assert_eq!(changed["pods"][0]["replicaSetId"], set_id);
    settled(&api, 3);
    answered_by(&lab, 3, "two ");
    assert!(names(&api).is_disjoint(&known));
    assert_ne!(api.ok(get("/v1/replicasets"))[0]["templateId"], json!(template));

    scale(&api, 0);
    settled(&api, 0);
    apply(&api, &set("ReplicaSet", &image, "two", 0));
    settled(&api, 0);
    scale(&api, 2);
    settled(&api, 2);
    let gone = remove(&api, &text);
    assert_eq!(
        gone["replicasets"][0],
        json!({ "replicaSetId": set_id, "name": "web", "namespace": "default" })
    );
    assert_eq!(pods(&api), Vec::<Value>::new());
    lab.assert_unchanged(&before);
}

#[test]
fn a_deployment_keeps_all_ready_while_it_changes() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    apply(&api, &(set("Deployment", &image, "one", 3) + SERVICE));
    settled(&api, 3);
    answered_by(&lab, 3, "one ");
    apply(&api, &(set("Deployment", &image, "two", 3) + SERVICE));
    let begun = Instant::now();
    let mut least = usize::MAX;
    loop {
        let set = detail(&api);
        let (current, ready) = (
            set["current"].as_u64().unwrap(),
            set["ready"].as_u64().unwrap() as usize,
        );
        assert!(current <= 4, "{set}");
        least = least.min(ready);
        if ready == 3 && words(&lab, 12).iter().all(|said| said.starts_with("two ")) {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{set}");
    }
    assert_eq!(least, 3, "one more at a time is made, and then one goes");
    settled(&api, 3);
    answered_by(&lab, 3, "two ");
}

#[test]
fn a_crash_while_it_scales_makes_no_pod_twice() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let text = set("ReplicaSet", &image, "one", 0);
    apply(&api, &text);
    for (replicas, moment) in [(4, 0), (1, 30), (5, 150), (2, 400), (4, 700)] {
        let begun = Instant::now();
        scale(&api, replicas);
        while begun.elapsed() < Duration::from_millis(moment) {
            std::thread::yield_now();
        }
        lab.daemon().kill9();
        lab.daemon().start();
    }
    settled(&api, 4);
    let api = lab.api();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(api.try_call(delete("/v1/replicasets/web"))));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100) {
            std::thread::yield_now();
        }
        lab.daemon().kill9();
    });
    lab.daemon().start();
    wait_for("a removal that is finished", LIMIT, || {
        let left = (api.ok(get("/v1/replicasets")), pods(&api));
        if left.0 == json!([]) && left.1.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    lab.assert_unchanged(&before);
}

#[test]
fn what_cannot_be_asked_of_sets() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    apply(&api, &set("ReplicaSet", &image, "one", 0));
    let scaled = |id: &str, body: Value| api.call(post(&format!("/v1/replicasets/{id}/actions/scale"), body));
    for (id, body, status, message) in [
        ("web", json!({}), 400, "replicas is required"),
        ("web", json!({ "replicas": -1 }), 400, "replicas must be >= 0"),
        ("web", json!({ "replicas": 10_001 }), 400, "replicas must be <= 10000"),
        ("web", json!({ "replicas": "1" }), 400, "invalid json: "),
        (
            "web",
            json!({ "replicas": 1, "x": 1 }),
            400,
            "invalid json: unknown field `x`",
        ),
        (
            "nope",
            json!({ "replicas": 1 }),
            404,
            "scale failed: replicaSetId=nope not found",
        ),
    ] {
        let reply = scaled(id, body);
        reply.refused(status, message);
        assert_eq!(reply.json()["data"], json!({ "replicaSetId": id, "replicas": 0 }));
    }
    for call in [
        get("/v1/replicasets/nope"),
        delete("/v1/replicasets/nope"),
        get("/v1/replicasets/web?namespace=prod"),
    ] {
        let reply = api.call(call);
        assert!(reply.refused(404, "get failed: replicaSetId=").ends_with(" not found"));
        assert!(reply.json().get("data").is_none());
    }
    let negative = set("ReplicaSet", &image, "one", 0).replace("replicas: 0", "replicas: -1");
    manifest(&api, "apply", &negative).refused(400, "invalid yaml: must be a whole number from 0 to 10000");
    assert_eq!(api.ok(delete("/v1/replicasets/web")), json!({ "replicaSetId": "web" }));
    assert_eq!(api.ok(get("/v1/replicasets")), json!([]));
}

#[test]
fn pods_that_match_are_adopted_and_then_belong_to_the_set() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let pod = format!(
        "kind: Pod\nmetadata: {{name: stray, labels: {{app: web}}}}\nspec: {{containers: [{{name: c, image: \"{image}\", \
         command: [/bin/httpd, -f]}}]}}\n"
    );
    let stray = apply(&api, &pod)["pods"][0]["podId"].clone();
    apply(&api, &set("ReplicaSet", &image, "one", 2));
    settled(&api, 2);
    assert!(pods(&api).iter().any(|pod| pod["podId"] == stray));
    manifest(&api, "apply", &pod.replace("-f", "-fv")).refused(409, "pod stray is kept by a replica set");
    api.ok(delete("/v1/replicasets/web"));
    assert_eq!(pods(&api), Vec::<Value>::new());
}

#[test]
fn probes_decide_who_gets_clients_and_who_lives() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let probes = "        readinessProbe:\n          httpGet: {path: /index.html, port: http}\n          periodSeconds: 1\n          \
                  failureThreshold: 1\n        livenessProbe:\n          exec: {command: [/bin/sh, -c, 'test ! -f /tmp/bad']}\n          \
                  periodSeconds: 1\n          failureThreshold: 1\n";
    let text =
        set("ReplicaSet", &image, "one", 1).replace("containerPort: 80", "{name: http, containerPort: 80}") + probes;
    apply(&api, &(text + SERVICE));
    settled(&api, 1);
    answered_by(&lab, 1, "one ");
    let member = || {
        let all = api.ok(get("/v1/containers"));
        let members = all.as_array().unwrap().iter();
        members
            .clone()
            .find(|c| c["name"].as_str().unwrap().starts_with("httpd-"))
            .unwrap()
            .clone()
    };
    let id = member()["containerId"].as_str().unwrap().to_owned();
    let endpoints = |count: usize| {
        wait_for(&format!("{count} ready pods and endpoints"), LIMIT, || {
            let (set, service) = (detail(&api), api.ok(get("/v1/services/web")));
            let fits = set["ready"] == count && service["endpoints"].as_array().unwrap().len() == count;
            if fits { Ok(()) } else { Err(format!("{set} {service}")) }
        });
    };
    api.exec(&id, "mv /tmp/w/index.html /tmp/w/away");
    endpoints(0);
    assert_eq!(detail(&api)["current"], 1);
    assert_eq!(
        member()["restartCount"],
        Value::Null,
        "it lives, it only gets no clients"
    );
    api.exec(&id, "mv /tmp/w/away /tmp/w/index.html");
    endpoints(1);

    let pid = member()["pid"].clone();
    api.exec(&id, "touch /tmp/bad");
    wait_for("a restart", LIMIT, || {
        let now = member();
        if now["pid"] != pid && now["state"] == "running" {
            Ok(())
        } else {
            Err(now)
        }
    });
    assert_eq!(member()["containerId"], json!(id));
}
