//! Pods: what their containers share, and that they come back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Api, Lab, Place, delete, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

const LIMIT: Duration = Duration::from_secs(20);
const INFRA: &str = "condenser-pod-infra-";

/// Stores a pod and returns its id.
#[track_caller]
fn create(api: &Api, pod: Value) -> String {
    api.ok(post("/v1/pods", pod))["podId"].as_str().unwrap().into()
}

#[track_caller]
fn act(api: &Api, pod: &str, action: &str) -> Value {
    api.ok(send("POST", &format!("/v1/pods/{pod}/actions/{action}"), Vec::new()))
}

#[track_caller]
fn pod(api: &Api, pod: &str) -> Value {
    api.ok(get(&format!("/v1/pods/{pod}")))
}

#[track_caller]
fn remove(api: &Api, pod: &str) {
    api.ok(delete(&format!("/v1/pods/{pod}")));
}

/// All containers of a pod, infra first.
fn containers(api: &Api, pod: &str) -> Vec<Value> {
    let all = api.ok(get("/v1/containers"));
    let mut of_pod: Vec<Value> = all
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| c["podId"] == pod)
        .cloned()
        .collect();
    of_pod.sort_by_key(|c| !c["name"].as_str().unwrap().starts_with(INFRA));
    of_pod
}

/// Waits until a pod is in that state.
#[track_caller]
fn wait_pod(api: &Api, id: &str, state: &str) -> Value {
    wait_for(&format!("a pod that is {state}"), LIMIT, || {
        let seen = pod(api, id);
        if seen["state"] == state {
            Ok(seen)
        } else {
            Err(format!("{seen} {:?}", containers(api, id)))
        }
    })
}

fn namespace(lab: &Lab, container: &Value, kind: &str) -> String {
    let path = format!("/proc/{}/ns/{kind}", container["pid"]);
    lab.machine().run(&["readlink", &path])
}

fn web_and_side(image: &str) -> Value {
    json!({ "name": "shop", "labels": { "app": "shop" }, "containers": [
        { "name": "web", "image": image, "command": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"], "port": ["8080:80"] },
        { "name": "side", "image": image, "command": until_term(0) },
    ] })
}

#[test]
fn members_share_what_they_should_and_nothing_else() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = create(&api, web_and_side(&image));
    let stored = pod(&api, &id);
    assert_eq!(
        (
            &stored["state"],
            &stored["desiredContainers"],
            &stored["runningContainers"],
            &stored["networkNS"]
        ),
        (&json!("created"), &json!(2), &json!(0), &json!(""))
    );
    assert_eq!(containers(&api, &id), Vec::<Value>::new());
    assert_eq!(act(&api, "shop", "start"), json!({ "podId": id }));
    let running = pod(&api, &id);
    assert_eq!(
        (&running["state"], &running["runningContainers"]),
        (&json!("running"), &json!(2))
    );

    let all = containers(&api, &id);
    let [infra, web, side] = &all[..] else {
        panic!("{all:?}")
    };
    let tail = &id[18..];
    assert_eq!(infra["name"], format!("{INFRA}{}", &id[..12]));
    assert_eq!(infra["imageRepository"], "registry.k8s.io/pause");
    assert_eq!(
        (&web["name"], &side["name"]),
        (&json!(format!("web-{tail}")), &json!(format!("side-{tail}")))
    );
    assert_eq!(running["networkNS"], format!("/proc/{}/ns/net", infra["pid"]));
    for kind in ["net", "ipc", "uts", "user"] {
        let shared = namespace(&lab, infra, kind);
        assert_eq!(namespace(&lab, web, kind), shared, "{kind}");
        assert_eq!(namespace(&lab, side, kind), shared, "{kind}");
    }
    for kind in ["mnt", "pid", "cgroup"] {
        let all = [infra, web, side].map(|c| namespace(&lab, c, kind));
        assert!(
            all[0] != all[1] && all[1] != all[2] && all[0] != all[2],
            "{kind}: {all:?}"
        );
    }

    // From inside: one host name, one address, one localhost, and names that resolve.
    let side_id = side["containerId"].as_str().unwrap();
    let address = infra["address"].as_str().unwrap();
    assert_eq!(
        (&web["address"], &api.container(side_id)["address"]),
        (&infra["address"], &infra["address"])
    );
    assert_eq!(
        api.exec(side_id, "hostname; cat /etc/hostname"),
        format!("{0}\n{0}\n", &id[..12])
    );
    assert_eq!(
        api.exec(side_id, "cat /etc/hosts /etc/resolv.conf"),
        format!(
            "127.0.0.1 localhost\n{address} {}\nnameserver 10.166.0.254\n",
            &id[..12]
        )
    );
    wait_for("the web server", LIMIT, || lab.outside_get("192.0.2.2:8080", "/"));
    assert_eq!(api.exec(side_id, "wget -qO- http://127.0.0.1/"), "hello from the lab\n");
    assert_eq!(
        lab.outside_get("192.0.2.2:8080", "/").unwrap().text(),
        "hello from the lab\n"
    );
    let forwards = json!([{ "source": 8080, "destination": 80, "protocol": "tcp" }]);
    assert_eq!((&infra["forwards"], &web["forwards"]), (&forwards, &json!([])));
    assert_eq!(
        lab.get_from(Place::Host, &format!("{address}:80"), "/").unwrap().status,
        200
    );

    // A stop keeps infra; a start afterwards keeps everything.
    act(&api, &id, "stop");
    act(&api, &id, "stop");
    let stopped = pod(&api, &id);
    assert_eq!(
        (&stopped["state"], &stopped["runningContainers"]),
        (&json!("stopped"), &json!(0))
    );
    assert_eq!(containers(&api, &id)[0]["pid"], infra["pid"]);
    act(&api, &id, "start");
    act(&api, &id, "start");
    let again = containers(&api, &id);
    assert_eq!(pod(&api, &id)["state"], "running");
    for (now, then) in again.iter().zip(&all) {
        assert_eq!(
            (&now["containerId"], &now["address"]),
            (&then["containerId"], &then["address"])
        );
    }
    remove(&api, &id);
    api.call(get(&format!("/v1/pods/{id}")))
        .refused(404, &format!("retrieve pod failed: pod: {id} not found"));
    lab.assert_unchanged(&before);
}
