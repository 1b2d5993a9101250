//! Deployments whose new pods do not work, and what is said about it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::manifests::apply;
use crate::support::{Api, get, wait_for};
use crate::{lab_with_busybox, until_term};

const LIMIT: Duration = Duration::from_secs(60);

/// A deployment of three, with this image and command, and further lines of its `spec`.
fn deployment(image: &str, command: &Value, more: &str) -> String {
    format!(
        "kind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 3\n{more}  template:\n    metadata: {{labels: {{app: \
         web}}}}\n    spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: \"{image}\", command: \
         {command}}}]}}\n"
    )
}

fn set(api: &Api) -> Value {
    api.ok(get("/v1/replicasets/web"))
}

fn pods(api: &Api) -> Vec<Value> {
    api.ok(get("/v1/pods")).as_array().unwrap().clone()
}

fn ids(pods: &[Value]) -> Vec<String> {
    let mut ids: Vec<_> = pods
        .iter()
        .map(|pod| pod["podId"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

#[track_caller]
fn settled(api: &Api) -> Vec<String> {
    wait_for("three pods of the template, all available", LIMIT, || {
        let set = set(api);
        let counts = ["current", "ready", "available", "updated"].map(|name| set[name].clone());
        if counts == [json!(3), json!(3), json!(3), json!(3)] && pods(api).len() == 3 {
            Ok(())
        } else {
            Err(set)
        }
    });
    ids(&pods(api))
}

/// The pods that are not among those.
fn others(api: &Api, known: &[String]) -> Vec<Value> {
    let is_new = |pod: &Value| !known.contains(&pod["podId"].as_str().unwrap().to_owned());
    pods(api).into_iter().filter(is_new).collect()
}

/// Asks until `over` has what it waits for; all that time the old pods are there and run.
#[track_caller]
fn meanwhile_all_stay<T>(api: &Api, old: &[String], what: &str, mut over: impl FnMut(&[Value]) -> Option<T>) -> T {
    wait_for(what, LIMIT, || {
        for id in old {
            assert_eq!(
                api.ok(get(&format!("/v1/pods/{id}")))["state"],
                "running",
                "{id} of {old:?}"
            );
        }
        let new = others(api, old);
        assert!(new.len() <= 1, "a quarter of three, rounded up, is one: {new:?}");
        over(&new).ok_or_else(|| format!("{new:?}"))
    })
}

#[test]
fn pods_that_keep_ending_push_out_none_that_work() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    apply(&api, &deployment(&image, &until_term(0), ""));
    let old = settled(&api);

    apply(
        &api,
        &deployment(&image, &json!(["/bin/sh", "-c", "sleep 0.3; exit 3"]), ""),
    );
    let restarts = |pod: &Value| {
        let all = api.ok(get("/v1/containers"));
        let member = |c: &&Value| c["podId"] == pod["podId"] && c["name"].as_str().unwrap().starts_with("c-");
        all.as_array()
            .unwrap()
            .iter()
            .find(member)
            .and_then(|c| c["restartCount"].as_u64())
    };
    meanwhile_all_stay(&api, &old, "four restarts of a new pod", |new| {
        (restarts(new.first()?)? >= 4).then_some(())
    });
    let said = wait_for("what is wrong", LIMIT, || {
        let set = set(&api);
        if set["reason"] == "CrashLoopBackOff" {
            Ok(set)
        } else {
            Err(set)
        }
    });
    assert_eq!(
        (&said["current"], &said["updated"], &said["available"]),
        (&json!(4), &json!(1), &json!(3))
    );
    let message = said["message"].as_str().unwrap();
    assert!(
        message.starts_with("pod web-") && message.contains("exit status 3"),
        "{message}"
    );

    // Undone, and done with one that works.
    apply(&api, &deployment(&image, &until_term(0), ""));
    assert_eq!(settled(&api), old, "they were never touched");
    apply(
        &api,
        &deployment(
            &image,
            &until_term(7),
            "  strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}\n",
        ),
    );
    let new = settled(&api);
    assert!(old.iter().all(|id| !new.contains(id)), "{old:?} {new:?}");
}

#[test]
fn an_image_that_is_not_there_is_said_in_the_words_of_the_registry() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    apply(&api, &deployment(&image, &until_term(0), ""));
    let old = settled(&api);
    let unknown = image.replace("busybox:1", "nosuch:7");
    apply(&api, &deployment(&unknown, &until_term(0), ""));
    let pod = meanwhile_all_stay(&api, &old, "what is wrong with the new pod", |new| {
        new.first().filter(|pod| !pod["reason"].is_null()).cloned()
    });
    assert_eq!(
        (&pod["state"], &pod["reason"]),
        (&json!("degraded"), &json!("ErrImagePull"))
    );
    let message = pod["message"].as_str().unwrap();
    assert!(
        message.contains("404") && message.to_ascii_lowercase().contains("unknown"),
        "{message}"
    );
    let without_tries = |mut pod: Value| {
        pod.as_object_mut().unwrap().remove("conditions");
        pod
    };
    assert_eq!(
        without_tries(pod.clone()),
        without_tries(api.ok(get(&format!("/v1/pods/{}", pod["podId"].as_str().unwrap()))))
    );
    let set = set(&api);
    assert_eq!(
        set["message"],
        format!("pod {}: {message}", pod["name"].as_str().unwrap())
    );

    // A daemon that was killed says so still, and with the image there it goes on.
    lab.daemon().kill9();
    lab.daemon().start();
    let api = lab.api();
    assert_eq!(
        api.ok(get(&format!("/v1/pods/{}", pod["podId"].as_str().unwrap())))["reason"],
        "ErrImagePull"
    );
    apply(&api, &deployment(&image, &until_term(5), ""));
    settled(&api);
    assert!(pods(&api).iter().all(|pod| pod.get("reason").is_none()));
}
