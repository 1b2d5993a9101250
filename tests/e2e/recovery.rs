//! What is the case after a start, whatever happened while the daemon was away, and what it keeps so while it runs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{HOST, Inventory, Lab, Place, SOON, delete, get, wait_for, when};
use crate::{lab_with_busybox, until_term};

/// Two resyncs, and what a busy machine adds.
const RESYNCED: Duration = Duration::from_secs(20);

fn kill(lab: &Lab, pids: &[i64]) {
    for pid in pids {
        lab.machine().run(&["kill", "-9", &pid.to_string()]);
    }
    wait_for("the end of processes", Duration::from_secs(5), || {
        let left: Vec<_> = pids.iter().filter(|pid| is_there(lab, **pid)).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}

fn is_there(lab: &Lab, pid: i64) -> bool {
    !lab.machine().read(&format!("/proc/{pid}/cmdline")).is_empty()
}

/// Init and monitor.
fn processes(lab: &Lab, id: &str) -> [i64; 2] {
    let init = lab.api().container(id)["pid"].as_i64().unwrap();
    let stat = lab.machine().read(&format!("/proc/{init}/stat"));
    let parent = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_ascii_whitespace()
        .nth(1)
        .unwrap();
    [init, parent.parse().unwrap()]
}

/// Changes what the runtime has on file.
fn edit_state(lab: &Lab, id: &str, change: impl FnOnce(&mut Value)) {
    let path = format!("/etc/raind/container/{id}/state.json");
    let mut state: Value = serde_json::from_str(&lab.machine().read(&path)).unwrap();
    change(&mut state);
    lab.machine().write(&path, state.to_string());
}

/// A process of the lab that is none of ours.
struct Stranger {
    nsenter: std::process::Child,
    pid: i64,
}

impl Stranger {
    fn new(lab: &Lab) -> Self {
        let mut command = lab.machine().command(Place::Host, "sh");
        let mut nsenter = command
            .args(["-c", "echo $$; exec sleep 4711"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = nsenter.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        Self {
            nsenter,
            pid: line.trim().parse().unwrap(),
        }
    }

    fn end(mut self, lab: &Lab) {
        assert!(is_there(lab, self.pid), "a process of others was killed");
        kill(lab, &[self.pid]);
        self.nsenter.wait().unwrap();
    }
}

fn ended(lab: &Lab, id: &str) -> (i64, String, String) {
    let row = lab.api().container(id);
    assert_eq!(row["state"], "stopped", "{row}");
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    (row["exitCode"].as_i64().unwrap(), text("reason"), text("message"))
}

/// The lines of the log from there on that contain it.
fn said(lab: &Lab, from: usize, word: &str) -> Vec<String> {
    let log = lab.daemon().log();
    log[from..]
        .lines()
        .filter(|line| line.contains(word))
        .map(str::to_owned)
        .collect()
}

fn stop_and_delete(lab: &Lab, ids: &[&String]) {
    for id in ids {
        if lab.api().container(id)["state"] == "running" {
            lab.api().stop(id);
        }
        lab.api().delete(id);
    }
}

#[test]
fn ends_that_nobody_saw_are_told_as_they_were() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let run = |name: &str| {
        let id = lab
            .api()
            .run(json!({ "image": image, "name": name, "command": until_term(7) }));
        wait_for("a container at work", Duration::from_secs(5), || {
            lab.api()
                .log(&id)
                .contains("started")
                .then_some(())
                .ok_or("no line yet")
        });
        id
    };
    let [told, untold, orphan, reused] = ["told", "untold", "orphan", "reused"].map(run);
    let waits = lab
        .api()
        .create(json!({ "image": image, "name": "waits", "command": until_term(0) }));
    let [told_pids, untold_pids, orphan_pids, reused_pids, waits_pids] =
        [&told, &untold, &orphan, &reused, &waits].map(|id| processes(&lab, id));
    lab.daemon().kill9();

    lab.machine().run(&["kill", &told_pids[0].to_string()]);
    for [init, monitor] in [untold_pids, reused_pids, waits_pids] {
        kill(&lab, &[monitor]);
        lab.machine().output(&["kill", "-9", &init.to_string()]);
    }
    // This one runs on without its monitor.
    kill(&lab, &[orphan_pids[1]]);
    let stranger = Stranger::new(&lab);
    edit_state(&lab, &reused, |state| state["pid"] = json!(stranger.pid));
    wait_for("the end of processes", Duration::from_secs(5), || {
        (!is_there(&lab, told_pids[0])).then_some(()).ok_or("it is there")
    });
    lab.daemon().start();

    assert_eq!(ended(&lab, &told), (7, "Error".into(), String::new()));
    let unseen = (-1, "Error".to_owned(), "process down detected.".to_owned());
    for id in [&untold, &reused, &waits] {
        assert_eq!(ended(&lab, id), unseen, "{id}");
    }
    let row = lab.api().container(&orphan);
    assert_eq!(
        (&row["state"], row["pid"].as_i64()),
        (&json!("running"), Some(orphan_pids[0]))
    );
    kill(&lab, &[orphan_pids[0]]);
    lab.api().wait_state(&orphan, "stopped");
    // All of them can go on.
    let all = [&told, &untold, &orphan, &reused, &waits];
    all.iter().for_each(|id| lab.api().start(id));
    stop_and_delete(&lab, &all);
    stranger.end(&lab);
    lab.assert_unchanged(&before);
}

/// What the kernel forgets when the host is restarted.
fn forget_this_boot(lab: &Lab, ids: &[&String], pid: i64) {
    let pids: Vec<i64> = ids.iter().flat_map(|id| processes(lab, id)).collect();
    lab.daemon().kill9();
    for [init, monitor] in pids.chunks(2).map(|pair| [pair[0], pair[1]]) {
        kill(lab, &[monitor]);
        lab.machine().output(&["kill", "-9", &init.to_string()]);
    }
    let start_time = lab.machine().read(&format!("/proc/{pid}/stat"));
    let start_time = start_time
        .rsplit_once(')')
        .unwrap()
        .1
        .split_ascii_whitespace()
        .nth(19)
        .unwrap();
    for id in ids {
        edit_state(lab, id, |state| {
            // Even by its start time the process with this number could be it.
            state["pid"] = json!(pid);
            state["pidStartTime"] = json!(start_time.parse::<u64>().unwrap());
            state["bootId"] = json!("00000000-0000-4000-8000-000000000000");
        });
    }
    let script = "rm -rf /run/raind; nft flush ruleset; ip link del raind0; ip link del raindDns
        echo 0 > /proc/sys/net/ipv4/ip_forward
        for link in $(ip -o link | sed -n 's/.*: \\(rd_[0-9a-z]*\\)@.*/\\1/p'); do ip link del $link; done
        find /sys/fs/cgroup -mindepth 2 -path '*/raind/*' -depth -type d -exec rmdir {} + || :";
    lab.machine().run(&["sh", "-c", script]);
}

#[test]
fn after_a_restart_of_the_host_all_have_stopped_and_can_start() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let web = lab.api().run(json!({
        "image": image, "command": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"], "port": ["8080:80"]
    }));
    let other = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let waits = lab.api().create(json!({ "image": image, "command": until_term(0) }));
    let stranger = Stranger::new(&lab);
    forget_this_boot(&lab, &[&web, &other, &waits], stranger.pid);
    lab.daemon().start();
    for id in [&web, &other, &waits] {
        let (code, reason, message) = ended(&lab, id);
        assert_eq!((code, reason.as_str()), (-1, "Error"));
        assert!(message.contains("the host was restarted"), "{message}");
    }
    let all = [&web, &other, &waits];
    all.iter().for_each(|id| lab.api().start(id));
    wait_for("the web server", Duration::from_secs(5), || {
        lab.outside_get(&format!("{HOST}:8080"), "/")
    });
    stop_and_delete(&lab, &all);
    stranger.end(&lab);
    lab.assert_unchanged(&before);
}

#[test]
fn what_no_row_owns_goes_and_what_is_others_stays() {
    let (lab, _) = lab_with_busybox();
    // Of others: nothing of it may change.
    let theirs = "mkdir -p /etc/raind/container/my-notes /mnt/precious /mnt/theirs
        echo notes > /etc/raind/container/my-notes/file; echo precious > /mnt/precious/file
        mount -t tmpfs theirs /mnt/theirs
        ip link add theirs type veth peer name theirs-peer; ip link set theirs master raind0
        ip link add rd_01kg2cnf0aaa type dummy
        for group in /sys/fs/cgroup/*/raind; do if [ -d $group ]; then mkdir $group/theirs; fi; done
        mkdir -p /run/raind/droplet/lost+found /etc/raind/pod/lost+found
        echo notes > /etc/raind/pod/notes
        iptables -A FORWARD -s 198.51.100.7/32 -j ACCEPT; iptables -t nat -N THEIRS";
    // The hierarchies have our directory from the first container on.
    lab.machine().run(&[
        "sh",
        "-c",
        "for group in /sys/fs/cgroup/*/; do mkdir -p $group/raind; done",
    ]);
    lab.machine().run(&["sh", "-c", theirs]);
    let before = lab.inventory();
    lab.daemon().kill9();
    let ours = "id=01kg2cnf0ytv; dir=/etc/raind/container/$id
        mkdir -p $dir/lower $dir/diff $dir/work $dir/merged $dir/volume /run/raind/droplet/$id
        mount -t overlay -o lowerdir=$dir/lower,upperdir=$dir/diff,workdir=$dir/work overlay $dir/merged
        mount --bind /mnt/precious $dir/volume
        ip link add rd_$id type veth peer name peer; ip link set rd_$id master raind0
        for group in /sys/fs/cgroup/*/raind; do mkdir -p $group/$id/inner; done
        iptables -I FORWARD -s 198.51.100.7/32 -j RAIND-FWD; iptables -N RAIND-SVC-01kg2cnf-80";
    lab.machine().run(&["sh", "-c", ours]);
    let from = lab.daemon().log().len();
    lab.daemon().start();
    lab.assert_unchanged(&before);
    assert_eq!(lab.machine().read("/mnt/precious/file"), "precious\n");
    let lines = said(&lab, from, "01kg2cnf0ytv");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    for kind in ["directory", "files of the runtime", "interface", "cgroup", "mount"] {
        assert!(lines[0].contains(kind), "{kind}: {lines:#?}");
    }
}

#[test]
fn what_others_change_is_put_right_within_a_resync() {
    let (lab, image) = lab_with_busybox();
    let id = lab.api().run(json!({
        "image": image, "command": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"], "port": ["8080:80"]
    }));
    let answers = || lab.outside_get(&format!("{HOST}:8080"), "/").map(drop);
    wait_for("the web server", Duration::from_secs(5), answers);
    // It answers each client from a process of its own, which may live on for a moment.
    wait_for("the process of the answer to end", SOON, || {
        let servers = lab.machine().run(&["sh", "-c", "pgrep -fc '^/bin/httpd'"]);
        when(servers, |count| count.trim() == "1")
    });
    let whole = lab.inventory();
    let from = lab.daemon().log().len();
    let veth = format!("rd_{id}");
    let (rules, network) = ("packet filter", "the network");
    // What the log says of each, and in how many lines.
    let damages = [
        (rules, 1, "iptables -F; iptables -t nat -F PREROUTING".to_owned()),
        (rules, 1, "iptables -D FORWARD -j RAIND-ROOT".to_owned()),
        (
            rules,
            1,
            "iptables -D FORWARD -j RAIND-FWD; iptables -F RAIND-FWD; iptables -X RAIND-FWD".to_owned(),
        ),
        (rules, 1, "ip6tables -F".to_owned()),
        (network, 2, "ip link del raind0".to_owned()), // the bridge and its port
        (
            network,
            1,
            "ip addr flush dev raind0; ip link set raind0 down".to_owned(),
        ),
        (
            network,
            2,
            format!("ip link set {veth} nomaster; echo 0 > /proc/sys/net/ipv4/ip_forward"),
        ),
    ];
    for (_, _, damage) in &damages {
        let begun = Instant::now();
        lab.machine().run(&["sh", "-c", damage]);
        assert!(whole.same_as(&lab.inventory()).is_err(), "no damage: {damage}");
        wait_for(damage, RESYNCED, || {
            whole.same_as(&lab.inventory())?;
            match lab.machine().run(&["cat", "/proc/sys/net/ipv4/ip_forward"]).trim() {
                "1" => answers(),
                other => Err(format!("ip_forward is {other}")),
            }
        });
        println!("{:>6.1} s  {damage}", begun.elapsed().as_secs_f64());
    }
    // These lines and no other in all this time.
    assert_eq!(said(&lab, from, " ERROR "), [""; 0]);
    let lines = said(&lab, from, " WARN ");
    for what in [rules, network] {
        let wanted: usize = damages
            .iter()
            .filter(|(kind, _, _)| *kind == what)
            .map(|(_, lines, _)| lines)
            .sum();
        assert_eq!(
            lines.iter().filter(|line| line.contains(what)).count(),
            wanted,
            "{lines:#?}"
        );
    }
    assert_eq!(lines.len(), 9, "{lines:#?}");
    stop_and_delete(&lab, &[&id]);
}

/// A lab whose runtime, when it is to delete a container, first does what the file `/run/delete` says.
fn lab_with_obstacle() -> (Lab, String) {
    let lab = Lab::start();
    let droplet = env!("CARGO_BIN_EXE_droplet");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = delete ] && [ -e /run/delete ]; then . /run/delete; fi\nexec {droplet} \"$@\"\n"
    );
    lab.machine().write("/run/droplet", script);
    lab.machine().run(&["chmod", "755", "/run/droplet"]);
    lab.daemon().set("CONDENSER_DROPLET", "/run/droplet");
    lab.daemon().start();
    let image = lab.pull(&crate::support::ImageSpec::busybox(), "library/busybox:1");
    (lab, image)
}

/// Makes a container and fails to delete it.
fn fail_to_delete(lab: &Lab, request: &Value) {
    let id = lab.api().create(request.clone());
    lab.machine().write("/run/delete", "echo refused >&2; exit 1");
    let reply = lab.api().call(delete(&format!("/v1/containers/{id}/actions/delete")));
    assert_ne!(reply.status, 200, "{}", reply.text());
}

fn rows(lab: &Lab) -> usize {
    lab.api().ok(get("/v1/containers")).as_array().unwrap().len()
}

fn wait_for_the_removal(lab: &Lab, before: &Inventory) {
    wait_for("the removal", RESYNCED, || before.same_as(&lab.inventory()));
    wait_for("the end of the row", Duration::from_secs(5), || match rows(lab) {
        0 => Ok(()),
        left => Err(format!("{left} rows")),
    });
}

#[test]
fn a_removal_that_failed_is_taken_up_again() {
    let (lab, image) = lab_with_obstacle();
    let before = lab.inventory();
    let request = json!({ "image": image, "name": "web", "port": ["8080:80"], "command": until_term(0) });
    fail_to_delete(&lab, &request);
    std::fs::remove_file(lab.machine().path("/run/delete")).unwrap();
    // Its name, address and port come free without anybody asking.
    wait_for_the_removal(&lab, &before);
    let again = lab.api().create(request);
    lab.api().delete(&again);
    lab.assert_unchanged(&before);
}

#[test]
fn a_start_does_not_wait_for_a_slow_removal() {
    let (lab, image) = lab_with_obstacle();
    let before = lab.inventory();
    fail_to_delete(
        &lab,
        &json!({ "image": image, "name": "web", "command": until_term(0) }),
    );
    lab.daemon().kill9();
    lab.machine().write(
        "/run/delete",
        "echo > /run/begun; until [ -e /run/go ]; do sleep 0.05; done",
    );
    lab.daemon().start();
    // It is at work on it, and serves.
    lab.machine().run(&["test", "-e", "/run/begun"]);
    assert_eq!(rows(&lab), 1);
    lab.machine().write("/run/go", "");
    wait_for_the_removal(&lab, &before);
}
