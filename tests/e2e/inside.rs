//! What a process in a container sees, may do and may not do.

use std::time::Duration;

use serde_json::json;

use crate::support::{ImageSpec, Lab, Layer, post, wait_for};
use crate::{lab_with_busybox, until_term};

/// The fourteen default capabilities (`docs/spec/runtime.md` 9.6).
const CAPABILITIES: &str = "00000000a80425fb";

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
        .to_owned()
}

fn running(lab: &Lab, image: &str) -> (String, i64) {
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    let pid = api.container(&id)["pid"].as_i64().unwrap();
    (id, pid)
}

#[test]
fn init_and_exec_are_confined_alike() {
    let (lab, image) = lab_with_busybox();
    let (id, pid) = running(&lab, &image);
    let init = lab.machine().read(&format!("/proc/{pid}/status"));
    let exec = lab.api().exec(&id, "cat /proc/self/status");
    for (who, status) in [("init", &init), ("exec", &exec)] {
        for (name, wanted) in [
            ("CapPrm", CAPABILITIES),
            ("CapEff", CAPABILITIES),
            ("CapBnd", CAPABILITIES),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            assert_eq!(field(status, name), wanted, "{name} of {who}");
        }
    }
    let map = lab.api().exec(&id, "cat /proc/self/uid_map /proc/self/gid_map");
    let words: Vec<_> = map.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", "0", "4294967295", "0", "0", "4294967295"]);

    // Both are in namespaces other than the host's, and in the same ones.
    let shell = lab.api().exec(&id, "for n in /proc/self/ns/*; do readlink $n; done");
    for kind in ["mnt", "net", "pid", "user", "uts", "ipc", "cgroup"] {
        let of = |path: &str| lab.machine().run(&["readlink", path]).trim().to_owned();
        let host = of(&format!("/proc/1/ns/{kind}"));
        let container = of(&format!("/proc/{pid}/ns/{kind}"));
        assert_ne!(host, container, "{kind}");
        assert!(shell.contains(&container), "{kind}: {shell}");
    }
}

#[test]
fn denied_system_calls_stay_denied() {
    let (lab, image) = lab_with_busybox();
    let (id, _) = running(&lab, &image);
    let denied = [
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /proc/sys",
        "umount /proc/sys",
        "umount -l /etc/hosts",
        "unshare -m true",
        "mkdir -p /mnt /old; pivot_root / /old",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /proc/sys/kernel/panic",
        "mknod /disk b 8 0 && head -c 1 /disk",
        "ip link set eth0 down",
        "hostname other",
        "nsenter -t 1 -m true",
    ];
    for command in denied {
        let said = lab.api().exec(
            &id,
            &format!("({command}) > /dev/null 2>&1 && echo allowed || echo denied"),
        );
        assert_eq!(said, "denied\n", "{command}");
    }
}

#[test]
fn limits_hold_for_init_and_exec_and_cannot_be_raised_from_inside() {
    let (lab, image) = lab_with_busybox();
    let (id, pid) = running(&lab, &image);
    let api = lab.api();
    let group = lab.machine().read(&format!("/proc/{pid}/cgroup"));
    for line in group.lines() {
        let path = line.rsplit(':').next().unwrap();
        let controllers = line.split(':').nth(1).unwrap();
        // The version 2 hierarchy counts only where it is the one with the controllers.
        let hybrid = group.lines().count() > 1;
        if ["memory", "pids", "cpu"].contains(&controllers) || !hybrid {
            assert!(path.ends_with(&format!("/raind/{id}")), "{line}");
        }
    }
    api.exec(&id, "sleep 1000 > /dev/null 2>&1 &");
    let (pids, memory) = if lab.machine().path("/sys/fs/cgroup/pids").is_dir() {
        ("/sys/fs/cgroup/pids/raind", "memory/raind")
    } else {
        ("/sys/fs/cgroup/raind", "raind")
    };
    // The kernel numbers them as this process, which is outside of the lab, sees them.
    let command = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // The shell's sleep, and the one of the exec, which may still be on its way from a fork of its shell.
    wait_for("both sleeps in the cgroup", Duration::from_secs(10), || {
        let members = lab.machine().read(&format!("{pids}/{id}/cgroup.procs"));
        let names: Vec<_> = members.lines().map(command).collect();
        let sleeps = names.iter().filter(|name| name.contains("sleep\x001000")).count();
        if sleeps >= 2 { Ok(()) } else { Err(format!("{names:?}")) }
    });
    assert_eq!(lab.machine().read(&format!("{pids}/{id}/pids.max")).trim(), "512");
    if memory.starts_with("memory") {
        let limit = lab
            .machine()
            .read(&format!("/sys/fs/cgroup/{memory}/{id}/memory.limit_in_bytes"));
        assert_eq!(limit.trim(), (1u64 << 30).to_string());
    }
    let said = api.exec(
        &id,
        "for f in $(find /sys /proc/1 -name 'pids.max' -o -name 'memory.limit_in_bytes' -o -name 'memory.max' 2>/dev/null); \
         do echo 4096 > $f && echo raised $f; done; echo $$ > /sys/fs/cgroup/cgroup.procs && echo moved; :",
    );
    assert!(!said.contains("raised") && !said.contains("moved\n"), "{said}");
    assert_eq!(lab.machine().read(&format!("{pids}/{id}/pids.max")).trim(), "512");
    // A fork bomb stays within it.
    let said = api.exec(
        &id,
        "(i=0; while [ $i -lt 600 ]; do sleep 30 & i=$((i+1)); done; echo through)",
    );
    assert!(!said.contains("through"), "600 processes under a limit of 512");
    api.stop(&id);
    api.delete(&id);
}

#[test]
fn it_has_its_name_its_resolver_and_the_usual_places() {
    let (lab, image) = lab_with_busybox();
    let (id, _) = running(&lab, &image);
    let api = lab.api();
    let address = api.container(&id)["address"].as_str().unwrap().to_owned();
    assert_eq!(api.exec(&id, "hostname; cat /etc/hostname"), format!("{id}\n{id}\n"));
    assert_eq!(
        api.exec(&id, "cat /etc/hosts"),
        format!("127.0.0.1 localhost\n{address} {id}\n")
    );
    assert_eq!(api.exec(&id, "cat /etc/resolv.conf"), "nameserver 10.166.0.254\n");

    let network = api.exec(&id, "ip -o -4 address; ip route");
    assert!(network.contains(&format!("eth0    inet {address}/24")), "{network}");
    assert!(network.contains("default via 10.166.0.254 dev eth0"), "{network}");
    let links = api.exec(&id, "ls /sys/class/net");
    assert_eq!(links.split_ascii_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);

    let mounts = api.exec(&id, "cat /proc/mounts");
    assert!(!mounts.contains(" /tmp ") && !mounts.contains(" /run "), "{mounts}");
    for (target, kind, option) in [
        ("/", "overlay", "rw"),
        ("/proc", "proc", "nosuid"),
        ("/dev", "tmpfs", "nosuid"),
        ("/dev/pts", "devpts", "noexec"),
        ("/dev/shm", "tmpfs", "nodev"),
        ("/dev/mqueue", "mqueue", "nodev"),
        ("/sys", "sysfs", "ro"),
        ("/proc/sys", "proc", "ro"),
        ("/etc/hosts", "", "nosuid"),
        ("/etc/hostname", "", "nodev"),
        ("/etc/resolv.conf", "", "noexec"),
    ] {
        let found = mounts.lines().find(|line| line.split(' ').nth(1) == Some(target));
        let fields: Vec<_> = found
            .unwrap_or_else(|| panic!("no {target} in {mounts}"))
            .split(' ')
            .collect();
        assert!(kind.is_empty() || fields[2] == kind, "{fields:?}");
        assert!(fields[3].split(',').any(|word| word == option), "{fields:?}");
    }
    let devices = api.exec(
        &id,
        "for d in null zero full tty urandom random; do test -c /dev/$d || echo no $d; done; head -c 3 /dev/zero | wc -c; \
         echo x > /dev/null && echo written; for l in fd stdin stdout stderr ptmx; do test -L /dev/$l || echo no $l; done; \
         ls /dev | tr '\\n' ' '",
    );
    assert!(devices.starts_with("3\nwritten\n"), "{devices}");
    for foreign in ["sda", "vda", "kmsg", "mem", "loop"] {
        assert!(!devices.contains(foreign), "{devices}");
    }
    let hidden = api.exec(
        &id,
        "cat /proc/kcore /proc/keys 2> /dev/null | wc -c; ls /sys/firmware | wc -l",
    );
    assert_eq!(hidden, "0\n0\n");
    let processes = api.exec(&id, "ls -d /proc/[0-9]* | wc -l");
    assert!(processes.trim().parse::<u32>().unwrap() < 10, "{processes}");
}

/// CVE-2019-5736: a process of the container writes to the runtime through `/proc/<pid>/exe` while the runtime enters.
#[test]
fn it_cannot_overwrite_the_runtime() {
    let (lab, _) = lab_with_busybox();
    let hunter = "while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in */busybox | '') ;; *) echo seen; \
                  (echo x >> $p/exe) 2> /dev/null && echo WRITTEN;; esac; done; done";
    let layer = Layer::new()
        .script("hunter", hunter)
        .file("bait", 0o755, "#!/proc/self/exe\n");
    let image = lab.pull(&ImageSpec::busybox().layer(layer), "lab/hunter:1");
    let droplet = env!("CARGO_BIN_EXE_droplet");
    let fingerprint = || lab.machine().run(&["sha256sum", droplet]);
    let before = fingerprint();
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": ["/hunter"] }));
    for _ in 0..10 {
        let path = format!("/v1/containers/{id}/actions/exec");
        api.call(post(&path, json!({ "command": ["/bait"] })));
        api.exec(&id, "true");
    }
    // The runtime itself as the container's program, the other way in.
    let bait = api.create(json!({ "image": image, "command": ["/bait"] }));
    api.call(post(&format!("/v1/containers/{bait}/actions/start"), json!({})));
    let said = api.log(&id);
    assert!(!said.contains("WRITTEN"), "{said}");
    assert_eq!(fingerprint(), before);
}

#[test]
fn an_orphan_in_a_container_is_reaped_and_ends_with_it() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let (id, _) = running(&lab, &image);
    api.exec(&id, "(sleep 4321 &) > /dev/null 2>&1");
    let alive = || {
        lab.inventory()
            .lines("processes")
            .iter()
            .any(|line| line.contains("sleep 4321"))
    };
    wait_for("the orphan", Duration::from_secs(5), || {
        if alive() { Ok(()) } else { Err("none") }
    });
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}
