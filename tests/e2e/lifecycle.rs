//! From create to delete, as `docs/spec/api.md` 5 tells it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ImageSpec, Layer, delete, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

#[test]
fn a_container_lives_and_leaves_no_trace() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();

    let id = api.create(json!({ "image": image, "name": "web", "command": until_term(0), "port": ["8080:80"] }));
    let created = api.container(&id);
    assert_eq!(
        (&created["state"], &created["name"]),
        (&json!("created"), &json!("web"))
    );
    assert_eq!(
        created["forwards"],
        json!([{ "source": 8080, "destination": 80, "protocol": "tcp" }])
    );
    assert_eq!(created["statedAt"], "0001-01-01T00:00:00Z");
    assert_eq!(created.get("exitCode"), None);
    let address = created["address"].clone();

    // The body is optional.
    let started = api.ok(send("POST", "/v1/containers/web/actions/start", Vec::new()));
    assert_eq!(started, json!({ "id": id }));
    let running = api.container("web");
    assert_eq!(running["state"], "running");
    let pid = running["pid"].as_i64().unwrap();
    let command = lab.machine().read(&format!("/proc/{pid}/cmdline"));
    assert!(command.contains("trap"), "pid {pid} is {command:?}");

    api.call(post("/v1/containers/web/actions/start", json!({})))
        .refused(409, &format!("service failed: container: {id} already started"));
    api.call(delete("/v1/containers/web/actions/delete")).refused(
        409,
        "service failed: delete operation not allowed to current container status: running",
    );

    api.stop("web");
    let stopped = api.container("web");
    assert_eq!((&stopped["state"], &stopped["pid"]), (&json!("stopped"), &json!(0)));
    assert_eq!(
        (&stopped["exitCode"], &stopped["reason"]),
        (&json!(0), &json!("Completed"))
    );
    assert_ne!(stopped["stoppedAt"], "0001-01-01T00:00:00Z");

    // Address, ports and the first times survive a restart.
    api.start("web");
    let again = api.container(&id);
    assert_eq!((&again["state"], &again["address"]), (&json!("running"), &address));
    assert_eq!(
        (&again["createdAt"], &again["forwards"]),
        (&created["createdAt"], &created["forwards"])
    );
    assert_eq!(again.get("exitCode"), None);
    api.stop(&id);
    api.delete("web");
    assert_eq!(api.ok(get("/v1/containers")), json!([]));
    api.call(delete("/v1/containers/web/actions/delete"))
        .refused(404, "service failed: container: web not found");
    lab.assert_unchanged(&before);
}

#[test]
fn a_created_container_can_be_deleted() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let id = lab.api().create(json!({ "image": image }));
    lab.api().delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn exit_codes_are_recorded_with_their_reason() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let ends = [
        ("exit 0", 0, "Completed"),
        ("exit 3", 3, "Error"),
        ("exit 137", 137, "Error"),
        ("exit 143", 143, "Error"),
    ];
    for (script, code, reason) in ends {
        let id = api.run(json!({ "image": image, "command": ["/bin/sh", "-c", script] }));
        let ended = api.wait_state(&id, "stopped");
        assert_eq!(
            (&ended["exitCode"], &ended["reason"]),
            (&json!(code), &json!(reason)),
            "{script}"
        );
        api.delete(&id);
    }
    for (code, reason) in [(0, "Completed"), (3, "Error"), (143, "Error")] {
        let id = api.run(json!({ "image": image, "command": until_term(code) }));
        wait_for_start(&lab, &id);
        api.stop(&id);
        let ended = api.container(&id);
        assert_eq!(
            (&ended["exitCode"], &ended["reason"]),
            (&json!(code), &json!(reason)),
            "stop, {code}"
        );
        api.delete(&id);
    }
    // One that is killed from outside, and one that a stop has to kill after its three seconds.
    let killed = api.run(json!({ "image": image, "command": until_term(0) }));
    let pid = api.container(&killed)["pid"].to_string();
    lab.machine().run(&["kill", "-9", &pid]);
    let ended = api.wait_state(&killed, "stopped");
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("Error")));
    let stubborn =
        api.run(json!({ "image": image, "command": ["/bin/sh", "-c", "trap '' TERM; echo started; sleep 1000"] }));
    wait_for_start(&lab, &stubborn);
    let begun = std::time::Instant::now();
    api.stop(&stubborn);
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(6),
        "{took:?}"
    );
    let ended = api.container(&stubborn);
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("Error")));
    api.delete(&killed);
    api.delete(&stubborn);
    lab.assert_unchanged(&before);
}

#[test]
fn ends_are_told_of_terminals_too_and_when_the_daemon_was_down() {
    let (lab, image) = lab_with_busybox();
    lab.machine().write("/mnt/gate/closed", "");
    let before = lab.inventory();
    let when_open = |then: &str| format!("echo started; while [ ! -e /gate/open ]; do sleep 0.05; done; {then}");
    let until_signal = "trap 'exit 143' TERM; echo started; while :; do sleep 1000 & wait $!; done".to_owned();
    let ends = [
        (when_open("exit 0"), "", 0, "Completed"),
        (when_open("exit 1"), "", 1, "Error"),
        (until_signal.clone(), "-KILL", 137, "Error"),
        (until_signal, "-TERM", 143, "Error"),
        // It has to keep what may be the last line.
        (when_open("exec tail /dev/zero"), "", 137, "OOMKilled"),
    ];
    for down in [false, true] {
        let api = lab.api();
        let mut running = Vec::new();
        for tty in [false, true] {
            for (script, signal, code, reason) in &ends {
                let id = api.run(
                    json!({ "image": image, "tty": tty, "memory": 64 << 20, "mount": ["/mnt/gate:/gate:ro"],
                    "command": ["/bin/sh", "-c", script] }),
                );
                let pid = api.container(&id)["pid"].to_string();
                running.push((id, pid, *signal, *code, *reason));
            }
        }
        for (id, ..) in &running {
            wait_for("a container at work", Duration::from_secs(10), || {
                let log = api.log(id);
                if log.contains("started") { Ok(()) } else { Err(log) }
            });
        }
        if down {
            lab.daemon().kill9();
        }
        lab.machine().write("/mnt/gate/open", "");
        for (_, pid, signal, ..) in running.iter().filter(|(_, _, signal, ..)| !signal.is_empty()) {
            lab.machine().run(&["kill", signal, pid]);
        }
        if down {
            for (_, pid, ..) in &running {
                wait_for("the end of a process", Duration::from_secs(30), || {
                    let command = lab.machine().read(&format!("/proc/{pid}/cmdline"));
                    if command.is_empty() { Ok(()) } else { Err(command) }
                });
            }
            lab.daemon().start();
        }
        let api = lab.api();
        for (id, _, _, code, reason) in &running {
            let ended = wait_for("the end", Duration::from_secs(30), || {
                let found = api.container(id);
                if found["state"] == "stopped" {
                    Ok(found)
                } else {
                    Err(found)
                }
            });
            assert_eq!(
                (&ended["exitCode"], &ended["reason"]),
                (&json!(code), &json!(reason)),
                "{ended}"
            );
            api.delete(id);
        }
        std::fs::remove_file(lab.machine().path("/mnt/gate/open")).unwrap();
    }
    lab.assert_unchanged(&before);
}

#[test]
fn a_command_that_cannot_be_executed_fails_the_start() {
    let (lab, _) = lab_with_busybox();
    let image = lab.pull(
        &ImageSpec::busybox().layer(Layer::new().file("data", 0o644, "x")),
        "lab/data:1",
    );
    let api = lab.api();
    let before = lab.inventory();
    for (command, code) in [("/no/such", 127), ("nosuch", 127), ("/data", 126)] {
        let id = api.create(json!({ "image": image, "command": [command] }));
        api.call(post(&format!("/v1/containers/{id}/actions/start"), json!({})))
            .refused(400, "service failed: start container failed: ");
        let ended = api.container(&id);
        assert_eq!(ended["state"], "stopped", "{command}");
        assert_eq!(
            (&ended["exitCode"], &ended["reason"]),
            (&json!(code), &json!("Error")),
            "{command}"
        );
        api.delete(&id);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn the_image_says_what_runs_and_the_request_may_say_otherwise() {
    let (lab, _) = lab_with_busybox();
    let image = ImageSpec::busybox()
        .entrypoint(&[
            "/bin/sh",
            "-c",
            "id; pwd; echo $FRUIT; for word; do echo \"<$word>\"; done",
            "name",
        ])
        .cmd(&["one  two", "it's \"quoted\"\nand broken"])
        .env("FRUIT=apple")
        .user("web")
        .workdir("/home/work");
    let image = lab.pull(&image, "lab/configured:1");
    let api = lab.api();
    let before = lab.inventory();

    let id = api.run(json!({ "image": image }));
    api.wait_state(&id, "stopped");
    let said = api.log(&id);
    let (who, rest) = said.split_once('\n').unwrap();
    assert!(
        who.starts_with("uid=1000(web) gid=1000(web) ") && who.contains("2000(extra)"),
        "{who}"
    );
    assert_eq!(rest, "/home/work\napple\n<one  two>\n<it's \"quoted\"\nand broken>\n");
    let shown = api.container(&id)["command"].clone();
    assert_eq!(shown[4], "one  two");
    api.delete(&id);

    let command = json!(["/bin/sh", "-c", "echo $FRUIT $TERM $LANG; exit 0"]);
    let id = api.run(json!({ "image": image, "command": command, "env": ["FRUIT=pear"] }));
    api.wait_state(&id, "stopped");
    assert_eq!(api.log(&id), "pear C.UTF-8\n");
    assert_eq!(api.container(&id)["command"], command);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_container_is_found_by_name_id_and_unique_prefix() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let a = api.create(json!({ "image": image, "name": "first" }));
    let b = api.create(json!({ "image": image }));
    let shared = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    assert_eq!(api.container(&a[..(shared + 1).max(4)])["name"], "first");
    if shared >= 4 {
        let prefix = &a[..shared];
        api.call(get(&format!("/v1/containers/{prefix}")))
            .refused(409, &format!("container: {prefix} is ambiguous"));
    }
    api.call(get(&format!("/v1/containers/{}", &a[..3])))
        .refused(404, &format!("container: {} not found", &a[..3]));
    let random = api.container(&b)["name"].as_str().unwrap().to_owned();
    let parts: Vec<_> = random.split('-').collect();
    assert!(
        parts.len() == 3 && parts[2].len() == 4 && parts[2].parse::<u16>().is_ok(),
        "{random}"
    );
    // Oldest first.
    let listed = api.ok(get("/v1/containers"));
    let ids: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["containerId"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [&a, &b]);
    api.delete(&b);
    api.delete("first");
    lab.assert_unchanged(&before);
}

#[test]
fn logs_are_appended_and_read_from_the_end() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let script = "i=0; while [ $i -lt 150 ]; do i=$((i+1)); echo line $i; done; echo problem >&2";
    let id = api.create(json!({ "image": image, "command": ["/bin/sh", "-c", script] }));
    let text = |query: &str| {
        let reply = api.call(get(&format!("/v1/containers/{id}/log{query}")));
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.headers["content-type"], "text/plain; charset=utf-8");
        reply.text()
    };
    assert_eq!(text("?tail_lines=10"), "");
    api.start(&id);
    api.wait_state(&id, "stopped");
    assert_eq!(text("?tail_lines=2"), "line 150\nproblem\n");
    assert_eq!(text("?tail_lines=0"), "");
    assert_eq!(text("").lines().count(), 100);
    assert_eq!(text("?tail_lines=5000").lines().count(), 151);
    api.call(get(&format!("/v1/containers/{id}/log?tail_lines=x")))
        .refused(400, "invalid tail_lines");
    api.call(get(&format!("/v1/containers/{id}/log?tail_lines=5001")))
        .refused(400, "tail failed: invalid tail lines: max=5000");
    let path = api.ok(get(&format!("/v1/containers/{id}/logpath")));
    assert_eq!(path, json!(format!("/etc/raind/container/{id}/logs/init.log")));
    api.start(&id);
    api.wait_state(&id, "stopped");
    assert_eq!(text("?tail_lines=5000").lines().count(), 302);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_terminal_is_made_for_those_who_ask() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let script = "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; trap 'exit 5' TERM; while :; do sleep 1000 & wait $!; done";
    let id = api.run(json!({ "image": image, "tty": true, "command": ["/bin/sh", "-c", script] }));
    let path = api.ok(get(&format!("/v1/containers/{id}/logpath")));
    assert_eq!(path, json!(format!("/etc/raind/container/{id}/logs/console.log")));
    wait_for("the terminal", Duration::from_secs(5), || {
        let said = api.log(&id);
        if said.starts_with("/dev/") && said.contains("terminal\r\n") {
            Ok(())
        } else {
            Err(said)
        }
    });
    api.stop(&id);
    assert_eq!(api.container(&id)["exitCode"], 5);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn directories_and_files_of_the_host_can_be_mounted() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    lab.machine().write("/mnt/data/note", "from the host\n");
    lab.machine().write("/mnt/file", "a file\n");
    let before = lab.inventory();
    let script = "cat /data/note /single; echo inside > /data/answer; echo no > /fixed/answer || echo refused; \
                  grep -E ' /(data|fixed|single) ' /proc/mounts";
    let id = api.run(json!({
        "image": image,
        "command": ["/bin/sh", "-c", script],
        "mount": ["/mnt/data:/data", "/mnt/data:/fixed:ro", "/mnt/file:/single:rw"],
    }));
    api.wait_state(&id, "stopped");
    let said = api.log(&id);
    assert!(said.starts_with("from the host\na file\n"), "{said}");
    assert!(said.contains("refused\n"), "{said}");
    let mounts: Vec<_> = said
        .lines()
        .filter(|line| line.contains("nosuid,nodev") && !line.contains("noexec"))
        .collect();
    assert_eq!(mounts.len(), 3, "{said}");
    assert_eq!(mounts.iter().filter(|line| line.contains(" ro,")).count(), 1, "{said}");
    assert_eq!(lab.machine().read("/mnt/data/answer"), "inside\n");
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn exec_runs_in_the_container_and_says_when_it_cannot() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "name": "host", "command": until_term(0), "env": ["FRUIT=apple"] }));
    assert_eq!(api.exec("host", "echo $FRUIT; hostname"), format!("apple\n{id}\n"));
    let path = "/v1/containers/host/actions/exec";
    assert_eq!(
        api.ok(post(path, json!({ "command": ["/bin/true"] }))),
        json!({ "id": "host" })
    );
    api.call(post(path, json!({ "command": [] })))
        .refused(400, "service failed: ");
    api.call(post(path, json!({ "command": ["/no/such"] })))
        .refused(400, "service failed: exec failed: /no/such: no such file or directory");
    api.stop("host");
    let said = api
        .call(post(path, json!({ "command": ["/bin/true"] })))
        .refused(409, "service failed: ");
    assert!(said.contains("not running"), "{said}");
    api.delete("host");
    lab.assert_unchanged(&before);
}

/// The first line of a container's log: its traps are set.
fn wait_for_start(lab: &crate::support::Lab, id: &str) {
    wait_for("a container at work", Duration::from_secs(5), || {
        let log = lab.api().log(id);
        if log.contains("started\n") {
            Ok(())
        } else {
            Err(Value::from(log))
        }
    });
}
