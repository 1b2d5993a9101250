//! The exec'd process is like init, and what becomes of it is known.

use serde_json::{Value, json};

use crate::process::{find, parent};
use crate::support::sandbox::{Sandbox, mode, sandbox, signal};
use crate::support::{SOON, wait_for, when};

/// Prints everything that a process has from its runtime.
pub const SELF_PORTRAIT: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign|Cgt))' /proc/self/status; \
    cat /proc/self/cgroup /proc/self/limits /proc/self/oom_score_adj /proc/self/uid_map; env | sort; pwd; umask; \
    for ns in user mnt cgroup uts ipc pid net; do readlink /proc/self/ns/$ns; done; cat /proc/self/attr/current; ";

/// A running container, whose program may print first.
pub fn running(s: &Sandbox, config: &Value) {
    s.write(&s.id, config);
    s.up();
}

/// A program that does nothing.
pub fn sleeper(s: &Sandbox) -> Value {
    s.config(&s.id, "exec sleep 1000")
}

/// The audit record of the end of an exec'd process.
fn end(s: &Sandbox, command: &str) -> Value {
    wait_for("the record of the end", SOON, || {
        let of =
            |record: &&Value| record["event"] == "exec_shim" && record["exec_command"].to_string().contains(command);
        let records = s.audit();
        records.iter().find(of).cloned().ok_or(format!("{records:?}"))
    })
}

#[test]
fn the_process_is_like_init_in_everything() {
    sandbox(|s| {
        let mut config = s.config(&s.id, &format!("{SELF_PORTRAIT} echo the end; exec sleep 1000"));
        config["process"]["user"] = json!({ "uid": 33, "gid": 34, "additionalGids": [7, 44], "umask": 0o027 });
        config["process"]["cwd"] = json!("/home/web");
        config["process"]["env"] = json!(["PATH=/bin", "ONE=1", "TWO=2 2"]);
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
        config["process"]["oomScoreAdj"] = json!(77);
        running(s, &config);
        let of_init = s.log_with("init.log", "the end\n");
        s.ok(&["exec", &s.id, "sh", "-c", &format!("{SELF_PORTRAIT} echo the end")]);
        let of_exec = s.log_with("exec.log", "the end\n");
        assert_eq!(of_exec, of_init);
        for line in [
            "Uid:\t33",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "HOME=/home/web",
            "100                  200",
            "77\n",
        ] {
            assert!(of_exec.contains(line), "{line} in {of_exec}");
        }
        assert!(!of_exec.contains("SECRET_OF_THE_DAEMON"));
    });
}

#[test]
fn root_has_the_default_capabilities_and_no_more() {
    sandbox(|s| {
        running(s, &sleeper(s));
        s.ok(&[
            "exec",
            &s.id,
            "sh",
            "-c",
            "cat /proc/self/status; ls /proc/self/fd | tr '\\n' ' '; hostname x; mount -t tmpfs x /tmp; \
                                           cat /proc/self/cgroup; echo the end",
        ]);
        let log = s.log_with("exec.log", "the end\n");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(log.contains(&format!("{set}:\t00000000a80425fb")), "{log}");
        }
        assert!(log.contains("hostname: sethostname: Operation not permitted"), "{log}");
        assert!(log.contains("mount: permission denied"), "{log}");
        assert!(
            log.contains("0 1 2 3 hostname"),
            "stdio and the directory that ls reads: {log}"
        );
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", s.pid(&s.id))).unwrap();
        assert!(own.contains(&format!("/raind/{}", s.id)), "{own}");
    });
}

#[test]
fn it_is_in_the_cgroup_of_init_as_the_host_sees_it() {
    sandbox(|s| {
        running(s, &sleeper(s));
        s.ok(&["exec", &s.id, "sleep", "777"]);
        let pid = find("sleep 777");
        let cgroup = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(cgroup(pid), cgroup(s.pid(&s.id)));
        assert!(
            !cgroup(parent(pid)).contains(&s.id),
            "the monitor survives the container's limits"
        );
        signal(pid, libc::SIGTERM);
        assert_eq!(end(s, "777")["error"]["message"], "signal: SIGTERM");
    });
}

#[test]
fn with_shifted_ids_it_is_root_of_the_container_only() {
    sandbox(|s| {
        let mut config = sleeper(s);
        let shifted = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        config["linux"]["uidMappings"] = shifted.clone();
        config["linux"]["gidMappings"] = shifted;
        s.write(&s.id, &config);
        crate::support::sandbox::shell(&format!(
            "chown -R 100000:100000 {} {}; chmod 711 {} {}",
            s.bundle(&s.id).join("diff").display(),
            s.image().display(),
            s.path("").display(),
            s.root().display(),
        ));
        s.up();
        s.ok(&[
            "exec",
            &s.id,
            "sh",
            "-c",
            "id -u; echo again > /dev/stdout; ls -ln /proc/self/fd; exec sleep 778",
        ]);
        let log = s.log_with("exec.log", "1 -> pipe");
        assert!(log.starts_with("0\nagain\n"), "{log}");
        let mut viewer = {
            s.ok(&[
                "exec",
                "-t",
                &s.id,
                "sh",
                "-c",
                "tty; ls -ln $(tty); echo again > $(tty)",
            ]);
            s.log_with("exec_console.log", "again")
        };
        viewer.truncate(200);
        assert!(
            viewer.starts_with("/dev/pts/") && viewer.contains(" 0        5 "),
            "{viewer}"
        );
    });
}

#[test]
fn output_and_status_are_recorded() {
    sandbox(|s| {
        running(s, &sleeper(s));
        s.ok(&["exec", &s.id, "sh", "-c", "echo out; echo err >&2; exit 3"]);
        s.ok(&["exec", &s.id, "sh", "-c", "echo more; kill -9 $$"]);
        let failed = end(s, "exit 3");
        assert_eq!(
            (&failed["result"], &failed["error"]["message"]),
            (&json!("fail"), &json!("exit status 3"))
        );
        assert_eq!(end(s, "more")["error"]["message"], "signal: SIGKILL");
        assert!(failed["pid"].as_i64().unwrap() > 1);
        let log = s.log("exec.log");
        assert!(log == "out\nerr\nmore\n" || log == "more\nout\nerr\n", "{log}");
        assert_eq!(mode(&s.bundle(&s.id).join("logs/exec.log")), 0o640);
        let verbs = s.audit().into_iter().filter(|record| record["event"] == "exec");
        assert!(verbs.map(|record| record["result"].clone()).eq(["success", "success"]));
        assert!(s.log("exec_shim.log").contains("command ended: exit status 3\n"));
    });
}

#[test]
fn it_does_not_wait_for_the_end_and_keeps_nothing_of_the_caller() {
    sandbox(|s| {
        running(s, &sleeper(s));
        // Returns although the process runs on: nothing holds the caller's pipes.
        s.ok(&["exec", &s.id, "sh", "-c", "echo started; read x; sleep 779 & echo left"]);
        let log = s.log_with("exec.log", "left\n");
        assert_eq!(log, "started\nleft\n", "there is no input");
        assert_eq!(end(s, "779")["result"], "success");
        // What it left behind goes on writing, and ends with the container.
        s.ok(&["kill", &s.id, "KILL"]);
        s.ok(&["delete", &s.id]);
        s.gone(&s.id);
    });
}

#[test]
fn what_cannot_be_executed_fails_and_is_named() {
    sandbox(|s| {
        let mut config = sleeper(s);
        config["process"]["cwd"] = json!("/work");
        running(s, &config);
        let id = s.id.as_str();
        assert_eq!(s.fails(&["exec", id, "nosuch"]), "nosuch: not found in PATH");
        assert_eq!(
            s.fails(&["exec", id, "/no/such"]),
            "/no/such: no such file or directory"
        );
        assert_eq!(s.fails(&["exec", id, "/etc/passwd"]), "/etc/passwd: permission denied");
        assert_eq!(s.fails(&["exec", id, "/etc"]), "/etc: is a directory");
        assert_eq!(s.fails(&["exec", "-t", id, "nosuch"]), "nosuch: not found in PATH");
        assert!(
            !s.bundle(id).join("exec_tty.sock").is_symlink(),
            "nothing is left of a session that never was"
        );
        let record = s.audit().pop().unwrap();
        assert_eq!(
            (&record["event"], &record["error"]["stage"]),
            (&json!("exec"), &json!("exec_shim"))
        );
        s.ok(&["exec", id, "rmdir", "/work"]);
        end(s, "rmdir");
        assert_eq!(
            s.fails(&["exec", id, "true"]),
            "working directory /work: No such file or directory"
        );
    });
}

#[test]
fn a_container_that_does_not_run_is_refused() {
    sandbox(|s| {
        let id = s.id.as_str();
        let not_running = format!("container: {id} not running.");
        s.write(id, &sleeper(s));
        assert_eq!(s.fails(&["exec", id, "true"]), format!("container {id} does not exist"));
        s.ok(&["create", id]);
        assert_eq!(s.fails(&["exec", id, "true"]), not_running);
        s.ok(&["start", id]);
        s.ok(&["kill", id, "KILL"]);
        assert_eq!(s.fails(&["exec", id, "true"]), not_running);
        for args in [
            &["exec"][..],
            &["exec", id],
            &["exec", id, ""],
            &["exec", "-x", id, "true"],
        ] {
            let output = s.droplet(args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(
                String::from_utf8_lossy(&output.stdout).starts_with("Incorrect Usage: "),
                "{args:?}"
            );
        }
        assert!(s.fails(&["exec", "../x", "true"]).contains("invalid container id"));
    });
}

#[test]
fn arguments_are_never_options() {
    sandbox(|s| {
        running(s, &sleeper(s));
        s.ok(&["exec", &s.id, "echo", "-t", "--tty", "--", "a  b", "$HOME", ""]);
        assert_eq!(s.log_with("exec.log", "\n"), "-t --tty -- a  b $HOME \n");
        assert_eq!(s.fails(&["exec", "--", &s.id, "-t"]), "-t: not found in PATH");
    });
}

#[test]
fn many_at_once_all_run() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let children: Vec<_> = (0..20)
            .map(|n| {
                s.command(&["exec", &s.id, "echo", &format!("line {n}")])
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        let log = wait_for("all lines", SOON, || {
            when(s.log("exec.log"), |log| log.lines().count() == 20)
        });
        let mut lines: Vec<_> = log.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 20, "{log}");
    });
}

#[test]
fn a_rotated_log_goes_on_under_its_name() {
    sandbox(|s| {
        running(s, &sleeper(s));
        s.ok(&[
            "exec",
            &s.id,
            "sh",
            "-c",
            "echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo two",
        ]);
        s.log_with("exec.log", "one\n");
        let logs = s.bundle(&s.id).join("logs");
        std::fs::rename(logs.join("exec.log"), logs.join("exec.log.1")).unwrap();
        s.ok(&["exec", &s.id, "touch", "/tmp/go"]);
        assert_eq!(s.log_with("exec.log", "two"), "two\n");
        assert_eq!(s.log("exec.log.1"), "one\n");
    });
}

#[test]
fn in_a_pods_member_it_is_like_the_members_init() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let infra = s.pid(&s.id);
        let id = format!("{}x", &s.id[..11]);
        let mut config = s.config(&id, &format!("{SELF_PORTRAIT} hostname; echo the end; exec sleep 1000"));
        let joined = |kind: &str, name: &str| json!({ "type": kind, "path": format!("/proc/{infra}/ns/{name}") });
        config["linux"]["namespaces"] = json!([
            joined("user", "user"), joined("network", "net"), joined("ipc", "ipc"), joined("uts", "uts"),
            { "type": "mount" }, { "type": "pid" }, { "type": "cgroup" },
        ]);
        s.write(&id, &config);
        s.ok(&["create", &id]);
        s.ok(&["start", &id]);
        s.ok(&[
            "exec",
            &id,
            "sh",
            "-c",
            &format!("{SELF_PORTRAIT} hostname; echo the end"),
        ]);
        let log = |name: &str| {
            wait_for(name, SOON, || {
                let log = std::fs::read_to_string(s.bundle(&id).join("logs").join(name)).unwrap_or_default();
                when(log, |log| log.ends_with("the end\n"))
            })
        };
        assert_eq!(log("exec.log"), log("init.log"));
        s.ok(&["kill", &id, "KILL"]);
        s.ok(&["delete", &id]);
        s.gone(&id);
    });
}

/// This machine's cgroup v2 has no controllers, so no limits here; everything else about it.
#[test]
fn with_cgroup_v2_alone_it_joins_the_daemons_directory() {
    sandbox(|s| {
        if std::fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_err() {
            crate::support::sandbox::shell("mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup");
        }
        let cgroup = std::path::Path::new("/sys/fs/cgroup/raind").join(&s.id);
        std::fs::create_dir_all(&cgroup).unwrap();
        let mut config = sleeper(s);
        config["linux"]["resources"] = json!({ "pids": { "limit": 0 } });
        running(s, &config);
        s.ok(&["exec", &s.id, "sleep", "775"]);
        let pid = find("sleep 775");
        let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(of(pid).contains(&format!("0::/raind/{}\n", s.id)), "{}", of(pid));
        assert!(of(parent(pid)).contains("0::/raind/_monitors\n"), "{}", of(parent(pid)));
        s.ok(&["kill", &s.id, "KILL"]);
        assert_eq!(end(s, "775")["error"]["message"], "signal: SIGKILL");
        s.ok(&["delete", &s.id]);
        wait_for("the cgroup to be empty", SOON, || std::fs::remove_dir(&cgroup));
        // Shared with other tests.
        let above = cgroup.parent().unwrap();
        let _ = std::fs::remove_dir(above.join("_monitors")).and_then(|()| std::fs::remove_dir(above));
    });
}
