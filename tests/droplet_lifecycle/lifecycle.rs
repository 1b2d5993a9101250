//! From `create` to `delete`: files, states, hooks, exit codes.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use serde_json::{Value, json};

use crate::support::sandbox::{Sandbox, mode, processes, sandbox, signal};
use crate::support::{SOON, wait_for, when};

fn with_all_hooks(sandbox: &Sandbox, mut config: Value) -> Value {
    let script = "hostname; for n in net uts ipc pid mnt user; do readlink /proc/self/ns/$n; done";
    let hook = |name: &str| json!([sandbox.hook(name, script)]);
    config["hooks"] = json!({
        "createRuntime": hook("createRuntime"),
        "createContainer": hook("createContainer"),
        "startContainer": hook("startContainer"),
        "poststart": hook("poststart"),
        "stopContainer": hook("stopContainer"),
        "poststop": hook("poststop"),
    });
    sandbox.write(&sandbox.id, &config);
    config
}

#[test]
fn a_container_goes_through_all_states_and_tells_its_hooks() {
    sandbox(|s| {
        let id = s.id.as_str();
        with_all_hooks(
            s,
            s.config(
                id,
                "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done",
            ),
        );

        assert_eq!(s.ok(&["create", id]), "");
        let state = s.state(id);
        assert_eq!((&state["status"], &state["shimPid"]), (&json!("created"), &json!(0)));
        assert_eq!(state["rootfs"], json!(s.bundle(id).join("merged")));
        assert_eq!(
            mode(&s.bundle(id).join("state.json")),
            0o600,
            "annotations tell of the host"
        );
        assert!(!s.bundle(id).join("config_hash.json").exists());
        assert_eq!(
            fs::read_dir(s.bundle(id).join("merged")).unwrap().count(),
            0,
            "mounted on the host"
        );
        assert_eq!(s.log("init.log"), "");

        s.ok(&["start", id]);
        s.log_with("init.log", "up\n");
        assert_eq!(mode(&s.bundle(id).join("logs/init.log")), 0o640);
        assert_eq!(s.state(id)["status"], "running");
        s.ok(&["kill", id]);
        let state = s.state(id);
        assert_eq!(
            (&state["status"], &state["exit_code"], &state["reason"]),
            (&json!("stopped"), &json!(7), &json!("Error"))
        );
        assert!(s.log("init.log").ends_with("bye\n"));
        assert!(
            s.fails(&["kill", id])
                .contains(&format!("container: {id} not running."))
        );
        s.ok(&["delete", id]);
        s.gone(id);

        let payloads = s.payloads();
        let told: Vec<(&str, &str, bool)> = payloads
            .iter()
            .map(|(name, p)| {
                (
                    name.as_str(),
                    p["status"].as_str().unwrap(),
                    p["pid"].as_i64().unwrap() > 0,
                )
            })
            .collect();
        let expected = [
            ("createRuntime", "creating", false),
            ("createContainer", "created", true),
            ("startContainer", "created", true),
            ("poststart", "running", true),
            ("stopContainer", "stopped", false),
            ("poststop", "stopped", false),
        ];
        assert_eq!(told, expected);
        assert_eq!(payloads[4].1["exit_code"], 7);
        assert!(
            payloads
                .iter()
                .all(|(_, p)| p["id"] == json!(id) && p["annotations"]["io.raind.hooks.args"] == "argv0")
        );
    });
}

#[test]
fn container_hooks_run_in_the_containers_namespaces_but_with_the_hosts_files() {
    sandbox(|s| {
        let id = s.id.as_str();
        with_all_hooks(s, s.config(id, "sleep 1000"));
        s.up();
        let namespace = |pid: &str, name: &str| {
            let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            link.to_string_lossy().into_owned()
        };
        let init = s.pid(id).to_string();
        let own = |name: &str| namespace("self", name);
        let inside = |name: &str| namespace(&init, name);
        let host = ["net", "uts", "ipc", "pid", "mnt", "user"].map(own);
        for name in ["createRuntime", "poststart"] {
            assert_eq!(s.hook_output(name).lines().skip(1).collect::<Vec<_>>(), host, "{name}");
        }
        let container = [
            inside("net"),
            inside("uts"),
            inside("ipc"),
            inside("pid"),
            own("mnt"),
            own("user"),
        ];
        for name in ["createContainer", "startContainer"] {
            let output = s.hook_output(name);
            assert_eq!(output.lines().next(), Some(id), "host name");
            assert_eq!(output.lines().skip(1).collect::<Vec<_>>(), container, "{name}");
        }
        s.ok(&["kill", id, "KILL"]);
        s.ok(&["delete", id]);
    });
}

/// Runs a script to its end; the recorded state. The stopContainer hook must have been told the same, once.
fn end_of(s: &Sandbox, script: &str) -> Value {
    let mut config = s.config(&s.id, script);
    config["hooks"] = json!({ "stopContainer": [s.hook("stopContainer", "true")] });
    s.write(&s.id, &config);
    s.up();
    let state = s.ended(&s.id);
    s.ok(&["delete", &s.id]);
    s.gone(&s.id);
    let payloads = s.payloads();
    assert_eq!(payloads.len(), 1, "{payloads:?}");
    for key in ["status", "exit_code", "reason", "message", "finishedAt"] {
        assert_eq!(payloads[0].1[key], state[key], "{key}");
    }
    state
}

fn exits_with(script: &'static str, code: i32, reason: &'static str) {
    sandbox(|s| {
        let state = end_of(s, script);
        assert_eq!((&state["exit_code"], &state["reason"]), (&json!(code), &json!(reason)));
        assert_eq!(
            (&state["status"], &state["pid"], &state["message"]),
            (&json!("stopped"), &json!(0), &json!(""))
        );
    });
}

#[test]
fn an_exit_with_0_is_completed() {
    exits_with("exit 0", 0, "Completed");
}

#[test]
fn an_exit_with_3_is_an_error() {
    exits_with("exit 3", 3, "Error");
}

#[test]
fn an_exit_with_143_is_an_error() {
    exits_with("sleep 1000 & kill $!; wait $!; exit $?", 143, "Error");
}

#[test]
fn a_program_that_eats_its_memory_is_oom_killed() {
    // tail has to keep what may be the last line.
    exits_with("exec tail /dev/zero", 137, "OOMKilled");
}

#[test]
fn a_process_that_ignores_term_is_killed_after_the_grace_period() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("exec sleep 1000");
        s.up();
        let started = std::time::Instant::now();
        s.ok(&["kill", id]);
        let took = started.elapsed().as_millis();
        assert!((2900..8000).contains(&took), "{took} ms");
        let state = s.state(id);
        assert_eq!((&state["exit_code"], &state["reason"]), (&json!(137), &json!("Error")));
        let kill = s.audit().into_iter().find(|record| record["event"] == "kill").unwrap();
        assert_eq!(kill["signals"], json!(["TERM", "KILL"]));
    });
}

#[test]
fn signals_that_do_not_stop_are_only_delivered() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("trap 'echo hup' HUP; trap 'echo usr' USR1; echo up; while :; do sleep 0.05; done");
        s.up();
        s.log_with("init.log", "up\n");
        s.ok(&["kill", id, "SIGHUP"]);
        s.log_with("init.log", "hup\n");
        s.ok(&["kill", id, "10"]);
        s.log_with("init.log", "usr\n");
        let output = s.droplet(&["kill", id, "NOPE"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("unknown signal: NOPE"));
        assert_eq!(s.state(id)["status"], "running");
        s.ok(&["kill", id, "kill"]);
        assert_eq!(s.state(id)["exit_code"], 137);
    });
}

#[test]
fn with_a_grace_period_any_signal_stops() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("trap 'exit 9' USR1; trap 'echo no' TERM; echo up; while :; do sleep 0.05; done");
        for (args, code) in [
            (&["--grace", "60", id, "SIGUSR1"][..], 9),
            (&["--grace", "60", id, "KILL"], 137),
            (&["--grace=0", id, "TERM"], 137),
        ] {
            s.up();
            wait_for("the traps", SOON, || {
                when(s.log("init.log"), |log| log.ends_with("up\n"))
            });
            let started = std::time::Instant::now();
            s.ok(&[&["kill"], args].concat());
            assert!(started.elapsed().as_secs() < 30, "{args:?}");
            let state = s.state(id);
            assert_eq!(
                (&state["status"], &state["exit_code"]),
                (&json!("stopped"), &json!(code)),
                "{args:?}"
            );
            std::fs::write(s.bundle(id).join("logs/init.log"), "").unwrap();
        }
        s.up();
        assert_eq!(s.droplet(&["kill", "--grace", "soon", id]).status.code(), Some(1));
        assert_eq!(s.state(id)["status"], "running");
    });
}

#[test]
fn a_terminal_belongs_to_the_container_and_its_output_is_logged() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("tty; ls -l /dev/console; [ -t 0 ] && echo in; [ -t 2 ] && echo err; exit 5");
        s.ok(&["create", "-t", id]);
        let state = s.state(id);
        assert_eq!(state["shimPid"], json!(s.monitor(id)));
        let socket = s.bundle(id).join("tty.sock");
        assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
        assert_eq!(mode(&socket), 0o600);
        let init_pid = fs::read_to_string(s.bundle(id).join("init.pid")).unwrap();
        assert_eq!(init_pid, format!("{}\n", state["pid"]));
        s.ok(&["start", id]);
        assert_eq!(s.ended(id)["exit_code"], 5);
        let log = s.log("console.log");
        for text in ["/dev/pts/0\r\n", "/dev/console", "in\r\n", "err\r\n"] {
            assert!(log.contains(text), "{text} in {log}");
        }
        assert!(
            s.log("shim.log").contains("init exited (status=5)"),
            "{}",
            s.log("shim.log")
        );
        let init_pid = s.bundle(id).join("init.pid");
        wait_for("the files to go", SOON, || {
            when([socket.exists(), init_pid.exists()], |exist| *exist == [false; 2])
        });
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

#[test]
fn a_stopped_container_starts_again_with_its_files() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("cat /kept 2>/dev/null; echo again > /kept; exit 4");
        for expected in ["", "again\n", "again\nagain\n"] {
            s.up();
            assert_eq!(s.ended(id)["exit_code"], 4);
            assert_eq!(s.log("init.log"), expected);
        }
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

#[test]
fn delete_of_a_created_container_kills_it_without_stop_hooks() {
    sandbox(|s| {
        let id = s.id.as_str();
        with_all_hooks(s, s.config(id, "sleep 1000"));
        s.ok(&["create", id]);
        s.ok(&["delete", id]);
        s.gone(id);
        let names: Vec<String> = s.payloads().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["createRuntime", "createContainer", "poststop"]);
        assert!(s.fails(&["delete", id]).contains("does not exist"));
    });
}

#[test]
fn a_created_container_whose_init_dies_is_stopped_and_told() {
    sandbox(|s| {
        let id = s.id.as_str();
        with_all_hooks(s, s.config(id, "sleep 1000"));
        s.ok(&["create", id]);
        signal(s.pid(id), libc::SIGKILL);
        assert_eq!(s.ended(id)["exit_code"], 137);
        assert!(s.fails(&["start", id]).contains("is stopped, not created"));
        s.ok(&["delete", id]);
        s.gone(id);
        let names: Vec<String> = s.payloads().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["createRuntime", "createContainer", "stopContainer", "poststop"]);
    });
}

#[test]
fn a_running_container_cannot_be_created_or_deleted() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("sleep 1000");
        s.ok(&["create", id]);
        assert_eq!(
            s.fails(&["create", id]),
            format!("container {id} exists and is created")
        );
        s.ok(&["start", id]);
        let pid = s.pid(id);
        assert_eq!(
            s.fails(&["create", id]),
            format!("container {id} exists and is running")
        );
        assert_eq!(s.fails(&["delete", id]), format!("container {id} is running"));
        assert_eq!(
            s.fails(&["start", id]),
            format!("container {id} is running, not created")
        );
        assert_eq!(s.pid(id), pid, "it still runs");
        s.ok(&["kill", id, "KILL"]);
        s.ok(&["delete", id]);
    });
}

#[test]
fn without_its_monitor_a_container_can_be_killed_and_deleted() {
    sandbox(|s| {
        let id = s.id.as_str();
        with_all_hooks(s, s.config(id, "sleep 1000"));
        s.up();
        s.kill_monitor(id);
        assert_eq!(s.state(id)["status"], "running");
        s.ok(&["kill", id, "KILL"]);
        let state = s.state(id);
        assert_eq!((&state["exit_code"], &state["reason"]), (&json!(-1), &json!("Error")));
        assert_eq!(state["message"], "exit status unknown");
        s.ok(&["delete", id]);
        s.gone(id);
        let names: Vec<String> = s.payloads().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names.iter().filter(|name| *name == "stopContainer").count(),
            1,
            "{names:?}"
        );
    });
}

#[test]
fn an_end_that_was_recorded_survives_a_monitor_killed_in_its_hooks() {
    sandbox(|s| {
        let id = s.id.as_str();
        let (go, mut config) = (s.path("go"), s.config(id, "exit 3"));
        let wait = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
        config["hooks"] = json!({ "stopContainer": [s.hook("stop", &wait)] });
        s.write(id, &config);
        s.up();
        wait_for("the hook", SOON, || when(s.payloads(), |told| told.len() == 1));
        s.kill_monitor(id);
        fs::write(go, "").unwrap();
        s.ok(&["create", id]);
        let told = s.payloads();
        assert_eq!(told.len(), 2, "nobody knows whether the first one arrived");
        assert_eq!(
            (&told[1].1["exit_code"], &told[1].1["reason"]),
            (&json!(3), &json!("Error"))
        );
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

#[test]
fn one_create_leaves_one_process_besides_init() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("sleep 1000");
        let before = processes().len();
        s.up();
        let now = processes();
        assert_eq!(now.len(), before + 2, "{now:?}");
        let stat = fs::read_to_string(format!("/proc/{}/stat", s.monitor(id))).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // Parent (our reaper), process group and session: its own; one thread.
        assert_eq!(
            (fields[1], fields[2], fields[3], fields[17]),
            ("1", fields[3], s.monitor(id).to_string().as_str(), "1")
        );
        s.ok(&["kill", id, "KILL"]);
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

#[test]
fn many_containers_at_a_time_do_not_disturb_each_other() {
    sandbox(|s| {
        let ids: Vec<String> = (0..16).map(|n| format!("{}{n:02}", &s.id[..10])).collect();
        for (n, id) in ids.iter().enumerate() {
            let mut config = s.config(id, &format!("hostname; exit {n}"));
            let net = config["annotations"]["io.raind.net.config"].as_str().unwrap();
            config["annotations"]["io.raind.net.config"] =
                json!(net.replace("10.166.0.7/", &format!("10.166.0.{}/", n + 10)));
            config["hooks"] = json!({ "createContainer": [s.hook(id, "true")] });
            s.write(id, &config);
        }
        std::thread::scope(|scope| {
            for chunk in ids.chunks(2) {
                scope.spawn(move || {
                    for id in chunk {
                        s.ok(&["create", id]);
                        s.ok(&["start", id]);
                    }
                });
            }
        });
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(s.ended(id)["exit_code"], json!(n));
            let log = fs::read_to_string(s.bundle(id).join("logs/init.log")).unwrap();
            assert_eq!(log, format!("{id}\n"));
            s.ok(&["delete", id]);
            s.gone(id);
        }
    });
}

#[test]
fn verbs_on_one_container_at_a_time_take_turns() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("sleep 1000");
        std::thread::scope(|scope| {
            let creates: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| s.droplet(&["create", id]).status.success()))
                .collect();
            let created = creates.into_iter().map(|create| create.join().unwrap());
            assert_eq!(
                created.filter(|success| *success).count(),
                1,
                "one creates, the others are refused"
            );
        });
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| s.droplet(&["start", id]).status.success()))
                .collect();
            let started = starts.into_iter().map(|start| start.join().unwrap());
            assert_eq!(started.filter(|success| *success).count(), 1);
        });
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| s.droplet(&["kill", id, "KILL"]));
            }
        });
        assert_eq!(s.state(id)["exit_code"], 137);
        std::thread::scope(|scope| {
            let deletes: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| s.droplet(&["delete", id]).status.success()))
                .collect();
            let deleted = deletes.into_iter().map(|delete| delete.join().unwrap());
            assert_eq!(deleted.filter(|success| *success).count(), 1);
        });
        s.gone(id);
    });
}

#[test]
fn a_listing_shows_every_container() {
    sandbox(|s| {
        assert_eq!(s.ok(&["list", "--format", "json"]), "null");
        let id = s.id.as_str();
        s.bundle_with("sleep 1000");
        fs::create_dir(s.root().join("empty")).unwrap();
        s.up();
        let listed: Value = serde_json::from_str(&s.ok(&["list", "-format=json"])).unwrap();
        assert_eq!(
            (listed.as_array().unwrap().len(), &listed[0]["status"]),
            (1, &json!("running"))
        );
        let table = s.ok(&["list"]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], format!("{:<15} {:<15} {:<8} BUNDLE", "ID", "STATUS", "PID"));
        assert!(lines[1].starts_with(&format!("{id:<15} {:<15} ", "running")), "{table}");
        s.ok(&["kill", id, "KILL"]);
        s.ok(&["delete", id]);
    });
}

#[test]
fn the_root_may_be_named_relative_to_the_working_directory() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("cat /etc/hostname; exit 2");
        for verb in ["create", "start"] {
            let mut command = s.command(&[verb, id]);
            assert!(
                command
                    .env("RAIND_ROOT_DIR", "container")
                    .current_dir(s.path(""))
                    .status()
                    .unwrap()
                    .success()
            );
        }
        assert_eq!(s.ended(id)["exit_code"], 2);
        assert_eq!(s.log("init.log"), format!("{id}\n"));
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

#[test]
fn run_ends_with_the_containers_status() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("echo out; exit 9");
        let output = s.droplet(&["run", id]);
        assert_eq!(output.status.code(), Some(9));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("create container success. ID: {id}\n")
        );
        assert_eq!(s.log("init.log"), "out\n");
        s.ok(&["delete", id]);
        s.bundle_with("read line; echo got $line; exit 6");
        // Enter is what a terminal sends for a line; the end of input must not come before the answer.
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "(echo hello; sleep 5) | \"$0\" run -t $1"]);
        shell.args([env!("CARGO_BIN_EXE_droplet"), id]);
        let output = shell.env("RAIND_ROOT_DIR", s.root()).output().unwrap();
        assert_eq!(output.status.code(), Some(6));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(stdout.ends_with("got hello\r\n"), "{stdout}");
        s.ok(&["delete", id]);
    });
}

#[test]
fn the_command_line_has_the_contracts_exit_codes() {
    sandbox(|s| {
        let run = |args: &[&str]| {
            let output = s.droplet(args);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (
                output.status.code().unwrap(),
                text(&output.stdout),
                text(&output.stderr),
            )
        };
        for args in [&[][..], &["--help"], &["help"]] {
            let (code, stdout, _) = run(args);
            assert!(code == 0 && stdout.contains("USAGE"), "{args:?}");
        }
        assert_eq!(
            run(&["nope"]),
            (3, String::new(), "No help topic for 'nope'\n".to_owned())
        );
        let (code, stdout, stderr) = run(&["create", "--nope", "abc"]);
        assert!(
            code == 1 && stdout.starts_with("Incorrect Usage: ") && stderr == "flag provided but not defined: -nope\n"
        );
        for id in ["../x", "A", ""] {
            assert!(s.fails(&["delete", id]).starts_with("invalid container id: "), "{id}");
        }
        assert!(s.fails(&["start", "unknown"]).contains("config.json"));
        assert_eq!(s.fails(&["state", "unknown"]), "container unknown does not exist");
    });
}
