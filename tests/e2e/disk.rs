//! What takes space is shown as it is, and a prune takes what nobody needs and nothing else.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Api, ImageSpec, Lab, Layer, REGISTRY, get, post, wait_for};
use crate::{lab_with_busybox, until_term};

const MIB: u64 = 1 << 20;

fn df(api: &Api) -> Value {
    api.ok(get("/v1/system/df"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn item<'a>(kind: &'a Value, field: &str, wanted: &str) -> &'a Value {
    let items = kind["items"].as_array().unwrap();
    let found = items.iter().find(|item| item[field] == wanted);
    found.unwrap_or_else(|| panic!("no {wanted} in {kind}"))
}

/// The names of what a prune said it removed, in order.
fn removed(pruned: &Value) -> Vec<&str> {
    let objects = pruned["removed"].as_array().unwrap().iter();
    let mut names: Vec<_> = objects.map(|object| object["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

fn ended(api: &Api, image: &str, name: &str, script: &str, more: Value) -> String {
    let mut request = json!({ "image": image, "name": name, "command": ["/bin/sh", "-c", script] });
    request
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let id = api.run(request);
    api.wait_state(&id, "stopped");
    id
}

fn content(name: &str, bytes: usize) -> Layer {
    Layer::new().file(name, 0o644, vec![name.as_bytes()[0]; bytes])
}

#[test]
fn what_takes_space_is_shown() {
    let lab = Lab::running();
    let api = lab.api();
    let base = ImageSpec::busybox().layer(content("shared", 4 << 20));
    let one = lab.pull(&base.clone().layer(content("one", 2 << 20)), "lab/one:1");
    let two = lab.pull(&base.layer(content("two", 1 << 20)), "lab/two:1");
    let script = "head -c 10485760 /dev/urandom > /big; ln /big /again; truncate -s 1G /hole; echo said";
    let stopped = ended(&api, &one, "stopped", script, json!({}));
    let runs = api.run(json!({ "image": one, "name": "runs", "command": until_term(0) }));

    let seen = df(&api);
    let (first, second) = (
        item(&seen["images"], "image", &one),
        item(&seen["images"], "image", &two),
    );
    assert_eq!((&first["containers"], &first["used"]), (&json!(2), &json!(true)));
    assert_eq!((&second["containers"], &second["used"]), (&json!(0), &json!(false)));
    for (image, own) in [(first, 2 * MIB), (second, MIB)] {
        let bytes = |field: &str| number(&image[field]);
        assert!((own..own + MIB / 2).contains(&bytes("ownBytes")), "{image}");
        assert!(bytes("sharedBytes") > 4 * MIB, "{image}");
        assert_eq!(bytes("sizeBytes"), bytes("ownBytes") + bytes("sharedBytes"));
    }
    let images = &seen["images"];
    assert_eq!((&images["count"], &images["used"]), (&json!(2), &json!(1)));
    let sum = number(&first["sharedBytes"]) + number(&first["ownBytes"]) + number(&second["ownBytes"]);
    assert_eq!(number(&images["sizeBytes"]), sum, "what is shared counts once");
    assert_eq!(images["reclaimableBytes"], second["ownBytes"]);

    let containers = &seen["containers"];
    assert_eq!((&containers["count"], &containers["running"]), (&json!(2), &json!(1)));
    let big = item(containers, "containerId", &stopped);
    assert!((10 * MIB..11 * MIB).contains(&number(&big["sizeBytes"])), "{big}");
    assert!(number(&big["logBytes"]) > 0 && big["state"] == "stopped" && big["image"] == one);
    assert!(number(&item(containers, "containerId", &runs)["sizeBytes"]) < MIB);
    let reclaimable = number(&containers["reclaimableBytes"]);
    assert!((10 * MIB..11 * MIB).contains(&reclaimable), "{containers}");
    let parts = ["images", "containers", "volumes", "buildCache", "logs"];
    let all: u64 = parts.iter().map(|part| number(&seen[part]["sizeBytes"])).sum();
    assert_eq!(number(&seen["sizeBytes"]), all);
    assert!(number(&seen["reclaimableBytes"]) >= reclaimable + MIB);

    // And a prune frees what was said.
    let pruned = api.ok(post("/v1/containers/prune", json!({})));
    assert_eq!(number(&pruned["bytesFreed"]), reclaimable);
    assert_eq!(df(&api)["containers"]["count"], 1);
}

#[test]
fn volumes_that_outlive_their_bottle_are_shown_and_never_pruned() {
    let lab = Lab::running();
    let api = lab.api();
    lab.machine().run(&["mkdir", "-p", "/etc/raind/volumes/gone/data"]);
    lab.machine().run(&[
        "dd",
        "if=/dev/urandom",
        "of=/etc/raind/volumes/gone/data/rows",
        "bs=1M",
        "count=3",
    ]);
    let volumes = &df(&api)["volumes"];
    let data = item(volumes, "name", "data");
    assert_eq!(
        (&data["ownerKind"], &data["owner"], &data["used"]),
        (&json!("bottle"), &json!("gone"), &json!(false))
    );
    assert!((3 * MIB..4 * MIB).contains(&number(&data["sizeBytes"])), "{data}");
    assert_eq!(volumes["unusedBytes"], data["sizeBytes"]);
    api.ok(post("/v1/system/prune", json!({ "all": true })));
    assert_eq!(df(&api)["volumes"]["count"], 1);
}

#[test]
fn a_prune_of_containers_keeps_what_somebody_needs() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let prune = |body: Value| api.ok(post("/v1/containers/prune", body));
    ended(&api, &image, "old", "true", json!({ "labels": { "team": "a" } }));
    ended(
        &api,
        &image,
        "kept",
        "true",
        json!({ "labels": { "team": "a", "keep": "1" } }),
    );
    ended(&api, &image, "other", "true", json!({}));
    api.create(json!({ "image": image, "name": "created" }));
    api.run(json!({ "image": image, "name": "runs", "command": until_term(0) }));
    let policy = json!({ "name": "on-failure" });
    let failing = api.run(json!({ "image": image, "name": "restarts", "restartPolicy": policy,
        "command": ["/bin/sh", "-c", "exit 1"] }));
    let stays = || {
        let names: Vec<String> = api
            .ok(get("/v1/containers"))
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].as_str().unwrap().to_owned())
            .collect();
        names
    };
    let filters = json!({ "label": ["team=a"], "label!": ["keep"] });
    let would = prune(json!({ "dryRun": true, "filters": filters }));
    assert_eq!((removed(&would), &would["dryRun"]), (vec!["old"], &json!(true)));
    assert_eq!(stays().len(), 6);
    let did = prune(json!({ "filters": filters }));
    assert_eq!(
        (&did["removed"], &did["bytesFreed"]),
        (&would["removed"], &would["bytesFreed"])
    );
    assert_eq!(
        removed(&prune(json!({ "filters": { "until": "1h" } }))),
        [""; 0],
        "all are younger"
    );
    assert_eq!(removed(&prune(json!({}))), ["kept", "other"]);
    let mut left = stays();
    left.sort();
    assert_eq!(left, ["created", "restarts", "runs"]);
    // What its user has stopped is not started again.
    wait_for(
        "a stop of a container that restarts all the time",
        Duration::from_secs(30),
        || {
            let reply = api.call(post(&format!("/v1/containers/{failing}/actions/stop"), json!({})));
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        },
    );
    api.wait_state(&failing, "stopped");
    assert_eq!(removed(&prune(json!({ "filters": { "until": "0s" } }))), ["restarts"]);
}

#[test]
fn a_prune_of_images_keeps_what_is_used_or_wanted() {
    let lab = Lab::running();
    let api = lab.api();
    let image = |name: &str| {
        lab.pull(
            &ImageSpec::busybox().layer(content(name, 1 << 20)),
            &format!("lab/{name}:1"),
        )
    };
    let (used, of_set, free) = (image("used"), image("set"), image("free"));
    let by_digest = lab
        .registry()
        .push(&ImageSpec::busybox().layer(content("digest", 1 << 20)), "lab/digest:1");
    let by_digest = format!("{REGISTRY}/lab/digest@{}", by_digest.manifest);
    api.ok(post("/v1/images", json!({ "image": by_digest })));
    ended(&api, &used, "c", "true", json!({}));
    let set = format!(
        "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: web}}\nspec:\n  replicas: 0\n  selector: {{matchLabels: \
         {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      containers: [{{name: a, image: \
         \"{of_set}\"}}]\n"
    );
    assert_eq!(
        api.call(crate::support::send("POST", "/v1/resource/apply", set)).status,
        201
    );
    let prune = |body: Value| api.ok(post("/v1/images/prune", body));
    let present = || api.ok(get("/v1/images")).as_array().unwrap().len();
    assert_eq!(present(), 4);

    let pruned = prune(json!({}));
    assert_eq!(removed(&pruned).len(), 1, "only the one without a tag: {pruned}");
    assert!((MIB..2 * MIB).contains(&number(&pruned["bytesFreed"])), "{pruned}");
    assert_eq!(
        removed(&prune(json!({ "all": true, "filters": { "until": "24h" } }))),
        [""; 0]
    );
    assert_eq!(
        removed(&prune(json!({ "filters": { "unused": true } }))),
        [free.as_str()]
    );
    assert_eq!(present(), 2);
    // Everything: the container goes, and so does the image that it alone used.
    let pruned = api.ok(post("/v1/system/prune", json!({ "all": true })));
    assert_eq!(
        (removed(&pruned["containers"]), removed(&pruned["images"])),
        (vec!["c"], vec![used.as_str()])
    );
    let sum = number(&pruned["containers"]["bytesFreed"]) + number(&pruned["images"]["bytesFreed"]);
    assert_eq!(number(&pruned["bytesFreed"]), sum);
    assert_eq!(present(), 1, "the set may need its image at any moment");
}

#[test]
fn wrong_filters_remove_nothing() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    ended(&api, &image, "c", "true", json!({}));
    for (kind, body, named) in [
        ("containers", json!({ "filters": { "color": ["red"] } }), "color"),
        ("containers", json!({ "filters": { "dangling": true } }), "dangling"),
        ("images", json!({ "filters": { "until": "yesterday" } }), "until"),
        ("images", json!({ "filters": { "label": [""] } }), "label"),
        (
            "images",
            json!({ "all": true, "filters": { "dangling": true } }),
            "dangling",
        ),
        ("images", json!({ "force": true }), "force"),
        ("system", json!({ "filters": { "before": "24h" } }), "before"),
    ] {
        let reply = api.call(post(&format!("/v1/{kind}/prune"), body));
        let said = reply.refused(400, "");
        assert!(said.contains(named), "{said}");
    }
    assert_eq!(df(&api)["containers"]["count"], 1);
}

#[test]
fn a_prune_in_the_middle_of_pulls_and_creates_takes_nothing_away() {
    let lab = Lab::running();
    let api = lab.api();
    let references: Vec<String> = (0..3)
        .map(|n| {
            lab.push(
                &ImageSpec::busybox().layer(content(&format!("{n}"), 2 << 20)),
                &format!("lab/race{n}:1"),
            )
        })
        .collect();
    std::thread::scope(|scope| {
        let creates: Vec<_> = references
            .iter()
            .map(|image| {
                let lab = &lab;
                scope.spawn(move || {
                    let api = lab.api();
                    for n in 0..4 {
                        let name = format!("{}-{n}", image.rsplit('/').next().unwrap().replace(':', "-"));
                        // Pulls the image if a prune has taken it since the last one went.
                        let id = api.run(json!({ "image": image, "name": name, "command": until_term(0) }));
                        assert_eq!(api.exec(&id, "cat /www/index.html"), "hello from the lab\n");
                        api.stop(&id);
                        lab.api().ok(post("/v1/images", json!({ "image": image })));
                        lab.api().delete(&id);
                    }
                })
            })
            .collect();
        while !creates.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let pruned = api.ok(post("/v1/images/prune", json!({ "all": true })));
            assert_eq!(pruned["failed"], json!([]));
            df(&api);
        }
    });
    api.ok(post("/v1/system/prune", json!({ "all": true })));
    let left = lab
        .machine()
        .run(&["ls", "/etc/raind/image/l", "/etc/raind/image/staging"]);
    assert_eq!(
        left.lines().filter(|line| line.len() == 11).count(),
        1,
        "only the built-in layer: {left}"
    );
}

#[test]
fn a_pull_that_does_not_fit_fails_early_and_leaves_nothing() {
    let (lab, _) = crate::faults::lab_with_small_disk();
    let api = lab.api();
    let random = |name: &str, bytes: usize| {
        let mut state = 7_u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .take(bytes)
        .collect();
        Layer::new().file(name, 0o644, bytes)
    };
    // Compressed it is larger than the disk; and one that is large only when it is unpacked.
    let large = lab.push(&ImageSpec::scratch().layer(random("a", 60 << 20)), "lab/large:1");
    let sparse = lab.push(&ImageSpec::scratch().layer(content("b", 64 << 20)), "lab/unpacks:1");
    let before = lab.inventory();
    for image in [&large, &sparse] {
        let reply = api.call(post("/v1/images", json!({ "image": image })));
        let said = reply.refused_as(507, "disk_full", "pull failed: the disk of the image store is full: ");
        assert!(said.contains("bytes have to be free"), "{said}");
        lab.assert_unchanged(&before);
    }
    let log = lab.daemon().log();
    assert!(log.contains("disk of the image store is full"), "{log}");
    // What fits is pulled.
    lab.pull(&ImageSpec::scratch().layer(random("c", 5 << 20)), "lab/fits:1");
}
