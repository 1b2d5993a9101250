//! Conditions: why something is not as it should be, as clients read it, and that it goes with its cause.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use crate::manifests::apply;
use crate::support::{Api, ImageSpec, Lab, Place, REGISTRY, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

/// Longer than a back-off in a test becomes.
const LIMIT: Duration = Duration::from_secs(40);

/// One condition of an object, `Null` when it has none of that type.
fn condition(object: &Value, kind: &str) -> Value {
    let all = object["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|c| c["type"] == kind).unwrap_or_default()
}

/// Waits until an object has that condition for that reason, and returns it.
#[track_caller]
fn wrong(api: &Api, path: &str, kind: &str, reason: &str) -> Value {
    wait_for(&format!("{kind} to be {reason} of {path}"), LIMIT, || {
        let object = api.ok(get(path));
        let found = condition(&object, kind);
        match (&found["status"], &found["reason"]) {
            (Value::String(status), Value::String(word)) if status == "False" && word == reason => Ok(found),
            _ => Err(object),
        }
    })
}

/// Waits until nothing is wrong with an object any more, and it is ready.
#[track_caller]
fn fine(api: &Api, path: &str) {
    wait_for(&format!("{path} to be fine"), LIMIT, || {
        let object = api.ok(get(path));
        let all = object["conditions"].as_array().cloned().unwrap_or_default();
        let is_true = |c: &Value| c["status"] == "True";
        match all.iter().all(is_true) && is_true(&condition(&object, "Ready")) {
            true => Ok(()),
            false => Err(object),
        }
    })
}

#[track_caller]
fn says(condition: &Value, words: &str) {
    let message = condition["message"].as_str().unwrap_or_default();
    assert!(message.contains(words), "wanted {words:?} in {condition}");
}

/// What a user and a controller can both see: tries, the next one, and since when.
#[track_caller]
fn is_tried_again(condition: &Value) {
    assert!(
        condition["tries"].as_u64().is_some_and(|tries| tries > 0),
        "{condition}"
    );
    let time = |field: &str| condition[field].as_str().unwrap_or_default().parse::<jiff::Timestamp>();
    assert!(time("nextTryAt").unwrap() > time("changedAt").unwrap(), "{condition}");
}

fn pod_of(api: &Api, container: Value) -> (String, String) {
    let request = json!({ "name": "shop", "labels": { "app": "shop" }, "containers": [container] });
    let id = api.ok(post("/v1/pods", request))["podId"].as_str().unwrap().to_owned();
    let path = format!("/v1/pods/{id}");
    (id, path)
}

fn start(api: &Api, pod: &str) -> crate::support::Reply {
    api.call(send("POST", &format!("/v1/pods/{pod}/actions/start"), Vec::new()))
}

#[test]
fn an_image_that_is_missing() {
    let lab = Lab::running();
    lab.registry();
    let api = lab.api();
    let image = format!("{REGISTRY}/late:1");
    let (id, path) = pod_of(&api, json!({ "name": "c", "image": image, "command": until_term(0) }));
    let not_started = condition(&api.ok(get(&path)), "Ready");
    assert_eq!(not_started, Value::Null, "nobody wants it to run");
    let mut events = api.open(get("/v1/events?kind=pod"));
    events.until("\n\n");
    start(&api, &id).refused(404, "start pod failed: manifest fetch failed: 404");
    let tried = wrong(&api, &path, "Reconciled", "ErrImagePull");
    says(&tried, "manifest fetch failed: 404");
    is_tried_again(&tried);
    says(
        &wrong(&api, &path, "Ready", "ErrImagePull"),
        "manifest fetch failed: 404",
    );
    let listed = api.ok(get("/v1/pods"))[0].clone();
    assert_eq!(condition(&listed, "Reconciled")["reason"], "ErrImagePull", "{listed}");

    // Those who watch are told, and so are figures.
    events.until("\"action\":\"condition\"");
    let told = events.until("\n\n");
    assert!(told.contains("\"reason\":\"ErrImagePull\""), "{told}");
    let failing = "condenser_conditions_failing{kind=\"pod\",type=\"Reconciled\"}";
    let figures = api.call(get("/metrics")).text();
    assert!(figures.contains(&format!("{failing} 1")), "{figures}");

    lab.push(&ImageSpec::busybox(), "late:1");
    fine(&api, &path);
    let listed = api.ok(get("/v1/pods"))[0].clone();
    assert_eq!(condition(&listed, "Reconciled")["status"], "True", "{listed}");
    events.until("\"status\":\"True\"");
    assert!(api.call(get("/metrics")).text().contains(&format!("{failing} 0")));
}

#[test]
fn a_registry_that_is_down() {
    let lab = Lab::running();
    let api = lab.api();
    let image = format!("{REGISTRY}/app:1");
    let set = json!({ "kind": "ReplicaSet", "metadata": { "name": "web" }, "spec": { "replicas": 1,
        "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{
            "name": "c", "image": image, "command": until_term(0),
    }] } } } });
    let (id, path) = pod_of(&api, json!({ "name": "c", "image": image, "command": until_term(0) }));
    start(&api, &id).refused(502, "start pod failed: registry 192.0.2.1:5000: ");
    let tried = wrong(&api, &path, "Reconciled", "ErrImagePull");
    says(&tried, "registry 192.0.2.1:5000: ");
    is_tried_again(&tried);
    lab.push(&ImageSpec::busybox(), "app:1");
    fine(&api, &path);

    // A set says what is wrong with its pods.
    apply(&api, &set.to_string().replace("app:1", "gone:1"));
    says(&wrong(&api, "/v1/replicasets/web", "Ready", "ErrImagePull"), "pod web-");
    apply(&api, &set.to_string());
    fine(&api, "/v1/replicasets/web");
    let reconciled = condition(&api.ok(get("/v1/replicasets/web")), "Reconciled");
    assert_eq!(reconciled["status"], "True", "{reconciled}");
}

#[test]
fn a_command_that_does_not_exist() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    lab.machine().run(&["mkdir", "-p", "/mnt/tools"]);
    let mount = json!(["/mnt/tools:/tools"]);
    let id = api.create(json!({ "image": image, "command": ["/tools/serve"], "mount": mount }));
    let path = format!("/v1/containers/{id}");
    assert_eq!(condition(&api.ok(get(&path)), "Ready"), Value::Null);
    let refused = api.call(post(&format!("{path}/actions/start"), json!({})));
    refused.refused(400, "service failed: start container failed");
    says(
        &wrong(&api, &path, "Started", "RunContainerError"),
        "/tools/serve: no such file",
    );
    says(&wrong(&api, &path, "Ready", "StartError"), "/tools/serve: no such file");

    // Its pod says the same.
    let container = json!({ "name": "c", "image": image, "command": ["/tools/serve"], "mount": mount });
    let (pod, pod_path) = pod_of(&api, container);
    let refused = start(&api, &pod);
    assert_eq!(refused.status, 400, "{}", refused.text());
    let ready = wait_for("what is wrong with the pod", LIMIT, || {
        let found = condition(&api.ok(get(&pod_path)), "Ready");
        if found["status"] == "False" {
            Ok(found)
        } else {
            Err(found)
        }
    });
    says(&ready, "/tools/serve: no such file");

    let script = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 1000 & wait $!; done\n";
    lab.machine().write("/mnt/tools/serve", script);
    lab.machine().run(&["chmod", "755", "/mnt/tools/serve"]);
    api.start(&id);
    fine(&api, &path);
    assert_eq!(condition(&api.ok(get(&path)), "Started"), Value::Null);
    // As with a crash: the policy of the pod has gone on trying.
    fine(&api, &pod_path);
}

/// A container that does `before` until there is a file, and its path.
fn until_mended(lab: &Lab, image: &str, before: &str, more: Value) -> String {
    lab.machine().run(&["mkdir", "-p", "/mnt/state"]);
    let script = format!("[ -e /state/fine ] || {before}; trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done");
    let mut request = json!({
        "image": image, "command": ["/bin/sh", "-c", script], "mount": ["/mnt/state:/state"],
        "restartPolicy": { "name": "always" },
    });
    request
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    format!("/v1/containers/{}", lab.api().run(request))
}

#[test]
fn a_crash_loop() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let path = until_mended(&lab, &image, "exit 3", json!({}));
    let looping = wait_for("a few crashes", LIMIT, || {
        let found = condition(&api.ok(get(&path)), "Ready");
        match found["reason"] == "CrashLoopBackOff" && found["tries"].as_u64() >= Some(3) {
            true => Ok(found),
            false => Err(found),
        }
    });
    says(&looping, "ended with exit status 3 (Error), restarts: ");
    is_tried_again(&looping);
    lab.machine().write("/mnt/state/fine", "");
    fine(&api, &path);
}

#[test]
fn memory_that_runs_out() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let path = until_mended(
        &lab,
        &image,
        "{ tail /dev/zero; exit $?; }",
        json!({ "memory": 16 << 20 }),
    );
    let killed = wrong(&api, &path, "Ready", "OOMKilled");
    says(&killed, "ended with exit status 137 (OOMKilled)");
    lab.machine().write("/mnt/state/fine", "");
    fine(&api, &path);
}

#[test]
fn a_probe_that_fails() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let set = json!({ "kind": "ReplicaSet", "metadata": { "name": "shop" }, "spec": { "replicas": 1,
        "template": { "metadata": { "labels": { "app": "shop" } }, "spec": { "containers": [{
            "name": "web", "image": image, "command": until_term(0),
            "readinessProbe": { "exec": { "command": ["/bin/sh", "-c",
                "head -c 6000 /dev/zero | tr '\\0' x; echo ' the database is away' >&2; test -e /fine"] },
                "periodSeconds": 1, "failureThreshold": 2 },
        }] } } } });
    apply(&api, &set.to_string());
    let service = "kind: Service\nmetadata: {name: shop}\nspec: {selector: {app: shop}, ports: [{port: 8090}]}\n";
    assert_eq!(api.call(send("POST", "/v1/services", service)).status, 201);
    let service = "/v1/services/shop";
    let pod = wait_for("its pod", LIMIT, || {
        let pods = api.ok(get("/v1/pods"));
        pods[0]["podId"].as_str().map(str::to_owned).ok_or(pods)
    });
    let path = format!("/v1/pods/{pod}");
    let unready = wrong(&api, &path, "Ready", "Unhealthy");
    says(&unready, "the readiness check fails: ");
    says(&unready, "xx the database is away");
    assert!(unready["message"].as_str().unwrap().len() < 5000, "it is bounded");
    says(&wrong(&api, service, "Ready", "NoEndpoints"), "none of 1 pods is ready");
    let listed = api.ok(get("/v1/services"))[0].clone();
    assert_eq!(condition(&listed, "Ready")["reason"], "NoEndpoints", "{listed}");
    let all = api.ok(get("/v1/containers"));
    let member = all
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"].as_str().unwrap().starts_with("web-"));
    let member = member.unwrap();
    assert_eq!(condition(member, "Ready")["reason"], "Unhealthy", "{member}");

    api.exec(member["containerId"].as_str().unwrap(), "touch /fine");
    fine(&api, &path);
    fine(&api, service);
    fine(&api, "/v1/replicasets/shop");

    // What a server answers is kept, too.
    let page = "mkdir /tmp/www /tmp/www/cgi-bin; printf '#!/bin/sh\\nprintf \"Status: 503 Busy\\\\r\\\\n\\\\r\\\\nout of \
                beer\"\\n' > /tmp/www/cgi-bin/health; chmod 755 /tmp/www/cgi-bin/health; exec /bin/httpd -f -h /tmp/www";
    let mut blog = set;
    blog["metadata"]["name"] = json!("blog");
    let labels = &mut blog["spec"]["template"]["metadata"]["labels"];
    *labels = json!({ "app": "blog" });
    let container = &mut blog["spec"]["template"]["spec"]["containers"][0];
    container["command"] = json!(["/bin/sh", "-c", page]);
    container["readinessProbe"] = json!({ "httpGet": { "path": "/cgi-bin/health", "port": 80 }, "periodSeconds": 1,
        "failureThreshold": 1 });
    apply(&api, &blog.to_string());
    let message = wait_for("what the server answers", LIMIT, || {
        let found = condition(&api.ok(get("/v1/replicasets/blog")), "Ready");
        let pods = api.ok(get("/v1/pods"));
        let blog = pods
            .as_array()
            .unwrap()
            .iter()
            .find(|pod| pod["labels"]["app"] == "blog");
        let ready = blog.map(|pod| condition(pod, "Ready")).unwrap_or_default();
        match ready["message"].as_str() {
            Some(said) if said.contains("503 ") => Ok(said.to_owned()),
            _ => Err(format!("{found} {ready}")),
        }
    });
    assert!(message.contains("out of beer"), "{message}");
}

#[test]
fn a_port_that_is_taken() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let holder = |port: u16| {
        lab.machine()
            .at(Place::Host, || TcpListener::bind(("0.0.0.0", port)).unwrap())
    };
    let container = json!({ "name": "c", "image": image, "command": until_term(0), "port": ["8080:80"] });
    let (pod, path) = pod_of(&api, container);
    let taken = holder(8080);
    start(&api, &pod).refused(409, "start pod failed: ");
    let tried = wrong(&api, &path, "Reconciled", "PortTaken");
    says(&tried, "host port 8080/tcp is already used by ");
    is_tried_again(&tried);
    says(&wrong(&api, &path, "Ready", "PortTaken"), "8080/tcp");
    drop(taken);
    fine(&api, &path);

    // A service whose port somebody took while nobody held it.
    let service = "kind: Service\nmetadata: {name: shop}\nspec: {selector: {app: shop}, ports: [{port: 8090}]}\n";
    assert_eq!(api.call(send("POST", "/v1/services", service)).status, 201);
    fine(&api, "/v1/services/shop");
    lab.daemon().stop();
    let taken = holder(8090);
    lab.daemon().start();
    let api = lab.api();
    let tried = wrong(&api, "/v1/services/shop", "Published", "PortTaken");
    says(&tried, "port 8090/tcp is already used by ");
    is_tried_again(&tried);
    drop(taken);
    fine(&api, "/v1/services/shop");
    assert_eq!(condition(&api.ok(get("/v1/services/shop")), "Published"), Value::Null);
}

/// Fills a network: as many stopped containers as it has addresses left, written behind the daemon's back, as making them
/// takes minutes.
fn fill(lab: &Lab, stopped: &str) {
    lab.daemon().stop();
    lab.with_database(|database| fill_rows(database, stopped));
    lab.daemon().start();
}

fn fill_rows(database: &rusqlite::Connection, stopped: &str) {
    let document: String = database
        .query_row("select document from containers where id = ?1", [stopped], |row| {
            row.get(0)
        })
        .unwrap();
    let taken = serde_json::from_str::<Value>(&document).unwrap()["status"]["attachment"]["address"].clone();
    for host in 1..=253 {
        let address = format!("10.166.0.{host}");
        if json!(address) == taken {
            continue;
        }
        let mut row: Value = serde_json::from_str(&document).unwrap();
        let id = format!("01kh00000{host:03}");
        (row["id"], row["name"]) = (json!(id), json!(format!("filler-{host}")));
        row["status"]["attachment"]["address"] = json!(address);
        let insert = "insert into containers (id, name, namespace, document) values (?1, ?2, '', ?3)";
        database
            .execute(insert, [&id, &format!("filler-{host}"), &row.to_string()])
            .unwrap();
    }
}

#[test]
fn no_address_that_is_left() {
    let (lab, image) = lab_with_busybox();
    let stopped = lab.api().run(json!({ "image": image, "command": ["/bin/true"] }));
    lab.api().wait_state(&stopped, "stopped");
    fill(&lab, &stopped);
    let api = lab.api();
    let (pod, path) = pod_of(&api, json!({ "name": "c", "image": image, "command": until_term(0) }));
    start(&api, &pod).refused(409, "start pod failed: no free ip in subnet 10.166.0.0/24");
    let tried = wrong(&api, &path, "Reconciled", "NoAddressLeft");
    says(&tried, "no free ip in subnet 10.166.0.0/24");
    is_tried_again(&tried);
    api.delete(&stopped);
    fine(&api, &path);
}

#[test]
fn networks_rules_and_bottles_say_what_was_tried() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let rules = || condition(&api.ok(get("/v1/firewall/status")), "Reconciled");
    wait_for("rules", LIMIT, || match rules() {
        found if found["status"] == "True" => Ok(()),
        other => Err(other),
    });
    api.ok(post("/v1/networks", json!({ "bridge": "blue" })));
    let blue = || {
        let all = api.ok(get("/v1/networks"));
        let network = all
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["Interface"] == "blue")
            .cloned();
        condition(&json!({ "conditions": network.unwrap()["Conditions"] }), "Reconciled")
    };
    let wait_blue = |status: &str| {
        wait_for(&format!("blue to be {status}"), LIMIT, || match blue() {
            found if found["status"] == status => Ok(found),
            other => Err(other),
        })
    };
    wait_blue("True");
    // Its name belongs to something else now.
    lab.machine().run(&[
        "sh",
        "-c",
        "for n in 1 2 3 4 5; do ip link del blue; ip link add blue type veth peer name stray && exit 0; done; exit 1",
    ]);
    let taken = wait_blue("False");
    assert_eq!(taken["reason"], "InterfaceTaken", "{taken}");
    is_tried_again(&taken);
    lab.machine().run(&["ip", "link", "del", "blue"]);
    wait_blue("True");

    let bottle = format!(
        "bottle: {{name: blog}}\nservices:\n  web: {{image: '{image}', command: {}, ports: ['8088:80']}}\n",
        until_term(0)
    );
    assert_eq!(api.call(send("POST", "/v1/bottle", bottle)).status, 201);
    let taken = lab
        .machine()
        .at(Place::Host, || TcpListener::bind("0.0.0.0:8088").unwrap());
    let start = || api.call(send("POST", "/v1/bottle/blog/actions/start", Vec::new()));
    start().refused(409, "service failed: service \"web\": ");
    let detail = || api.ok(get("/v1/bottle/blog"))["bottle"].clone();
    let started = condition(&detail(), "Started");
    assert_eq!(
        (&started["status"], &started["reason"]),
        (&json!("False"), &json!("PortTaken"))
    );
    says(&started, "host port 8088/tcp is already used by ");
    let of_container = condition(&detail()["containers"]["web"], "Started");
    assert_eq!(of_container["reason"], "PortTaken", "{}", detail());
    let listed = api.ok(get("/v1/bottle"))["bottles"][0].clone();
    assert_eq!(condition(&listed, "Started")["reason"], "PortTaken", "{listed}");
    drop(taken);
    assert_eq!(start().status, 200);
    assert_eq!(condition(&detail(), "Started")["status"], "True");
    fine(&api, "/v1/containers/blog-web");
}
