//! Bottles: a file, and what becomes of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Api, Inventory, Lab, Reply, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

/// A blog of two services that only meet at one port.
fn blog(image: &str) -> String {
    let rest = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
    format!(
        r#"
bottle: {{ name: blog }}
volumes: {{ data: }}
services:
  web:
    image: {image}
    command: [/bin/sh, -c, "mkdir /www; echo page > /www/page; httpd -p 80 -h /www; {rest}"]
    env: [ "WORDPRESS_DB_HOST=db:3306", "DB=db", "URL=http://db:3306/" ]
    ports: [ "8080:80" ]
    depends_on: {{ db: {{ condition: service_healthy }} }}
    mem_limit: 64m
  db:
    image: {image}
    command: [/bin/sh, -c, "echo row >> /data/row; httpd -p 3307 -h /data; sleep 1; httpd -p 3306 -h /data; {rest}"]
    volumes: [ "data:/data" ]
    restart: on-failure:3
    healthcheck: {{ tcp: 3306, interval: 1s, timeout: 1s, start_period: 10s }}
policies:
- {{ type: east-west, source: web, destination: db, protocol: tcp, dest_port: 3306, comment: the only way }}
- {{ type: north-south_observe, source: db, destination: 203.0.113.5, protocol: tcp, dest_port: 25 }}
"#
    )
}

/// A bottle with services that each need the one before, and run until they are asked to end.
fn chain(name: &str, image: &str, services: &[&str]) -> String {
    let mut text = format!("bottle: {{name: {name}}}\nservices:\n");
    let mut before = None;
    for service in services {
        let depends_on = before.map_or_else(|| "[]".to_owned(), |before| format!("[{before}]"));
        let command = until_term(0);
        text += &format!("  {service}: {{image: '{image}', depends_on: {depends_on}, command: {command}}}\n");
        before = Some(service);
    }
    text
}

fn register(api: &Api, text: &str) -> Reply {
    api.call(send("POST", "/v1/bottle", text))
}

#[track_caller]
fn registered(api: &Api, text: &str) -> Value {
    let reply = register(api, text);
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.message(), "bottle registered");
    reply.json()["data"].clone()
}

fn action(bottle: &str, action: &str) -> crate::support::Call {
    send("POST", &format!("/v1/bottle/{bottle}/actions/{action}"), "")
}

#[track_caller]
fn act(api: &Api, bottle: &str, what: &str) {
    assert_eq!(api.ok(action(bottle, what)), json!({ "id": bottle }));
}

#[track_caller]
fn detail(api: &Api, bottle: &str) -> Value {
    api.ok(get(&format!("/v1/bottle/{bottle}")))["bottle"].clone()
}

/// The list without conditions, which have times.
fn list(api: &Api) -> Vec<Value> {
    let mut bottles = api.ok(get("/v1/bottle"))["bottles"].as_array().unwrap().clone();
    for bottle in &mut bottles {
        bottle.as_object_mut().unwrap().remove("conditions");
    }
    bottles
}

/// What one container gets from a service, `<name>:<port>/<path>`, over HTTP; `denied` when it does not get there. Names
/// mean what the container's `/etc/hosts` says.
fn fetch(lab: &Lab, from: &str, url: &str) -> String {
    let (name, rest) = url.split_once(':').unwrap();
    let (port, path) = rest.split_once('/').unwrap();
    let hosts = lab.api().exec(from, "cat /etc/hosts");
    let mut lines = hosts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines
        .find(|words| words[1..].contains(&name))
        .unwrap_or_else(|| panic!("{name} in {hosts}"));
    let reply = lab.get_from(
        lab.network_of(from),
        &format!("{}:{port}", line[0]),
        &format!("/{path}"),
    );
    reply.map_or_else(|_| "denied".to_owned(), |reply| reply.text().trim().to_owned())
}

#[test]
fn a_blog_from_its_file_to_its_end() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let data = registered(&api, &blog(&image));
    let id = data["bottleId"].as_str().unwrap().to_owned();
    assert_eq!(
        data,
        json!({ "bottleId": id, "bottleName": "blog", "services": ["db", "web"], "startOrder": ["db", "web"] })
    );
    let entry =
        |status: &str| vec![json!({ "bottleId": id, "bottleName": "blog", "serviceCount": 2, "status": status })];
    assert_eq!(list(&api), entry("created"));

    let shown = detail(&api, "blog");
    assert_eq!(shown, detail(&api, &id));
    let network = format!("raind{}", &id[..10]);
    assert_eq!(
        (&shown["network"], &shown["networkAuto"]),
        (&json!(network), &json!(true))
    );
    let web = &shown["services"]["web"];
    assert_eq!(
        web["env"],
        json!(["WORDPRESS_DB_HOST=db:3306", "DB=db", "URL=http://db:3306/"])
    );
    assert_eq!((&web["network"], &web["dependsOn"]), (&json!(network), &json!(["db"])));
    let policy = &shown["policies"][0];
    assert_eq!(
        (&policy["source"], &policy["destination"]),
        (&json!("web"), &json!("db"))
    );
    assert_eq!(shown["policies"].as_array().unwrap().len(), 2);
    let db = shown["containers"]["db"]["address"].as_str().unwrap();

    act(&api, "blog", "start");
    assert_eq!(list(&api), entry("running"));
    let running = detail(&api, &id);
    let started = |service: &str| running["containers"][service]["statedAt"].as_str().unwrap().to_owned();
    let apart = |a: &str, b: &str| b.parse::<jiff::Timestamp>().unwrap() - a.parse::<jiff::Timestamp>().unwrap();
    let apart = apart(&started("db"), &started("web"));
    assert!(apart.as_secs_f64() > 0.9, "web waits until db is healthy: {running}");
    assert_eq!(running["containers"]["db"]["health"], "healthy");

    // The environment has addresses, /etc/hosts has names, both ways.
    let environment = api.exec("blog-web", "tr '\\0' '\\n' < /proc/1/environ");
    for entry in [
        format!("WORDPRESS_DB_HOST={db}:3306"),
        format!("DB={db}"),
        "URL=http://db:3306/".to_owned(),
    ] {
        assert!(
            environment.lines().any(|line| line == entry),
            "{entry} in {environment}"
        );
    }
    assert_eq!(fetch(&lab, "blog-web", "db:3306/row"), "row");
    assert_eq!(fetch(&lab, "blog-web", "blog-db:3306/row"), "row");
    assert_eq!(fetch(&lab, "blog-web", "db:3307/row"), "denied");
    assert_eq!(fetch(&lab, "blog-db", "web:80/page"), "denied");
    assert_eq!(fetch(&lab, "blog-db", "localhost:3307/row"), "row");
    assert_eq!(lab.outside_get("192.0.2.2:8080", "/page").unwrap().text(), "page\n");

    act(&api, "blog", "start");
    act(&api, "blog", "stop");
    act(&api, "blog", "stop");
    assert_eq!(list(&api), entry("stopped"));
    act(&api, "blog", "start");
    assert_eq!(fetch(&lab, "blog-web", "db:3306/row"), "row\nrow");

    for (call, word) in [
        (post("/v1/containers/blog-web/actions/start", json!({})), "start"),
        (send("POST", "/v1/containers/blog-web/actions/stop", ""), "stop"),
        (send("DELETE", "/v1/containers/blog-web/actions/delete", ""), "rm"),
    ] {
        let message = api.call(call).refused(409, "service failed: direct ");
        assert!(
            message.contains(&id) && message.contains(&format!("raind bottle {word} ")),
            "{message}"
        );
    }
    act(&api, &id, "delete?volumes=true");
    assert_eq!(list(&api), Vec::<Value>::new());
    api.call(get("/v1/bottle/blog")).refused(404, "bottle not found");
    lab.assert_unchanged(&before);
}

#[test]
fn volumes_outlive_their_bottle() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    for round in 1..=2 {
        registered(&api, &blog(&image));
        act(&api, "blog", "start");
        assert_eq!(
            fetch(&lab, "blog-db", "localhost:3306/row"),
            vec!["row"; round].join("\n")
        );
        act(&api, "blog", "delete");
    }
    let kept = "/etc/raind/volumes/blog/data";
    assert_eq!(lab.machine().read(&format!("{kept}/row")), "row\nrow\n");
    // Nobody else can have it.
    let thief = json!({ "image": image, "mount": [format!("{kept}:/data")] });
    api.call(post("/v1/containers", thief))
        .refused(400, "service failed: create spec failed: invalid mount source");
    registered(&api, &blog(&image));
    act(&api, "blog", "delete?volumes=true");
    lab.assert_unchanged(&before);
}

#[test]
fn a_registration_that_fails_leaves_nothing() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let unknown = blog(&image).replacen(&image, "192.0.2.1:5000/library/nosuch:1", 1);
    // The first service in order, db, has its container by then.
    register(&api, &unknown).refused(404, "create containers failed: ");
    assert_eq!(list(&api), Vec::<Value>::new());
    for chain in ["RAIND-EW", "RAIND-NS-OBS"] {
        assert_eq!(api.ok(get(&format!("/v1/policies/{chain}")))["policies"], json!([]));
    }
    lab.assert_unchanged(&before);

    for (text, status, message) in [
        (":\n\t- x", 400, "invalid yaml: "),
        ("", 400, "invalid yaml: bottle.name is required"),
        ("bottle: {name: x}\n", 400, "invalid yaml: services is required"),
        (
            "bottle: {name: x}\nservices: {a: {image: i, depends_on: [b]}}",
            400,
            "invalid dependency: service \"a\" depends on unknown service \"b\"",
        ),
        (
            "bottle: {name: x}\nservices: {a: {image: i, depends_on: [b]}, b: {image: i, depends_on: [a]}}",
            400,
            "invalid dependency: dependency cycle detected",
        ),
        (
            "bottle: {name: x}\nservices: {a: {image: i}}\npolicies: [{type: up-down, source: a, destination: b}]",
            400,
            "policy failed: unknown policy type: up-down",
        ),
        (
            "bottle: {name: x}\nservices: {a: {image: i}}\npolicies: [{type: east-west, source: a, destination: b, \
             dest_port: 1}]",
            400,
            "policy failed: ",
        ),
        (
            "bottle: {name: x}\nservices: {a: {image: i, ports: [x]}}",
            400,
            "create containers failed: forward rule",
        ),
        (
            "bottle: {name: x}\nservices: {a: {image: i, network: nope}}",
            404,
            "create containers failed: target bridge",
        ),
    ] {
        register(&api, text).refused(status, message);
    }
    api.call(send("POST", "/v1/bottle", vec![0xff, 0xfe]))
        .refused(400, "invalid body: ");
    api.call(send("POST", "/v1/bottle", vec![b' '; (1 << 20) + 1]))
        .refused(413, "invalid body: ");
    lab.assert_unchanged(&before);
}

#[test]
fn names_are_taken_before_anything_exists() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    registered(&api, &chain("a", &image, &["x", "y"]));
    api.create(json!({ "image": image, "name": "b-y" }));
    let before = lab.inventory();
    register(&api, &chain("a", &image, &["z"])).refused(409, "name already used by other bottle");
    let taken = "create containers failed: name: b-y already used by other container";
    register(&api, &chain("b", &image, &["x", "y"])).refused(409, taken);
    lab.assert_unchanged(&before);
    let mine = json!({ "image": image, "name": "a-x" });
    api.call(post("/v1/containers", mine))
        .refused(409, "service failed: name: a-x already used");
    act(&api, "a", "delete");

    // Two bottles at the same time that want the same container names: one gets them all.
    let texts = [chain("p-q", &image, &["r", "s"]), chain("p", &image, &["q-r", "q-s"])];
    let replies: Vec<u16> = std::thread::scope(|scope| {
        let register = |text| register(&lab.api(), text).status;
        let threads: Vec<_> = texts.iter().map(|text| scope.spawn(move || register(text))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(replies == [201, 409] || replies == [409, 201], "{replies:?}");
    assert_eq!(list(&api)[0]["status"], "created");
}

#[test]
fn what_is_gone_is_no_obstacle() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let text = blog(&image).replace("raind0", "");
    registered(&api, &text);
    let policy = detail(&api, "blog")["policies"][0]["id"].as_str().unwrap().to_owned();
    api.ok(send("DELETE", &format!("/v1/policies/{policy}"), ""));
    api.ok(post("/v1/policies/commit", json!({})));
    assert_eq!(detail(&api, "blog")["policies"].as_array().unwrap().len(), 1);
    api.call(action("blog", "restart")).refused(400, "unknown action");
    api.call(action("nope", "start"))
        .refused(404, "service failed: bottle: nope not found");
    act(&api, "blog", "delete?volumes=true");
    lab.assert_unchanged(&before);
}

#[test]
fn others_staged_policies_stay_staged() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let wish = json!({ "chain": "RAIND-EW", "source": "one", "dest": "two", "protocol": "tcp", "dport": 1 });
    api.ok(post("/v1/policies", wish));
    let staged = || {
        let all = api.ok(get("/v1/policies/RAIND-EW"))["policies"].clone();
        all.as_array()
            .unwrap()
            .iter()
            .filter(|policy| policy["status"] == "before_commit")
            .count()
    };
    registered(&api, &blog(&image));
    assert_eq!(staged(), 1);
    act(&api, "blog", "delete");
    assert_eq!(staged(), 1);
}

#[test]
fn a_service_that_never_gets_healthy_keeps_others_from_starting() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let text = format!(
        "bottle: {{name: sick}}\nservices:\n  db: {{image: '{image}', command: {run}, healthcheck: {{exec: [/bin/false], \
         interval: 1s, retries: 2}}}}\n  web: {{image: '{image}', command: {run}, depends_on: {{db: {{condition: \
         service_healthy}}}}}}\n  alone: {{image: '{image}', command: {run}}}\n",
        run = until_term(0)
    );
    registered(&api, &text);
    api.call(action("sick", "start")).refused(
        409,
        "service failed: service \"db\" did not become healthy: it is unhealthy",
    );
    let shown = detail(&api, "sick");
    let state = |service: &str| shown["containers"][service]["state"].as_str().unwrap().to_owned();
    assert_eq!(
        [state("alone"), state("db"), state("web")],
        ["running", "running", "created"]
    );
    assert_eq!(list(&api)[0]["status"], "abnormal");

    // A delete does not wait for a start that waits.
    act(&api, "sick", "delete");
    registered(
        &api,
        &text.replace("interval: 1s, retries: 2", "interval: 60s, start_period: 600s"),
    );
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| lab.api().call(action("sick", "start")));
        wait_for("the start of db", Duration::from_secs(10), || {
            let state = detail(&api, "sick")["containers"]["db"]["state"].clone();
            if state == "running" { Ok(()) } else { Err(state) }
        });
        act(&api, "sick", "delete");
        waits.join().unwrap().refused(
            409,
            "service failed: service \"db\" did not become healthy: the bottle is",
        );
    });
}

/// Kills the daemon at that moment of an operation and starts it again.
fn interrupted(lab: &Lab, after: Duration, operation: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(operation);
        let begun = Instant::now();
        while begun.elapsed() < after {
            std::thread::yield_now();
        }
        lab.daemon().kill9();
    });
    lab.daemon().start();
}

fn nothing_of_it(lab: &Lab, before: &Inventory) {
    assert_eq!(list(&lab.api()), Vec::<Value>::new());
    assert_eq!(lab.api().ok(get("/v1/containers")), json!([]));
    assert_eq!(lab.api().ok(get("/v1/policies/RAIND-EW"))["policies"], json!([]));
    lab.assert_unchanged(before);
}

#[test]
fn a_crash_leaves_a_whole_bottle_or_none() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let text = blog(&image);
    let begun = Instant::now();
    registered(&lab.api(), &text);
    let making = begun.elapsed();
    let begun = Instant::now();
    act(&lab.api(), "blog", "delete?volumes=true");
    let removing = begun.elapsed();
    nothing_of_it(&lab, &before);
    let mut whole = 0;
    for tenth in 0..10 {
        let api = lab.api();
        interrupted(&lab, making * tenth / 8, || {
            drop(api.try_call(send("POST", "/v1/bottle", text.as_str())))
        });
        if list(&lab.api()).is_empty() {
            nothing_of_it(&lab, &before);
            registered(&lab.api(), &text);
        } else {
            whole += 1;
        }
        assert_eq!(list(&lab.api())[0]["status"], "created");
        let api = lab.api();
        interrupted(&lab, removing * tenth / 8, || {
            drop(api.try_call(action("blog", "delete?volumes=true")))
        });
        if !list(&lab.api()).is_empty() {
            act(&lab.api(), "blog", "delete?volumes=true");
        }
        nothing_of_it(&lab, &before);
    }
    assert!(whole < 10, "no registration was interrupted");
}
