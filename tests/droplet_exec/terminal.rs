//! Terminals: of exec sessions, and of containers as their viewers see them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;

use serde_json::{Value, json};

use crate::support::sandbox::{Sandbox, mode, sandbox};
use crate::support::{SOON, wait_for, when};
use crate::viewer::Viewer;

/// A script that answers every line with what the arithmetic of the shell makes of it.
const ECHO: &str = "stty -echo; echo ready; while read line; do echo got $line; done";

fn running(s: &Sandbox) {
    s.write(&s.id, &s.config(&s.id, "exec sleep 1000"));
    s.up();
}

/// A container with a terminal, created but not started.
fn created(s: &Sandbox, script: &str) {
    let mut config = s.config(&s.id, script);
    config["process"]["terminal"] = json!(true);
    s.write(&s.id, &config);
    s.ok(&["create", "-t", &s.id]);
}

fn viewer(s: &Sandbox) -> Viewer {
    Viewer::connect(&s.bundle(&s.id).join("tty.sock"))
}

/// Starts an exec session and connects to it.
fn session(s: &Sandbox, script: &str) -> Viewer {
    s.ok(&["exec", "--tty", &s.id, "sh", "-c", script]);
    Viewer::connect(&s.bundle(&s.id).join("exec_tty.sock"))
}

fn sockets(s: &Sandbox) -> Vec<String> {
    let entries = fs::read_dir(s.bundle(&s.id)).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("exec_tty"));
    names.sort();
    names
}

#[test]
fn a_session_has_a_terminal_of_the_container() {
    sandbox(|s| {
        running(s);
        let mut viewer = session(s, "read x; tty; stty size; ls -l $(tty); cat /proc/self/stat; exit 5");
        assert_eq!(sockets(s).len(), 2);
        let socket = s.bundle(&s.id).join("exec_tty.sock");
        assert!(socket.is_symlink() && fs::metadata(&socket).unwrap().file_type().is_socket());
        assert_eq!(mode(&fs::canonicalize(&socket).unwrap()), 0o600);
        viewer.resize(40, 100);
        viewer.type_in("\n");
        viewer.expect("/dev/pts/0\r\n40 100\r\n");
        viewer.expect(" 0 ");
        let seen = viewer.rest();
        let stat: Vec<&str> = seen.rsplit_once(") ").unwrap().1.split(' ').collect();
        // Session leader's terminal: 136:0, that is /dev/pts/0.
        assert_eq!(stat[4], "34816", "{seen}");
        wait_for("the sockets to be gone", SOON, || {
            when(sockets(s), |all| all.is_empty())
        });
        let record = wait_for("the record of the end", SOON, || {
            let records = s.audit();
            let found = records.iter().find(|r| r["event"] == "exec_shim").cloned();
            found.ok_or(format!("{records:?}"))
        });
        assert_eq!(record["error"]["message"], "exit status 5");
        let log = s.log("exec_console.log");
        assert!(log.contains("40 100\r\n") && log.ends_with(&seen), "{log}");
        assert!(s.log("exec_shim.log").contains("attach connected"));
    });
}

#[test]
fn two_sessions_do_not_touch_each_other() {
    sandbox(|s| {
        running(s);
        let mut first = session(s, "stty -echo; read line; echo first $line");
        let mut second = session(s, "stty -echo; read line; echo second $line");
        assert_eq!(sockets(s).len(), 3);
        first.type_in("a\n");
        assert!(first.rest().ends_with("first a\r\n"));
        let left = wait_for("the first socket to be gone", SOON, || {
            when(sockets(s), |all| all.len() == 2)
        });
        let target = fs::read_link(s.bundle(&s.id).join("exec_tty.sock")).unwrap();
        assert!(
            left.contains(&target.to_str().unwrap().to_owned()),
            "the link leads to the session that lives"
        );
        second.type_in("b\n");
        assert!(second.rest().ends_with("second b\r\n"));
        wait_for("the sockets to be gone", SOON, || {
            when(sockets(s), |all| all.is_empty())
        });
    });
}

#[test]
fn the_end_of_the_container_ends_its_sessions() {
    sandbox(|s| {
        running(s);
        let mut viewer = session(s, "read x; echo here; exec sleep 1000");
        viewer.type_in("\n");
        viewer.expect("here");
        s.ok(&["kill", &s.id, "KILL"]);
        viewer.rest();
        s.ok(&["delete", &s.id]);
        s.gone(&s.id);
        wait_for("the sockets to be gone", SOON, || {
            when(sockets(s), |all| all.is_empty())
        });
    });
}

#[test]
fn viewers_may_come_before_the_start_and_all_see_everything() {
    sandbox(|s| {
        created(s, ECHO);
        let (mut one, mut two) = (viewer(s), viewer(s));
        one.resize(7, 9);
        s.ok(&["start", &s.id]);
        one.expect("ready\r\n");
        two.expect("ready\r\n");
        two.type_in("hello\n");
        one.expect("got hello\r\n");
        two.expect("got hello\r\n");
        drop(one);
        let mut late = viewer(s);
        late.type_in("again\n\x04");
        late.expect("got again\r\n");
        two.expect("got again\r\n");
        assert_eq!(s.ended(&s.id)["exit_code"], 0);
        assert_eq!((late.rest(), two.rest()), (String::new(), String::new()));
        assert!(!s.bundle(&s.id).join("tty.sock").exists());
        assert!(s.log("console.log").ends_with("ready\r\ngot hello\r\ngot again\r\n"));
    });
}

#[test]
fn the_size_can_be_changed_and_the_last_one_counts() {
    sandbox(|s| {
        created(s, "while read line; do stty size; done");
        let (mut one, mut two) = (viewer(s), viewer(s));
        s.ok(&["start", &s.id]);
        one.resize(40, 100);
        one.type_in("\n");
        one.expect("40 100\r\n");
        two.resize(41, 101);
        two.type_in("\n");
        one.expect("41 101\r\n");
    });
}

#[test]
fn frames_that_are_not_understood_harm_only_who_sent_them() {
    sandbox(|s| {
        created(s, ECHO);
        s.ok(&["start", &s.id]);
        let (mut bad, mut good) = (viewer(s), viewer(s));
        // An unknown type, a resize of the wrong length, empty data.
        bad.stream
            .write_all(b"\x09\0\0\0\x03abc\x01\0\0\0\x02xy\0\0\0\0\0")
            .unwrap();
        bad.type_in("skipped\n");
        good.expect("got skipped\r\n");
        // One byte more than a frame may have.
        bad.stream.write_all(b"\0\0\x80\0\x01").unwrap();
        bad.rest();
        // The header of the longest frame that is allowed.
        good.stream.write_all(b"\0\0\x80\0\0").unwrap();
        let mut other = viewer(s);
        other.type_in("still here\n");
        good.expect("got still here\r\n");
    });
}

#[test]
fn output_right_before_the_end_is_not_lost() {
    sandbox(|s| {
        created(
            s,
            "read x; i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done",
        );
        s.ok(&["start", &s.id]);
        let mut viewer = viewer(s);
        viewer.type_in("\n");
        let seen = viewer.rest();
        assert!(seen.ends_with("line 2999\r\n"));
        let log = s.log("console.log");
        assert!(log.ends_with(&seen));
        assert_eq!(log.matches("line ").count(), 3000);
    });
}

#[test]
fn a_viewer_that_never_reads_does_not_hold_the_container_up() {
    sandbox(|s| {
        created(s, "read x; yes 0123456789 | head -n 200000; echo done");
        s.ok(&["start", &s.id]);
        let mut sleeper = viewer(s);
        sleeper.type_in("\n");
        assert_eq!(s.ended(&s.id)["exit_code"], 0);
        let log = s.log("console.log");
        assert!(log.ends_with("done\r\n"));
        assert_eq!(log.matches("0123456789\r\n").count(), 200_000);
        assert!(s.log("shim.log").contains("it does not read"));
    });
}

#[test]
fn a_program_that_closes_its_terminal_keeps_it() {
    sandbox(|s| {
        created(
            s,
            "exec >/dev/null 2>&1 </dev/null; exec </dev/console >/dev/console 2>&1; echo back; read x; echo got $x",
        );
        s.ok(&["start", &s.id]);
        let mut viewer = viewer(s);
        s.log_with("console.log", "back");
        viewer.type_in("it\n");
        viewer.expect("got it");
    });
}

#[test]
fn a_replaced_multiplexer_is_not_opened() {
    sandbox(|s| {
        let mut config: Value = s.config(&s.id, "exec sleep 1000");
        config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
        s.write(&s.id, &config);
        s.up();
        // Nothing can be mounted there or renamed, so the nearest thing: its permissions are taken away.
        s.ok(&["exec", &s.id, "sh", "-c", "mv /dev/pts /dev/elsewhere || echo kept"]);
        s.log_with("exec.log", "kept");
        let mut viewer = session(s, "read x; echo fine");
        viewer.type_in("\n");
        viewer.expect("fine");
    });
}
