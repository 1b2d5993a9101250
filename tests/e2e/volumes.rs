//! Bottles as compose files have them: what a new volume begins with, variables, command lines.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab_with_busybox;
use crate::support::{Api, ImageSpec, Lab, Layer, get, send, wait_for};

const DATA: &str = "/etc/raind/volumes/db/data";

#[track_caller]
fn register(api: &Api, text: &str) -> Value {
    let reply = api.call(send("POST", "/v1/bottle", text));
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.json()["data"].clone()
}

#[track_caller]
fn act(api: &Api, action: &str) {
    api.ok(send("POST", &format!("/v1/bottle/db/actions/{action}"), ""));
}

/// An image with a directory that its own user owns, and links that lead elsewhere.
fn image(lab: &Lab) -> String {
    let data = Layer::new()
        .entry(tar::EntryType::Directory, "var/lib/db", "", 0o750, (70, 71), b"")
        .owned("var/lib/db/table", 0o640, (70, 71), "rows\n")
        .symlink("var/lib/db/link", "/etc/passwd")
        .symlink("out", "/../../../../etc")
        .symlink("var/data", "/var/lib/db");
    lab.pull(&ImageSpec::busybox().layer(data), "library/db:1")
}

fn bottle(image: &str, path: &str) -> String {
    format!(
        r#"
bottle: {{ name: db }}
volumes: {{ data: }}
services:
  db:
    image: {image}
    user: "70"
    command: sh -c 'trap "exit 0" TERM; echo "$GREETING" $NUMBER; while :; do sleep 1000 & wait $!; done'
    environment: {{ GREETING: "hello  there", NUMBER: 1.10, UNSET: }}
    restart: unless-stopped
    stop_grace_period: 1.5s
    volumes: [ "data:{path}" ]
    healthcheck: {{ test: [CMD, test, -f, {path}/table], interval: 1.0s, timeout: 1m30s, start_interval: 1s }}
"#
    )
}

#[test]
fn a_new_volume_begins_with_what_the_image_has_there() {
    let (lab, _) = lab_with_busybox();
    let (api, image) = (lab.api(), image(&lab));
    let before = lab.inventory();
    let made = register(&api, &bottle(&image, "/var/lib/db"));
    let warned: Vec<_> = made["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        warned,
        ["services.db.environment.UNSET", "services.db.stop_grace_period"]
    );
    act(&api, "start");
    let seen = |script: &str| api.exec("db-db", script);
    assert_eq!(seen("stat -c '%u:%g %a' /var/lib/db"), "70:71 750\n");
    assert_eq!(
        seen("cd /var/lib/db; stat -c '%n %u:%g %a' table; cat table; readlink link"),
        "table 70:71 640\nrows\n/etc/passwd\n"
    );
    wait_for("the output", Duration::from_secs(20), || {
        let log = api.log("db-db");
        if log == "hello  there 1.10\n" { Ok(()) } else { Err(log) }
    });
    wait_for("health", Duration::from_secs(20), || {
        let health = api.container("db-db")["health"].clone();
        if health == "healthy" { Ok(()) } else { Err(health) }
    });
    // What its user makes of it stays, and what was deleted does not come back.
    seen("cd /var/lib/db; echo more >> table; rm link; touch mine");
    act(&api, "delete");
    register(&api, &bottle(&image, "/var/lib/db"));
    act(&api, "start");
    assert_eq!(seen("cd /var/lib/db; cat table; ls"), "rows\nmore\nmine\ntable\n");
    act(&api, "delete?volumes=true");
    lab.assert_unchanged(&before);
}

#[test]
fn links_of_the_image_mean_what_they_mean_in_it() {
    let (lab, _) = lab_with_busybox();
    let (api, image) = (lab.api(), image(&lab));
    let before = lab.inventory();
    // A link to the directory itself, one that would leave the image, and a place that is not there.
    for (path, expected) in [("/var/data", "link\ntable\n"), ("/out", ""), ("/nowhere", "")] {
        register(&api, &bottle(&image, path));
        let listed = lab.machine().run(&["ls", DATA]);
        match path {
            "/out" => {
                let own = lab.machine().run(&["cat", &format!("{DATA}/passwd")]);
                assert!(
                    !own.contains("daemon") && listed.contains("passwd"),
                    "the host's: {own} {listed}"
                );
            }
            "/nowhere" => assert_eq!(lab.machine().run(&["stat", "-c", "%u %a", DATA]).trim(), "0 777"),
            _ => assert_eq!(listed.trim(), expected.trim()),
        }
        act(&api, "delete?volumes=true");
    }
    lab.assert_unchanged(&before);
}

#[test]
fn a_registration_that_ends_half_way_leaves_no_half_volume() {
    let (lab, _) = lab_with_busybox();
    let (api, image) = (lab.api(), image(&lab));
    let before = lab.inventory();
    // The last step fails: the volume had its files by then, and goes.
    let broken =
        bottle(&image, "/var/lib/db") + "  web: {image: '192.0.2.1:5000/library/nosuch:1', depends_on: [db]}\n";
    api.call(send("POST", "/v1/bottle", broken))
        .refused(404, "create containers failed: ");
    lab.assert_unchanged(&before);

    let text = bottle(&image, "/var/lib/db");
    let begun = Instant::now();
    register(&api, &text);
    let making = begun.elapsed();
    act(&api, "delete?volumes=true");
    for eighth in 0..8 {
        let api = lab.api();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(api.try_call(send("POST", "/v1/bottle", text.as_str()))));
            let begun = Instant::now();
            while begun.elapsed() < making * eighth / 8 {
                std::thread::yield_now();
            }
            lab.daemon().kill9();
        });
        lab.daemon().start();
        let api = lab.api();
        if api.ok(get("/v1/bottle"))["bottles"] == json!([]) {
            lab.assert_unchanged(&before);
            register(&api, &text);
        }
        assert_eq!(lab.machine().run(&["ls", DATA]).trim(), "link\ntable");
        act(&api, "delete?volumes=true");
        lab.assert_unchanged(&before);
    }
}
