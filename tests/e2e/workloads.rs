//! Pods and manifests as Kubernetes has them: how pods end, what they are called, when images are pulled, and the files
//! that people send.

use std::time::Duration;

use serde_json::{Value, json};

use crate::manifests::{apply, manifest, remove};
use crate::support::{Api, ImageSpec, Lab, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

const LIMIT: Duration = Duration::from_secs(30);

/// A pod with one container.
fn pod(name: &str, image: &str, spec: &str, command: &Value, more: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}}}\nspec: {{{spec}terminationGracePeriodSeconds: 1, containers: [{{name: c, \
         image: \"{image}\", command: {command}{more}}}]}}\n"
    )
}

fn shell(script: &str) -> Value {
    json!(["/bin/sh", "-c", script])
}

fn named(api: &Api, name: &str) -> Value {
    api.ok(get(&format!("/v1/pods/{name}")))
}

#[track_caller]
fn wait_pod(api: &Api, name: &str, state: &str) -> Value {
    wait_for(&format!("{name} to be {state}"), LIMIT, || {
        let pod = named(api, name);
        if pod["state"] == state { Ok(pod) } else { Err(pod) }
    })
}

/// The id of the only member of a pod.
fn member(api: &Api, pod: &str) -> String {
    let id = named(api, pod)["podId"].clone();
    let all = api.ok(get("/v1/containers"));
    let member = |c: &&Value| c["podId"] == id && c["name"].as_str().unwrap().starts_with("c-");
    all.as_array().unwrap().iter().find(member).unwrap()["containerId"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_pod_that_is_not_started_again_succeeds_or_fails() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let text = [
        pod("good", &image, "restartPolicy: Never, ", &shell("exit 0"), ""),
        pod("bad", &image, "restartPolicy: Never, ", &shell("exit 3"), ""),
        pod("once", &image, "restartPolicy: OnFailure, ", &shell("exit 0"), ""),
        pod("again", &image, "restartPolicy: OnFailure, ", &shell("exit 4"), ""),
    ]
    .join("---\n");
    apply(&api, &text);
    for name in ["good", "once"] {
        let ended = wait_pod(&api, name, "succeeded");
        assert!(ended.get("reason").is_none(), "{ended}");
    }
    let failed = wait_pod(&api, "bad", "failed");
    assert_eq!(failed["reason"], "Error");
    assert!(
        failed["message"].as_str().unwrap().contains("exit status 3"),
        "{failed}"
    );
    wait_for("restarts", LIMIT, || {
        let again = named(&api, "again");
        if again["reason"] == "CrashLoopBackOff" {
            Ok(())
        } else {
            Err(again)
        }
    });
    // It stays so, also after a restart of the daemon, and the same manifest changes nothing.
    lab.daemon().restart();
    let api = lab.api();
    apply(&api, &text);
    assert_eq!(
        (&named(&api, "good")["state"], &named(&api, "bad")["state"]),
        (&json!("succeeded"), &json!("failed"))
    );
    remove(&api, &text);
}

#[test]
fn a_pod_is_called_by_its_name_and_dollars_are_those_of_kubernetes() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let script = shell("hostname; echo $$(echo inner) $(GREETING) '$(UNKNOWN)' a$$b; echo \"$PAIR\"; sleep 1000");
    let env = ", env: [{name: GREETING, value: hello$$there}, {name: PAIR, value: $(GREETING)/$$(GREETING)}]";
    apply(&api, &pod("shop.front", &image, "", &script, env));
    let id = member(&api, "shop.front");
    wait_for("the output", LIMIT, || {
        let log = api.log(&id);
        if log.lines().count() == 3 { Ok(()) } else { Err(log) }
    });
    let log = api.log(&id);
    // `$there` and `$b` are the shell's by then, `$(UNKNOWN)` stands in quotes.
    assert_eq!(log, "shop.front\ninner hello $(UNKNOWN) a\nhello$there/$(GREETING)\n");
    assert!(api.exec(&id, "cat /etc/hosts").contains(" shop.front\n"));
}

/// An image that says a word, under a tag that moves.
fn moved(lab: &Lab, word: &str) -> String {
    let says = ImageSpec::busybox().env(&format!("WORD={word}"));
    lab.push(&says, "library/moving:latest")
}

#[test]
fn a_tag_that_moves_is_asked_for_by_each_new_pod() {
    let (lab, _) = lab_with_busybox();
    let image = moved(&lab, "one");
    let image = image.strip_suffix(":latest").unwrap().to_owned();
    let word = |api: &Api, name: &str| {
        let id = member(api, name);
        api.exec(&id, "echo $WORD").trim().to_owned()
    };
    let run = |api: &Api, name: &str, more: &str| {
        apply(api, &pod(name, &image, "", &until_term(0), more));
        word(api, name)
    };
    let api = lab.api();
    assert_eq!(run(&api, "a", ""), "one");
    moved(&lab, "two");
    assert_eq!(run(&api, "b", ", imagePullPolicy: IfNotPresent"), "one");
    assert_eq!(run(&api, "c", ""), "two");
    assert_eq!(word(&api, "a"), "one", "what runs is left alone");
    // Pods of a request and containers of pods likewise.
    moved(&lab, "three");
    let made = json!({ "name": "d", "containers": [{ "name": "c", "image": image, "command": until_term(0) }] });
    api.ok(post("/v1/pods", made));
    api.ok(send("POST", "/v1/pods/d/actions/start", Vec::new()));
    assert_eq!(word(&api, "d"), "three");

    // Without the registry nobody knows what the tag means. Those who work so say it once.
    lab.machine()
        .run(&["ip", "route", "add", "unreachable", "192.0.2.1/32"]);
    let refused = manifest(&api, "apply", &pod("e", &image, "", &until_term(0), ""))
        .refused(502, "container create failed: registry ");
    assert!(
        refused.contains("imagePullPolicy: IfNotPresent would use it"),
        "{refused}"
    );
    assert_eq!(run(&api, "f", ", imagePullPolicy: Never"), "three");
    lab.daemon().set("CONDENSER_PULL_POLICY_LATEST", "IfNotPresent");
    lab.daemon().restart();
    let api = lab.api();
    assert_eq!(run(&api, "g", ""), "three");
    manifest(
        &api,
        "apply",
        &pod("h", &image, "", &until_term(0), ", imagePullPolicy: Always"),
    )
    .refused(502, "container create failed: registry ");
}

#[test]
fn files_with_marks_and_objects_behind_one_another_are_applied_and_nothing_is_refused() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let one = |name: &str| pod(name, &image, "", &until_term(0), "");
    let object = |name: &str| {
        json!({ "kind": "Pod", "metadata": { "name": name }, "spec": { "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "c", "image": image, "command": until_term(0) }] } })
    };
    let marked = format!("\u{feff}{}---\n\u{feff}{}", one("a"), one("b"));
    let objects = format!("\u{feff}{}\n{:#}\n", object("c"), object("d"));
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [object("e")] }).to_string();
    for (text, names) in [(&marked, &["a", "b"][..]), (&objects, &["c", "d"]), (&list, &["e"])] {
        let applied = apply(&api, text);
        let applied: Vec<_> = applied["pods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["name"].as_str().unwrap())
            .collect();
        assert_eq!(applied, names);
        let gone = remove(&api, text);
        assert_eq!(gone["pods"].as_array().unwrap().len(), names.len());
    }
    for text in ["", "\n", "---\n# nothing\n"] {
        manifest(&api, "apply", text).refused(400, "invalid yaml: no resource in the body");
    }
}

#[test]
fn names_in_a_query_that_nobody_knows_are_refused() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    let said = api
        .call(get(&format!("/v1/containers/{id}/log?tail=5")))
        .refused(400, "invalid query: unknown parameter \"tail\"; this route knows ");
    assert!(said.contains("tail_lines"), "{said}");
    assert_eq!(
        api.call(get(&format!("/v1/containers/{id}/log?tail_lines=5&stream=1")))
            .status,
        200
    );
    api.call(send(
        "DELETE",
        &format!("/v1/containers/{id}/actions/delete?force=1"),
        Vec::new(),
    ))
    .refused(400, "invalid query: unknown parameter \"force\"; this route takes none");
    assert_eq!(api.container(&id)["state"], "running");
    // A commit says what it did, with data or without.
    let committed = api.call(post("/v1/policies/commit", json!({})));
    assert_eq!(
        committed.json(),
        json!({ "status": "success", "message": "policy committed" })
    );
    let tried = api.call(post("/v1/policies/commit?dryRun=true", json!({})));
    assert!(tried.json()["data"].is_object(), "{}", tried.text());
}
