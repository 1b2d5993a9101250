//! Shells through attach and exec attach (`docs/spec/api.md` 6).

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Api, Identity, Lab, Terminal, get, post, wait_for};
use crate::{lab_with_busybox, until_term};

/// A shell that says where it begins to read.
const SHELL: [&str; 3] = ["/bin/sh", "-c", "stty -echo; echo ready; exec /bin/sh"];

fn attach(api: &Api, container: &str) -> Terminal {
    api.attach(&format!("/v1/containers/{container}/attach"))
}

fn exec_attach(api: &Api, container: &str) -> Terminal {
    api.attach(&format!("/v1/containers/{container}/exec/attach"))
}

fn shell_in(api: &Api, container: &str) -> Terminal {
    let body = json!({ "command": SHELL, "tty": true });
    api.ok(post(&format!("/v1/containers/{container}/actions/exec"), body));
    exec_attach(api, container)
}

/// Types a command, and waits for what it shows.
fn says(terminal: &mut Terminal, command: &str, text: &str) {
    terminal.type_in(&format!("{command}\n"));
    terminal.expect(text);
}

/// Waits until the runtime serves so many clients of a container's terminal. The daemon connects to it after the
/// upgrade, and who is not connected yet misses what is shown until then.
fn connected(lab: &Lab, container: &str, clients: usize) {
    let events = terminal_events(container);
    wait_for("clients of a terminal", Duration::from_secs(30), || {
        let log = lab.machine().read(&events);
        if log.matches("attach connected").count() >= clients {
            Ok(())
        } else {
            Err(log)
        }
    });
}

/// Where the runtime notes who comes and goes.
fn terminal_events(container: &str) -> String {
    format!("/etc/raind/container/{container}/logs/shim.log")
}

/// The record of the last WebSocket session, once there are so many.
fn audited(lab: &Lab, action: &str, count: usize) -> Value {
    wait_for("an audit record", Duration::from_secs(10), || {
        let log = lab.machine().read("/var/log/raind/raind_audit.jsonl");
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let records: Vec<_> = records.filter(|record| record["action"] == action).collect();
        if records.len() == count {
            Ok(records[count - 1].clone())
        } else {
            Err(log)
        }
    })
}

#[test]
fn a_person_can_live_in_a_container() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.create(json!({ "image": image, "name": "home", "tty": true, "command": SHELL }));

    // A created container has nothing to show yet.
    let mut early = attach(&api, "home");
    connected(&lab, &id, 1);
    api.start(&id);
    early.expect("ready\r\n");
    early.resize(24, 80);
    says(&mut early, "stty size", "24 80\r\n");
    early.resize(40, 100);
    says(&mut early, "stty size", "40 100\r\n");
    early.type_in("read word; echo \"[$word]\"\n");
    says(&mut early, "with some words", "[with some words]\r\n");
    says(&mut early, "cd /tmp; here=1; echo done", "done\r\n");
    early.detach();
    let record = audited(&lab, "ws.attach", 1);
    assert_eq!(
        (&record["result"]["code"], &record["result"]["status"]),
        (&json!(101), &json!("allow"))
    );
    assert_eq!(
        record["target"],
        json!({ "container_id": id, "container_name": "home" })
    );
    assert!(record["result"]["bytes"].as_u64().unwrap() > 20, "{record}");

    // The process is where it was left, and who comes back sees nothing of before.
    let mut again = attach(&api, &id);
    says(&mut again, "echo $here $PWD", "1 /tmp\r\n");
    again.type_in("exit 7\n");
    let (_, code, reason) = again.rest();
    assert_eq!((code, reason.as_str()), (1000, "stream closed"));
    let ended = api.wait_state(&id, "stopped");
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(7), &json!("Error")));
    let log = api.log(&id);
    assert!(log.contains("40 100\r\n") && log.contains("1 /tmp\r\n"), "{log}");

    // A restart has a terminal again.
    api.start(&id);
    let mut restarted = attach(&api, &id);
    says(&mut restarted, "echo $((40 + 2))", "42\r\n");
    drop(restarted);
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn several_share_a_terminal_and_one_who_sleeps_holds_nobody_up() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "tty": true, "command": SHELL }));
    let (mut one, mut two, asleep) = (attach(&api, &id), attach(&api, &id), attach(&api, &id));
    connected(&lab, &id, 3);
    says(&mut one, "echo from one", "from one\r\n");
    two.expect("from one\r\n");
    says(&mut two, "echo from two", "from two\r\n");
    one.expect("from two\r\n");
    one.resize(10, 20);
    says(&mut one, "stty size", "10 20\r\n");
    two.resize(30, 40);
    says(&mut two, "stty size", "30 40\r\n");
    // Step by step, so that those who read keep up however busy the machine is.
    let events = terminal_events(&id);
    let mut steps = 0;
    while !lab.machine().read(&events).contains("does not read") {
        steps += 1;
        assert!(
            steps < 1000,
            "64 MB are more than all buffers on the way to the one who sleeps hold"
        );
        one.type_in(&format!("yes 0123456789abcde | head -n 3840; echo step {steps}.\n"));
        for terminal in [&mut one, &mut two] {
            terminal.expect(&format!("step {steps}.\r\n"));
        }
    }
    let (shown, code, _) = asleep.rest();
    assert_eq!(code, 1000);
    assert!(!shown.contains(&format!("step {steps}.")));
    says(&mut two, "echo still here", "still here\r\n");
    one.expect("still here\r\n");
    api.stop(&id);
    for terminal in [one, two] {
        assert_eq!(terminal.rest().1, 1000);
    }
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_shell_can_be_executed_in_a_container() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "name": "host", "command": until_term(0), "env": ["FRUIT=apple"] }));
    let mut first = shell_in(&api, "host");
    says(&mut first, "echo $FRUIT; tty", "apple\r\n/dev/pts/");
    first.resize(11, 22);
    says(&mut first, "stty size", "11 22\r\n");
    says(&mut first, "name=first; echo done", "done\r\n");

    // Attach reaches the latest one; the earlier one goes on.
    let mut second = shell_in(&api, &id);
    says(&mut second, "name=second; echo $name", "second\r\n");
    let mut viewer = exec_attach(&api, &id);
    says(&mut viewer, "echo $name is shared", "second is shared\r\n");
    second.expect("second is shared\r\n");
    says(&mut first, "echo $name goes on", "first goes on\r\n");
    second.detach();
    says(&mut viewer, "echo $name stays", "second stays\r\n");
    viewer.detach();
    let mut viewer = exec_attach(&api, "host");
    says(&mut viewer, "echo $name is back", "second is back\r\n");
    viewer.resize(50, 132);
    says(&mut viewer, "stty size", "50 132\r\n");
    viewer.type_in("exit\n");
    assert_eq!(viewer.rest().1, 1000);
    first.type_in("exit 3\n");
    let (_, code, reason) = first.rest();
    assert_eq!((code, reason.as_str()), (1000, "stream closed"));

    // Now there is none: the daemon waits for two seconds.
    let (_, code, reason) = exec_attach(&api, "host").rest();
    assert_eq!((code, reason.as_str()), (1013, "target not ready"));
    assert_eq!(audited(&lab, "ws.exec.attach", 5)["target"]["container_id"], json!(id));
    assert_eq!(api.container("host")["state"], "running");
    api.stop("host");
    api.delete("host");
    lab.assert_unchanged(&before);
}

#[test]
fn terminals_outlive_the_daemon() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let id = lab.api().run(json!({ "image": image, "tty": true, "command": SHELL }));
    let mut terminal = attach(&lab.api(), &id);
    says(&mut terminal, "name=same; echo there", "there\r\n");
    let mut executed = shell_in(&lab.api(), &id);
    says(&mut executed, "name=executed; echo there", "there\r\n");
    let status = lab.daemon().stop();
    assert!(status.success(), "{status}");
    for terminal in [terminal, executed] {
        let (_, code, reason) = terminal.rest();
        assert_eq!((code, reason.as_str()), (1001, "daemon is shutting down"));
    }
    assert_eq!(audited(&lab, "ws.attach", 1)["result"]["code"], 101);
    lab.daemon().start();
    let mut terminal = attach(&lab.api(), &id);
    says(&mut terminal, "echo $name", "same\r\n");
    drop(terminal);
    let mut executed = exec_attach(&lab.api(), &id);
    says(&mut executed, "echo $name", "executed\r\n");
    executed.type_in("exit\n");
    assert_eq!(executed.rest().1, 1000);
    lab.api().stop(&id);
    lab.api().delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn what_cannot_be_attached_to_is_refused_before_the_upgrade() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let handshake = |path: &str| {
        get(path)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    let plain = api.run(json!({ "image": image, "name": "plain", "command": until_term(0) }));
    let ended = api.run(json!({ "image": image, "name": "ended", "tty": true, "command": ["/bin/true"] }));
    let shell = api.run(json!({ "image": image, "name": "shell", "tty": true, "command": SHELL }));
    api.wait_state(&ended, "stopped");
    let refusals = [
        ("", "attach", 400, "missing container id".to_owned()),
        ("", "exec/attach", 400, "missing container id".to_owned()),
        ("nobody", "attach", 404, "container: nobody not found".to_owned()),
        ("nobody", "exec/attach", 404, "container: nobody not found".to_owned()),
        (
            "plain",
            "attach",
            409,
            "container: plain has tty mode disabled.\nif attach operation needed, use -t option when create container"
                .to_owned(),
        ),
        (
            "ended",
            "attach",
            409,
            "attach operation not allowed to current container status: stopped".to_owned(),
        ),
        ("ended", "exec/attach", 409, format!("container: {ended} not running.")),
    ];
    for (container, kind, status, message) in &refusals {
        let path = format!("/v1/containers/{container}/{kind}");
        assert_eq!(&api.call(handshake(&path)).refused(*status, message), message);
        assert_eq!(
            &api.call(get(&path)).refused(*status, message),
            message,
            "also without a handshake"
        );
    }
    for path in ["/v1/containers/shell/attach", "/v1/containers/plain/exec/attach"] {
        let reply = api.call(get(path));
        assert_eq!(reply.refused(400, "Bad Request"), "Bad Request");
        assert_eq!(reply.headers["sec-websocket-version"], "13");
        api.call(handshake(path).header("origin", "https://evil.example"))
            .refused(403, "origin not allowed: https://evil.example");
    }
    lab.api_as(7755, Identity::Hook)
        .call(handshake("/v1/containers/shell/attach"))
        .refused(403, "forbidden");

    let mut clients: Vec<_> = (0..16).map(|_| attach(&api, &shell)).collect();
    let full = format!("container: {shell} already has 16 attached clients");
    api.call(handshake("/v1/containers/shell/attach")).refused(409, &full);
    clients.pop().unwrap().detach();
    wait_for("a free place", Duration::from_secs(5), || {
        let reply = api.call(get("/v1/containers/shell/attach"));
        if reply.status == 400 { Ok(()) } else { Err(reply.text()) }
    });
    says(&mut clients[0], "echo all is well", "all is well\r\n");
    drop(clients);
    for id in [plain, shell] {
        api.stop(&id);
    }
}
