//! The container seen from inside: ids, rights, file systems, network, limits.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::support::sandbox::{Sandbox, mode, owner, sandbox, shell};

/// Runs a script in a container to its end; what it printed.
fn output_of(s: &Sandbox, config: &Value) -> String {
    let id = s.id.as_str();
    s.write(id, config);
    s.up();
    s.ended(id);
    let log = s.log("init.log");
    s.ok(&["delete", id]);
    s.gone(id);
    fs::remove_file(s.bundle(id).join("logs/init.log")).unwrap();
    log
}

fn prints(s: &Sandbox, script: &str) -> String {
    output_of(s, &s.config(&s.id, script))
}

#[test]
fn the_process_has_the_contracts_rights_and_nothing_of_the_daemons() {
    sandbox(|s| {
        let log = prints(
            s,
            "cat /proc/self/status /proc/self/uid_map /proc/1/oom_score_adj; umask; env; ls -l /proc/self/fd",
        );
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t00000000a80425fb",
            "CapEff:\t00000000a80425fb",
            "CapBnd:\t00000000a80425fb",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "Groups:\t \n",
            "SigIgn:\t0000000000000000",
            "SigBlk:\t0000000000000000",
            "0          0      65535",
            "0022",
            "HOME=/root",
        ] {
            assert!(log.contains(line), "{line} in {log}");
        }
        assert!(!log.contains("SECRET_OF_THE_DAEMON"), "{log}");
        // 0, 1 and 2; that of ls for the directory is gone when ls looks at it.
        assert_eq!(log.lines().filter(|line| line.contains(" -> ")).count(), 3, "{log}");
    });
}

#[test]
fn the_user_of_the_image_is_honoured() {
    sandbox(|s| {
        let mut config = s.config(
            &s.id,
            "id; echo $HOME; umask; pwd; echo again > /dev/stdout; ls -ld /work",
        );
        config["process"]["user"] = json!({ "uid": 33, "gid": 33, "additionalGids": [44], "umask": 0o027 });
        config["process"]["cwd"] = json!("/work/dir");
        let log = output_of(s, &config);
        for text in [
            "uid=33(web) gid=33 groups=44",
            "/home/web\n",
            "0027\n",
            "/work/dir\n",
            "again\n",
        ] {
            assert!(log.contains(text), "{text} in {log}");
        }
    });
}

#[test]
fn the_working_directory_is_made_wherever_it_is() {
    sandbox(|s| {
        for cwd in ["/new/deep", "/tmp/below/a/mount", ""] {
            let mut config = s.config(&s.id, "pwd");
            config["process"]["cwd"] = json!(cwd);
            let expected = if cwd.is_empty() { "/" } else { cwd };
            assert_eq!(output_of(s, &config), format!("{expected}\n"));
        }
        let mut config = s.config(&s.id, "pwd");
        config["process"]["cwd"] = json!("/proc/self/fd/4");
        s.write(&s.id, &config);
        assert!(
            s.fails(&["create", &s.id])
                .contains("working directory /proc/self/fd/4: ")
        );
    });
}

#[test]
fn mounts_and_devices_are_those_of_the_contract() {
    sandbox(|s| {
        let log = prints(
            s,
            "cat /proc/self/mounts; ls -l /dev; cat /etc/hostname /etc/resolv.conf; cat /proc/sys/kernel/ostype",
        );
        let mounted = |target: &str, kind: &str, options: &[&str]| {
            let line = log.lines().find(|line| line.split(' ').nth(1) == Some(target));
            let line = line.unwrap_or_else(|| panic!("{target} in {log}"));
            let fields: Vec<&str> = line.split(' ').collect();
            assert_eq!(fields[2], kind, "{line}");
            let has: Vec<&str> = fields[3].split(',').collect();
            assert!(
                options.iter().all(|option| has.contains(option)),
                "{options:?} in {line}"
            );
        };
        mounted("/", "overlay", &["rw"]);
        mounted("/proc", "proc", &["nosuid", "noexec", "nodev"]);
        mounted("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]);
        mounted(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"],
        );
        mounted("/sys", "sysfs", &["ro", "nosuid", "noexec", "nodev"]);
        assert!(
            !log.contains(" /tmp ") && !log.contains(" /run "),
            "they are the image's: {log}"
        );
        mounted("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]);
        mounted("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "size=65536k"]);
        for target in ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"] {
            mounted(
                target,
                log.lines()
                    .find(|l| l.contains(target))
                    .unwrap()
                    .split(' ')
                    .nth(2)
                    .unwrap(),
                &["nosuid", "nodev", "noexec"],
            );
        }
        for target in ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"] {
            mounted(target, "proc", &["ro"]);
        }
        mounted("/sys/firmware", "tmpfs", &["ro"]);
        let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
        mounted(
            "/sys/fs/cgroup",
            if unified { "cgroup2" } else { "tmpfs" },
            &["ro", "nosuid", "noexec", "nodev"],
        );
        if !unified {
            mounted("/sys/fs/cgroup/memory", "cgroup", &["ro", "nosuid", "noexec", "nodev"]);
        }
        for device in ["null", "zero", "full", "tty", "random", "urandom"] {
            assert!(
                log.lines()
                    .any(|l| l.starts_with("crw-rw-rw-") && l.ends_with(&format!(" {device}"))),
                "{device}"
            );
        }
        for link in ["fd -> /proc/self/fd", "stdin -> /proc/self/fd/0", "ptmx -> pts/ptmx"] {
            assert!(log.contains(link), "{link}");
        }
        assert!(
            log.ends_with(&format!("{}\nnameserver 10.166.0.254\nLinux\n", s.id)),
            "{log}"
        );
    });
}

#[test]
fn what_a_container_must_not_do_it_cannot() {
    sandbox(|s| {
        let log = prints(
            s,
            "try() { \"$@\" 2>/dev/null && echo DONE $*; }
             try mount -t tmpfs x /mnt; try umount /proc; try touch /proc/sys/kernel/x; try touch /sys/x
             try mkdir /sys/fs/cgroup/x; for f in $(ls /sys/fs/cgroup/*/cgroup.procs 2>/dev/null); do try cp /dev/null $f; done
             try hostname other; try dd if=/proc/kcore of=/dev/null bs=1 count=1; echo end",
        );
        assert_eq!(log, "end\n");
    });
}

#[test]
fn what_must_be_confined_and_cannot_is_not_created() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "true");
        config["linux"]["apparmorProfile"] = json!("no-such-profile");
        config["annotations"]["io.raind.apparmor.required"] = json!("true");
        s.write(&s.id, &config);
        let error = s.fails(&["create", &s.id]);
        assert!(
            error.contains("AppArmor profile no-such-profile is required and not loaded"),
            "{error}"
        );
        assert_eq!(s.traces(&s.id), Vec::<String>::new());
    });
}

#[test]
fn limits_are_set_and_counted() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("sleep 1000");
        s.up();
        let pid = s.pid(id).to_string();
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        if fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok() {
            let file = |name: &str| read(&format!("/sys/fs/cgroup/raind/{id}/{name}"));
            assert_eq!(
                (file("memory.max"), file("cpu.max"), file("pids.max")),
                ("67108864".into(), "80000 100000".into(), "512".into())
            );
            assert!(file("cgroup.procs").lines().any(|p| p == pid));
        } else {
            let file = |hierarchy: &str, name: &str| read(&format!("/sys/fs/cgroup/{hierarchy}/raind/{id}/{name}"));
            assert_eq!(file("memory", "memory.limit_in_bytes"), "67108864");
            assert_eq!(
                (file("cpu", "cpu.cfs_quota_us"), file("cpu", "cpu.cfs_period_us")),
                ("80000".into(), "100000".into())
            );
            assert_eq!(file("pids", "pids.max"), "512");
            assert_eq!(file("memory", "cgroup.procs"), pid);
        }
        s.ok(&["kill", id, "KILL"]);
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

/// This machine's cgroup v2 has no controllers, so no limits here; everything else about it.
#[test]
fn with_cgroup_v2_alone_the_daemons_directory_is_used() {
    sandbox(|s| {
        if fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_err() {
            shell("mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup");
        }
        let id = s.id.as_str();
        let cgroup = format!("/sys/fs/cgroup/raind/{id}");
        fs::create_dir_all(&cgroup).unwrap();
        let mut config = s.config(
            id,
            "cat /proc/self/cgroup; grep /sys/fs/cgroup /proc/self/mounts; exec sleep 1000",
        );
        config["linux"]["resources"] = json!({ "pids": { "limit": 0 } });
        s.write(id, &config);
        s.up();
        let log = s.log_with("init.log", "cgroup2");
        assert!(log.contains("0::/\n"), "the root of its cgroup namespace: {log}");
        assert!(log.contains(" /sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec"), "{log}");
        let of = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(of(s.pid(id)).contains(&format!("0::/raind/{id}\n")));
        assert!(of(s.monitor(id)).contains("0::/raind/_monitors\n"));
        s.ok(&["kill", id, "KILL"]);
        assert_eq!(s.state(id)["exit_code"], 137);
        s.ok(&["delete", id]);
        assert!(fs::exists(&cgroup).unwrap(), "the daemon's to remove");
        fs::remove_dir(&cgroup).unwrap();
        s.gone(id);
        // Shared with other tests.
        let _ = fs::remove_dir("/sys/fs/cgroup/raind/_monitors").and_then(|()| fs::remove_dir("/sys/fs/cgroup/raind"));
    });
}

#[test]
fn the_network_is_a_veth_pair_on_the_bridge() {
    sandbox(|s| {
        let id = s.id.as_str();
        s.bundle_with("ip addr show eth0; ip addr show lo; ip route; sleep 1000");
        s.up();
        let log = s.log_with("init.log", "default via 10.166.0.254 dev eth0");
        assert!(
            log.contains("inet 10.166.0.7/24") && log.contains("inet 127.0.0.1/8"),
            "{log}"
        );
        assert!(shell(&format!("ip -o link show master raind0 up {}", s.veth(id))).contains("state UP"));
        shell("/bin/busybox ping -c 1 -W 5 10.166.0.7");
        s.ok(&["kill", id, "KILL"]);
        s.ok(&["delete", id]);
        s.gone(id);
    });
}

#[test]
fn a_directory_of_the_image_can_be_replaced() {
    sandbox(|s| {
        fs::create_dir(s.image().join("home/lower")).unwrap();
        fs::write(s.image().join("home/lower/file"), "").unwrap();
        let log = prints(
            s,
            "rm /home/lower/file; rmdir /home/lower && mkdir /home/lower && ls /home/lower && echo done",
        );
        assert_eq!(log, "done\n");
    });
}

#[test]
fn many_layers_with_awkward_names_can_be_mounted() {
    sandbox(|s| {
        let mut config = s.config(&s.id, "cat /order; ls /n | wc -l; cat /n/0");
        let layers: Vec<_> = (0..127)
            .map(|n| s.path(&format!("layer :,\\ {} {n}", "x".repeat(100))))
            .collect();
        for (n, layer) in layers.iter().enumerate() {
            fs::create_dir_all(layer.join("n")).unwrap();
            fs::write(layer.join("n").join(n.to_string()), format!("{n}\n")).unwrap();
            fs::write(layer.join("order"), format!("{n}\n")).unwrap();
        }
        let all: Vec<_> = layers[..126].iter().cloned().chain([s.image()]).collect();
        let mut image: Value =
            serde_json::from_str(config["annotations"]["io.raind.image.config"].as_str().unwrap()).unwrap();
        image["imageLayer"] = json!(all);
        config["annotations"]["io.raind.image.config"] = json!(image.to_string());
        assert_eq!(output_of(s, &config), "0\n126\n0\n", "first is topmost");
    });
}

#[test]
fn hostile_links_in_the_image_stay_inside() {
    sandbox(|s| {
        let outside = s.path("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("hosts"), "host's\n").unwrap();
        symlink(outside.join("hosts"), s.image().join("etc/hosts")).unwrap();
        symlink("../run/nowhere/resolv.conf", s.image().join("etc/resolv.conf")).unwrap();
        symlink(&outside, s.image().join("data")).unwrap();
        fs::create_dir(s.path("volume")).unwrap();
        let mut config = s.config(&s.id, "cat /etc/hosts /etc/resolv.conf; touch /data/volume/made");
        config["mounts"] =
            json!([{ "destination": "/data/volume", "type": "", "source": s.path("volume"), "options": ["bind"] }]);
        let log = output_of(s, &config);
        assert!(
            log.contains("127.0.0.1 localhost") && log.contains("nameserver 10.166.0.254"),
            "{log}"
        );
        assert!(s.path("volume/made").exists());
        let names: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["hosts"], "nothing was made outside");
        assert_eq!(fs::read_to_string(outside.join("hosts")).unwrap(), "host's\n");
    });
}

#[test]
fn shifted_ids_are_honoured() {
    sandbox(|s| {
        let id = s.id.as_str();
        let mut config = s.config(
            id,
            "cat /proc/self/uid_map; echo ok > /dev/stdout; touch /vol/made; cat /home/read",
        );
        let map = json!([{ "containerID": 0, "hostID": 100000, "size": 65536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        // The whole way to the root file system must be open to strangers, and the upper directory be theirs.
        fs::set_permissions(s.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        fs::create_dir(s.path("volume")).unwrap();
        fs::write(s.image().join("home/read"), "read\n").unwrap();
        config["mounts"] =
            json!([{ "destination": "/vol", "type": "", "source": s.path("volume"), "options": ["bind"] }]);
        s.write(id, &config);
        shell(&format!("chown -hR 100000:100000 {}", s.image().display()));
        for path in [s.bundle(id).join("diff"), s.bundle(id).join("work"), s.path("volume")] {
            std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
        }
        s.up();
        assert_eq!(s.ended(id)["exit_code"], 0, "{}", s.log("init.log"));
        let log = s.log("init.log");
        assert!(
            log.contains("0     100000      65536") && log.ends_with("ok\nread\n"),
            "{log}"
        );
        assert_eq!(owner(&s.path("volume/made")), 100_000);
        assert_eq!(mode(std::path::Path::new(&format!("/run/raind/droplet/{id}"))), 0o711);
        s.ok(&["delete", id]);
    });
}

#[test]
fn a_configuration_of_the_original_runs() {
    sandbox(|s| {
        let id = s.id.as_str();
        let mut config = s.config(id, "hostname; id -u");
        config["ociVersion"] = json!("1.3.0");
        config["mounts"] = Value::Null;
        let process = config["process"].as_object_mut().unwrap();
        for key in ["user", "terminal", "noNewPrivileges"] {
            process.remove(key);
        }
        process["capabilities"]["inheritable"] = Value::Null;
        process["capabilities"]["ambient"] = Value::Null;
        let linux = config["linux"].as_object_mut().unwrap();
        for key in ["uidMappings", "gidMappings", "cgroupsPath"] {
            linux.remove(key);
        }
        linux["resources"].as_object_mut().unwrap().remove("pids");
        config["annotations"]
            .as_object_mut()
            .unwrap()
            .remove("io.raind.hooks.args");
        // Arguments without argv[0].
        let mut hook = s.hook("stop", "echo $0");
        hook["args"].as_array_mut().unwrap().remove(0);
        config["hooks"] = json!({ "stopContainer": [hook], "createRuntime": null });
        assert_eq!(output_of(s, &config), format!("{id}\n0\n"));
        assert_eq!(s.hook_output("stop"), "/bin/sh\n");
    });
}
