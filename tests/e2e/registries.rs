//! Registries as they are in real life: one that wants a password, seen through the daemon. Faults: `image_faults`.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::{GUARDED, ImageSpec, Lab, OUTSIDE, REGISTRY, Registry, get, post};

/// `reader:correct-horse-battery`
const AUTH: &str = "cmVhZGVyOmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==";
/// `reader:wrong-horse-battery`
const WRONG: &str = "cmVhZGVyOndyb25nLWhvcnNlLWJhdHRlcnk=";

fn login(lab: &Lab, mode: u32, content: &str) {
    let file = "/run/docker/config.json";
    lab.machine().run(&["mkdir", "-p", "/run/docker"]);
    lab.machine().write(file, content);
    std::fs::set_permissions(lab.machine().path(file), std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_password_opens_a_registry_and_is_seen_nowhere() {
    let lab = Lab::start();
    let insecure = format!("{REGISTRY},{GUARDED}");
    lab.daemon().set("CONDENSER_INSECURE_REGISTRIES", &insecure);
    lab.daemon()
        .set("DOCKER_CONFIG", "/run/docker")
        .set("CONDENSER_LOG_LEVEL", "trace");
    lab.daemon().start();
    lab.push(&ImageSpec::busybox(), "team/secret:1");
    let _guarded = Registry::guarded(lab.machine());
    let (api, image) = (lab.api(), format!("{GUARDED}/team/secret:1"));
    let mut said = Vec::new();
    let mut refused = |reason: &str| {
        let message = api
            .call(post("/v1/images", json!({ "image": image })))
            .refused(502, "pull failed: ");
        assert!(message.contains(reason), "{message}");
        said.push(message);
        assert_eq!(api.ok(get("/v1/images")).as_array().map(Vec::len), Some(0));
    };
    refused("there are none for it in /run/docker/config.json");
    login(&lab, 0o600, "{\"auths\": {correct-horse-battery");
    refused("the credentials file /run/docker/config.json is not JSON at line 1");
    login(&lab, 0o600, &json!({"auths": {GUARDED: {"auth": WRONG}}}).to_string());
    refused("401");
    // A docker login meanwhile counts; the daemon is not restarted.
    login(
        &lab,
        0o644,
        &json!({"auths": {format!("{GUARDED}/team"): {"auth": AUTH}}}).to_string(),
    );
    let answer = api.ok(post("/v1/images", json!({ "image": image })));
    said.push(answer.to_string());
    let id = api.run(json!({ "image": image, "command": ["/bin/true"] }));
    api.wait_state(&id, "stopped");
    said.push(api.call(get("/metrics")).text());
    said.push(api.container(&id).to_string());
    let log = lab.daemon().log();
    assert!(log.contains("others can read the credentials file"), "no warning");
    said.push(log);
    for secret in ["horse-battery", AUTH, WRONG] {
        assert!(said.iter().all(|text| !text.contains(secret)), "{secret} was shown");
        let found = lab
            .machine()
            .output(&["grep", "-rlaF", secret, "/var/log", "/etc/raind", "/run/raind"]);
        assert_eq!(found.status.code(), Some(1), "{found:?}");
    }
}

#[test]
fn a_mirror_is_asked_first_and_is_not_needed() {
    let lab = Lab::start();
    // The hub does not run at first: the mirror is all there is. Then a mirror that is gone comes before it.
    let entry = |mirrors: &[String]| format!("{{host = \"docker.io\", mirrors = {mirrors:?}}}");
    lab.daemon().set(
        "CONDENSER_REGISTRY",
        &entry(&[format!("http://{OUTSIDE}:1"), format!("http://{REGISTRY}")]),
    );
    lab.daemon().start();
    lab.push(&ImageSpec::busybox(), "library/mirrored:1");
    let pull = |name: &str| lab.api().ok(post("/v1/images", json!({ "image": name })));
    pull("mirrored:1");
    let images = lab.api().ok(get("/v1/images"));
    assert_eq!(images[0]["repository"], "library/mirrored");
    lab.daemon().stop();
    lab.daemon()
        .set("CONDENSER_REGISTRY", &entry(&[format!("http://{OUTSIDE}:1")]));
    lab.daemon().start();
    lab.hub();
    pull("mirrored:1");
    assert!(lab.daemon().log().contains("skipping the mirror"));
}
