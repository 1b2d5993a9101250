//! A new program on the database of an earlier one: everything goes on as it was.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::manifests::apply;
use crate::support::{Api, Lab, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

/// Something of every kind, and containers in every state that lasts.
fn populate(lab: &Lab, image: &str) {
    let api = lab.api();
    api.run(
        json!({ "image": image, "name": "runs", "command": until_term(0), "port": ["8080:80"], "mount": ["/mnt:/data:ro"],
            "env": ["A=1"], "labels": { "team": "red" }, "memory": 64 << 20, "restartPolicy": { "name": "always" },
            "healthCheck": { "exec": ["true"], "interval": 1 } }),
    );
    let failed = api.run(json!({ "image": image, "name": "failed", "command": ["/bin/sh", "-c", "exit 3"] }));
    api.wait_state(&failed, "stopped");
    api.create(json!({ "image": image, "name": "waits", "command": until_term(0), "tty": true }));
    let ended =
        json!({ "image": image, "name": "ended", "command": until_term(0), "restartPolicy": { "name": "always" } });
    api.stop(&api.run(ended));
    let members = json!([
        { "name": "web", "image": image, "command": until_term(0), "port": ["8081:80"], "env": ["B=2"] },
        { "name": "side", "image": image, "command": until_term(0) },
    ]);
    let pod = api.ok(post(
        "/v1/pods",
        json!({ "name": "shop", "labels": { "app": "shop" }, "containers": members }),
    ));
    let start = format!("/v1/pods/{}/actions/start", pod["podId"].as_str().unwrap());
    api.ok(send("POST", &start, Vec::new()));
    let command = until_term(0);
    apply(
        &api,
        &format!(
            "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: blog}}\nspec:\n  replicas: 2\n  selector: \
             {{matchLabels: {{app: blog}}}}\n  template:\n    metadata: {{labels: {{app: blog}}}}\n    spec:\n      \
             containers:\n      - {{name: app, image: '{image}', command: {command}, volumeMounts: [{{name: own, \
             mountPath: /own}}], readinessProbe: {{exec: {{command: ['true']}}, periodSeconds: 1}}}}\n      volumes: \
             [{{name: own, emptyDir: {{}}}}]\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: blog}}\nspec: \
             {{selector: {{app: blog}}, ports: [{{port: 11240, targetPort: 80}}]}}\n"
        ),
    );
    let bottle = format!(
        "bottle: {{name: till}}\nservices:\n  db: {{image: '{image}', command: {command}, environment: {{C: 3}}, volumes: \
         ['data:/data']}}\n  app: {{image: '{image}', command: {command}, depends_on: [db]}}\nvolumes: {{data: \
         {{}}}}\npolicies:\n- {{type: east-west, source: app, destination: db, protocol: tcp, dest_port: 80}}\n"
    );
    let reply = api.call(send("POST", "/v1/bottle", bottle));
    assert_eq!(reply.status, 201, "{}", reply.text());
    api.ok(send("POST", "/v1/bottle/till/actions/start", ""));
    api.ok(post(
        "/v1/policies",
        json!({ "chain": "RAIND-EW", "source": "runs", "dest": "waits" }),
    ));
}

/// What clients see of everything, once nothing is about to change any more.
fn settled(api: &Api) -> Value {
    let all = || {
        let list = |path: &str| api.ok(get(path));
        json!([
            list("/v1/containers"),
            list("/v1/pods"),
            list("/v1/replicasets/blog"),
            list("/v1/services"),
            list("/v1/bottle/till"),
            list("/v1/policies/RAIND-EW"),
            list("/v1/images"),
            list("/v1/networks"),
        ])
    };
    wait_for("a state that stays", Duration::from_secs(60), || {
        let seen = all();
        let healthy = seen[0].as_array().unwrap().iter().any(|c| c["health"] == "healthy");
        match healthy && seen[2]["ready"] == 2 && seen == all() {
            true => Ok(without_conditions(seen)),
            false => Err(seen.to_string()),
        }
    })
}

/// Conditions are observed anew by each daemon.
fn without_conditions(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|name, _| !name.eq_ignore_ascii_case("conditions"));
            fields
                .values_mut()
                .for_each(|field| *field = without_conditions(field.take()));
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| *item = without_conditions(item.take())),
        _ => {}
    }
    value
}

/// A row of a container as version 5 had it.
fn container_of_version_5(new: &Value) -> Value {
    let mut old = Map::new();
    for part in ["status", "journal", "spec"] {
        old.extend(new[part].as_object().unwrap().clone());
    }
    let image = &new["spec"]["image"];
    let role = |kind: &str, key: &str| new["role"][kind][key].clone();
    let pod = [role("infra", "pod"), role("member", "pod")]
        .into_iter()
        .find(|pod| !pod.is_null());
    old.extend(
        [
            ("id", new["id"].clone()),
            ("name", new["name"].clone()),
            ("pod_id", pod.unwrap_or_default()),
            ("bottle_id", role("service", "bottle")),
            ("image_repository", image["repository"].clone()),
            ("image_reference", image["reference"].clone()),
            ("layers", image["layers"].clone()),
            ("spec", new["spec"]["process"].clone()),
            ("process", new["status"]["process"].clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    old.remove("image");
    Value::Object(old)
}

/// A pod or a set as version 5 had it.
fn with_template_of_version_5(new: &Value) -> Value {
    let mut old = new.clone();
    let entries = old.pointer_mut("/template/spec/containers").unwrap();
    entries.as_array_mut().unwrap().iter_mut().for_each(spread_request);
    old
}

/// A bottle as version 5 had it, which did not keep all that its services ask for.
fn bottle_of_version_5(new: &Value) -> Value {
    const KEPT: [&str; 8] = [
        "image",
        "command",
        "env",
        "ports",
        "mounts",
        "network",
        "tty",
        "depends_on",
    ];
    let mut old = new.clone();
    for service in old["services"].as_object_mut().unwrap().values_mut() {
        spread_request(service);
        service.as_object_mut().unwrap().retain(|key, _| KEPT.contains(&&**key));
    }
    old
}

/// Version 5 had the fields of a request beside the others.
fn spread_request(entry: &mut Value) {
    let entry = entry.as_object_mut().unwrap();
    let Some(Value::Object(mut request)) = entry.remove("request") else {
        panic!("no request: {entry:?}")
    };
    request.remove("no_health_check");
    entry.append(&mut request);
}

/// Brings the database of a daemon that is gone back to version 5.
fn downgrade(lab: &Lab) {
    lab.with_database(|database| {
        rewrite(database, "containers", container_of_version_5);
        rewrite(database, "pods", with_template_of_version_5);
        rewrite(database, "replicasets", with_template_of_version_5);
        rewrite(database, "bottles", bottle_of_version_5);
        // Later versions have made these.
        database.execute_batch("DROP TABLE buildcache").unwrap();
        database.pragma_update(None, "user_version", 5).unwrap();
    });
}

fn rewrite(database: &rusqlite::Connection, table: &str, change: impl Fn(&Value) -> Value) {
    let mut select = database.prepare(&format!("SELECT id, document FROM {table}")).unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    for (id, document) in rows.map(Result::unwrap).collect::<Vec<(String, String)>>() {
        let old = change(&serde_json::from_str(&document).unwrap()).to_string();
        let update = format!("UPDATE {table} SET document = ?2 WHERE id = ?1");
        database.execute(&update, [id, old]).unwrap();
    }
}

#[test]
fn what_an_earlier_program_left_goes_on() {
    let (lab, image) = lab_with_busybox();
    populate(&lab, &image);
    let before = settled(&lab.api());
    lab.daemon().kill9();
    downgrade(&lab);
    lab.daemon().start();
    assert_eq!(settled(&lab.api()), before);
    assert!(lab.machine().path("/etc/raind/store/condenser.db.v5").exists());
}
