//! An exec that is waited for: what `docs/spec/api.md` 5.8 has no word for, but is asked with it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Api, ImageSpec, Lab, post, wait_for};
use crate::{lab_with_busybox, until_term};

fn path(container: &str) -> String {
    format!("/v1/containers/{container}/actions/exec")
}

fn waiting(script: &str) -> Value {
    json!({ "command": ["/bin/sh", "-c", script], "wait": true })
}

/// How a script in the container ended.
#[track_caller]
fn ended(api: &Api, container: &str, script: &str) -> Value {
    api.ok(post(&path(container), waiting(script)))
}

/// Whether a process of the container has this command line.
fn runs(api: &Api, container: &str, command: &str) -> bool {
    // Zombies have none.
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2> /dev/null";
    let all = ended(api, container, script)["stdout"].as_str().unwrap().to_owned();
    all.lines().any(|line| line.trim_end() == command)
}

fn gone(api: &Api, container: &str, command: &str) {
    wait_for(&format!("the end of {command}"), Duration::from_secs(10), || {
        if runs(api, container, command) {
            Err("it runs")
        } else {
            Ok(())
        }
    });
}

#[test]
fn code_and_output_are_the_answer() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "name": "host", "command": until_term(0) }));
    let script = "echo out; echo err >&2; cat; printf 'caf\\351 \\303\\251'; exit 3";
    assert_eq!(
        ended(&api, "host", script),
        json!({ "id": "host", "exitCode": 3, "stdout": "out\ncaf\u{fffd} é", "stderr": "err\n", "truncated": false,
            "timedOut": false })
    );
    assert_eq!(ended(&api, &id, "exit 0")["exitCode"], 0);
    assert_eq!(ended(&api, &id, "kill -9 $$")["exitCode"], 137);
    for (program, code) in [("/no/such", 127), ("nosuch", 127), ("/etc/passwd", 126)] {
        let refused = api.ok(post(&path(&id), json!({ "command": [program], "wait": true })));
        assert_eq!(refused["exitCode"], code, "{refused}");
        assert!(refused["stderr"].as_str().unwrap().contains(program), "{refused}");
    }
    let much = ended(
        &api,
        &id,
        "yes 0123456789abcde | head -n 1000000; echo the end; echo little >&2",
    );
    let stdout = much["stdout"].as_str().unwrap();
    assert_eq!((stdout.len(), &much["truncated"]), (1 << 20, &json!(true)));
    assert!(stdout.ends_with("\nthe end\n") && much["stderr"] == "little\n");
    let background = ended(&api, &id, "sleep 4201 & echo left");
    assert_eq!(background["stdout"], "left\n");
    assert!(runs(&api, &id, "sleep 4201"));

    for (change, reason) in [
        (json!({ "tty": true }), "wait and tty exclude each other"),
        (json!({ "wait": false, "timeout": 1 }), "timeout requires wait"),
        (json!({ "timeout": 0 }), "invalid option: timeout 0 "),
        (json!({ "timeout": 3601 }), "invalid option: timeout 3601 "),
        (json!({ "command": [] }), "a command is needed"),
    ] {
        let mut body = waiting("true");
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let reply = api.call(post(&path(&id), body));
        reply.refused(400, &format!("service failed: {reason}"));
        assert_eq!(reply.json()["data"], json!({ "id": id }));
    }
    api.call(post(&path("nobody"), waiting("true")))
        .refused(404, "service failed: container: nobody not found");
    api.stop(&id);
    api.call(post(&path(&id), waiting("true")))
        .refused(409, &format!("service failed: container: {id} not running."));
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn it_runs_as_the_container_does() {
    let (lab, _) = lab_with_busybox();
    let spec = ImageSpec::busybox()
        .env("FRUIT=apple")
        .user("web")
        .workdir("/home/work");
    let image = lab.pull(&spec, "lab/configured:1");
    let api = lab.api();
    let before = lab.inventory();
    let portrait = "id; pwd; env | sort; umask; cat /proc/self/cgroup; \
                    grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/self/status; \
                    for n in user mnt cgroup uts ipc pid net; do readlink /proc/self/ns/$n; done";
    let script = format!("{portrait}; echo the end; trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done");
    let id = api.run(json!({ "image": image, "command": ["/bin/sh", "-c", script], "env": ["COLOUR=red"] }));
    let of_init = wait_for("the portrait of init", Duration::from_secs(5), || {
        let log = api.log(&id);
        log.strip_suffix("the end\n").map(str::to_owned).ok_or(log)
    });
    let of_exec = ended(&api, &id, portrait)["stdout"].as_str().unwrap().to_owned();
    assert_eq!(of_exec, of_init);
    for line in [
        "uid=1000(web)",
        "/home/work\n",
        "COLOUR=red\n",
        "FRUIT=apple\n",
        "NoNewPrivs:\t1",
    ] {
        assert!(of_exec.contains(line), "{line} in {of_exec}");
    }
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn eight_at_once_all_meet() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (api, id) = (&api, &id);
            scope.spawn(move || {
                // None ends before all are there.
                let script = format!(
                    "mkdir -p /tmp/meet; : > /tmp/meet/{n}; while [ $(ls /tmp/meet | wc -l) -lt 8 ]; do sleep 0.01; done; \
                     echo {n}; exit {n}"
                );
                let ended = ended(api, id, &script);
                assert_eq!((&ended["exitCode"], &ended["stdout"]), (&json!(n), &json!(format!("{n}\n"))));
            });
        }
    });
    api.stop(&id);
    api.delete(&id);
}

#[test]
fn its_time_is_over_with_all_that_it_started() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    let mut body = waiting("trap '' TERM; echo begun; sleep 4202 & sleep 4203");
    body["timeout"] = json!(1);
    let begun = Instant::now();
    let over = api.ok(post(&path(&id), body));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(
        (&over["exitCode"], &over["timedOut"], &over["stdout"]),
        (&json!(137), &json!(true), &json!("begun\n"))
    );
    gone(&api, &id, "sleep 4202");
    gone(&api, &id, "sleep 4203");
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

/// Starts waiting for a script that never ends, and goes on when it is there.
fn pending<T>(lab: &Lab, id: &str, script: &str, command: &str, then: impl FnOnce() -> T) -> (Result<u16, String>, T) {
    std::thread::scope(|scope| {
        let api = lab.api();
        let call = post(&path(id), waiting(script));
        let waiter = scope.spawn(move || api.try_call(call).map(|reply| reply.status));
        wait_for("a process", Duration::from_secs(10), || {
            if runs(&lab.api(), id, command) { Ok(()) } else { Err(()) }.map_err(|()| "it does not run")
        });
        let value = then();
        (waiter.join().unwrap(), value)
    })
}

#[test]
fn it_ends_with_its_client_the_daemon_and_the_container() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let id = lab.api().run(json!({ "image": image, "command": until_term(0) }));

    let api = lab.api();
    api.abandon(post(&path(&id), waiting("sleep 4204 & yes")), || {
        runs(&lab.api(), &id, "sleep 4204")
    });
    gone(&lab.api(), &id, "sleep 4204");
    gone(&lab.api(), &id, "yes");

    // A daemon that is killed while the process fills its pipe.
    let (answer, ()) = pending(&lab, &id, "sleep 4205 & yes", "sleep 4205", || lab.daemon().kill9());
    assert!(answer.is_err(), "{answer:?}");
    lab.daemon().start();
    gone(&lab.api(), &id, "sleep 4205");
    gone(&lab.api(), &id, "yes");

    // One that shuts down does not wait for what may never end.
    let (answer, took) = pending(&lab, &id, "sleep 4206", "sleep 4206", || {
        let begun = Instant::now();
        assert!(lab.daemon().stop().success());
        begun.elapsed()
    });
    assert_eq!(answer, Ok(500));
    assert!(took < Duration::from_secs(15), "{took:?}");
    lab.daemon().start();
    gone(&lab.api(), &id, "sleep 4206");

    let (answer, ()) = pending(&lab, &id, "sleep 4207", "sleep 4207", || lab.api().stop(&id));
    assert_eq!(answer, Ok(200));
    lab.api().delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_stop_uses_the_signal_and_the_time_that_were_chosen() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let script =
        "trap 'sleep 4; exit 9' USR1; trap 'echo wrong' TERM; echo started; while :; do sleep 1000 & wait $!; done";
    let command = json!(["/bin/sh", "-c", script]);
    for (seconds, code) in [(60, 9), (0, 137)] {
        let id = api.run(json!({ "image": image, "command": command, "stopSignal": "usr1", "stopTimeout": seconds }));
        wait_for("the traps", Duration::from_secs(5), || {
            let log = api.log(&id);
            if log == "started\n" { Ok(()) } else { Err(log) }
        });
        let begun = Instant::now();
        api.stop(&id);
        assert_eq!(api.container(&id)["exitCode"], code);
        // More than the three seconds of the default, or less.
        assert_eq!(
            begun.elapsed() >= Duration::from_secs(4),
            code == 9,
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(api.log(&id), "started\n");
        api.delete(&id);
    }
    lab.assert_unchanged(&before);
}
