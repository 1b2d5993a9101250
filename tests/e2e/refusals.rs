//! Bad input: each gets the status and the sentence of the contract, and nothing is left behind.

use std::time::Duration;

use serde_json::{Value, json};
use tar::EntryType;

use crate::support::{ImageSpec, Inventory, Lab, Layer, REGISTRY, delete, get, post, send};
use crate::{lab_with_busybox, until_term};

/// Sends a create request that has to be refused, and compares the machine before and after.
fn refused(
    lab: &Lab,
    before: &Inventory,
    mut request: Value,
    image: &str,
    (status, code): (u16, &str),
    message: &str,
) -> String {
    if request.get("image").is_none() {
        request["image"] = image.into();
    }
    let reply = lab.api().call(post("/v1/containers", request.clone()));
    assert_eq!(reply.json()["data"], json!({ "id": "" }), "{request}");
    let said = reply.refused_as(status, code, message);
    lab.assert_unchanged(before);
    said
}

#[test]
fn of_containers() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    lab.machine().write("/mnt/note", "x");
    lab.machine().run(&["ln", "-s", "/etc/raind", "/mnt/link"]);
    let web = api.run(json!({ "image": image, "name": "web", "port": ["8080:80"], "command": until_term(0) }));
    let before = lab.inventory();
    let refuse = |request: Value, cause, message: &str| refused(&lab, &before, request, &image, cause, message);

    for name in [
        "a/b",
        "-x",
        ".x",
        "stats",
        "condenser-pod-infra-x",
        "a b",
        "é",
        &"x".repeat(129),
    ] {
        let said = refuse(json!({ "name": name }), (400, "invalid_name"), "service failed: ");
        assert!(said.contains(name) || name.len() > 100, "{said}");
    }
    refuse(
        json!({ "name": "web" }),
        (409, "name_taken"),
        "service failed: name: web already used by other container",
    );
    // A name that is an id would hide the container that has it.
    let message = format!("service failed: invalid container name: {web:?} is the id of another container");
    refuse(json!({ "name": web }), (400, "invalid_name"), &message);
    let no_image = (400, "invalid_image_reference");
    refuse(
        json!({ "image": "" }),
        no_image,
        "service failed: empty repository: name an image",
    );
    let bad_option = (400, "invalid_body");
    refuse(
        json!({ "env": ["A=", "B"] }),
        bad_option,
        "service failed: env[1] is not NAME=value; variables of the client's environment are not known here",
    );
    refuse(
        json!({ "env": ["=x"] }),
        bad_option,
        "service failed: env[0] is not NAME=value",
    );
    for image in [
        "../../x@y",
        "a//b",
        "UPPER/x",
        "a/..",
        "a:b:c",
        "a@sha256:zz",
        "https://a/b",
        "a b",
    ] {
        let message = format!("service failed: invalid image reference: {image}");
        assert_eq!(refuse(json!({ "image": image }), no_image, &message), message);
    }
    for port in ["1:2:tcp:3", ""] {
        let message = format!("service failed: forward rule failed: port format failed: {port}");
        refuse(json!({ "port": [port] }), (400, "invalid_port"), &message);
    }
    for port in [
        "0:80",
        "80:0",
        "65536:80",
        "a:80",
        "80:80:sctp",
        "-1:80",
        "80:80:",
        " 80:80",
    ] {
        let said = refuse(json!({ "port": [port] }), (400, "invalid_port"), "service failed: ");
        assert!(!said.contains("exit status"), "{said}");
    }
    let said = refuse(json!({ "port": ["8080:81"] }), (409, "port_taken"), "service failed: ");
    assert!(
        said.contains("web") || said.contains(&web),
        "the holder is not named: {said}"
    );
    for (second, cause) in [("8080:80", (409, "port_taken")), ("9000:81", (400, "invalid_port"))] {
        refuse(json!({ "port": ["9000:80", second] }), cause, "service failed: ");
    }

    let mounts = [
        ("/mnt", "invalid mount format"),
        ("/no/such:/x", "stat /no/such: no such file or directory"),
        ("relative:/x", ""),
        ("/mnt/note:relative", ""),
        ("/etc/raind/cert:/x", "invalid mount source: /etc/raind/cert"),
        ("/mnt/../etc/raind:/x", "invalid mount source: "),
        ("/proc:/x", "invalid mount source: /proc"),
        ("/:/x", "invalid mount source: /"),
        ("/root:/x", "invalid mount source: /root"),
        ("/mnt/link:/x", ""),
        ("/mnt/link/cert:/x", ""),
        ("/mnt:/proc/x", "invalid mount destination: /proc/x"),
        ("/mnt:/", "invalid mount destination: /"),
        ("/mnt:/x:suid", ""),
    ];
    for (mount, message) in mounts {
        let begin = "service failed: create spec failed: ";
        let said = refuse(json!({ "mount": [mount] }), (400, "invalid_mount"), begin);
        assert!(said.contains(message), "{mount}: {said}");
    }
    refuse(
        json!({ "network": "nonet" }),
        (404, "network_not_found"),
        "service failed: target bridge not configured: nonet",
    );
    refuse(
        json!({ "network": "eth0" }),
        (404, "network_not_found"),
        "service failed: target bridge not configured: eth0",
    );
    let no_pod = (404, "pod_not_found");
    refuse(
        json!({ "podId": "nopod" }),
        no_pod,
        "service failed: pod: nopod not found",
    );

    for body in [
        "",
        "{",
        "[]",
        "\"x\"",
        "{\"image\":1}",
        "{\"image\":\"a\"} {}",
        "{\"Image\":\"a\"}",
        "{\"foo\":1}",
        "\u{0}",
    ] {
        let reply = api.call(send("POST", "/v1/containers", body));
        assert_eq!(reply.json()["data"], json!({ "id": "" }), "{body}");
        reply.refused_as(400, "invalid_body", "invalid json: ");
    }
    let large = format!("{{\"image\":\"{}\"}}", "a".repeat(1 << 20));
    api.call(send("POST", "/v1/containers", large))
        .refused_as(413, "body_too_large", "");

    let act = |method: &str, name: &str, action: &str| {
        api.call(send(
            method,
            &format!("/v1/containers/{name}/actions/{action}"),
            Vec::new(),
        ))
    };
    let message = format!("service failed: container: {web} already started");
    act("POST", "web", "start").refused_as(409, "already_started", &message);
    act("DELETE", "web", "delete").refused_as(
        409,
        "wrong_state",
        "service failed: delete operation not allowed to current container status: running",
    );
    for (method, action) in [("POST", "start"), ("POST", "stop"), ("DELETE", "delete")] {
        let reply = act(method, "nosuch", action);
        assert_eq!(reply.json()["data"], json!({ "id": "nosuch" }));
        reply.refused_as(
            404,
            "container_not_found",
            "service failed: container: nosuch not found",
        );
        act(method, "", action).refused_as(400, "invalid_path", "missing container");
    }
    for path in ["", "/log", "/logpath"] {
        let reply = api.call(get(&format!("/v1/containers/nosuch{path}")));
        reply.refused_as(404, "container_not_found", "");
    }
    lab.assert_unchanged(&before);

    api.stop("web");
    act("POST", "web", "stop").refused_as(
        409,
        "wrong_state",
        "service failed: stop operation not allowed to current container status: stopped",
    );
}

#[test]
fn of_images() {
    let lab = Lab::running();
    let api = lab.api();
    let registry = lab.registry();
    let plain = |layer: Layer| ImageSpec::scratch().layer(layer);
    let file = || Layer::new().file("f", 0o644, "content");

    let wrong = registry.push(&plain(file()), "bad/digest:1");
    registry.spoil(&wrong.layers[0], &Layer::new().file("f", 0o644, "another").blob());
    let cut = registry.push(&plain(file()), "bad/cut:1");
    let blob = file().blob();
    registry.spoil(&cut.layers[0], &blob[..blob.len() / 2]);
    for (name, path) in [
        ("up", "../../escape"),
        ("absolute", "/../../escape"),
        ("inside", "a/../../escape"),
    ] {
        registry.push(&plain(Layer::new().file(path, 0o644, "x")), &format!("bad/{name}:1"));
    }
    // Through a link of an earlier entry, and of an earlier layer: must land inside or be refused.
    let link = || Layer::new().symlink("out", "../../../../../../mnt");
    registry.push(&plain(link().file("out/escape", 0o644, "x")), "bad/link:1");
    registry.push(
        &plain(link()).layer(Layer::new().file("out/escape", 0o644, "x")),
        "bad/link-below:1",
    );
    registry.push(
        &plain(Layer::new().hardlink("shadow", "../../../../../etc/shadow")),
        "bad/hardlink:1",
    );
    let other = ImageSpec::scratch().layer(file()).architecture("riscv64");
    registry.push_index(&[other], "bad/platform:1");
    let garbage = registry.blob("bad/garbage", b"this is not an archive, whatever its type says");
    let config = registry.blob("bad/garbage", &plain(file()).config_document());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": plain(file()).config_document().len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": garbage, "size": 46 }],
    });
    registry.manifest("bad/garbage", "1", kind, &manifest);
    let device = Layer::new().entry(EntryType::Block, "disk", "", 0o666, (0, 0), &[]);
    registry.push(&plain(device), "odd/device:1");

    let before = lab.inventory();
    let pull = |image: &str| api.call(post("/v1/images", json!({ "image": image })));
    let cases = [
        "bad/digest:1",
        "bad/cut:1",
        "bad/up:1",
        "bad/inside:1",
        "bad/garbage:1",
        "bad/hardlink:1",
    ];
    for name in cases {
        pull(&format!("{REGISTRY}/{name}")).refused_as(502, "bad_image", "pull failed: ");
        lab.assert_unchanged(&before);
    }
    pull(&format!("{REGISTRY}/nosuch/image:1")).refused_as(
        404,
        "manifest_not_found",
        "pull failed: manifest fetch failed: 404: ",
    );
    let platform = format!(
        "pull failed: no manifest for platform linux/{}",
        ImageSpec::scratch().platform()
    );
    pull(&format!("{REGISTRY}/bad/platform:1")).refused_as(404, "platform_not_found", &platform);
    pull("192.0.2.1:5999/down:1").refused_as(502, "registry_failed", "pull failed: ");
    pull("registry.invalid/app:1").refused_as(502, "registry_failed", "pull failed: ");
    pull("").refused_as(400, "invalid_image_reference", "pull failed: empty repository");
    for image in ["../../x@y", "a/../b", "A", "x:", "x@sha256:1"] {
        let message = format!("pull failed: invalid image reference: {image}");
        assert_eq!(
            pull(image).refused_as(400, "invalid_image_reference", &message),
            message
        );
    }
    for body in ["", "{", "{\"image\":\"a\",\"tag\":1}"] {
        api.call(send("POST", "/v1/images", body))
            .refused(400, "invalid json: ");
        api.call(send("DELETE", "/v1/images", body))
            .refused(400, "invalid json: ");
    }
    let absent = |call| api.call(call).refused_as(404, "image_not_found", "");
    assert_eq!(
        absent(get("/v1/images/status?image=nosuch")),
        "retrieve image status failed: library/nosuch:latest not found"
    );
    assert_eq!(
        absent(get("/v1/images/fs?image=nosuch")),
        "retrieve image fs info failed: bundle path not found. The image library/nosuch:latest is not on this host; GET \
         /v1/images says which ones are"
    );
    let removal = delete("/v1/images").json(&json!({ "image": "nosuch" }));
    assert_eq!(
        absent(removal),
        "remove failed: bundle path not found. The image library/nosuch:latest is not on this host; GET /v1/images says \
         which ones are"
    );
    assert_eq!(api.ok(get("/v1/images")), json!([]));
    lab.assert_unchanged(&before);

    // These may be pulled, as long as they stay inside.
    for name in ["bad/absolute:1", "bad/link:1", "bad/link-below:1"] {
        pull(&format!("{REGISTRY}/{name}"));
    }
    for path in [
        "/escape",
        "/etc/escape",
        "/mnt/escape",
        "/etc/raind/escape",
        "/etc/raind/image/escape",
    ] {
        assert!(!lab.machine().path(path).exists(), "{path}");
    }
    assert_eq!(pull(&format!("{REGISTRY}/odd/device:1")).status, 200);
}

#[test]
fn of_a_create_whose_image_cannot_be_pulled() {
    let lab = Lab::running();
    lab.registry();
    let before = lab.inventory();
    let unknown = format!("{REGISTRY}/nosuch:1");
    refused(
        &lab,
        &before,
        json!({}),
        &unknown,
        (404, "manifest_not_found"),
        "service failed: manifest fetch failed: 404: ",
    );
    refused(
        &lab,
        &before,
        json!({}),
        "192.0.2.1:5999/down:1",
        (502, "registry_failed"),
        "service failed: ",
    );
}

#[test]
fn of_slow_and_broken_clients() {
    use std::io::{Read, Write};
    let lab = Lab::running();
    // A client that says nothing must not keep others waiting, nor stay for ever.
    let mut silent = lab.machine().at(crate::support::Place::Host, || {
        std::net::TcpStream::connect(("127.0.0.1", 7755)).unwrap()
    });
    lab.api().ok(get("/v1/containers"));
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap_or(0), 0, "the daemon hangs up");
    let mut noise = lab.machine().at(crate::support::Place::Host, || {
        std::net::TcpStream::connect(("127.0.0.1", 7755)).unwrap()
    });
    let _ = noise.write_all(&[0x16; 4096]);
    lab.api().ok(get("/v1/containers"));
}
