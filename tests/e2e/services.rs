//! Services over real pods (`docs/spec/network.md` 11).

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::manifests::{apply, remove};
use crate::support::{Api, HOST, Lab, Place, delete, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

const LIMIT: Duration = Duration::from_secs(30);

/// Stores and starts a pod that answers on port 80 with its id, whose members have the label `app: shop`.
#[track_caller]
fn pod(api: &Api, image: &str, name: &str) -> String {
    let serve = "mkdir /tmp/www; hostname > /tmp/www/index.html; exec /bin/httpd -f -p 80 -h /tmp/www";
    let web = json!({ "name": "web", "image": image, "command": ["/bin/sh", "-c", serve] });
    let pod = json!({ "name": name, "labels": { "app": "shop" }, "containers": [web] });
    let id = api.ok(post("/v1/pods", pod))["podId"].as_str().unwrap().to_owned();
    act(api, &id, "start");
    id
}

#[track_caller]
fn act(api: &Api, pod: &str, action: &str) {
    api.ok(send("POST", &format!("/v1/pods/{pod}/actions/{action}"), Vec::new()));
}

/// A manifest of a service of the pods above.
fn manifest(name: &str, ports: &str) -> String {
    format!("kind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: shop}}, ports: [{ports}]}}\n")
}

#[track_caller]
fn create(api: &Api, name: &str, ports: &str) -> String {
    let reply = api.call(send("POST", "/v1/services", manifest(name, ports)));
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.json()["data"]["serviceId"].as_str().unwrap().into()
}

/// The pods behind a service, as the API shows them.
fn endpoints(api: &Api, service: &str) -> Vec<Value> {
    let detail = api.ok(get(&format!("/v1/services/{service}")));
    detail["endpoints"].as_array().unwrap().clone()
}

/// Addresses that the kernel sends clients of services to.
fn targets(lab: &Lab) -> Vec<String> {
    let rules = lab.machine().run(&["iptables-save", "-t", "nat"]);
    let rules = rules.lines().filter(|l| l.starts_with("-A RAIND-SVC-"));
    let to = |rule: &str| rule.rsplit_once(' ').unwrap().1.trim_end_matches(":80").to_owned();
    rules.map(to).collect()
}

/// Waits until as many pods as that are behind the service, in the API and in the kernel, and all of them answer.
fn wait_endpoints(lab: &Lab, service: &str, count: usize) {
    let api = lab.api();
    wait_for(&format!("{count} endpoints"), LIMIT, || {
        let shown = endpoints(&api, service);
        let addresses: Vec<_> = shown
            .iter()
            .map(|e| e["address"].as_str().unwrap().to_owned())
            .collect();
        if addresses.len() == count && targets(lab) == addresses {
            Ok(())
        } else {
            Err(format!("{shown:?}, {:?}", targets(lab)))
        }
    });
    for endpoint in endpoints(&api, service) {
        let address = format!("{}:80", endpoint["address"].as_str().unwrap());
        wait_for(&address, LIMIT, || lab.get_from(Place::Host, &address, "/"));
    }
}

/// Who answers so many requests, and how often; each one has to be answered.
fn answers(lab: &Lab, place: Place, address: &str, count: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for n in 0..count {
        let reply = lab
            .get_from(place, address, "/")
            .unwrap_or_else(|e| panic!("request {n}: {e}"));
        *seen.entry(reply.text().trim().to_owned()).or_default() += 1;
    }
    seen
}

#[test]
fn four_pods_share_the_requests_and_none_fails_when_one_goes() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let client = api.run(json!({ "image": image, "command": until_term(0) }));
    let before = lab.inventory();
    let service = create(&api, "shop", "{port: 11240, targetPort: 80}");
    let refused = lab.outside_get(&format!("{HOST}:11240"), "/").unwrap_err();
    assert!(refused.contains("refused"), "without pods: {refused}");

    let pods = ["one", "two", "three", "four"].map(|name| pod(&api, &image, name));
    wait_endpoints(&lab, &service, 4);
    let port = format!("{HOST}:11240");
    let seen = answers(&lab, Place::Outside, &port, 200);
    let hosts = ["one", "two", "three", "four"];
    assert!(
        seen.len() == 4 && hosts.iter().all(|host| seen.contains_key(*host)),
        "{seen:?}"
    );
    for (who, place, address) in [
        ("the host by its address", Place::Host, HOST),
        ("the host by 127.0.0.1", Place::Host, "127.0.0.1"),
        ("a container", lab.network_of(&client), HOST),
        (
            "a pod of the service",
            lab.network_of(&format!("condenser-pod-infra-{}", &pods[0][..12])),
            HOST,
        ),
        ("a container, by the gateway", lab.network_of(&client), "10.166.0.254"),
    ] {
        let seen = answers(&lab, place, &format!("{address}:11240"), 40);
        assert_eq!(seen.len(), 4, "{who}: {seen:?}");
    }

    // A pod that is stopped gets no clients any more, and no client notices.
    act(&api, &pods[0], "stop");
    wait_endpoints(&lab, &service, 3);
    let seen = answers(&lab, Place::Outside, &port, 200);
    assert!(seen.len() == 3 && !seen.contains_key(hosts[0]), "{seen:?}");
    act(&api, &pods[0], "start");
    wait_endpoints(&lab, &service, 4);
    assert_eq!(answers(&lab, Place::Outside, &port, 100).len(), 4);

    // One whose infra is killed leaves the rules at once and comes back by itself.
    let all = endpoints(&api, &service);
    let killed = all.iter().find(|e| e["podId"] == pods[1].as_str()).unwrap();
    let address = killed["address"].as_str().unwrap().to_owned();
    let infra = format!("condenser-pod-infra-{}", &pods[1][..12]);
    let pid = api.container(&infra)["pid"].to_string();
    let begun = Instant::now();
    lab.machine().run(&["kill", "-9", &pid]);
    wait_for("the rules without the pod", Duration::from_secs(2), || {
        let targets = targets(&lab);
        if targets.contains(&address) {
            Err(format!("{targets:?}"))
        } else {
            Ok(())
        }
    });
    println!("a killed pod left the rules after {:?}", begun.elapsed());
    wait_endpoints(&lab, &service, 4);
    assert_eq!(answers(&lab, Place::Outside, &port, 100).len(), 4);

    for id in &pods {
        api.ok(delete(&format!("/v1/pods/{id}")));
    }
    wait_endpoints(&lab, &service, 0);
    let removed = api.ok(delete(&format!("/v1/services/{service}")));
    assert_eq!(removed, json!({ "serviceId": service }));
    lab.assert_unchanged(&before);
}

#[test]
fn rules_are_true_again_after_a_crash_of_the_daemon() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let service = create(&api, "shop", "{port: 11240, targetPort: 80}");
    let pods = ["one", "two"].map(|name| pod(&api, &image, name));
    wait_endpoints(&lab, &service, 2);
    lab.daemon().kill9();
    // The pods and the rules are still there; the kernel does not need the daemon.
    let seen = answers(&lab, Place::Outside, &format!("{HOST}:11240"), 40);
    assert_eq!(seen.len(), 2, "{seen:?}");
    lab.machine().run(&["iptables", "-t", "nat", "-F", "RAIND-PORTS"]);
    lab.machine()
        .run(&["iptables", "-t", "nat", "-N", "RAIND-SVC-01m8bbbb-80"]);
    lab.daemon().start();
    wait_endpoints(&lab, &service, 2);
    let rules = lab.machine().run(&["iptables-save", "-t", "nat"]);
    assert!(!rules.contains("RAIND-SVC-01m8bbbb-80"), "a chain of nobody: {rules}");
    let seen = answers(&lab, Place::Host, "127.0.0.1:11240", 40);
    assert_eq!(seen.len(), 2, "{seen:?}");
    act(&api, &pods[1], "stop");
    wait_endpoints(&lab, &service, 1);
}

#[test]
fn services_are_shown_and_found_by_id_and_name() {
    let lab = Lab::running();
    let api = lab.api();
    let text = "kind: Service\nmetadata: {name: web, namespace: prod}\nspec:\n  type: NodePort\n  selector: {app: web}\n  \
                sessionAffinity: ClientIP\n  ports:\n  - {port: 53, protocol: UDP}\n  - {port: 8443, targetPort: 443}\n";
    let reply = api.call(send("POST", "/v1/services", text));
    assert_eq!(reply.status, 201, "{}", reply.text());
    let data = &reply.json()["data"];
    assert_eq!(data["warnings"][0]["field"], "spec.type", "{data}");
    let id = data["serviceId"].as_str().unwrap();
    let ports = json!([
        { "port": 53, "targetPort": 53, "protocol": "UDP" },
        { "port": 8443, "targetPort": 443, "protocol": "tcp" },
    ]);
    let detail = api.ok(get(&format!("/v1/services/{id}")));
    assert_eq!(detail, api.ok(get("/v1/services/web?namespace=prod")));
    let mut expected = json!({ "serviceId": id, "name": "web", "namespace": "prod", "selector": { "app": "web" },
        "ports": ports, "affinitySeconds": 10_800, "endpoints": [] });
    for field in ["createdAt", "conditions"] {
        expected[field] = detail[field].clone();
    }
    assert_eq!(detail, expected);
    let list = api.ok(get("/v1/services"));
    let listed = list[0]["createdAt"].as_str().unwrap();
    assert!(!listed.contains('.'), "{listed}");
    assert_eq!(
        list,
        json!([{ "serviceId": id, "name": "web", "namespace": "prod", "ports": ports, "createdAt": listed,
            "conditions": detail["conditions"] }])
    );
    api.call(get("/v1/services/web"))
        .refused(404, "get failed: serviceId=web not found");
    let removed = api.ok(delete("/v1/services/web?namespace=prod"));
    assert_eq!(removed, json!({ "serviceId": "web" }), "the path parameter");
    api.call(delete(&format!("/v1/services/{id}")))
        .refused(404, &format!("remove failed: serviceId={id} not found"));
}

#[test]
fn taken_ports_and_bad_manifests_are_refused() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let web = json!({ "image": image, "command": until_term(0), "name": "web", "port": ["8080:80"] });
    api.create(web.clone());
    create(&api, "shop", "{port: 11240}");
    wait_for("the rules of the service", LIMIT, || {
        let rules = lab.machine().run(&["iptables-save", "-t", "nat"]);
        if rules.contains("--dport 11240 -j RAIND-SVC-") {
            Ok(())
        } else {
            Err(rules)
        }
    });
    let before = lab.inventory();
    for (status, name, ports, message) in [
        (409, "shop", "{port: 1}", "name already used by other service"),
        (
            409,
            "blog",
            "{port: 11240}",
            "port 11240/tcp is already used by service default/shop",
        ),
        (
            409,
            "blog",
            "{port: 8080}",
            "port 8080/tcp is already used by container web",
        ),
        (
            409,
            "blog",
            "{port: 7755}",
            "port 7755/tcp is already used by condenser itself",
        ),
        (400, "blog", "{port: 0}", "invalid yaml: "),
        (400, "blog", "{port: 65536}", "invalid yaml: "),
        (400, "blog", "{port: 80, protocol: SCTP}", "invalid yaml: "),
        (400, "blog", "{port: 80, targetPort: http}", "invalid yaml: "),
        (400, "a/b", "{port: 80}", "invalid yaml: \"a/b\" is not"),
    ] {
        let reply = api.call(send("POST", "/v1/services", manifest(name, ports)));
        reply.refused(status, message);
        assert_eq!(reply.json()["data"], json!({ "serviceId": "" }), "{name} {ports}");
    }
    for (status, body, message) in [
        (400, &b"a: b: c"[..], "invalid yaml: "),
        (400, b"\xff", "invalid yaml: "),
        (413, &vec![b' '; (1 << 20) + 1], "request body too large"),
    ] {
        api.call(send("POST", "/v1/services", body)).refused(status, message);
    }
    lab.assert_unchanged(&before);
    // The other way round too: the service was there first.
    let mut late = web;
    late["name"] = json!("late");
    late["port"] = json!(["11240:80"]);
    api.call(post("/v1/containers", late)).refused(
        409,
        "service failed: forward rule failed: host port 11240/tcp is already used by service default/shop",
    );
    // Both protocols may have the same number.
    create(&api, "dns", "{port: 11240, protocol: UDP}");
}

#[test]
fn a_udp_service_in_a_list_reaches_its_pod() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "kind": "Pod", "metadata": { "name": "echo", "labels": { "app": "echo" } },
          "spec": { "containers": [{ "name": "main", "image": image, "command": until_term(0) }] } },
        { "kind": "Service", "metadata": { "name": "echo" },
          "spec": { "selector": { "app": "echo" }, "ports": [{ "port": 5353, "targetPort": 1053, "protocol": "UDP" }] } },
    ] })
    .to_string();
    let applied = apply(&api, &list);
    let member = applied["pods"][0]["containerIds"][0].as_str().unwrap();
    let server = lab
        .machine()
        .at(lab.network_of(member), || UdpSocket::bind("0.0.0.0:1053").unwrap());
    server.set_read_timeout(Some(LIMIT)).unwrap();
    wait_for("the rules of the service", LIMIT, || match &targets(&lab)[..] {
        [_] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for (place, address) in [(Place::Outside, HOST), (Place::Host, HOST), (Place::Host, "127.0.0.1")] {
        let client = lab.machine().at(place, || UdpSocket::bind("0.0.0.0:0").unwrap());
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.connect((address, 5353)).unwrap();
        client.send(b"ping").unwrap();
        let mut buffer = [0; 16];
        let (length, peer) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{address} from {place:?}: {e}"));
        server.send_to(&buffer[..length], peer).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 4, "{address} from {place:?}");
    }
    drop(server);
    remove(&api, &list);
    lab.assert_unchanged(&before);
}

#[test]
fn no_request_fails_while_a_killed_member_comes_back() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let serve = "mkdir -p /tmp/www; hostname > /tmp/www/index.html; exec /bin/httpd -f -p 80 -h /tmp/www";
    let set = json!({ "kind": "ReplicaSet", "metadata": { "name": "shop" }, "spec": { "replicas": 4,
        "template": { "metadata": { "labels": { "app": "shop" } }, "spec": { "containers": [{
            "name": "web", "image": image, "command": ["/bin/sh", "-c", serve],
            "readinessProbe": { "httpGet": { "path": "/", "port": 80 }, "periodSeconds": 1 },
        }] } } } });
    apply(&api, &set.to_string());
    let service = create(&api, "shop", "{port: 11240, targetPort: 80}");
    wait_endpoints(&lab, &service, 4);

    let members = || -> Vec<Value> {
        let all = api.ok(get("/v1/containers"));
        let is_member = |c: &&Value| c["name"].as_str().unwrap().starts_with("web-");
        all.as_array().unwrap().iter().filter(is_member).cloned().collect()
    };
    let victim = members().remove(0);
    let (id, pid) = (victim["containerId"].as_str().unwrap(), victim["pid"].as_i64().unwrap());
    lab.machine().run(&["kill", "-9", &pid.to_string()]);
    // Seen by the daemon, and by the kernel: from here on nobody is sent to it before it is ready again.
    wait_for("the end of the member", LIMIT, || {
        match api.container(id)["pid"].as_i64() {
            Some(now) if now == pid => Err(now),
            _ => Ok(()),
        }
    });
    wait_for("rules as the API shows them", LIMIT, || {
        let shown: Vec<_> = endpoints(&api, &service).iter().map(|e| e["address"].clone()).collect();
        if targets(&lab) == shown {
            Ok(())
        } else {
            Err(format!("{shown:?}"))
        }
    });
    answers(&lab, Place::Host, "127.0.0.1:11240", 200);
    wait_endpoints(&lab, &service, 4);
    assert_eq!(answers(&lab, Place::Host, "127.0.0.1:11240", 100).len(), 4);
    assert!(
        api.container(id)["restartCount"].as_u64() > Some(0),
        "restarted in place"
    );
}
