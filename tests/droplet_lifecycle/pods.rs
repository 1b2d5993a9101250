//! Containers that share namespaces (`docs/spec/runtime.md` 14).

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::sandbox::{Sandbox, sandbox};
use crate::support::{SOON, wait_for, when};

fn namespace(pid: i32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}"))
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

/// A member of the pod of `infra`, as our daemon writes it.
fn member(s: &Sandbox, id: &str, infra: i32, script: &str) -> Value {
    let mut config = s.config(id, script);
    let path = |name: &str| format!("/proc/{infra}/ns/{name}");
    config["linux"]["namespaces"] = json!([
        { "type": "user", "path": path("user") },
        { "type": "network", "path": path("net") },
        { "type": "ipc", "path": path("ipc") },
        { "type": "uts", "path": path("uts") },
        { "type": "mount" }, { "type": "pid" }, { "type": "cgroup" },
    ]);
    let mut net: Value = serde_json::from_str(config["annotations"]["io.raind.net.config"].as_str().unwrap()).unwrap();
    net["interface"]["ipv4"] = json!({ "address": "", "gateway": "" });
    config["annotations"]["io.raind.net.config"] = json!(net.to_string());
    config
}

fn infra(s: &Sandbox) -> i32 {
    let id = s.id.as_str();
    let mut config = s.config(id, "exec sleep 1000");
    config["hostname"] = json!("thepod");
    s.write(id, &config);
    s.up();
    s.pid(id)
}

#[test]
fn members_share_user_network_ipc_and_host_name() {
    sandbox(|s| {
        let pid = infra(s);
        let members = [format!("{}x", &s.id[..11]), format!("{}y", &s.id[..11])];
        for id in &members {
            s.write(
                id,
                &member(
                    s,
                    id,
                    pid,
                    "hostname; ip addr show eth0; cat /proc/self/status; exec sleep 1000",
                ),
            );
            s.ok(&["create", id]);
            s.ok(&["start", id]);
        }
        let pids = members.each_ref().map(|id| s.pid(id));
        for name in ["user", "net", "ipc", "uts"] {
            assert!(
                pids.iter()
                    .all(|member| namespace(*member, name) == namespace(pid, name)),
                "{name}"
            );
        }
        for name in ["mnt", "pid", "cgroup"] {
            let (a, b) = (namespace(pids[0], name), namespace(pids[1], name));
            assert!(a != b && a != namespace(pid, name), "{name}");
        }
        for id in &members {
            let log = wait_for("the member's output", SOON, || {
                let log = fs::read_to_string(s.bundle(id).join("logs/init.log")).unwrap_or_default();
                when(log, |log| log.contains("Seccomp_filters"))
            });
            assert!(
                log.starts_with("thepod\n") && log.contains("inet 10.166.0.7/24"),
                "{log}"
            );
            assert!(
                log.contains("CapEff:\t00000000a80425fb") && log.contains("Seccomp:\t2"),
                "{log}"
            );
        }
        // The infra container ends first; its members go on and can be stopped.
        s.ok(&["kill", &s.id, "KILL"]);
        for id in &members {
            assert_eq!(s.state(id)["status"], "running");
            s.ok(&["kill", id, "KILL"]);
            // The namespaces of a dead process cannot be joined.
            assert!(s.fails(&["create", id]).contains(&format!("namespace /proc/{pid}/ns/")));
            assert_eq!(s.state(id)["status"], "stopped");
            s.ok(&["delete", id]);
            s.gone(id);
        }
        s.ok(&["delete", &s.id]);
        s.gone(&s.id);
    });
}

#[test]
fn namespaces_that_do_not_fit_are_refused() {
    sandbox(|s| {
        let pid = infra(s);
        let id = format!("{}x", &s.id[..11]);
        let refused = |edit: &dyn Fn(&mut Value), expected: &str| {
            let mut config = member(s, &id, pid, "true");
            edit(&mut config);
            s.write(&id, &config);
            let error = s.fails(&["create", &id]);
            assert!(error.contains(expected), "{error}");
            assert_eq!(s.traces(&id), Vec::<String>::new());
        };
        let wrong = format!("/proc/{pid}/ns/uts is not a network namespace");
        refused(
            &|c| c["linux"]["namespaces"][1]["path"] = json!(format!("/proc/{pid}/ns/uts")),
            &wrong,
        );
        let foreign = "does not belong to the user namespace of the container";
        refused(
            &|c| c["linux"]["namespaces"][1]["path"] = json!("/proc/1/ns/net"),
            foreign,
        );
        refused(&|c| c["linux"]["namespaces"][0] = json!({ "type": "user" }), foreign);
        refused(
            &|c| {
                c["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|n| n["type"] != "user")
            },
            "user is required",
        );
        s.ok(&["kill", &s.id, "KILL"]);
        s.ok(&["delete", &s.id]);
    });
}

/// The original daemon runs `create` for a member inside the pod's user namespace, with no user entry in the file.
#[test]
fn a_member_can_be_created_from_inside_the_user_namespace() {
    sandbox(|s| {
        let pid = infra(s);
        let id = format!("{}x", &s.id[..11]);
        let mut config = member(
            s,
            &id,
            pid,
            "hostname; mkdir /made && rmdir /bin && echo gone; exec sleep 1000",
        );
        config["linux"]["namespaces"].as_array_mut().unwrap().remove(0);
        config["hooks"] = json!({ "createContainer": [s.hook("inside", "readlink /proc/self/ns/net")] });
        for key in ["uidMappings", "gidMappings"] {
            config["linux"].as_object_mut().unwrap().remove(key);
        }
        s.write(&id, &config);
        let output = Command::new("nsenter")
            .args([
                "-t",
                &pid.to_string(),
                "-U",
                "--preserve-credentials",
                "--",
                env!("CARGO_BIN_EXE_droplet"),
                "create",
                &id,
            ])
            .env("RAIND_ROOT_DIR", s.root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        s.ok(&["start", &id]);
        let member = s.pid(&id);
        for name in ["user", "net", "ipc", "uts"] {
            assert_eq!(namespace(member, name), namespace(pid, name), "{name}");
        }
        assert_eq!(s.hook_output("inside").trim(), namespace(member, "net"));
        for name in ["mnt", "pid", "cgroup"] {
            assert_ne!(namespace(member, name), namespace(pid, name), "{name}");
        }
        s.ok(&["kill", &id, "KILL"]);
        s.ok(&["delete", &id]);
        s.gone(&id);
        s.ok(&["kill", &s.id, "KILL"]);
        s.ok(&["delete", &s.id]);
    });
}
