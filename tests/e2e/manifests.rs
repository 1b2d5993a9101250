//! Manifests: what they say becomes true, or nothing of it does.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Api, HOST, ImageSpec, Reply, get, send, wait_for};
use crate::{lab_with_busybox, until_term};

const LIMIT: Duration = Duration::from_secs(30);

/// Sends a manifest.
pub fn manifest(api: &Api, verb: &str, text: &str) -> Reply {
    api.call(send("POST", &format!("/v1/resource/{verb}"), text).header("content-type", "application/yaml"))
}

/// Applies a manifest, which has to succeed, and gives the data of the answer.
#[track_caller]
pub fn apply(api: &Api, text: &str) -> Value {
    let reply = manifest(api, "apply", text);
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.message(), "resources applied");
    reply.json()["data"].clone()
}

/// Deletes what a manifest names, which has to succeed, and gives the data of the answer.
#[track_caller]
pub fn remove(api: &Api, text: &str) -> Value {
    let reply = manifest(api, "delete", text);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.message(), "resources deleted");
    reply.json()["data"].clone()
}

fn pods(api: &Api) -> Vec<Value> {
    api.ok(get("/v1/pods")).as_array().unwrap().clone()
}

#[track_caller]
fn pod(api: &Api, name: &str) -> Value {
    api.ok(get(&format!("/v1/pods/{name}")))
}

/// A web server, a companion that writes its page into a volume that they share, and a service.
fn shop(image: &str, page: &str) -> String {
    format!(
        r#"# The shop.
apiVersion: v1
kind: Pod
metadata:
  name: shop
  labels: &labels
    app: shop
    version: 1.10
spec:
  hostname: till
  terminationGracePeriodSeconds: 2
  nodeSelector: {{disk: ssd}}
  volumes:
  - name: pages
    emptyDir: {{}}
  containers:
  - name: web
    image: {image}
    command: ["/bin/httpd", "-f", "-p", "8000", "-h", "/www"]
    ports:
    - containerPort: 8000
    volumeMounts:
    - {{name: pages, mountPath: /www, readOnly: true}}
    resources:
      limits: {{memory: 64Mi, cpu: 500m}}
  - name: writer
    image: {image}
    command: [/bin/sh, -c]
    args:
    - |
      trap 'exit 0' TERM
      echo "$PAGE of $(hostname)" > /pages/index.html
      while :; do sleep 1000 & wait $!; done
    env:
    - name: PAGE
      value: {page}
    volumeMounts:
    - {{name: pages, mountPath: /pages}}
---
apiVersion: v1
kind: Service
metadata:
  name: shop
spec:
  selector: *nothing
  ports:
  - port: 11240
    targetPort: 8000
"#
    )
    .replace("*nothing", "{app: shop}")
}

#[test]
fn pods_and_services_come_change_and_go() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let page = || {
        wait_for("the page", LIMIT, || {
            let reply = lab.outside_get(&format!("{HOST}:11240"), "/")?;
            if reply.status == 200 {
                Ok(reply.text())
            } else {
                Err(reply.text())
            }
        })
    };
    let first = apply(&api, &shop(&image, "1.0"));
    let (id, service) = (&first["pods"][0]["podId"], &first["services"][0]["serviceId"]);
    assert_eq!(first["pods"][0]["containerIds"].as_array().unwrap().len(), 2);
    assert!(first["pods"][0].get("replicaSetId").is_none());
    let warned = json!([{ "document": 1, "kind": "Pod", "name": "shop", "field": "spec.nodeSelector", "line": 12,
        "message": "is not supported and has no effect" }]);
    assert_eq!(first["warnings"], warned);
    assert_eq!(pod(&api, "shop")["state"], "running");
    assert_eq!(pod(&api, "shop")["labels"], json!({ "app": "shop", "version": "1.10" }));
    assert_eq!(page(), "1.0 of till\n");
    let web = first["pods"][0]["containerIds"][0].as_str().unwrap();
    assert!(api.container(web)["name"].as_str().unwrap().starts_with("web-"));
    let denied = api.exec(web, "echo x > /www/index.html || echo denied");
    assert!(denied.ends_with("denied\n"), "{denied}");

    // Nothing happens when nothing differs.
    let pid = api.container(web)["pid"].clone();
    assert_eq!(apply(&api, &shop(&image, "1.0")), first);
    assert_eq!(api.container(web)["pid"], pid);

    // A change replaces the pod; the service is another one's business.
    let second = apply(&api, &shop(&image, "1.1"));
    assert_ne!(&second["pods"][0]["podId"], id);
    assert_eq!(&second["services"][0]["serviceId"], service);
    assert_eq!(pods(&api).len(), 1);
    wait_for("the new page", LIMIT, || match page() {
        text if text == "1.1 of till\n" => Ok(()),
        other => Err(other),
    });
    let moved = shop(&image, "1.1").replace("port: 11240", "port: 11241");
    let third = apply(&api, &moved);
    assert_eq!(
        (&third["pods"], &third["services"]),
        (&second["pods"], &second["services"])
    );
    wait_for("the other port", LIMIT, || {
        lab.outside_get(&format!("{HOST}:11241"), "/")
    });

    let gone = remove(
        &api,
        &format!("{moved}---\nkind: ReplicaSet\nmetadata: {{name: none}}\n"),
    );
    let expected = json!({
        "pods": [{ "podId": third["pods"][0]["podId"], "name": "shop", "namespace": "default" }],
        "replicasets": [],
        "services": [{ "serviceId": service, "name": "shop", "namespace": "default" }],
        "notFound": [{ "kind": "ReplicaSet", "name": "none", "namespace": "default" }],
    });
    assert_eq!(gone, expected);
    lab.assert_unchanged(&before);
    manifest(&api, "delete", &moved).refused(404, "pod not found");
}

#[test]
fn one_wrong_document_means_that_nothing_is_done() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let text = format!(
        "{}---\nkind: Pod\nmetadata: {{name: x}}\nspec:\n  containers:\n  - name: c\n",
        shop(&image, "1")
    );
    let said = manifest(&api, "apply", &text).refused(400, "invalid yaml: container \"c\" needs an image");
    assert!(
        said.contains("(document 3, line ") && said.contains("field spec.containers[0].image)"),
        "{said}"
    );
    for (text, status, message) in [
        (
            "kind: Pod\nmetadata: {name: a}\nspec: {initContainers: [{}]}",
            400,
            "invalid yaml: initContainers is not supported",
        ),
        ("metadata: {name: x}", 400, "kind is required"),
        ("kind: Job\nmetadata: {name: x}", 400, "unsupported kind: Job"),
        ("kind: Service\nmetadata: {}", 400, "name and namespace are required"),
        ("kind: Pod\nmetadata: {}", 400, "invalid yaml: pod name is required"),
        ("a: [", 400, "invalid yaml: "),
        (
            "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: A/..}]}",
            400,
            "pod template invalid: ",
        ),
    ] {
        manifest(&api, "apply", text).refused(status, message);
    }
    assert_eq!(pods(&api), Vec::<Value>::new());
    assert_eq!(api.ok(get("/v1/services")), json!([]));
    lab.assert_unchanged(&before);
    manifest(&api, "apply", "---\n# nothing\n---\n").refused(400, "invalid yaml: no resource in the body");
    assert_eq!(
        remove(&api, ""),
        json!({ "pods": [], "replicasets": [], "services": [] })
    );
}

#[test]
fn a_failure_half_way_is_undone_and_said() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    api.run(json!({ "image": image, "name": "holder", "command": until_term(0), "port": ["9000:80"] }));
    let service = |name: &str, port: u16| {
        format!(
            "---\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: a}}, ports: [{{port: {port}}}]}}\n"
        )
    };
    let kept = apply(&api, &service("kept", 9001))["services"][0]["serviceId"].clone();
    let before = lab.inventory();
    let pod = format!(
        "kind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: c, image: \"{image}\", command: {}}}]}}\n",
        until_term(0)
    );
    let text = [pod, service("kept", 9002), service("taken", 9000)].concat();
    let said = manifest(&api, "apply", &text).refused(409, "port 9000/tcp is already used by container holder");
    assert!(
        said.ends_with(
            " (document 3: Service default/taken); undone: service default/kept put back, pod default/a removed"
        ),
        "{said}"
    );
    assert_eq!(pods(&api), Vec::<Value>::new());
    let detail = api.ok(get(&format!("/v1/services/{}", kept.as_str().unwrap())));
    assert_eq!(detail["ports"][0]["port"], 9001);
    assert_eq!(api.ok(get("/v1/services")).as_array().unwrap().len(), 1);
    lab.assert_unchanged(&before);
}

#[test]
fn a_pod_that_cannot_be_replaced_stays_or_comes_back() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let text = |image: &str, command: &Value| {
        format!(
            "kind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: c, image: \"{image}\", command: {command}}}]}}\n"
        )
    };
    let first = apply(&api, &text(&image, &until_term(0)));
    let known = pod(&api, "a");
    let unknown = image.replace("busybox:1", "nosuch:1");
    manifest(&api, "apply", &text(&unknown, &until_term(0))).refused(404, "container create failed: ");
    assert_eq!(pod(&api, "a"), known, "it was not touched");

    let broken = manifest(&api, "apply", &text(&image, &json!(["/no/such/program"])));
    assert!(broken.status >= 400, "{}", broken.text());
    let said = broken.message();
    assert!(said.ends_with("; undone: pod default/a made again"), "{said}");
    let back = wait_for("the old pod", LIMIT, || {
        let now = pod(&api, "a");
        if now["state"] == "running" { Ok(now) } else { Err(now) }
    });
    assert_eq!(back["uid"], known["uid"]);
    assert_ne!(back["podId"], first["pods"][0]["podId"]);

    // What a user stopped stays so when nothing differs.
    api.ok(send("POST", "/v1/pods/a/actions/stop", Vec::new()));
    let again = apply(&api, &text(&image, &until_term(0)));
    assert_eq!(again["pods"][0]["podId"], back["podId"]);
    assert_eq!(pod(&api, "a")["state"], "stopped");
}

#[test]
fn args_follow_the_entrypoint_of_the_image_and_lists_are_their_items() {
    let (lab, _) = lab_with_busybox();
    let api = lab.api();
    let image = lab.pull(
        &ImageSpec::busybox()
            .entrypoint(&["/bin/echo", "from the image:"])
            .cmd(&["nothing"]),
        "library/echo:1",
    );
    let item = |name: &str, rest: &str| {
        format!(
            "- kind: Pod\n  metadata: {{name: {name}}}\n  spec: {{restartPolicy: Never, containers: [{{name: c, image: \"{image}\"{rest}}}]}}\n"
        )
    };
    let text = [
        "apiVersion: v1\nkind: List\nitems:\n",
        &item("a", ", args: [1.10]"),
        &item("b", ""),
        &item("c", ", command: [/bin/echo], args: [yes]"),
    ]
    .concat();
    let applied = apply(&api, &text);
    for (at, expected) in ["from the image: 1.10\n", "from the image: nothing\n", "yes\n"]
        .iter()
        .enumerate()
    {
        let id = applied["pods"][at]["containerIds"][0].as_str().unwrap();
        wait_for("the output", LIMIT, || {
            let log = api.call(get(&format!("/v1/containers/{id}/log"))).text();
            if log == *expected { Ok(()) } else { Err(log) }
        });
    }
    assert_eq!(remove(&api, &text)["pods"].as_array().unwrap().len(), 3);
}

#[test]
fn the_same_manifest_may_be_applied_by_many_at_once() {
    let (lab, image) = lab_with_busybox();
    let text = format!(
        "{}---\n{}",
        format_args!(
            "kind: Pod\nmetadata: {{name: one, labels: {{app: one}}}}\nspec:\n  containers:\n  - {{name: web, image: '{image}', \
             command: [/bin/sh, -c, 'sleep 1000']}}\n"
        ),
        "kind: Service\nmetadata: {name: one}\nspec: {selector: {app: one}, ports: [{port: 11300, targetPort: 80}]}\n"
    );
    let answers: Vec<_> = std::thread::scope(|scope| {
        let apply = || lab.api().call(send("POST", "/v1/resource/apply", text.clone()));
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(apply)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let first = answers[0].json()["data"].clone();
    for answer in &answers {
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(answer.json()["data"], first);
    }
}
