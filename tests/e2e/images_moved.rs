//! Images that come and go by other ways than a pull: archives, pushes, containers; with tools of others at the far end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::builds::Context;
use crate::crash::{interrupted, moments};
use crate::images::output;
use crate::support::{Call, GUARDED, ImageSpec, Lab, Layer, REGISTRY, Registry, delete, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

fn remove(lab: &Lab, image: &str) {
    lab.api().ok(delete("/v1/images").json(&json!({ "image": image })));
}

fn inspect(lab: &Lab, image: &str) -> Value {
    lab.api().ok(get(&format!("/v1/images/inspect?image={image}")))
}

fn names(lab: &Lab) -> Vec<String> {
    let images = lab.api().ok(get("/v1/images"));
    let name = |image: &Value| {
        let text = |field: &str| image[field].as_str().unwrap().to_owned();
        format!("{}:{}", text("repository"), text("reference"))
    };
    images.as_array().unwrap().iter().map(name).collect()
}

/// An archive in the body of an answer.
fn archive(lab: &Lab, path: &str) -> Vec<u8> {
    let reply = lab.api().call(get(path));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.headers["content-type"], "application/x-tar");
    reply.body.to_vec()
}

fn load(archive: Vec<u8>, query: &str) -> Call {
    send("POST", &format!("/v1/images/load{query}"), archive).header("Content-Type", "application/x-tar")
}

/// Everything that a file can have and a careless path loses.
fn rich_layer() -> Layer {
    Layer::new()
        .dir("app", 0o2750)
        .owned("app/owned", 0o4755, (1000, 2000), "setuid\n")
        .hardlink("app/twin", "app/owned")
        .symlink("app/link", "owned")
        .file("app/.wh.gone", 0o644, "")
        .file("implied/by/name", 0o640, "x")
        .file("app/hole", 0o600, vec![0; 3 << 20])
}

/// Names, types, modes, owners, sizes, link targets and times below a directory of the lab.
const LISTING: &str = "cd \"$0\" && find . -mindepth 1 -printf '%P %y %m %U %G %n %l %T@ %s\\n' | sed 's/^\\(.* d .*\\) [0-9]*$/\\1/' | sort";

fn listing(lab: &Lab, directory: &str) -> String {
    lab.machine().run(&["sh", "-c", LISTING, directory])
}

/// The image as skopeo and umoci see it, below a directory of the lab.
fn unpacked_by_others(lab: &Lab, source: &str, directory: &str) -> String {
    let layout = format!("oci:{directory}/layout:1");
    lab.machine().run(&["mkdir", "-p", directory]);
    lab.machine().run(&[
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        source,
        &layout,
    ]);
    let (image, bundle) = (format!("{directory}/layout:1"), format!("{directory}/bundle"));
    lab.machine().run(&["umoci", "unpack", "--image", &image, &bundle]);
    listing(lab, &format!("{bundle}/rootfs"))
}

#[test]
fn an_image_has_several_names_and_goes_with_the_last() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let tag = |target: &str| post("/v1/images/tag", json!({ "image": image, "target": target }));
    let tagged = lab.api().ok(tag("team/app:2"));
    assert_eq!(tagged, json!({ "image": image, "target": "team/app:2" }));
    let told = inspect(&lab, "team/app:2");
    assert_eq!(told["repoTags"], json!([image, "team/app:2"]));
    remove(&lab, &image);
    assert_eq!(
        output(&lab, "team/app:2", "cat /www/index.html"),
        "hello from the lab\n"
    );
    let tag = |image: &str, target: &str| {
        lab.api()
            .call(post("/v1/images/tag", json!({ "image": image, "target": target })))
    };
    tag(&image, "x:1").refused_as(404, "image_not_found", "tag failed: ");
    let digest = told["manifestDigest"].as_str().unwrap();
    tag("team/app:2", &format!("x@{digest}")).refused_as(400, "invalid_image_reference", "tag failed: ");
    tag("team/app:2", "").refused_as(400, "invalid_image_reference", "tag failed: empty repository");
    assert_eq!(tag("team/app:2", &image).status, 200);
    remove(&lab, "team/app:2");
    lab.assert_unchanged(&before);
}

#[test]
fn inspect_and_history_tell_what_the_configuration_says() {
    let lab = Lab::running();
    let spec = ImageSpec::busybox()
        .user("web")
        .workdir("/www")
        .env("MODE=x")
        .layer(Layer::new().file("a", 0o644, "1"));
    let pushed = lab.registry().push(&spec, "lab/told:1");
    let image = format!("{REGISTRY}/lab/told:1");
    lab.api().ok(post("/v1/images", json!({ "image": image })));
    let id = lab.api().create(json!({ "image": image, "name": "user" }));
    let told = inspect(&lab, &image);
    assert_eq!(told["id"], json!(pushed.config));
    assert_eq!(told["manifestDigest"], json!(pushed.manifest));
    assert_eq!((&told["user"], &told["workingDir"]), (&json!("web"), &json!("/www")));
    assert_eq!(told["env"][1], "MODE=x");
    assert_eq!(told["platform"]["os"], "linux");
    assert_eq!(told["containers"], json!([{ "id": id, "name": "user" }]));
    let layers = told["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[1]["digest"], json!(pushed.layers[1]));
    assert_eq!(told["configuration"]["rootfs"]["diff_ids"][1], layers[1]["diffId"]);
    let history = lab.api().ok(get(&format!("/v1/images/history?image={image}")));
    assert_eq!(history, told["history"]);
    assert_eq!(history[1]["createdBy"], "lab");
    assert_eq!(history[1]["diffId"], layers[1]["diffId"]);
    assert!(history[1]["sizeBytes"].as_u64().unwrap() > 0);
    for route in ["inspect", "history"] {
        let call = |query: &str| lab.api().call(get(&format!("/v1/images/{route}{query}")));
        call("?image=nothing:1").refused_as(404, "image_not_found", "");
        call("").refused_as(400, "invalid_query", "missing image query");
    }
}

#[test]
fn what_was_saved_can_be_loaded_and_read_by_others() {
    let lab = Lab::running();
    let one = lab.pull(&ImageSpec::busybox().layer(rich_layer()), "lab/one:1");
    let two = lab.pull(
        &ImageSpec::busybox()
            .cmd(&["/bin/true"])
            .layer(Layer::new().file("two", 0o644, "2\n").zstd()),
        "lab/two:1",
    );
    let seen = "ls -ln /app /implied/by | grep -v total; stat -c '%A %u %g' /implied /implied/by; stat -c '%n %h %b' /app/hole /app/twin; cat /app/twin";
    let before = (output(&lab, &one, seen), inspect(&lab, &one)["id"].clone());
    for format in ["oci-archive", "docker-archive"] {
        let saved = archive(
            &lab,
            &format!("/v1/images/save?image={one}&image={two}&format={format}"),
        );
        lab.machine().write("/run/saved.tar", &saved);
        let source = |name: &str| match format {
            "docker-archive" => format!("docker-archive:/run/saved.tar:{name}"),
            _ => format!("oci-archive:/run/saved.tar:{name}"),
        };
        let config = lab
            .machine()
            .run(&["skopeo", "inspect", "--config", "--raw", &source(&two)]);
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config, inspect(&lab, &two)["configuration"], "{format}");
        let tree = unpacked_by_others(&lab, &source(&one), &format!("/run/{format}"));
        assert!(tree.contains("app/owned f 4755 1000 2000 2 "), "{tree}");
        remove(&lab, &one);
        remove(&lab, &two);
        // Also packed, as people move such files.
        let packed = match format {
            "oci-archive" => zstd::encode_all(&saved[..], 1).unwrap(),
            _ => {
                lab.machine().run(&["gzip", "-f", "/run/saved.tar"]);
                std::fs::read(lab.machine().path("/run/saved.tar.gz")).unwrap()
            }
        };
        let loaded = lab.api().ok(load(packed, ""));
        assert_eq!(loaded, json!({ "images": [one, two] }), "{format}");
        assert_eq!(
            (output(&lab, &one, seen), inspect(&lab, &one)["id"].clone()),
            before,
            "{format}"
        );
        assert_eq!(output(&lab, &two, "cat /two"), "2\n");
    }
    lab.api()
        .call(get("/v1/images/save?image=nothing:1"))
        .refused_as(404, "image_not_found", "save failed: ");
    lab.api()
        .call(get("/v1/images/save"))
        .refused_as(400, "invalid_query", "missing image query");
    let odd = format!("/v1/images/save?image={one}&format=zip");
    lab.api()
        .call(get(&odd))
        .refused_as(400, "invalid_query", "invalid format: \"zip\"");
}

#[test]
fn archives_of_umoci_and_buildah_run_here() {
    let lab = Lab::running();
    let machine = lab.machine();
    machine.run(&["sh", "-euc", r#"
        mkdir -p /run/u && cd /run/u
        umoci init --layout l && umoci new --image l:tag && umoci unpack --image l:tag b
        mkdir -p b/rootfs/bin && cp /bin/busybox b/rootfs/bin/ && ln -s busybox b/rootfs/bin/sh && ln -s busybox b/rootfs/bin/cat
        echo "made by umoci" > b/rootfs/who && chown 7:8 b/rootfs/who
        umoci repack --image l:tag b && umoci config --image l:tag --config.cmd /bin/cat --config.cmd /who
        tar -C l -cf /run/umoci.tar ."#]);
    let umoci = std::fs::read(machine.path("/run/umoci.tar")).unwrap();
    let said = lab
        .api()
        .call(load(umoci.clone(), ""))
        .refused_as(400, "invalid_image_archive", "load failed: ");
    assert!(said.contains("\"tag\"") && said.contains("?tag="), "{said}");
    assert_eq!(
        lab.api().ok(load(umoci, "?tag=from/umoci")),
        json!({ "images": ["from/umoci:latest"] })
    );
    let id = lab.api().run(json!({ "image": "from/umoci" }));
    lab.api().wait_state(&id, "stopped");
    assert_eq!(lab.api().log(&id), "made by umoci\n");

    let buildah = |args: &[&str]| {
        let storage = ["buildah", "--storage-driver=vfs", "--root=/run/bs", "--runroot=/run/br"];
        machine.run(&[&storage[..], args].concat()).trim().to_owned()
    };
    let container = buildah(&["from", "scratch"]);
    machine.run(&["sh", "-euc", "mkdir -p /run/bb/bin && cp /bin/busybox /run/bb/bin/ && ln -s busybox /run/bb/bin/sh && ln -s busybox /run/bb/bin/cat && echo 'made by buildah' > /run/bb/who"]);
    buildah(&["copy", "--chown", "7:8", &container, "/run/bb", "/"]);
    buildah(&["config", "--cmd", "/bin/cat /who", "--user", "7:8", &container]);
    buildah(&["commit", "--quiet", &container, "from/buildah:1"]);
    for format in ["docker-archive", "oci-archive"] {
        let file = format!("/run/buildah-{format}.tar");
        buildah(&[
            "push",
            "--quiet",
            "from/buildah:1",
            &format!("{format}:{file}:localhost/from/buildah:1"),
        ]);
        let archive = std::fs::read(machine.path(&file)).unwrap();
        let loaded = lab.api().ok(load(archive, ""));
        assert_eq!(loaded, json!({ "images": ["localhost/from/buildah:1"] }), "{format}");
        let id = lab.api().run(json!({ "image": "localhost/from/buildah:1" }));
        lab.api().wait_state(&id, "stopped");
        assert_eq!(lab.api().log(&id), "made by buildah\n", "{format}");
        lab.api().delete(&id);
        remove(&lab, "localhost/from/buildah:1");
    }
}

#[test]
fn what_is_no_archive_of_images_changes_nothing() {
    let (lab, image) = lab_with_busybox();
    let saved = archive(&lab, &format!("/v1/images/save?image={image}&format=oci-archive"));
    let before = lab.inventory();
    let refused = |body: Vec<u8>, query: &str, reason: &str| {
        let said = lab
            .api()
            .call(load(body, query))
            .refused_as(400, "invalid_image_archive", "load failed: ");
        assert!(said.contains(reason), "{said}");
        lab.assert_unchanged(&before);
    };
    refused(Vec::new(), "", "neither index.json nor manifest.json");
    refused(b"this is no tar".to_vec(), "", "invalid image archive");
    refused(
        Layer::new().file("etc/passwd", 0o644, "x").archive().to_vec(),
        "",
        "/v1/images/import",
    );
    refused(saved[..saved.len() / 2].to_vec(), "", "unexpected end of file");
    refused(saved.clone(), "?tag=another:1", "every image in it has a name");
    // One byte of a layer.
    let mut wrong = saved.clone();
    let at = saved
        .windows(18)
        .rposition(|bytes| bytes == b"hello from the lab")
        .unwrap();
    wrong[at] = b'H';
    refused(wrong, "", "has the digest");
    assert_eq!(names(&lab), [image]);
}

#[test]
fn a_built_image_is_pushed_and_run_by_others() {
    let lab = Lab::running();
    lab.registry();
    let steps = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                 RUN mkdir -p /app && echo built > /app/file && ln /app/file /app/twin && \
                 chown 7:8 /app/file && chmod 4711 /app/file && ln -s file /app/link && rm /bin/vi\nCMD [\"/bin/cat\", \"/app/twin\"]\n";
    lab.api()
        .ok(Context::new(steps).program("busybox").post("?tag=made/here:1"));
    let to = format!("{REGISTRY}/made/here:1");
    let push = || {
        lab.api().ok(post(
            "/v1/images/push",
            json!({ "image": "made/here:1", "destination": to }),
        ))
    };
    let pushed = push();
    assert_eq!(
        (&pushed["destination"], &pushed["rewritten"]),
        (&json!(to), &json!(false))
    );
    assert_eq!(pushed["configDigest"], inspect(&lab, "made/here:1")["id"]);
    let again = push();
    assert_eq!((&again["uploadedBytes"], &again["newLayers"]), (&json!(0), &json!(0)));
    assert_eq!(again["manifestDigest"], pushed["manifestDigest"]);
    let mounted = lab.api().ok(post(
        "/v1/images/push",
        json!({ "image": "made/here:1", "destination": format!("{REGISTRY}/other:1") }),
    ));
    assert_eq!(mounted["newLayers"], 0, "the registry takes its own layers");

    // skopeo and umoci.
    let theirs = unpacked_by_others(&lab, &format!("docker://{to}"), "/run/theirs");
    for line in [
        "app/file f 4711 7 8 2 ",
        "app/twin f 4711 7 8 2 ",
        "app/link l 777 0 0 1 file ",
    ] {
        assert!(theirs.contains(line), "{line}: {theirs}");
    }
    assert!(!theirs.contains("bin/vi "), "{theirs}");
    // podman.
    let podman = [
        "podman",
        "--root=/run/ps",
        "--runroot=/run/pr",
        "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs",
        "--events-backend=none",
    ];
    lab.machine()
        .run(&[&podman[..], &["pull", "--quiet", "--tls-verify=false", &to]].concat());
    let ours = inspect(&lab, "made/here:1");
    let theirs = lab.machine().run(
        &[
            &podman[..],
            &[
                "image",
                "inspect",
                "--format",
                "{{.Id}} {{.Config.Cmd}} {{len .RootFS.Layers}}",
                &to,
            ],
        ]
        .concat(),
    );
    let id = ours["id"].as_str().unwrap().trim_start_matches("sha256:");
    let layers = ours["layers"].as_array().unwrap().len();
    assert_eq!(theirs.trim(), format!("{id} [/bin/cat /app/twin] {layers}"));
    // And by us again.
    remove(&lab, "made/here:1");
    lab.api().ok(post("/v1/images", json!({ "image": to })));
    assert_eq!(
        output(&lab, &to, "stat -c '%a %u %g %h' /app/file; cat /app/link"),
        "4711 7 8 2\nbuilt\n"
    );
}

#[test]
fn a_push_with_credentials_of_the_request() {
    let lab = Lab::start();
    lab.daemon()
        .set("CONDENSER_INSECURE_REGISTRIES", &format!("{REGISTRY},{GUARDED}"));
    lab.daemon().set("CONDENSER_LOG_LEVEL", "trace");
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let _guarded = Registry::guarded(lab.machine());
    let push = |auth: Value| {
        let body = json!({ "image": image, "destination": format!("{GUARDED}/copies/busybox:2"), "auth": auth });
        lab.api().call(post("/v1/images/push", body))
    };
    let said = push(Value::Null).refused_as(502, "registry_denied", "push failed: ");
    assert!(said.contains("it wants credentials"), "{said}");
    let wrong = json!({ "username": Registry::USER, "password": "wrong-horse-battery" });
    let said = push(wrong).refused_as(502, "registry_denied", "push failed: ");
    assert!(
        said.contains("UNAUTHORIZED") && said.contains("authentication required"),
        "the registry's words: {said}"
    );
    push(json!({ "username": Registry::USER, "password": "wrong-horse-battery", "token": "x" })).refused_as(
        400,
        "invalid_option",
        "push failed: ",
    );
    push(json!({ "username": Registry::USER, "password": ["wrong-horse-battery"] })).refused_as(
        400,
        "invalid_body",
        "invalid json: auth.password",
    );
    let right = json!({ "username": Registry::USER, "password": Registry::PASSWORD });
    assert_eq!(push(right).status, 200);
    push(Value::Null).refused_as(502, "registry_denied", "push failed: ");
    let log = lab.daemon().log();
    assert!(!log.contains("horse-battery"), "a password is in the log");
    let found = lab
        .machine()
        .output(&["grep", "-rlaF", "horse-battery", "/var/log", "/etc/raind", "/run/raind"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    lab.api()
        .call(post("/v1/images/push", json!({ "image": "nothing:1" })))
        .refused_as(404, "image_not_found", "push failed: ");
    lab.api()
        .call(post(
            "/v1/images/push",
            json!({ "image": image, "destination": "192.0.2.1:1/a:1" }),
        ))
        .refused_as(502, "registry_failed", "push failed: ");
}

/// The archive's entries, by name and kind.
fn entries(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entry = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let entry = entry.unwrap();
        let header = entry.header();
        format!(
            "{} {:?} {:o}",
            entry.path().unwrap().display(),
            header.entry_type(),
            header.mode().unwrap()
        )
    };
    archive.entries().unwrap().map(entry).collect()
}

#[test]
fn a_container_is_exported_and_imported() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let script = "echo new > /new; chmod 6755 /new; ln /new /twin; rm /www/index.html; mkdir /tmp/d; echo m > /mnt/in; touch /.wh.x; exec sleep 1000";
    lab.machine().write("/srv/volume/.keep", "");
    let id = api.run(
        json!({ "image": image, "name": "app", "mount": ["/srv/volume:/mnt"], "command": ["/bin/sh", "-c", script] }),
    );
    wait_for("the script", Duration::from_secs(10), || {
        match api.exec("app", "ls /.wh.x") {
            said if said.contains("/.wh.x\n") && !said.contains("No such") => Ok(()),
            said => Err(said),
        }
    });
    let running = archive(&lab, "/v1/containers/app/export");
    api.stop("app");
    let stopped = archive(&lab, &format!("/v1/containers/{id}/export"));
    for exported in [&running, &stopped] {
        let entries = entries(exported);
        let has = |line: &str| entries.iter().any(|entry| entry == line);
        assert!(
            has("new Regular 6755") && has("twin Link 6755") && has("bin/busybox Regular 755"),
            "{entries:?}"
        );
        assert!(has(".wh.x Regular 644"), "a name is only a name: {entries:?}");
        assert!(
            !entries
                .iter()
                .any(|entry| entry.starts_with("www/index.html") || entry.starts_with("mnt/in")),
            "{entries:?}"
        );
        assert!(
            !entries.iter().any(|entry| entry.starts_with("proc/1")),
            "mounts are left out"
        );
    }
    api.call(get("/v1/containers/nothing/export"))
        .refused_as(404, "container_not_found", "export failed: ");
    // What was exported is a root file system. In a layer the one odd name means something else, and is not a file.
    let query =
        "?tag=imported:1&change=CMD%20%5B%22cat%22,%22/new%22%5D&change=ENV%20MODE=x&message=from%20a%20container";
    let import = |body: Vec<u8>, query: &str| send("POST", &format!("/v1/images/import{query}"), body);
    let imported = api.ok(import(running.clone(), query));
    assert_eq!(imported, json!({ "images": ["library/imported:1"] }));
    assert_eq!(
        output(
            &lab,
            "imported:1",
            "cat /new; stat -c %a /new; stat -c %h /twin; ls /www; echo $MODE"
        ),
        "new\n6755\n2\nx\n"
    );
    let told = inspect(&lab, "imported:1");
    assert_eq!(told["cmd"], json!(["cat", "/new"]));
    assert_eq!(told["history"][0]["comment"], "from a container");
    let refused = |body: Vec<u8>, query: &str, code: &str, reason: &str| {
        let said = api.call(import(body, query)).refused_as(400, code, "");
        assert!(said.contains(reason), "{said}");
    };
    refused(Vec::new(), "?tag=x:1", "invalid_image_archive", "it is empty");
    refused(
        b"this is no tar at all".to_vec(),
        "?tag=x:1",
        "invalid_image_archive",
        "import failed: ",
    );
    refused(running.clone(), "", "invalid_query", "missing tag query");
    refused(
        running,
        "?tag=x:1&change=RUN%20true",
        "invalid_option",
        "it is none of CMD",
    );
}

#[test]
fn a_container_is_committed() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    api.run(json!({ "image": image, "name": "app", "command": until_term(0) }));
    api.exec("app", "echo changed > /www/index.html; rm /etc/nsswitch.conf; mkdir -p /opt/new; chown 7:8 /opt/new; chmod 1770 /opt/new");
    let commit = |body: Value| post("/v1/containers/app/commit", body);
    for (tag, pause) in [("made/paused:1", true), ("made/live:1", false)] {
        let body = json!({ "tag": tag, "pause": pause, "author": "somebody", "message": "a change",
            "changes": ["CMD [\"cat\", \"/www/index.html\"]", "ENV MODE=x", "LABEL kind=\"a test\"", "EXPOSE 80"] });
        assert_eq!(api.ok(commit(body)), json!({ "image": tag }));
        let id = api.run(json!({ "image": tag }));
        api.wait_state(&id, "stopped");
        assert_eq!(api.log(&id), "changed\n");
        api.delete(&id);
        assert_eq!(
            output(
                &lab,
                tag,
                "ls /etc/nsswitch.conf 2>&1; stat -c '%a %u %g' /opt/new; echo $MODE"
            ),
            "ls: /etc/nsswitch.conf: No such file or directory\n1770 7 8\nx\n"
        );
        let told = inspect(&lab, tag);
        assert_eq!(told["labels"]["kind"], "a test");
        assert_eq!(told["exposedPorts"], json!(["80/tcp"]));
        let last = told["history"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&last["author"], &last["comment"]),
            (&json!("somebody"), &json!("a change"))
        );
        assert_eq!(told["layers"].as_array().unwrap().len(), 2);
    }
    // It runs on, and a stopped one can be committed too.
    assert_eq!(api.exec("app", "cat /www/index.html"), "changed\n");
    api.stop("app");
    // The image of the container may be gone meanwhile.
    api.ok(post(
        "/v1/images/tag",
        json!({ "image": "made/live:1", "target": image }),
    ));
    api.ok(commit(json!({ "tag": "made/stopped:1" })));
    assert_eq!(output(&lab, "made/stopped:1", "cat /www/index.html"), "changed\n");
    api.call(commit(json!({})))
        .refused_as(400, "invalid_body", "commit failed: missing tag");
    api.call(commit(json!({ "tag": "x:1", "changes": ["RUN true"] })))
        .refused_as(400, "invalid_option", "commit failed: ");
    api.call(post("/v1/containers/nothing/commit", json!({ "tag": "x:1" })))
        .refused_as(404, "container_not_found", "commit failed: ");
    api.delete("app");
    for name in ["made/paused:1", "made/live:1", "made/stopped:1", &image] {
        remove(&lab, name);
    }
    lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    lab.assert_unchanged(&before);
}

#[test]
fn a_crash_during_a_load_leaves_all_or_nothing() {
    let lab = Lab::running();
    let before = lab.inventory();
    let files = |name: &str| {
        (0..300).fold(Layer::new(), |layer, n| {
            layer.file(&format!("{name}/{n}"), 0o644, vec![1; 9000])
        })
    };
    let one = lab.pull(&ImageSpec::busybox().layer(files("one")), "lab/one:1");
    let two = lab.pull(&ImageSpec::busybox().layer(files("two")), "lab/two:1");
    let saved = archive(&lab, &format!("/v1/images/save?image={one}&image={two}"));
    let clear = || {
        for name in names(&lab) {
            remove(&lab, &name);
        }
        lab.assert_unchanged(&before);
    };
    clear();
    let begun = Instant::now();
    lab.api().ok(load(saved.clone(), ""));
    let whole = begun.elapsed();
    clear();
    for moment in moments(whole) {
        let api = lab.api();
        let load = || drop(api.try_call(load(saved.clone(), "")));
        interrupted(&lab, moment, load, || {
            let found = names(&lab);
            if found.is_empty() {
                lab.assert_unchanged(&before);
            } else {
                assert_eq!(found, [one.clone(), two.clone()]);
                assert_eq!(output(&lab, &two, "ls /two | wc -l"), "300\n");
            }
            clear();
        });
    }
}

#[test]
fn a_crash_during_a_push_leaves_no_half_of_an_image() {
    let lab = Lab::running();
    let files = (0..200_u32).fold(Layer::new(), |layer, n| {
        let noise: Vec<u8> = (0..20_000_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761 + n) >> 13) as u8)
            .collect();
        layer.file(&format!("d/{n}"), 0o644, noise)
    });
    let image = lab.pull(&ImageSpec::busybox().layer(files.zstd()), "lab/one:1");
    lab.api()
        .ok(post("/v1/images/tag", json!({ "image": image, "target": "copy:1" })));
    let push = |n: usize| {
        post(
            "/v1/images/push",
            json!({ "image": "copy:1", "destination": format!("{REGISTRY}/copies/{n}:1") }),
        )
    };
    let begun = Instant::now();
    lab.api().ok(push(100));
    let whole = begun.elapsed();
    for (n, moment) in moments(whole).enumerate() {
        let api = lab.api();
        interrupted(
            &lab,
            moment,
            || drop(api.try_call(push(n))),
            || {
                let there = format!("{REGISTRY}/copies/{n}:1");
                // Whatever tag is there is that of a whole image, and the next push completes it.
                for _ in 0..2 {
                    let pulled = lab.api().call(post("/v1/images", json!({ "image": there })));
                    match pulled.status {
                        200 => remove(&lab, &there),
                        _ => drop(pulled.refused_as(404, "manifest_not_found", "pull failed: ")),
                    }
                    lab.api().ok(push(n));
                }
                lab.api().ok(post("/v1/images", json!({ "image": there })));
                remove(&lab, &there);
            },
        );
    }
}

#[test]
fn a_container_that_a_crash_left_frozen_goes_on() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let files = "mkdir /big; for n in $(seq 400); do head -c 20000 /bin/busybox > /big/$n; done";
    api.run(json!({ "image": image, "name": "app", "command": until_term(0) }));
    api.exec("app", files);
    let commit = || post("/v1/containers/app/commit", json!({ "tag": "made:1" }));
    let begun = Instant::now();
    api.ok(commit());
    let whole = begun.elapsed();
    remove(&lab, "made:1");
    for moment in moments(whole) {
        let api = lab.api();
        interrupted(
            &lab,
            moment,
            || drop(api.try_call(commit())),
            || {
                assert_eq!(lab.api().exec("app", "ls /big | wc -l"), "400\n");
                if names(&lab).contains(&"library/made:1".to_owned()) {
                    assert_eq!(output(&lab, "made:1", "ls /big | wc -l"), "400\n");
                    remove(&lab, "made:1");
                }
            },
        );
    }
}

/// The lines of a progress answer.
fn lines(lab: &Lab, call: Call) -> Vec<Value> {
    let reply = lab.api().call(call.header("Accept", "application/x-ndjson"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.headers["content-type"], "application/x-ndjson");
    let text = reply.text();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn push_load_and_import_tell_their_progress() {
    let (lab, image) = lab_with_busybox();
    let check = |lines: &[Value], phases: &[&str], message: &str| {
        let told = lines.iter().filter(|line| line["event"] == "phase");
        let told: Vec<&str> = told.map(|line| line["phase"].as_str().unwrap()).collect();
        assert_eq!(told, phases, "{lines:?}");
        let last = lines.last().unwrap();
        assert_eq!(
            (&last["event"], &last["message"]),
            (&json!("result"), &json!(message)),
            "{lines:?}"
        );
        last["data"].clone()
    };
    let to = format!("{REGISTRY}/copies/busybox:2");
    let body = json!({ "image": image, "destination": to });
    let pushed = lines(&lab, post("/v1/images/push", body));
    let data = check(&pushed, &["resolving", "layers", "committing"], "push completed");
    assert_eq!(data["destination"], json!(to));
    assert!(
        pushed
            .iter()
            .any(|line| line["event"] == "transfer" && line["state"] == "present"),
        "{pushed:?}"
    );
    let saved = archive(&lab, &format!("/v1/images/save?image={image}&format=docker-archive"));
    remove(&lab, &image);
    let loaded = lines(&lab, load(saved, ""));
    let data = check(&loaded, &["receiving", "layers", "committing"], "load completed");
    assert_eq!(data["images"], json!([image]));
    assert!(
        loaded
            .iter()
            .any(|line| line["event"] == "transfer" && line["state"] == "done"),
        "{loaded:?}"
    );
    let root = Layer::new().file("a", 0o644, "1").archive().to_vec();
    let imported = lines(&lab, send("POST", "/v1/images/import?tag=x:1", root));
    check(&imported, &["receiving", "committing"], "import completed");
    let bad = lab
        .api()
        .call(load(b"no tar".to_vec(), "").header("Accept", "application/x-ndjson"));
    let last: Value = serde_json::from_str(bad.text().lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["code"]),
        (&json!("error"), &json!("invalid_image_archive"))
    );
}

#[test]
fn an_index_is_copied_with_all_its_platforms() {
    let lab = Lab::running();
    let ours = ImageSpec::busybox();
    let other = ImageSpec::scratch()
        .architecture("s390x")
        .layer(Layer::new().file("which", 0o644, "other\n"));
    let index = lab.registry().push_index(&[ours, other], "lab/multi:1");
    let from = format!("{REGISTRY}/lab/multi:1");
    let body = json!({ "image": from, "destination": format!("{REGISTRY}/copies/multi:2"), "allPlatforms": true });
    let pushed = lab.api().ok(post("/v1/images/push", body));
    assert_eq!(
        (&pushed["manifestDigest"], &pushed["newLayers"]),
        (&json!(index), &json!(0))
    );
    assert_eq!(names(&lab), [""; 0]);
    let raw = |name: &str| {
        lab.machine().run(&[
            "skopeo",
            "inspect",
            "--raw",
            "--tls-verify=false",
            &format!("docker://{REGISTRY}/{name}"),
        ])
    };
    assert_eq!(raw("copies/multi:2"), raw("lab/multi:1"));
    let directory = "/run/all";
    lab.machine().run(&["mkdir", "-p", directory]);
    let copy = [
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        "--all",
        "--src-tls-verify=false",
    ];
    lab.machine().run(
        &[
            &copy[..],
            &[&format!("docker://{REGISTRY}/copies/multi:2"), "oci:/run/all/layout:1"],
        ]
        .concat(),
    );
}
