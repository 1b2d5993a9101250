//! What an image says about its processes: who they are, what ends them, whether they work, where they begin.

use std::time::Duration;

use serde_json::{Value, json};

use crate::manifests::manifest;
use crate::support::{ImageSpec, Lab, Layer, get, post, wait_for};
use crate::{lab_with_busybox, until_term};

/// What a container prints when it runs with these options on top of what its image says.
fn output(lab: &Lab, image: &str, options: Value) -> String {
    let api = lab.api();
    let mut request = json!({ "image": image });
    request
        .as_object_mut()
        .unwrap()
        .extend(options.as_object().unwrap().clone());
    let id = api.run(request);
    let ended = api.wait_state(&id, "stopped");
    let said = api.log(&id);
    api.delete(&id);
    assert_eq!(ended["exitCode"], 0, "{said}");
    said
}

fn shell(script: &str) -> Value {
    json!(["/bin/sh", "-c", script])
}

#[test]
fn users_of_any_number_run_and_own_files() {
    let (lab, _) = lab_with_busybox();
    let layer = Layer::new()
        .owned("data/large", 0o600, (1_000_680_000, 1_000_680_000), "large")
        .owned("data/small", 0o600, (345_018, 0), "small");
    let image = lab.pull(&ImageSpec::busybox().layer(layer).user("123456"), "lab/users:1");
    assert_eq!(
        output(&lab, &image, json!({ "command": ["id"] })),
        "uid=123456 gid=0(root) groups=0(root)\n"
    );
    let own = json!({ "command": shell("id -u; cat /data/large; touch /tmp/x; stat -c '%u %g' /tmp/x"), "user": "1000680000" });
    assert_eq!(output(&lab, &image, own), "1000680000\nlarge1000680000 0\n");
    // Root of the container sees the owners and may change them.
    let script =
        "stat -c '%u %g' /data/*; chown 2000000000:345018 /data/small && stat -c '%u %g' /data/small; cat /data/large";
    let root = json!({ "command": shell(script), "user": "0" });
    assert_eq!(
        output(&lab, &image, root),
        "1000680000 1000680000\n345018 0\n2000000000 345018\nlarge"
    );
}

#[test]
fn users_and_groups_have_names_and_numbers() {
    let (lab, image) = lab_with_busybox();
    for (user, id) in [
        ("web", "uid=1000(web) gid=1000(web) groups=1000(web),2000(extra)"),
        ("1000", "uid=1000(web) gid=1000(web) groups=1000(web),2000(extra)"),
        ("web:extra", "uid=1000(web) gid=2000(extra) groups=2000(extra)"),
        ("1000:2000", "uid=1000(web) gid=2000(extra) groups=2000(extra)"),
        ("77:extra", "uid=77 gid=2000(extra) groups=2000(extra)"),
        ("77:88", "uid=77 gid=88 groups=88"),
    ] {
        let said = output(&lab, &image, json!({ "command": ["id"], "user": user }));
        assert_eq!(said, format!("{id}\n"), "{user}");
    }
    let unknown = json!({ "image": image, "user": "nobody" });
    lab.api().call(post("/v1/containers", unknown)).refused(400, "");
}

#[test]
fn the_environment_has_home_host_name_and_with_a_terminal_its_kind() {
    let (lab, image) = lab_with_busybox();
    let command = shell("echo $HOME $HOSTNAME ${TERM-none}");
    let said = |options: Value| {
        let mut request = json!({ "command": command });
        request
            .as_object_mut()
            .unwrap()
            .extend(options.as_object().unwrap().clone());
        output(&lab, &image, request).trim().to_owned()
    };
    assert_eq!(said(json!({ "hostname": "box", "user": "web" })), "/home box none");
    assert_eq!(said(json!({ "hostname": "box", "user": "5555" })), "/ box none");
    assert_eq!(
        said(json!({ "hostname": "box", "tty": true })),
        "/root box xterm-256color"
    );
    assert_eq!(
        said(json!({ "env": ["HOSTNAME=own", "HOME=/x", "TERM=dumb"] })),
        "/x own dumb"
    );
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    assert_eq!(api.exec(&id, "echo $HOSTNAME $HOME"), format!("{id} /root\n"));
}

#[test]
fn a_pod_that_must_not_run_as_root_looks_at_the_image() {
    let (lab, _) = lab_with_busybox();
    let api = lab.api();
    let pod = |image: &str, extra: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: shop}}\nspec:\n  securityContext: {{runAsNonRoot: true{extra}}}\n  \
             containers:\n  - {{name: web, image: '{image}', imagePullPolicy: IfNotPresent, command: {}}}\n",
            until_term(0)
        )
    };
    for (user, group, extra) in [("1000", "1000", ""), ("web", "5", ", runAsGroup: 5")] {
        let image = lab.pull(&ImageSpec::busybox().user(user), &format!("lab/user-{user}:1"));
        let text = pod(&image, extra);
        let applied = manifest(&api, "apply", &text);
        assert_eq!(applied.status, 201, "{user}: {}", applied.text());
        wait_for("the pod runs", Duration::from_secs(20), || {
            let found = api.ok(get("/v1/pods/shop"));
            if found["state"] == "running" {
                Ok(())
            } else {
                Err(found)
            }
        });
        let containers = api.ok(get("/v1/containers"));
        let mut containers = containers.as_array().unwrap().iter();
        let web = containers
            .find(|c| c["name"].as_str().unwrap().starts_with("web-"))
            .unwrap();
        let ids = api.exec(web["containerId"].as_str().unwrap(), "id -u; id -g");
        assert_eq!(ids, format!("1000\n{group}\n"));
        manifest(&api, "delete", &text);
    }
    for user in ["", "root", "0:1000"] {
        let tag = if user.is_empty() { "none" } else { &user[..1] };
        let image = lab.pull(&ImageSpec::busybox().user(user), &format!("lab/root-{tag}:1"));
        let said = manifest(&api, "apply", &pod(&image, "")).refused(400, "");
        assert!(
            said.contains("has runAsNonRoot and image") && said.contains(&format!("USER {user:?}")),
            "{said}"
        );
        let said = manifest(&api, "apply", &pod(&image, ", runAsUser: 0")).refused(400, "");
        assert!(said.contains("exclude each other"), "{said}");
        assert_eq!(manifest(&api, "apply", &pod(&image, ", runAsUser: 5")).status, 201);
        manifest(&api, "delete", &pod(&image, ""));
    }
}

/// A process that tells which signal asked it to end.
const TELLS: &str = "for s in QUIT INT TERM USR1 RTMIN+3 37; do trap \"echo got $s; exit 0\" $s 2> /dev/null; done; \
                     echo ready; while :; do sleep 1000 & wait $!; done";

#[test]
fn the_signal_of_the_image_ends_its_containers() {
    let (lab, _) = lab_with_busybox();
    let api = lab.api();
    let ends_with = |image: &str, options: Value| {
        let mut request = json!({ "image": image, "command": shell(TELLS), "stopTimeout": 20 });
        request
            .as_object_mut()
            .unwrap()
            .extend(options.as_object().unwrap().clone());
        let id = api.run(request);
        wait_for("traps", Duration::from_secs(10), || {
            let log = api.log(&id);
            if log.contains("ready") { Ok(()) } else { Err(log) }
        });
        api.stop(&id);
        let said = api.log(&id);
        api.delete(&id);
        said.lines().last().unwrap_or_default().to_owned()
    };
    for (n, (spelling, signal)) in [
        ("SIGQUIT", "QUIT"),
        ("2", "INT"),
        ("sigrtmin+3", "37"),
        ("usr1", "USR1"),
        ("nonsense", "TERM"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = lab.pull(
            &ImageSpec::busybox().set("StopSignal", json!(spelling)),
            &format!("lab/signal{n}:1"),
        );
        let said = ends_with(&image, json!({}));
        assert!(
            said == format!("got {signal}") || signal == "37" && said == "got RTMIN+3",
            "{spelling}: {said}"
        );
        assert_eq!(
            ends_with(&image, json!({ "stopSignal": "3" })),
            "got QUIT",
            "{spelling}"
        );
    }
}

fn wait_for_health(lab: &Lab, id: &str, health: &str) {
    wait_for(health, Duration::from_secs(20), || {
        let found = lab.api().container(id);
        if found["health"] == health { Ok(()) } else { Err(found) }
    });
}

#[test]
fn the_health_check_of_the_image_is_used() {
    let (lab, _) = lab_with_busybox();
    let api = lab.api();
    let check = json!({ "Test": ["CMD-SHELL", "test -e /well"], "Interval": 1_000_000_000, "Timeout": 5_000_000_000u64, "Retries": 1 });
    let image = lab.pull(&ImageSpec::busybox().set("Healthcheck", check), "lab/checked:1");
    let run = |options: Value| {
        let mut request = json!({ "image": image, "command": until_term(0) });
        request
            .as_object_mut()
            .unwrap()
            .extend(options.as_object().unwrap().clone());
        api.run(request)
    };
    let id = run(json!({}));
    wait_for_health(&lab, &id, "unhealthy");
    api.exec(&id, "touch /well");
    wait_for_health(&lab, &id, "healthy");
    let own = run(json!({ "healthCheck": { "exec": ["true"], "interval": 1 } }));
    wait_for_health(&lab, &own, "healthy");
    let disabled = run(json!({ "healthCheck": { "disable": true } }));
    assert_eq!(api.container(&disabled).get("health"), None);

    // What an earlier version pulled has no check in its row; the daemon reads the documents again.
    lab.daemon().stop();
    let forget = "update images set document = json_remove(document, '$.config.health_check', '$.config.stop_signal', \
                  '$.config.revision')";
    lab.with_database(|database| assert!(database.execute(forget, []).unwrap() >= 1));
    lab.daemon().start();
    let again = run(json!({}));
    wait_for_health(&lab, &again, "unhealthy");
}

#[test]
fn an_empty_entrypoint_is_none() {
    let (lab, _) = lab_with_busybox();
    let image = lab.pull(
        &ImageSpec::busybox().entrypoint(&[""]).cmd(&["/bin/echo", "cmd"]),
        "lab/reset:1",
    );
    assert_eq!(output(&lab, &image, json!({})), "cmd\n");
    assert_eq!(
        output(&lab, &image, json!({ "command": ["/bin/echo", "own"] })),
        "own\n"
    );
    let image = lab.pull(
        &ImageSpec::busybox()
            .entrypoint(&["/bin/false"])
            .cmd(&["/bin/echo", "cmd"]),
        "lab/entry:1",
    );
    assert_eq!(output(&lab, &image, json!({ "entrypoint": [""] })), "cmd\n");
}

#[test]
fn a_working_directory_is_entered_whatever_it_is() {
    let (lab, image) = lab_with_busybox();
    let missing = json!({ "command": ["pwd"], "workingDir": "/srv/new/deep", "readOnly": true });
    assert_eq!(output(&lab, &image, missing), "/srv/new/deep\n");
    let layer = Layer::new()
        .entry(tar::EntryType::Directory, "closed", "", 0o700, (4242, 4242), b"")
        .owned("closed/file", 0o644, (4242, 4242), "");
    let closed = lab.pull(
        &ImageSpec::busybox().layer(layer).workdir("/closed").user("1000"),
        "lab/closed:1",
    );
    assert_eq!(
        output(&lab, &closed, json!({ "command": ["pwd"], "capDrop": ["ALL"] })),
        "/closed\n"
    );
    let api = lab.api();
    let id = api.run(json!({ "image": closed, "command": until_term(0), "capDrop": ["ALL"] }));
    assert_eq!(api.exec(&id, "pwd"), "/closed\n");
    let volume = "/srv/volume";
    lab.machine().run(&["mkdir", "-p", &format!("{volume}/sub")]);
    let inside =
        json!({ "command": ["pwd"], "workingDir": "/v/sub", "mount": [format!("{volume}:/v")], "user": "1000" });
    assert_eq!(output(&lab, &image, inside), "/v/sub\n");
    let made = json!({ "command": ["pwd"], "workingDir": "/v/made", "mount": [format!("{volume}:/v")] });
    assert_eq!(output(&lab, &image, made), "/v/made\n");
}

#[test]
fn the_files_of_etc_take_the_place_of_whatever_the_image_has() {
    let (lab, _) = lab_with_busybox();
    let layer = Layer::new()
        .dir("etc/hosts", 0o755)
        .file("etc/hosts/file", 0o644, "x")
        .symlink("etc/hostname", "hostname")
        .symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
    let image = lab.pull(&ImageSpec::busybox().layer(layer), "lab/odd-etc:1");
    let script =
        "cat /etc/hostname; grep -c localhost /etc/hosts; cat /etc/resolv.conf; head -n 1 /etc/mtab | cut -d' ' -f2";
    for read_only in [false, true] {
        let said = output(
            &lab,
            &image,
            json!({ "command": shell(script), "hostname": "box", "readOnly": read_only }),
        );
        assert_eq!(said, "box\n1\nnameserver 10.166.0.254\n/\n", "{read_only}");
    }
}

#[test]
fn an_image_without_any_directory_runs() {
    let (lab, _) = lab_with_busybox();
    let layer = Layer::new().file("busybox", 0o755, std::fs::read("/bin/busybox").unwrap());
    let image = lab.pull(&ImageSpec::scratch().layer(layer), "lab/nothing:1");
    for read_only in [false, true] {
        let request = json!({ "command": ["/busybox", "ls", "/"], "readOnly": read_only });
        let said = output(&lab, &image, request);
        for directory in ["dev", "etc", "proc", "sys"] {
            assert!(said.lines().any(|line| line == directory), "{directory} in {said}");
        }
    }
}
