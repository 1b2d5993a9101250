//! What an image says about its containers beside their processes: volumes, ports, labels, annotations, its platform.

use std::time::Duration;

use serde_json::{Value, json};

use crate::manifests::manifest;
use crate::support::{Api, HOST, ImageSpec, Lab, Layer, REGISTRY, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

const PULL: &str = "/v1/images";

/// A request with a container that runs until it is asked to end, and these fields.
fn request(image: &str, fields: Value) -> Value {
    let mut request = json!({ "image": image, "command": until_term(0) });
    request
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    request
}

/// A database's image: a volume with files of its own user, one where nothing is, and one behind a link that points out.
fn database(lab: &Lab) -> String {
    let layer = Layer::new()
        .entry(tar::EntryType::Directory, "var/lib/db", "", 0o750, (70, 71), b"")
        .owned("var/lib/db/table", 0o640, (70, 71), "rows\n")
        .owned("var/lib/db/run", 0o4755, (70, 71), "#!/bin/sh\n")
        .hardlink("var/lib/db/same", "var/lib/db/table")
        .symlink("var/lib/db/link", "/etc/passwd")
        .symlink("out", "/../../../../etc");
    let volumes = json!({ "/var/lib/db/": {}, "/new": {}, "/out": {}, "/proc/no": {} });
    lab.pull(
        &ImageSpec::busybox().layer(layer).set("Volumes", volumes),
        "library/db:1",
    )
}

fn volumes(container: &Value) -> Vec<&str> {
    let mounts = container["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let volumes = mounts.iter().filter(|mount| mount["type"] == "volume");
    volumes.map(|mount| mount["destination"].as_str().unwrap()).collect()
}

#[test]
fn an_anonymous_volume_begins_with_the_files_of_the_image_and_goes_with_its_container() {
    let (lab, _) = lab_with_busybox();
    let (api, image) = (lab.api(), database(&lab));
    let before = lab.inventory();
    // Also below a root that cannot be written to.
    let id = api.run(request(&image, json!({ "name": "db", "readOnly": true })));
    assert_eq!(volumes(&api.container(&id)), ["/new", "/out", "/var/lib/db"]);
    let script = "cd /var/lib/db; stat -c '%n %u:%g %a %h' . table run same; cat table; readlink link";
    assert_eq!(
        api.exec(&id, script),
        ". 70:71 750 2\ntable 70:71 640 2\nrun 70:71 4755 1\nsame 70:71 640 2\nrows\n/etc/passwd\n"
    );
    assert_eq!(api.exec(&id, "stat -c '%u:%g %a' /new; ls -A /new"), "0:0 755\n");
    // The link means the image's own directory, as in the container.
    let passwd = api.exec(&id, "cat /out/passwd");
    assert!(passwd.contains("web:x:1000") && !passwd.contains("daemon"), "{passwd}");
    api.exec(&id, "cd /var/lib/db; echo more >> table; rm link; touch /new/mine");

    // It stays over a restart of the container and of the daemon, and is not filled again.
    let kept = |api: &Api| {
        let seen = api.exec("db", "cat /var/lib/db/table; ls /var/lib/db /new");
        assert_eq!(seen, "rows\nmore\n/new:\nmine\n\n/var/lib/db:\nrun\nsame\ntable\n");
    };
    api.stop(&id);
    api.start(&id);
    kept(&api);
    lab.daemon().kill9();
    lab.daemon().start();
    let api = lab.api();
    kept(&api);
    api.stop(&id);
    api.start(&id);
    kept(&api);

    // Each container has its own, and nobody else of the host can enter it.
    let other = api.run(request(&image, json!({})));
    assert_eq!(api.exec(&other, "cat /var/lib/db/table"), "rows\n");
    let directory = format!("/etc/raind/container/{id}");
    for path in [&directory, &format!("{directory}/volumes")] {
        assert_eq!(
            lab.machine().run(&["stat", "-c", "%u:%g %a", path]).trim(),
            "0:0 700",
            "{path}"
        );
    }
    for id in [&id, &other] {
        api.stop(id);
        api.delete(id);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn what_the_request_mounts_there_takes_the_place_of_the_volume() {
    let (lab, _) = lab_with_busybox();
    let (api, image) = (lab.api(), database(&lab));
    lab.machine().run(&["mkdir", "-p", "/mnt/own"]);
    let before = lab.inventory();
    let own = json!({ "mount": ["/mnt/own:/var/lib/db/:ro"], "tmpfs": ["/new"] });
    let id = api.run(request(&image, own));
    let found = api.container(&id);
    assert_eq!(volumes(&found), ["/out"]);
    let bind = json!({ "type": "bind", "source": "/mnt/own", "destination": "/var/lib/db", "readOnly": true });
    assert_eq!(found["mounts"][1], bind);
    let fs = "stat -f -c %T /new; ls -A /var/lib/db";
    assert_eq!(api.exec(&id, fs), "tmpfs\n");
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn containers_of_pods_and_bottles_have_them_too() {
    let (lab, _) = lab_with_busybox();
    let (api, image) = (lab.api(), database(&lab));
    let before = lab.inventory();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: shop, labels: {{app: shop}}}}\nspec:\n  volumes: [{{name: data, emptyDir: \
         {{}}}}]\n  containers:\n  - {{name: db, image: '{image}', imagePullPolicy: IfNotPresent, command: {}, volumeMounts: \
         [{{name: data, mountPath: /new}}]}}\n",
        until_term(0)
    );
    assert_eq!(manifest(&api, "apply", &text).status, 201);
    let member = wait_for("the member", Duration::from_secs(20), || {
        let all = api.ok(get("/v1/containers"));
        let mut all = all.as_array().unwrap().iter();
        let running = all.find(|c| c["name"].as_str().unwrap().starts_with("db-") && c["state"] == "running");
        running.cloned().ok_or("not yet")
    });
    assert_eq!(volumes(&member), ["/out", "/var/lib/db"]);
    let id = member["containerId"].as_str().unwrap();
    assert_eq!(api.exec(id, "cat /var/lib/db/table; ls -A /new"), "rows\n");
    assert_eq!(manifest(&api, "delete", &text).status, 200);

    let text = format!(
        "bottle: {{name: shop}}\nvolumes: {{data: }}\nservices: {{db: {{image: '{image}', command: {}, volumes: \
         ['data:/var/lib/db']}}}}",
        until_term(0)
    );
    assert_eq!(api.call(send("POST", "/v1/bottle", text)).status, 201);
    api.ok(send("POST", "/v1/bottle/shop/actions/start", ""));
    assert_eq!(volumes(&api.container("shop-db")), ["/new", "/out"]);
    api.exec("shop-db", "touch /new/x");
    api.ok(send("POST", "/v1/bottle/shop/actions/delete?volumes=true", ""));
    lab.assert_unchanged(&before);
}

#[test]
fn a_create_that_ends_half_way_leaves_no_volume() {
    let (lab, _) = lab_with_busybox();
    let api = lab.api();
    // A volume cannot be mounted over a file: the runtime refuses after the volumes were filled.
    let layer = Layer::new()
        .file("file", 0o644, "x")
        .file("data/large", 0o644, vec![7; 32 << 20]);
    let spec = ImageSpec::busybox().layer(layer);
    let odd = spec.clone().set("Volumes", json!({ "/data": {}, "/file": {} }));
    let odd = lab.pull(&odd, "lab/odd:1");
    let image = lab.pull(&spec.set("Volumes", json!({ "/data": {} })), "lab/large:1");
    let before = lab.inventory();
    let said = api.call(post("/v1/containers", request(&odd, json!({}))));
    assert_eq!(said.status, 400, "{}", said.text());
    lab.assert_unchanged(&before);

    let copied = || {
        lab.machine()
            .run(&["sh", "-c", "find /etc/raind/container -name large"])
    };
    std::thread::scope(|scope| {
        let api = lab.api();
        let image = &image;
        scope.spawn(move || drop(api.try_call(post("/v1/containers", request(image, json!({}))))));
        wait_for("a copy in progress", Duration::from_secs(20), || {
            let found = copied();
            if found.is_empty() { Err("nothing yet") } else { Ok(()) }
        });
        lab.daemon().kill9();
    });
    lab.daemon().start();
    let api = lab.api();
    let left = api.ok(get("/v1/containers"));
    // It may have been complete by then.
    for container in left.as_array().unwrap() {
        let id = container["containerId"].as_str().unwrap();
        wait_for("a container that can be deleted", Duration::from_secs(10), || {
            let deleted = api.call(send("DELETE", &format!("/v1/containers/{id}/actions/delete"), ""));
            if matches!(deleted.status, 200 | 404) {
                Ok(())
            } else {
                Err(deleted.text())
            }
        });
    }
    lab.assert_unchanged(&before);
}

#[test]
fn exposed_ports_are_shown_and_published_on_demand() {
    let (lab, _) = lab_with_busybox();
    let api = lab.api();
    let spec = ImageSpec::busybox()
        .cmd(&["httpd", "-f", "-p", "8080", "-h", "/www"])
        .set("ExposedPorts", json!({ "8080/tcp": {}, "53/udp": {}, "nonsense": {} }));
    let image = lab.pull(&spec, "lab/web:1");
    let shown = api.ok(get(&format!("/v1/images/status?image={image}")));
    assert_eq!(shown["exposedPorts"], json!(["53/udp", "8080/tcp", "nonsense"]));
    let forwards = |request: Value| {
        let id = api.run(request);
        let found = api.container(&id);
        assert_eq!(found["exposedPorts"], shown["exposedPorts"]);
        (id, found["forwards"].as_array().unwrap().clone())
    };
    let (plain, none) = forwards(json!({ "image": image }));
    assert!(none.is_empty(), "{none:?}");
    let (id, all) = forwards(json!({ "image": image, "publishAll": true, "port": ["127.0.0.1:5353:53/udp"] }));
    let said: Vec<String> = all
        .iter()
        .map(|f| {
            format!(
                "{} {}/{}",
                f["address"],
                f["destination"],
                f["protocol"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(said, ["\"127.0.0.1\" 53/udp", "null 8080/tcp"]);
    let port = all[1]["source"].as_u64().unwrap();
    assert!(port >= 1024, "{port}");
    let address = format!("{HOST}:{port}");
    wait_for("the published port", Duration::from_secs(10), || {
        match lab.outside_get(&address, "/index.html") {
            Ok(reply) if reply.text() == "hello from the lab\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // The same port after a restart, and another one for another container.
    api.stop(&id);
    api.start(&id);
    assert_eq!(api.container(&id)["forwards"][1]["source"], port);
    let (second, others) = forwards(json!({ "image": image, "publishAll": true }));
    assert_eq!(others.len(), 2);
    assert!(others.iter().all(|f| f["source"] != port), "{others:?}");
    for id in [&plain, &id, &second] {
        api.stop(id);
        api.delete(id);
    }

    let pod = api.ok(post(
        "/v1/pods",
        json!({ "name": "p", "containers": [{ "name": "c", "image": image }] }),
    ));
    let body = json!({ "name": "added", "image": image, "publishAll": true, "podId": pod["podId"] });
    let said = api.call(post("/v1/containers", body)).refused(400, "service failed: ");
    assert!(said.contains("publishAll"), "{said}");
}

/// An image that umoci made and skopeo sent. Docker's `HEALTHCHECK` is not part of its format.
#[test]
fn an_image_that_others_made_is_taken_at_its_word() {
    let lab = Lab::running();
    lab.push(&ImageSpec::scratch(), "lab/none:1");
    let script = format!(
        "mkdir -p /mnt/root/bin /mnt/root/data/sub
         cp /bin/busybox /mnt/root/bin/busybox; ln -s busybox /mnt/root/bin/sh
         echo rows > /mnt/root/data/table; chown 70:71 /mnt/root/data/table; chmod 1777 /mnt/root/data
         cd /mnt; umoci init --layout oci; umoci new --image oci:1; umoci insert --image oci:1 root /
         umoci config --image oci:1 --config.volume /data --config.exposedports 8080/tcp \\
             --config.label tier=front --config.label org.example.note=own --config.stopsignal SIGUSR1 \\
             --config.cmd /bin/sh --config.cmd -c --config.cmd 'trap \"exit 7\" USR1; echo ready; while :; do /bin/busybox \
         sleep 1 & wait $!; done' \\
             --manifest.annotation org.opencontainers.image.source=https://example.test/app \\
             --manifest.annotation run.oci.handler=wasm
         skopeo --insecure-policy copy --dest-tls-verify=false oci:oci:1 docker://{REGISTRY}/lab/said:1"
    );
    lab.machine().run(&["sh", "-ec", &script]);
    let (api, image) = (lab.api(), format!("{REGISTRY}/lab/said:1"));
    api.ok(post(PULL, json!({ "image": image })));
    let shown = api.ok(get(&format!("/v1/images/status?image={image}")));
    assert_eq!(
        (&shown["volumes"], &shown["exposedPorts"]),
        (&json!(["/data"]), &json!(["8080/tcp"]))
    );
    assert_eq!(shown["labels"], json!({ "tier": "front", "org.example.note": "own" }));
    let source = "org.opencontainers.image.source";
    assert_eq!(shown["annotations"][source], "https://example.test/app");

    let id = api.run(json!({ "image": image, "labels": { "tier": "back", "mine": "1" }, "stopTimeout": 30 }));
    let found = api.container(&id);
    assert_eq!(
        found["labels"],
        json!({ "tier": "back", "mine": "1", "org.example.note": "own" })
    );
    assert_eq!(
        (volumes(&found), &found["exposedPorts"]),
        (vec!["/data"], &json!(["8080/tcp"]))
    );
    assert_eq!(
        api.exec(&id, "/bin/busybox stat -c '%u:%g %a' /data /data/table"),
        "0:0 1777\n70:71 644\n"
    );
    let config: Value =
        serde_json::from_str(&lab.machine().read(&format!("/etc/raind/container/{id}/config.json"))).unwrap();
    assert_eq!(config["annotations"][source], "https://example.test/app");
    assert_eq!(
        config["annotations"].get("run.oci.handler"),
        None,
        "a runtime might obey it"
    );
    wait_for("the trap", Duration::from_secs(10), || {
        let log = api.log(&id);
        if log.contains("ready") { Ok(()) } else { Err(log) }
    });
    api.stop(&id);
    assert_eq!(api.container(&id)["exitCode"], 7);
}

#[test]
fn a_health_check_can_be_taken_back_by_an_image() {
    let (lab, _) = lab_with_busybox();
    let api = lab.api();
    let image = lab.pull(
        &ImageSpec::busybox()
            .docker()
            .set("Healthcheck", json!({ "Test": ["NONE"] })),
        "lab/unchecked:1",
    );
    let id = api.run(request(&image, json!({})));
    assert_eq!(api.container(&id).get("health"), None);
    let own = json!({ "healthCheck": { "exec": ["true"], "interval": 1 } });
    let id = api.run(request(&image, own));
    wait_for("health", Duration::from_secs(20), || {
        let health = api.container(&id)["health"].clone();
        if health == "healthy" { Ok(()) } else { Err(health) }
    });
}

#[test]
fn an_image_for_another_platform_is_refused_with_its_platform() {
    let lab = Lab::running();
    let api = lab.api();
    let host = ImageSpec::scratch().platform().to_owned();
    // No emulator of it is common.
    let image = lab.push(&ImageSpec::busybox().architecture("mips"), "lab/other:1");
    let said = api.call(post(PULL, json!({ "image": image }))).refused_as(
        404,
        "platform_not_found",
        "pull failed: no manifest for platform ",
    );
    assert_eq!(
        said,
        format!("pull failed: no manifest for platform linux/{host}; {image} is for linux/mips")
    );
    // Who wants it gets it, but not to run.
    api.ok(post(PULL, json!({ "image": image, "arch": "mips" })));
    let before = lab.inventory();
    let said = api.call(post("/v1/containers", json!({ "image": image }))).refused_as(
        404,
        "platform_not_found",
        "service failed: ",
    );
    assert_eq!(
        said,
        format!("service failed: image {image} is for linux/mips; this host runs linux/{host}")
    );
    lab.assert_unchanged(&before);
}
