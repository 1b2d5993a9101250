//! What goes wrong leaves nothing behind, and does not stand in the way of the next attempt.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::sandbox::{Sandbox, interface_exists, processes, sandbox, shell};
use crate::support::{SOON, wait_for, when};

/// `create` fails with this text; nothing is left; with the right configuration it then works.
fn fails_and_recovers(s: &Sandbox, broken: &Value, expected: &str) {
    let id = s.id.as_str();
    s.write(id, broken);
    let error = s.fails(&["create", id]);
    assert!(error.contains(expected), "{error}");
    s.gone(id);
    s.bundle_with("echo fine");
    s.up();
    assert_eq!(s.ended(id)["exit_code"], 0);
    s.ok(&["delete", id]);
    s.gone(id);
}

fn failing_hook() -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo reason >&2; exit 5"] })
}

#[test]
fn a_failing_create_runtime_hook_fails_create() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        config["hooks"] =
            json!({ "createRuntime": [s.hook("first", "true"), failing_hook(), s.hook("third", "true")] });
        fails_and_recovers(s, &config, "hook createRuntime[1] failed: exit status 5");
        assert_eq!(s.payloads().len(), 1, "the third must not run");
    });
}

#[test]
fn a_failing_create_container_hook_fails_create() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        config["hooks"] = json!({ "createContainer": [failing_hook()], "stopContainer": [s.hook("stop", "true")] });
        fails_and_recovers(s, &config, "hook createContainer[0] failed: exit status 5");
        assert_eq!(s.payloads().len(), 0, "a container that never was cannot stop");
    });
}

#[test]
fn a_missing_bridge_fails_create() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        let net = config["annotations"]["io.raind.net.config"]
            .as_str()
            .unwrap()
            .replace("raind0", "nobridge");
        config["annotations"]["io.raind.net.config"] = json!(net);
        fails_and_recovers(s, &config, "attach to bridge nobridge: No such device");
    });
}

#[test]
fn an_impossible_route_fails_create() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        let net = config["annotations"]["io.raind.net.config"]
            .as_str()
            .unwrap()
            .replace("10.166.0.254", "10.9.9.9");
        config["annotations"]["io.raind.net.config"] = json!(net);
        fails_and_recovers(s, &config, "add default route via 10.9.9.9: ");
    });
}

#[test]
fn a_missing_layer_fails_create() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        let image = config["annotations"]["io.raind.image.config"]
            .as_str()
            .unwrap()
            .replace("/image", "/no-image");
        config["annotations"]["io.raind.image.config"] = json!(image);
        fails_and_recovers(s, &config, "/no-image: No such file or directory");
    });
}

/// By its exit status a caller knows who is to blame.
#[test]
fn a_refusal_is_no_failure() {
    sandbox(|s| {
        let id = s.id.as_str();
        let status = |config: &Value, verbs: &[&str]| {
            s.write(id, config);
            let run = |verb: &&str| s.droplet(&[verb, id]).status.code();
            let last = verbs.iter().map(run).fold(None, |_, status| status);
            let _ = s.droplet(&["delete", id]);
            last
        };
        let with = |pointer: &str, value: Value| {
            let mut config = s.config(id, "true");
            *config.pointer_mut(pointer).unwrap() = value;
            config
        };
        std::fs::write(s.path("file"), "").unwrap();
        let onto = |destination: &str| {
            let mut config = s.config(id, "true");
            config["mounts"] = json!([{ "destination": destination, "type": "bind", "source": s.path("file"),
                "options": ["rbind", "rprivate"] }]);
            config
        };
        assert_eq!(
            status(&with("/process/args", json!(["nope"])), &["create", "start"]),
            Some(127)
        );
        assert_eq!(
            status(&with("/process/args", json!(["/etc"])), &["create", "start"]),
            Some(126)
        );
        assert_eq!(status(&onto("/etc"), &["create"]), Some(125));
        assert_eq!(status(&onto("/etc/passwd/x"), &["create"]), Some(125));
        assert_eq!(status(&onto("/etc/passwd"), &["create"]), Some(0));
        let mut broken = s.config(id, "true");
        broken["linux"]["sysctl"] = json!({ "kernel.nothing_like_it": "1" });
        assert_eq!(status(&broken, &["create"]), Some(1));
    });
}

#[test]
fn what_libcontainer_refuses_is_explained() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        config["linux"]["sysctl"] = json!({ "kernel.nothing_like_it": "1" });
        fails_and_recovers(s, &config, "kernel.nothing_like_it");
        let mut config = s.config(&s.id, "true");
        config["process"]["cwd"] = json!("/etc/passwd/x");
        fails_and_recovers(s, &config, "working directory /etc/passwd/x: Not a directory");
    });
}

#[test]
fn a_failed_restart_leaves_the_container_stopped() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("exit 6");
        s.up();
        let before = s.ended(id);
        let mut config = s.config(id, "true");
        config["hooks"] = json!({ "createRuntime": [failing_hook()] });
        s.write(id, &config);
        assert!(s.fails(&["create", id]).contains("createRuntime[0]"));
        assert_eq!(s.state(id), before);
        assert!(!processes().iter().any(|(_, args)| args.contains(id)));
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

fn refused_program(args: Value, code: i32, message: &'static str) {
    sandbox(move |s| {
        let id = s.id.as_str();
        let mut config = s.config(id, "");
        config["process"]["args"] = args;
        config["hooks"] = json!({ "stopContainer": [s.hook("stop", "sleep 0.2; echo told")], "poststart": [s.hook("poststart", "true")] });
        s.write(id, &config);
        s.ok(&["create", id]);
        assert_eq!(s.fails(&["start", id]), message);
        assert_eq!(s.hook_output("stop"), "told\n", "start returns when all is said");
        let state = s.state(id);
        assert_eq!(
            (&state["status"], &state["exit_code"]),
            (&json!("stopped"), &json!(code))
        );
        assert_eq!(
            (&state["reason"], &state["message"]),
            (&json!("Error"), &json!(message))
        );
        assert_eq!(s.log("init.log"), format!("droplet: {message}\n"));
        let init = s.audit().into_iter().find(|record| record["event"] == "init").unwrap();
        assert_eq!(
            (&init["result"], &init["error"]["stage"]),
            (&json!("fail"), &json!("exec_entrypoint"))
        );
        let payloads = s.payloads();
        assert_eq!((payloads.len(), payloads[0].0.as_str()), (1, "stop"));
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

#[test]
fn a_missing_program_fails_start() {
    refused_program(json!(["nothing", "x"]), 127, "nothing: not found in PATH");
}

#[test]
fn a_file_that_cannot_be_executed_fails_start() {
    refused_program(json!(["/etc/passwd"]), 126, "/etc/passwd: permission denied");
}

#[test]
fn a_program_without_arguments_fails_create() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        config["process"]["args"] = json!([]);
        fails_and_recovers(s, &config, "process.args is empty");
    });
}

#[test]
fn a_container_outlives_whoever_created_it_but_not_half_made() {
    sandbox(|s| {
        let id = s.id.as_str();
        let mut config = s.config(id, "sleep 1000");
        let slow = s.hook("slow", "exec sleep 1000");
        config["hooks"] = json!({ "createContainer": [slow], "stopContainer": [s.hook("stop", "true")] });
        s.write(id, &config);
        let mut create = s.command(&["create", id]).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the hook", SOON, || when(s.payloads(), |told| told.len() == 1));
        assert!(interface_exists(&s.veth(id)));
        create.kill().unwrap();
        create.wait().unwrap();
        // The monitor notices by itself.
        wait_for("init to go", SOON, || {
            let ours = format!("create {id}");
            when(processes(), |all| !all.iter().any(|(_, args)| args.contains(&ours)))
        });
        s.ok(&["delete", id]);
        s.gone(id);
        assert_eq!(s.payloads().len(), 1, "a container that never was cannot stop");
    });
}

#[test]
fn what_a_killed_create_leaves_is_cleaned_up_by_the_next_verb() {
    sandbox(|s| {
        let id = s.id.as_str();
        let killed_in = |phase: &str, with_monitor: bool| {
            let before = s.payloads().len();
            let mut config = s.config(id, "sleep 1000");
            config["hooks"] = json!({ phase: [s.hook("slow", "exec sleep 1000")] });
            s.write(id, &config);
            let mut create = s.command(&["create", id]).stderr(Stdio::null()).spawn().unwrap();
            wait_for("the hook", SOON, || when(s.payloads(), |told| told.len() > before));
            if with_monitor {
                s.kill_monitor(id);
            }
            create.kill().unwrap();
            create.wait().unwrap();
        };
        killed_in("createRuntime", false);
        assert_eq!(s.state(id)["status"], "creating");
        s.bundle_with("exit 8");
        s.up();
        assert_eq!(s.ended(id)["exit_code"], 8);
        s.ok(&["delete", id]);
        killed_in("createRuntime", false);
        s.ok(&["delete", id]);
        // The hook is still there; nothing of ours is.
        wait_for("traces to go", SOON, || {
            when(s.traces(id), |traces| traces.iter().all(|trace| trace.contains("slow")))
        });
        // With the monitor dead too, init lives on.
        killed_in("createContainer", true);
        assert_eq!(s.state(id)["status"], "created");
        s.ok(&["delete", id]);
        wait_for("traces to go", SOON, || {
            when(s.traces(id), |traces| traces.iter().all(|trace| trace.contains("slow")))
        });
    });
}

#[test]
fn create_fails_when_its_monitor_is_killed() {
    sandbox(|s| {
        let id = s.id.as_str();
        let go = s.path("go");
        let mut config = s.config(id, "sleep 1000");
        let wait = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
        config["hooks"] = json!({ "createContainer": [s.hook("slow", &wait)] });
        s.write(id, &config);
        let mut create = s.command(&["create", id]).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the hook", SOON, || when(s.payloads(), |told| told.len() == 1));
        s.kill_monitor(id);
        fs::write(go, "").unwrap();
        assert_eq!(create.wait().unwrap().code(), Some(1));
        s.gone(id);
    });
}

#[test]
fn a_pid_that_means_another_process_now_is_not_touched() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("exit 3");
        s.up();
        s.ended(id);
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        let path = s.bundle(id).join("state.json");
        let mut state = s.state(id);
        state["status"] = json!("running");
        state["pid"] = json!(other.id());
        for (key, value) in [("pidStartTime", json!(1)), ("bootId", json!("before the reboot"))] {
            state[key] = value;
            fs::write(&path, state.to_string()).unwrap();
            assert_eq!(s.state(id)["status"], "stopped", "{key}");
            assert!(s.fails(&["kill", id, "KILL"]).contains("not running"));
            assert!(s.fails(&["start", id]).contains("is stopped"));
            state["pidStartTime"] = Value::Null;
        }
        // As after a reboot.
        fs::remove_dir_all(format!("/run/raind/droplet/{id}")).unwrap();
        s.ok(&["delete", id]);
        s.gone(id);
        assert_eq!(other.try_wait().unwrap(), None, "it lives");
        other.kill().unwrap();
        other.wait().unwrap();
    });
}

#[test]
fn a_stale_interface_is_replaced_and_a_foreign_one_is_not() {
    sandbox(|s| {
        let id = s.id.as_str();
        let veth = s.veth(id);
        s.bundle_with("sleep 1000");
        shell(&format!("ip link add {veth} type veth peer name stale"));
        s.ok(&["create", id]);
        s.ok(&["delete", id]);
        s.gone(id);
        // A pair whose other end is up in somebody's namespace.
        let mut somebody = Command::new("unshare")
            .args(["--net", "sleep", "1000"])
            .spawn()
            .unwrap();
        let other = somebody.id();
        let separate =
            || fs::read_link(format!("/proc/{other}/ns/net")).ok() != fs::read_link("/proc/self/ns/net").ok();
        wait_for("the other namespace", SOON, || when(separate(), |is| *is));
        shell(&format!("ip link add {veth} up type veth peer name eth0 netns {other}"));
        shell(&format!("nsenter -t {other} -n ip link set eth0 up"));
        assert!(
            s.fails(&["create", id])
                .contains(&format!("interface {veth} exists and is in use"))
        );
        shell(&format!("ip link show {veth}; ip link del {veth}"));
        shell(&format!("ip link add {veth} type bridge"));
        assert!(s.fails(&["create", id]).contains("exists and is in use"));
        shell(&format!("ip link del {veth}"));
        somebody.kill().unwrap();
        somebody.wait().unwrap();
    });
}

#[test]
fn failing_hooks_after_the_fact_are_only_logged() {
    sandbox(|s| {
        let id = s.id.as_str();
        let mut config = s.config(id, "sleep 1000");
        config["hooks"] =
            json!({ "poststart": [failing_hook()], "stopContainer": [failing_hook()], "poststop": [failing_hook()] });
        s.write(id, &config);
        s.ok(&["create", id]);
        let started = s.droplet(&["start", id]);
        assert!(started.status.success());
        assert_eq!(
            String::from_utf8_lossy(&started.stderr),
            "hook poststart[0] failed: exit status 5: reason\n"
        );
        s.ok(&["kill", id, "KILL"]);
        assert!(s.droplet(&["delete", id]).status.success());
        s.gone(id);
        let hooks: Vec<Value> = s
            .audit()
            .into_iter()
            .filter(|record| record["event"] == "hook")
            .collect();
        assert_eq!(hooks.len(), 3);
        assert!(
            hooks
                .iter()
                .all(|h| h["result"] == "fail" && h["hook"]["stderr_tail"] == "reason\n")
        );
    });
}

#[test]
fn a_state_file_is_never_seen_half_written() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("exit 0");
        let path = s.bundle(id).join("state.json");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok(text) = fs::read(&path) {
                        serde_json::from_slice::<Value>(&text).unwrap();
                        seen += 1;
                    }
                }
                seen
            });
            for _ in 0..5 {
                s.up();
                s.ended(id);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(reader.join().unwrap() > 5);
        });
        s.ok(&["delete", id]);
    });
}
