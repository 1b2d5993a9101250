//! What an image holds is what a container sees; layers are shared; pulls are single.

use serde_json::{Value, json};
use tar::EntryType;

use crate::support::{ImageSpec, Lab, Layer, REGISTRY, delete, get, post};
use crate::{lab_with_busybox, until_term};

fn disk_usage(lab: &Lab) -> u64 {
    let said = lab.machine().run(&["du", "-s", "--block-size=1", "/etc/raind/image"]);
    said.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn remove(lab: &Lab, image: &str) -> Value {
    lab.api().ok(delete("/v1/images").json(&json!({ "image": image })))
}

/// What a command in a container of that image prints.
pub fn output(lab: &Lab, image: &str, script: &str) -> String {
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": ["/bin/sh", "-c", script] }));
    api.wait_state(&id, "stopped");
    let said = api.log(&id);
    api.delete(&id);
    said
}

#[test]
fn layers_are_stored_once_and_live_as_long_as_they_are_used() {
    let lab = Lab::running();
    let before = lab.inventory();
    let base = ImageSpec::busybox().layer(Layer::new().file("shared", 0o644, vec![b'x'; 4 << 20]));
    let one = lab.pull(&base.clone().layer(Layer::new().file("one", 0o644, "1\n")), "lab/one:1");
    let used = disk_usage(&lab);
    let two = lab.pull(&base.layer(Layer::new().file("two", 0o644, "2\n")), "lab/two:1");
    let more = disk_usage(&lab) - used;
    assert!(more < 1 << 20, "the second image took {more} bytes more");

    let images = lab.api().ok(get("/v1/images"));
    let names: Vec<_> = images
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["repository"].as_str().unwrap())
        .collect();
    assert_eq!(names, [format!("{REGISTRY}/lab/one"), format!("{REGISTRY}/lab/two")]);

    assert_eq!(remove(&lab, &one), json!({ "image": one }));
    assert_eq!(
        output(&lab, &two, "cat /two; ls /one; wc -c < /shared"),
        "2\nls: /one: No such file or directory\n4194304\n"
    );
    remove(&lab, &two);
    lab.assert_unchanged(&before);
}

#[test]
fn layers_of_a_replaced_image_go_with_its_last_container() {
    let lab = Lab::running();
    let big = |name: &str| Layer::new().file(name, 0o644, vec![name.as_bytes()[0]; 4 << 20]);
    let image = lab.pull(&ImageSpec::busybox().layer(big("old")), "lab/app:1");
    let used = disk_usage(&lab);
    let id = lab.api().create(json!({ "image": image, "command": ["/bin/true"] }));
    lab.pull(&ImageSpec::busybox().layer(big("new")), "lab/app:1");
    assert!(
        disk_usage(&lab) > used + (3 << 20),
        "the container stands on the old layers"
    );
    lab.api().delete(&id);
    assert!(disk_usage(&lab) < used + (1 << 20), "nothing stands on the old layers");
}

#[test]
fn a_user_that_the_image_does_not_have_is_bad_input() {
    let lab = Lab::running();
    let before = lab.inventory();
    let image = lab.pull(&ImageSpec::busybox().user("nobody-knows"), "lab/user:1");
    let said = lab
        .api()
        .call(post("/v1/containers", json!({ "image": image })))
        .refused(400, "service failed: ");
    assert!(said.contains("nobody-knows"), "{said}");
    remove(&lab, &image);
    lab.assert_unchanged(&before);
}

#[test]
fn an_image_in_use_is_not_removed() {
    let (lab, image) = lab_with_busybox();
    let id = lab
        .api()
        .run(json!({ "image": image, "name": "user", "command": until_term(0) }));
    let said = lab
        .api()
        .call(delete("/v1/images").json(&json!({ "image": image })))
        .refused(409, "remove failed: ");
    assert!(
        said.contains("user") || said.contains(&id),
        "the container is not named: {said}"
    );
    assert_eq!(lab.api().exec("user", "cat /www/index.html"), "hello from the lab\n");
    // A newer image under the same name takes nothing away from the container.
    lab.pull(
        &ImageSpec::busybox().layer(Layer::new().file("new", 0o644, "")),
        "library/busybox:1",
    );
    lab.api().stop("user");
    lab.api().start("user");
    assert_eq!(lab.api().exec("user", "cat /www/index.html"), "hello from the lab\n");
    lab.api().stop("user");
    lab.api().delete("user");
    remove(&lab, &image);
}

#[test]
fn every_way_of_packing_gives_the_same_files() {
    let lab = Lab::running();
    let layers = |layer: fn() -> Layer| ImageSpec::busybox().layer(layer());
    let specs = [
        ("gzip", layers(|| Layer::new().file("note", 0o644, "text\n"))),
        ("zstd", layers(|| Layer::new().file("note", 0o644, "text\n").zstd())),
        ("plain", layers(|| Layer::new().file("note", 0o644, "text\n").plain())),
        ("docker", layers(|| Layer::new().file("note", 0o644, "text\n")).docker()),
    ];
    for (name, spec) in specs {
        let image = lab.pull(&spec, &format!("lab/{name}:1"));
        assert_eq!(output(&lab, &image, "cat /note"), "text\n", "{name}");
    }
}

#[test]
fn a_container_sees_the_entries_as_the_layers_have_them() {
    let lab = Lab::running();
    let lower = Layer::new()
        .dir("app", 0o750)
        .file("app/gone", 0o644, "x")
        .file("app/kept", 0o640, "kept\n")
        .dir("app/opaque", 0o755)
        .file("app/opaque/hidden", 0o644, "x")
        .owned("app/owned", 0o4755, (1000, 2000), "setuid\n")
        .hardlink("app/twin", "app/kept")
        .symlink("app/link", "kept")
        .entry(EntryType::Fifo, "app/fifo", "", 0o600, (0, 0), &[])
        // Merged-usr images replace a directory by a link and still have entries below it.
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .file("lib/library", 0o644, "library\n");
    let upper = Layer::new()
        .dir("app", 0o750)
        .file("app/.wh.gone", 0o644, "")
        .file("app/opaque/.wh..wh..opq", 0o644, "")
        .file("app/opaque/shown", 0o644, "x");
    let image = lab.pull(&ImageSpec::busybox().layer(lower).layer(upper), "lab/entries:1");
    let script = "cd /app; ls -1; ls opaque; cat kept twin link /usr/lib/library; stat -c '%a %u %g %n' . owned; \
                  stat -c %h kept; test -p fifo && echo fifo; rm -r opaque && mkdir opaque && ls opaque && echo replaced";
    let wanted = "fifo\nkept\nlink\nopaque\nowned\ntwin\nshown\nkept\nkept\nkept\nlibrary\n750 0 0 .\n4755 1000 2000 owned\n\
                  2\nfifo\nreplaced\n";
    assert_eq!(output(&lab, &image, script), wanted);
}

#[test]
fn the_host_s_platform_is_chosen_from_an_index() {
    let lab = Lab::running();
    let ours = ImageSpec::busybox().layer(Layer::new().file("which", 0o644, "ours\n"));
    let other = ImageSpec::scratch()
        .architecture("s390x")
        .layer(Layer::new().file("which", 0o644, "other\n"));
    lab.registry().push_index(&[other, ours], "lab/multi:1");
    let image = format!("{REGISTRY}/lab/multi:1");
    lab.api().ok(post("/v1/images", json!({ "image": image })));
    assert_eq!(output(&lab, &image, "cat /which"), "ours\n");
    let answer = lab.api().ok(post(
        "/v1/images",
        json!({ "image": image, "os": "linux", "arch": "s390x" }),
    ));
    assert_eq!(answer, json!({ "image": image, "os": "linux", "arch": "s390x" }));
}

#[test]
fn status_and_usage_tell_what_was_pulled() {
    let lab = Lab::running();
    let spec = ImageSpec::busybox().user("web");
    let pushed = lab.registry().push(&spec, "lab/told:1");
    let image = format!("{REGISTRY}/lab/told:1");
    lab.api().ok(post("/v1/images", json!({ "image": image })));
    let status = lab.api().ok(get(&format!("/v1/images/status?image={image}")));
    assert_eq!(status["id"], json!(pushed.config));
    assert_eq!(status["repoTags"], json!([image]));
    assert_eq!(
        status["repoDigests"],
        json!([format!("{REGISTRY}/lab/told@{}", pushed.manifest)])
    );
    assert_eq!(status["sizeBytes"], json!(pushed.size));
    assert_eq!(status["user"], "web");
    let usage = lab.api().ok(get(&format!("/v1/images/fs?image={image}")));
    assert_eq!(usage["image"], json!(image));
    assert!(usage["usedBytes"].as_u64().unwrap() > 1 << 20, "{usage}");
    let by_digest = format!("{REGISTRY}/lab/told@{}", pushed.manifest);
    lab.api().ok(post("/v1/images", json!({ "image": by_digest })));
    let status = lab.api().ok(get(&format!("/v1/images/status?image={by_digest}")));
    assert_eq!(status["repoTags"], json!([]));
}

#[test]
fn many_pulls_of_one_image_are_one_download() {
    let lab = Lab::running();
    let spec = ImageSpec::busybox().layer(Layer::new().file("blob", 0o644, vec![7; 8 << 20]));
    let image = lab.push(&spec, "lab/popular:1");
    let api = lab.api();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| api.ok(post("/v1/images", json!({ "image": image }))));
        }
    });
    assert_eq!(api.ok(get("/v1/images")).as_array().unwrap().len(), 1);
    assert_eq!(output(&lab, &image, "wc -c < /blob"), "8388608\n");
}

#[test]
fn docker_hub_names_come_from_docker_hub() {
    let lab = Lab::running();
    lab.hub().push(&ImageSpec::busybox(), "library/busybox:latest");
    let api = lab.api();
    for name in ["busybox", "docker.io/library/busybox:latest", "index.docker.io/busybox"] {
        api.ok(post("/v1/images", json!({ "image": name })));
    }
    let images = api.ok(get("/v1/images"));
    assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
    assert_eq!(
        (&images[0]["repository"], &images[0]["reference"]),
        (&json!("library/busybox"), &json!("latest"))
    );
    // Not present yet: a create pulls it.
    lab.hub().push(&ImageSpec::busybox(), "me/app:2");
    let id = api.create(json!({ "image": "me/app:2" }));
    assert_eq!(api.container(&id)["imageRepository"], "me/app");
}
