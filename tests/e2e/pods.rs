//! Pods: what their containers share, and that they come back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Api, ImageSpec, Lab, Place, delete, get, post, send, wait_for};
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
    assert_eq!(api.exec(side_id, "hostname; cat /etc/hostname"), "shop\nshop\n");
    assert_eq!(
        api.exec(side_id, "cat /etc/hosts /etc/resolv.conf"),
        format!("127.0.0.1 localhost\n{address} shop\nnameserver 10.166.0.254\n")
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

#[test]
fn a_pod_outlives_its_infra_and_its_members() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = create(&api, web_and_side(&image));
    act(&api, &id, "start");
    let first = containers(&api, &id);
    let same = |now: &[Value]| {
        let pairs = now.iter().zip(&first);
        pairs
            .clone()
            .all(|(now, then)| now["containerId"] == then["containerId"])
            && now.len() == first.len()
    };

    // The namespaces die with infra: everything comes back, in new ones, under the old names and address.
    for _ in 0..2 {
        let killed = containers(&api, &id);
        lab.machine().run(&["kill", "-9", &killed[0]["pid"].to_string()]);
        let rebuilt = wait_for("a rebuilt pod", LIMIT, || {
            let now = containers(&api, &id);
            let fresh = now.iter().zip(&killed).all(|(now, then)| now["pid"] != then["pid"]);
            if fresh && pod(&api, &id)["state"] == "running" {
                Ok(now)
            } else {
                Err(format!("{now:?}"))
            }
        });
        assert!(same(&rebuilt), "{rebuilt:?}");
        assert_eq!(rebuilt[0]["address"], first[0]["address"]);
        for kind in ["net", "ipc", "uts", "user"] {
            let shared = namespace(&lab, &rebuilt[0], kind);
            assert!(rebuilt.iter().all(|c| namespace(&lab, c, kind) == shared), "{kind}");
        }
        wait_for("the web server", LIMIT, || lab.outside_get("192.0.2.2:8080", "/"));
    }
    let seen = pod(&api, &id);
    assert_eq!((&seen["podId"], &seen["name"]), (&json!(id), &json!("shop")));

    // Whatever is done to single containers is undone.
    let [infra, web, side] = &containers(&api, &id)[..] else {
        panic!()
    };
    let of = |container: &Value| container["containerId"].as_str().unwrap().to_owned();
    api.stop(&of(infra));
    wait_pod(&api, &id, "running");
    api.call(send(
        "POST",
        &format!("/v1/containers/{}/actions/stop", of(side)),
        Vec::new(),
    ));
    api.call(delete(&format!("/v1/containers/{}/actions/delete", of(side))));
    wait_pod(&api, &id, "running");
    assert_eq!(containers(&api, &id).len(), 3);
    assert_eq!(api.container(&of(web))["state"], "running");

    // A pod that a user stopped stays stopped, whatever dies; a start afterwards brings all of it.
    act(&api, &id, "stop");
    lab.machine()
        .run(&["kill", "-9", &containers(&api, &id)[0]["pid"].to_string()]);
    api.wait_state(&of(&containers(&api, &id)[0]), "stopped");
    lab.daemon().restart();
    assert_eq!(pod(&api, &id)["state"], "stopped");
    act(&api, &id, "start");
    assert_eq!(pod(&api, &id)["state"], "running");
    remove(&api, &id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_crash_at_any_moment_of_a_start_or_removal_is_made_up_for() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let request = web_and_side(&image);
    let api = lab.api();
    let id = create(&api, request.clone());
    let begun = std::time::Instant::now();
    act(&api, &id, "start");
    let whole = begun.elapsed();
    remove(&api, &id);
    lab.assert_unchanged(&before);
    let crash = |after: Duration, call: crate::support::Call| {
        std::thread::scope(|scope| {
            let api = lab.api();
            scope.spawn(move || drop(api.try_call(call)));
            std::thread::sleep(after);
            lab.daemon().kill9();
        });
        lab.daemon().start();
    };
    for tenth in 0..10 {
        let id = create(&api, request.clone());
        let path = format!("/v1/pods/{id}");
        crash(
            whole * tenth / 8,
            send("POST", &format!("{path}/actions/start"), Vec::new()),
        );
        if pod(&api, &id)["state"] == "created" {
            // The request never got as far as the store.
            act(&api, &id, "start");
        }
        wait_pod(&api, &id, "running");
        let all = containers(&api, &id);
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(
            all.iter()
                .all(|c| namespace(&lab, c, "net") == namespace(&lab, &all[0], "net"))
        );
        crash(whole * tenth / 8, delete(&path));
        // Removed or not begun: a removal that has begun is finished without being asked again.
        wait_for("a pod that is gone or whole", LIMIT, || {
            let reply = api.call(get(&path));
            let running = reply.status == 200 && reply.json()["data"]["state"] == "running";
            if reply.status == 404 || running {
                Ok(())
            } else {
                Err(reply.text())
            }
        });
        if api.call(get(&path)).status == 200 {
            remove(&api, &id);
        }
        lab.assert_unchanged(&before);
    }
}

#[test]
fn containers_can_be_added_to_a_pod() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = create(&api, json!({ "name": "shop" }));
    // Without a template what is desired is what is there.
    act(&api, &id, "start");
    let empty = pod(&api, &id);
    assert_eq!(
        (&empty["state"], &empty["desiredContainers"]),
        (&json!("running"), &json!(0))
    );
    assert_ne!(empty["networkNS"], "");

    let request = json!({ "podId": id, "name": "web", "image": image, "port": ["8080:80"],
        "command": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"] });
    let web = api.create(request.clone());
    let made = api.container(&web);
    assert_eq!(
        (&made["state"], &made["name"]),
        (&json!("created"), &json!(format!("web-{}", &id[18..])))
    );
    assert_eq!(pod(&api, &id)["desiredContainers"], 1);
    api.start(&web);
    wait_for("the web server", LIMIT, || lab.outside_get("192.0.2.2:8080", "/"));
    assert_eq!(pod(&api, &id)["state"], "running");
    assert_eq!(
        namespace(&lab, &api.container(&web), "net"),
        namespace(&lab, &containers(&api, &id)[0], "net")
    );

    // Refused, and nothing changed.
    let add = |change: Value| {
        let mut wish = request.clone();
        wish.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        api.call(post("/v1/containers", wish))
    };
    add(json!({ "podId": "nope" })).refused(404, "service failed: pod: nope not found");
    add(json!({ "name": "" })).refused(400, "service failed: a container of a pod needs a name");
    add(json!({})).refused(409, &format!("service failed: name: web-{} already used", &id[18..]));
    add(json!({ "name": "b" })).refused(400, "service failed: pod template invalid: ");
    add(json!({ "name": "b", "port": ["8081:80"], "image": "192.0.2.1:5000/no/such:1" }))
        .refused(404, "service failed: ");
    assert_eq!(containers(&api, &id)[0]["forwards"].as_array().unwrap().len(), 1);
    assert_eq!(containers(&api, &id).len(), 2);

    // It is part of the pod from then on.
    let other = api.create(json!({ "image": image, "name": "other", "port": ["8082:80"] }));
    add(json!({ "name": "b", "port": ["8082:80"] }))
        .refused(409, "service failed: forward rule failed: host port 8082/tcp");
    api.delete(&other);
    let late = api.create(json!({ "podId": "shop", "name": "late", "image": image, "command": until_term(0) }));
    let old = containers(&api, &id);
    lab.machine().run(&["kill", "-9", &old[0]["pid"].to_string()]);
    wait_for("a rebuilt pod", LIMIT, || {
        let now = api.container(&web);
        if now["state"] == "running" && now["pid"] != old[1]["pid"] {
            Ok(())
        } else {
            Err(now)
        }
    });
    wait_for("the web server", LIMIT, || lab.outside_get("192.0.2.2:8080", "/"));
    assert_eq!(api.wait_state(&late, "stopped")["statedAt"], "0001-01-01T00:00:00Z");
    api.start(&late);
    assert_eq!(
        namespace(&lab, &api.container(&late), "net"),
        namespace(&lab, &api.container(&web), "net")
    );
    wait_pod(&api, &id, "running");
    remove(&api, "shop");
    lab.assert_unchanged(&before);
}

#[test]
fn names_uids_and_refusals() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let refused = |pod: Value, status, message: &str| {
        let reply = api.call(post("/v1/pods", pod));
        reply.refused(status, message);
        assert_eq!(reply.json()["data"], json!({ "podId": "" }));
    };
    refused(json!({}), 400, "create pod failed: pod name is required");
    refused(
        json!({ "name": "a/b" }),
        400,
        "create pod failed: invalid pod name: \"a/b\"",
    );
    refused(
        json!({ "name": "a", "namespace": "b c" }),
        400,
        "create pod failed: invalid pod namespace",
    );
    refused(json!({ "name": "a", "nope": 1 }), 400, "invalid json: ");
    refused(
        json!({ "name": "a", "ipcNS": "/proc/1/ns/ipc" }),
        400,
        "create pod failed: networkNS, ipcNS",
    );
    let with = |container: Value| json!({ "name": "a", "containers": [container] });
    refused(
        with(json!({ "image": image })),
        400,
        "create pod failed: pod template invalid: container name required",
    );
    refused(
        with(json!({ "name": "c" })),
        400,
        "create pod failed: pod template invalid: container image required: c",
    );
    refused(
        with(json!({ "name": "c", "image": image, "port": ["1:2:tcp:3"] })),
        400,
        "create pod failed: pod template invalid: forward rule failed: port format failed: 1:2:tcp:3",
    );
    assert_eq!(api.ok(get("/v1/pods")), json!([]));

    let id = create(&api, json!({ "name": "a", "uid": "one" }));
    assert_eq!(
        create(&api, json!({ "name": "a", "uid": "one", "labels": { "x": "y" } })),
        id
    );
    assert_eq!(pod(&api, "a").get("labels"), None, "nothing changes");
    refused(json!({ "name": "a" }), 409, "create pod failed: pod default/a exists");
    let elsewhere = create(&api, json!({ "name": "a", "namespace": "other" }));
    assert_eq!(api.ok(get("/v1/pods/a?namespace=other"))["podId"], elsewhere);
    act(&api, &id, "start");
    let replaced = create(
        &api,
        json!({ "name": "a", "uid": "two", "containers": [
        { "name": "c", "image": "192.0.2.1:5000/no/such:1" }] }),
    );
    assert_ne!(replaced, id);
    api.call(get(&format!("/v1/pods/{id}")))
        .refused(404, "retrieve pod failed: pod: ");
    assert_eq!(containers(&api, &id), Vec::<Value>::new());

    // What cannot be started says why, keeps the pod, and is tried again.
    let path = |pod: &str, action: &str| send("POST", &format!("/v1/pods/{pod}/actions/{action}"), Vec::new());
    api.call(path(&replaced, "start"))
        .refused(404, "start pod failed: manifest fetch failed: 404");
    let degraded = pod(&api, &replaced);
    assert_eq!(
        (&degraded["state"], &degraded["reason"]),
        (&json!("degraded"), &json!("ErrImagePull"))
    );
    assert!(
        degraded["message"]
            .as_str()
            .unwrap()
            .starts_with("manifest fetch failed: 404"),
        "{degraded}"
    );
    act(&api, &replaced, "stop");
    assert_eq!(pod(&api, &replaced)["state"], "stopped");

    let unknown = |reply: crate::support::Reply, message: &str| {
        reply.refused(404, message);
        assert_eq!(reply.json()["data"], json!({ "podId": "nope" }));
    };
    unknown(api.call(path("nope", "start")), "start pod failed: pod: nope not found");
    unknown(api.call(path("nope", "stop")), "stop pod failed: podId=nope not found");
    unknown(
        api.call(delete("/v1/pods/nope")),
        "remove pod failed: pod: nope not found",
    );

    // A host port belongs to one.
    let busy = api.create(json!({ "image": image, "port": ["8080:80"] }));
    let shop = create(&api, web_and_side(&image));
    api.call(path(&shop, "start"))
        .refused(409, "start pod failed: forward rule failed: host port 8080/tcp");
    api.delete(&busy);
    wait_pod(&api, &shop, "running");
    for id in [&replaced, &elsewhere, &shop] {
        remove(&api, id);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn another_infra_image_can_be_named() {
    let lab = Lab::start();
    let image = lab.push(&ImageSpec::busybox().cmd(&["sleep", "1000"]), "lab/hold:1");
    lab.daemon().set("CONDENSER_INFRA_IMAGE", &image).start();
    let api = lab.api();
    let id = create(&api, json!({ "name": "shop" }));
    act(&api, &id, "start");
    let all = containers(&api, &id);
    assert_eq!(
        (&all[0]["imageRepository"], &all[0]["state"]),
        (&json!("192.0.2.1:5000/lab/hold"), &json!("running"))
    );
    remove(&api, &id);
    assert_eq!(containers(&api, &id), Vec::<Value>::new());
}

/// Two members that sleep, with a directory of their own and one of the host's.
fn with_volumes(image: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: shop
spec:
  volumes:
  - name: shared
    emptyDir: {{}}
  - name: host
    hostPath: {{ path: /mnt }}
  containers:
  - name: web
    image: {image}
    command: [sleep, \"1000\"]
    volumeMounts:
    - {{ name: shared, mountPath: /shared }}
    - {{ name: host, mountPath: /host, readOnly: true }}
  - name: side
    image: {image}
    command: [sleep, \"1000\"]
    volumeMounts:
    - {{ name: shared, mountPath: /shared, readOnly: true }}
    - {{ name: host, mountPath: /host, readOnly: true }}
"
    )
}

#[test]
fn members_share_the_volumes_of_their_pod() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    lab.machine().write("/mnt/greeting", "from the host\n");
    let before = lab.inventory();
    let applied = api.call(send("POST", "/v1/resource/apply", with_volumes(&image)));
    assert_eq!(applied.status, 201, "{}", applied.text());
    let id = pod(&api, "shop")["podId"].as_str().unwrap().to_owned();
    wait_pod(&api, &id, "running");
    let all = containers(&api, &id);
    let ids: Vec<&str> = all.iter().map(|c| c["containerId"].as_str().unwrap()).collect();
    let [_, web, side] = ids[..] else { panic!("{all:?}") };
    api.exec(web, "echo hello > /shared/file");
    assert_eq!(
        api.exec(side, "cat /shared/file /host/greeting"),
        "hello\nfrom the host\n"
    );
    assert!(api.exec(side, "touch /shared/mine").contains("Read-only"));
    assert!(api.exec(web, "touch /host/mine").contains("Read-only"));

    // They outlive the containers, not the pod; and nobody else gets at them.
    lab.machine().run(&["kill", "-9", &all[0]["pid"].to_string()]);
    wait_for("a rebuilt pod", LIMIT, || {
        let now = containers(&api, &id);
        let fresh = now.iter().zip(&all).all(|(now, then)| now["pid"] != then["pid"]);
        if fresh && pod(&api, &id)["state"] == "running" {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    assert_eq!(api.exec(side, "cat /shared/file"), "hello\n");
    let source = format!("/etc/raind/pod/{id}/volumes/shared");
    let other = json!({ "image": image, "mount": [format!("{source}:/stolen")] });
    api.call(post("/v1/containers", other))
        .refused(400, "service failed: create spec failed: invalid mount source");
    remove(&api, &id);
    lab.assert_unchanged(&before);
}

/// Processes of pods die in any order, and the daemon with them; in the end everything is there, once.
#[test]
fn a_storm_of_kills_ends_with_whole_pods() {
    const PODS: usize = 3;
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let ids: Vec<String> = (0..PODS)
        .map(|n| {
            let member = |name: &str| json!({ "name": name, "image": image, "command": until_term(0) });
            let id = create(
                &api,
                json!({ "name": format!("p{n}"), "containers": [member("a"), member("b")] }),
            );
            act(&api, &id, "start");
            id
        })
        .collect();
    let first: Vec<Vec<Value>> = ids.iter().map(|id| containers(&api, id)).collect();
    for round in 0..60usize {
        // Every container in turn, infra too, in an order that is not that of the pods.
        let (pod, container) = (round * 2 % PODS, round * 5 / 2 % 3);
        let pid = &containers(&api, &ids[pod])[container]["pid"];
        if pid.as_i64().is_some_and(|pid| pid > 0) {
            lab.machine().output(&["kill", "-9", &pid.to_string()]);
        }
        if round % 12 == 11 {
            lab.daemon().kill9();
            lab.daemon().start();
        }
    }
    for (id, then) in ids.iter().zip(&first) {
        wait_for("a whole pod", Duration::from_secs(90), || {
            let seen = pod(&api, id);
            if seen["state"] == "running" { Ok(()) } else { Err(seen) }
        });
        let now = containers(&api, id);
        assert_eq!(now.len(), then.len(), "{now:?}");
        for (now, then) in now.iter().zip(then) {
            assert_eq!(
                (&now["containerId"], &now["name"], &now["address"]),
                (&then["containerId"], &then["name"], &then["address"])
            );
        }
        for kind in ["net", "ipc", "uts", "user"] {
            let shared = namespace(&lab, &now[0], kind);
            assert!(now.iter().all(|c| namespace(&lab, c, kind) == shared), "{kind}");
        }
    }
    assert_eq!(api.ok(get("/v1/pods")).as_array().unwrap().len(), PODS);
    for id in &ids {
        remove(&api, id);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn a_member_that_cannot_run_does_not_hold_up_the_others() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    for (name, broken) in [
        (
            "start",
            json!({ "name": "broken", "image": image, "command": ["/no/such/program"] }),
        ),
        (
            "image",
            json!({ "name": "broken", "image": "192.0.2.1:5000/no/such:1" }),
        ),
    ] {
        let good = json!({ "name": "good", "image": image, "command": until_term(0) });
        let id = create(&api, json!({ "name": name, "containers": [broken, good] }));
        let answer = api.call(send("POST", &format!("/v1/pods/{id}/actions/start"), Vec::new()));
        assert_ne!(answer.status, 200, "{}", answer.text());
        assert!(answer.message().starts_with("start pod failed: "), "{}", answer.text());
        wait_for("the member that can run", LIMIT, || {
            let seen = pod(&api, &id);
            if seen["runningContainers"] == 1 && seen["state"] == "degraded" {
                Ok(())
            } else {
                Err(format!("{seen} {:?}", containers(&api, &id)))
            }
        });
        remove(&api, &id);
    }
}

#[test]
fn a_name_that_is_just_becoming_free_can_be_had() {
    let lab = Lab::running();
    let api = lab.api();
    for _ in 0..40 {
        let id = create(&api, json!({ "name": "shop" }));
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| lab.api().call(delete(&format!("/v1/pods/{id}"))).status);
            let made = lab.api().call(post("/v1/pods", json!({ "name": "shop" })));
            assert!([200, 409].contains(&made.status), "{}", made.text());
            assert_eq!(removal.join().unwrap(), 200);
            if made.status == 200 {
                remove(&api, made.json()["data"]["podId"].as_str().unwrap());
            }
        });
    }
}
