//! What a process finds in a container: its cgroups, debuggers, low ports, shared memory, resource limits, an init.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Api, ImageSpec, Lab, Layer, delete, get, post, send, wait_for};
use crate::{lab_with_busybox, until_term};

/// `tests/fixtures/process/probe.c` as a layer, at `/bin/probe`.
fn probe() -> Layer {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    let compile = || {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/process/probe.c");
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{}", std::process::id()));
        let mut cc = std::process::Command::new("cc");
        let status = cc
            .args(["-static", "-O1", "-Wall", "-o"])
            .arg(&target)
            .arg(source)
            .status();
        assert!(status.unwrap().success(), "cc {source}");
        let program = std::fs::read(&target).unwrap();
        std::fs::remove_file(target).unwrap();
        program
    };
    Layer::new().file("bin/probe", 0o755, PROGRAM.get_or_init(compile))
}

fn lab_with_probe() -> (Lab, String) {
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox().layer(probe()), "lab/probe:1");
    (lab, image)
}

/// Runs a container to its end, and returns what it wrote.
#[track_caller]
fn said(api: &Api, request: Value) -> String {
    let id = api.run(request);
    api.wait_state(&id, "stopped");
    let log = api.log(&id);
    api.delete(&id);
    log.trim().to_owned()
}

/// A create that gets 400 and a sentence about that field.
#[track_caller]
fn refused(api: &Api, request: Value, field: &str) {
    let reply = api.call(post("/v1/containers", request));
    assert_eq!(reply.status, 400, "{}", reply.text());
    let message = reply.message();
    assert!(
        message.contains("invalid option") && message.contains(field),
        "{message}"
    );
}

/// The first that exists of these files in a container: version 1 of cgroups, then version 2.
fn first_of(api: &Api, id: &str, files: [&str; 2]) -> String {
    let [v1, v2] = files;
    api.exec(
        id,
        &format!("cat /sys/fs/cgroup/{v1} 2> /dev/null || cat /sys/fs/cgroup/{v2}"),
    )
    .trim()
    .to_owned()
}

#[test]
fn it_sees_its_own_limits_and_nothing_of_other_groups() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "command": until_term(0), "memory": 128 << 20, "cpus": 0.5 }));
    assert_eq!(
        first_of(&api, &id, ["memory/memory.limit_in_bytes", "memory.max"]),
        (128 << 20).to_string()
    );
    let quota = first_of(&api, &id, ["cpu/cpu.cfs_quota_us", "cpu.max"]);
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");

    // A language's runtime looks up where its group is mounted, and its path there: the root of its namespace.
    let mounts = api.exec(&id, "cat /proc/self/mountinfo");
    let of_cgroups: Vec<_> = mounts.lines().filter(|line| line.contains(" - cgroup")).collect();
    assert!(!of_cgroups.is_empty(), "{mounts}");
    for line in &of_cgroups {
        let fields: Vec<_> = line.split(' ').collect();
        assert_eq!(fields[3], "/", "{line}");
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(fields[5].split(',').any(|word| word == option), "{option}: {line}");
        }
    }
    let groups = api.exec(&id, "cat /proc/self/cgroup");
    let memory = groups
        .lines()
        .find(|line| line.contains(":memory:") || line.starts_with("0::"));
    assert!(memory.unwrap().ends_with(":/"), "{groups}");

    // Nothing of others, nothing that could be changed.
    let foreign = api.exec(
        &id,
        &format!("find /sys/fs/cgroup -name raind -o -name {id} -o -name init.scope | head"),
    );
    assert_eq!(foreign, "");
    let writes = "for f in $(find /sys/fs/cgroup -name cgroup.procs -o -name memory.limit_in_bytes -o -name memory.max \
                  -o -name pids.max); do (echo 1 > $f) 2> /dev/null && echo wrote $f; done; \
                  for d in /sys/fs/cgroup /sys/fs/cgroup/memory /sys/fs/cgroup/pids; do mkdir $d/x 2> /dev/null && echo made $d/x; \
                  done; mount -o remount,rw /sys/fs/cgroup 2> /dev/null && echo remounted; :";
    assert_eq!(api.exec(&id, writes), "");
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn debuggers_work() {
    let (lab, image) = lab_with_probe();
    let api = lab.api();
    let ask = |question: &str, more: Value| {
        let mut request = json!({ "image": image, "command": ["/bin/probe", question] });
        request
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        said(&api, request)
    };
    let plain = json!({});
    let capable = json!({ "capAdd": ["SYS_PTRACE"] });
    assert_eq!(ask("trace-child", plain.clone()), "traced");
    assert_eq!(
        ask("trace-child", json!({ "user": "1000", "capDrop": ["ALL"] })),
        "traced"
    );
    assert_eq!(ask("handle", plain.clone()), "named");
    assert_eq!(ask("kcmp", plain.clone()), "Operation not permitted");
    assert_eq!(ask("kcmp", capable.clone()), "compared");
    assert_eq!(ask("trace-stranger", plain), "Operation not permitted");
    assert_eq!(ask("trace-stranger", capable), "traced");
}

#[test]
fn who_is_not_root_has_low_ports_and_ping() {
    let (lab, image) = lab_with_probe();
    let api = lab.api();
    let nobody = |command: &[&str]| {
        said(
            &api,
            json!({ "image": image, "command": command, "user": "1000:1000", "capDrop": ["ALL"] }),
        )
    };
    assert_eq!(nobody(&["/bin/probe", "bind", "80"]), "bound");
    assert_eq!(nobody(&["/bin/probe", "ping"]), "answered");

    // In a pod it is the network namespace of all.
    let pod = api.ok(post("/v1/pods", json!({ "name": "low", "containers": [
        { "name": "web", "image": image, "command": ["/bin/sh", "-c", "/bin/probe bind 80; /bin/probe ping; exec sleep 1000"] },
    ] })));
    let pod = pod["podId"].as_str().unwrap();
    api.ok(send("POST", &format!("/v1/pods/{pod}/actions/start"), Vec::new()));
    let member = member(&api, pod, "web");
    wait_for("the answers", Duration::from_secs(10), || match api.log(&member) {
        log if log == "bound\nanswered\n" => Ok(()),
        log => Err(log),
    });
    // The host is as it was.
    let host = lab
        .machine()
        .run(&["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
    assert_eq!(host.trim(), "1024");
    api.ok(delete(&format!("/v1/pods/{pod}")));
}

/// Id of the container of a pod whose name begins so.
fn member(api: &Api, pod: &str, name: &str) -> String {
    let all = api.ok(get("/v1/containers"));
    let found = all
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["podId"] == pod && c["name"].as_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("no {name} in {all}"))["containerId"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn the_containers_of_a_pod_share_their_memory() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let container = |name: &str| json!({ "name": name, "image": image, "command": until_term(0) });
    let pod = api.ok(post(
        "/v1/pods",
        json!({ "name": "shm", "containers": [container("one"), container("two")] }),
    ));
    let pod = pod["podId"].as_str().unwrap();
    api.ok(send("POST", &format!("/v1/pods/{pod}/actions/start"), Vec::new()));
    let (one, two) = (member(&api, pod, "one"), member(&api, pod, "two"));
    api.exec(&one, "echo shared > /dev/shm/x");
    assert_eq!(api.exec(&two, "cat /dev/shm/x"), "shared\n");
    // It outlives each of them, as long as the pod runs.
    api.exec(&two, "kill -9 -1; kill -9 1");
    let mount = api.exec(&one, "grep ' /dev/shm ' /proc/mounts");
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(mount.contains(option), "{mount}");
    }
    let alone = api.run(json!({ "image": image, "command": until_term(0) }));
    assert_eq!(api.exec(&alone, "ls /dev/shm"), "");
    let request = json!({ "image": image, "name": "three", "podId": pod, "shmSize": 1 << 20 });
    refused(&api, request, "shmSize");
    api.ok(delete(&format!("/v1/pods/{pod}")));
    api.stop(&alone);
    api.delete(&alone);
    lab.assert_unchanged(&before);
}

#[test]
fn shared_memory_swap_and_resources_have_the_sizes_that_were_asked_for() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let plain = api.run(json!({ "image": image, "command": until_term(0) }));
    let id = api.run(json!({
        "image": image, "command": ["/bin/sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Hc; exec sleep 1000"],
        "memory": 32 << 20, "memorySwap": 40 << 20, "shmSize": 8 << 20,
        "ulimits": ["nofile=512:2048", "core=0", "stack=4194304"],
    }));
    assert_eq!(api.exec(&id, "df -k /dev/shm | tail -1 | awk '{ print $2 }'"), "8192\n");
    assert_eq!(
        api.exec(&plain, "df -k /dev/shm | tail -1 | awk '{ print $2 }'"),
        "65536\n"
    );

    assert_eq!(
        api.exec(&id, "ulimit -Sn; ulimit -Hn; ulimit -Hc; ulimit -Hs"),
        "512\n2048\n0\n4096\n"
    );
    assert_eq!(api.log(&id), "512\n2048\n0\n");
    let open_files: u64 = api.exec(&plain, "ulimit -Sn").trim().parse().unwrap();
    assert_eq!(api.exec(&plain, "ulimit -Hn").trim(), open_files.to_string());
    assert!((1025..=1 << 20).contains(&open_files), "{open_files}");

    // The file of version 1 counts memory and swap together, that of version 2 swap alone.
    let swap = |id: &str| {
        let memory = format!("/sys/fs/cgroup/memory/raind/{id}/memory.memsw.limit_in_bytes");
        let group = format!("/sys/fs/cgroup/raind/{id}/memory.swap.max");
        [memory, group].map(|file| lab.machine().read(&file).trim().to_owned())
    };
    match swap(&plain) {
        [v1, v2] if v1.is_empty() && v2.is_empty() => eprintln!("this machine does not limit swap"),
        [v1, v2] => {
            assert!(v1 == (1 << 30).to_string() || v2 == "0", "{v1} {v2}");
            let [v1, v2] = swap(&id);
            assert!(v1 == (40 << 20).to_string() || v2 == (8 << 20).to_string(), "{v1} {v2}");
        }
    }
    for (field, wrong) in [
        ("memorySwap", json!(1 << 20)),
        ("shmSize", json!(1)),
        ("ulimits", json!(["nofile=2:1"])),
    ] {
        refused(&api, json!({ "image": image, field: wrong }), field);
    }
}

#[test]
fn what_ran_out_of_memory_is_told_after_the_end() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    // The shell passes on how its child ended.
    let hog = json!(["/bin/sh", "-c", "tail /dev/zero; exit $?"]);
    for init in [false, true] {
        let mut request = json!({ "image": image, "command": hog, "memory": 16 << 20 });
        if init {
            request["init"] = json!(true);
        }
        let id = api.run(request);
        let ended = api.wait_state(&id, "stopped");
        assert_eq!(
            (&ended["exitCode"], &ended["reason"]),
            (&json!(137), &json!("OOMKilled"))
        );
        let kills = |api: &Api| api.ok(get(&format!("/v1/containers/{id}/stats")))["memory_oom_kill"].as_u64();
        assert!(kills(&api).is_some_and(|kills| kills > 0), "{:?}", kills(&api));
        lab.daemon().restart();
        assert!(kills(&api).is_some_and(|kills| kills > 0), "{:?}", kills(&api));
        api.delete(&id);
    }
}

#[test]
fn an_init_reaps_and_passes_on() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "command": until_term(7), "init": true }));
    wait_for("the start", Duration::from_secs(10), || match api.log(&id) {
        log if log == "started\n" => Ok(()),
        log => Err(log),
    });
    let first = api.exec(&id, "tr '\\0' ' ' < /proc/1/cmdline; readlink /proc/1/exe");
    assert!(
        first.starts_with("init ") && first.ends_with(" /memfd:init (deleted)\n"),
        "{first}"
    );
    let status = api.exec(&id, "cat /proc/1/status");
    for confined in ["CapEff:\t00000000a80425fb", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(confined), "{confined}: {status}");
    }
    assert_eq!(api.exec(&id, "ls /proc/1/fd"), "0\n1\n2\n");
    api.stop(&id);
    assert_eq!(
        api.container(&id)["exitCode"],
        7,
        "the signal reached the program, its status came back"
    );
    api.delete(&id);

    let end = |command: Value| {
        let id = api.run(json!({ "image": image, "command": command, "init": true }));
        let ended = api.wait_state(&id, "stopped");
        api.delete(&id);
        ended["exitCode"].clone()
    };
    assert_eq!(end(json!(["/bin/true"])), 0);
    assert_eq!(end(json!(["/bin/sh", "-c", "exit 200"])), 200);
    assert_eq!(end(json!(["/bin/sh", "-c", "kill -9 $$"])), 137);
    // What it cannot execute is told as without it.
    let id = api.create(json!({ "image": image, "command": ["/no/such"], "init": true }));
    let reply = api.call(post(&format!("/v1/containers/{id}/actions/start"), json!({})));
    assert!(
        reply.status >= 400 && reply.message().contains("/no/such: no such file"),
        "{}",
        reply.text()
    );
    assert_eq!(api.container(&id)["exitCode"], 127);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

/// Orphans are the first process's. A program that waits for nobody keeps them as zombies, an init does not.
#[test]
fn zombies_are_left_to_the_program_or_reaped_by_an_init() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    for init in [false, true] {
        let id = api.run(json!({ "image": image, "command": ["/bin/tail", "-f", "/dev/null"], "init": init }));
        api.exec(&id, "for i in 1 2 3 4 5; do (sleep 0.1 &) > /dev/null 2>&1; done");
        wait_for("the end of all orphans", Duration::from_secs(10), || {
            let seen = api.exec(&id, "grep -h -E '^(Name|State)' /proc/[0-9]*/status");
            let zombies = seen.matches("Z (zombie)").count();
            let running = seen.matches("Name:\tsleep\nState:\tS").count();
            let wanted = if init { 0 } else { 5 };
            if running == 0 && zombies == wanted {
                Ok(())
            } else {
                Err(seen)
            }
        });
        api.stop(&id);
        api.delete(&id);
    }
}

#[test]
fn an_init_leaves_the_terminal_to_the_program() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 1000 & wait $!; done";
    let id = api.create(json!({ "image": image, "command": ["/bin/sh", "-c", script], "init": true, "tty": true }));
    let mut terminal = api.attach(&format!("/v1/containers/{id}/attach"));
    wait_for("the client", Duration::from_secs(10), || {
        let log = lab.machine().read(&format!("/etc/raind/container/{id}/logs/shim.log"));
        if log.contains("attach connected") {
            Ok(())
        } else {
            Err(log)
        }
    });
    api.start(&id);
    terminal.expect("ready\r\n");
    for _ in 0..2 {
        terminal.type_in("\u{3}");
        terminal.expect("caught\r\n");
    }
    api.ok(send("POST", &format!("/v1/containers/{id}/actions/stop"), Vec::new()));
    let (shown, _, _) = terminal.rest();
    assert!(!shown.contains("caught"), "{shown}");
}

/// Looked at each time, and not only when a container is made: what was made or runs before is no exception.
#[test]
fn where_confinement_is_required_nothing_is_started_without_it() {
    let (lab, image) = lab_with_busybox();
    if lab
        .machine()
        .read("/sys/module/apparmor/parameters/enabled")
        .starts_with('Y')
    {
        eprintln!("this machine has AppArmor; scripts/vm.sh takes the profile away");
        return;
    }
    let api = lab.api();
    let running = api.run(json!({ "image": image, "command": until_term(0) }));
    let created = api.create(json!({ "image": image, "command": until_term(0) }));
    let stopped = api.run(json!({ "image": image, "command": ["/bin/true"] }));
    api.wait_state(&stopped, "stopped");
    lab.daemon().set("CONDENSER_REQUIRE_APPARMOR", "true").restart();
    let start = |id: &str| post(&format!("/v1/containers/{id}/actions/start"), json!({}));
    for call in [
        post("/v1/containers", json!({ "image": image })),
        start(&created),
        start(&stopped),
        post(
            &format!("/v1/containers/{running}/actions/exec"),
            json!({ "command": ["/bin/true"] }),
        ),
        post(
            &format!("/v1/containers/{running}/actions/exec"),
            json!({ "command": ["/bin/true"], "wait": true }),
        ),
    ] {
        let reply = api.call(call);
        assert_eq!(reply.status, 500, "{}", reply.text());
        assert!(reply.message().contains("require_apparmor"), "{}", reply.text());
    }
    assert_eq!(api.container(&created)["state"], "created");
    assert_eq!(api.container(&stopped)["state"], "stopped");
    // What runs goes on, and can be ended.
    api.stop(&running);
}
