//! `exec --wait`: the end of the process is the answer, and no process without somebody who waits for it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use condenser::runtime::exec::{ExecOutcome, MAX_STREAM};
use serde_json::json;

use crate::exec::{SELF_PORTRAIT, running, sleeper};
use crate::process::{find, parent};
use crate::support::sandbox::{Sandbox, processes, sandbox, signal};
use crate::support::{SOON, wait_for, when};

/// The answer to `exec --wait`, which must be one.
#[track_caller]
fn outcome(s: &Sandbox, options: &[&str], command: &[&str]) -> ExecOutcome {
    let args = [&["exec", "--wait"], options, &[s.id.as_str()], command].concat();
    let output = s.droplet(&args);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    ExecOutcome::parse(&output.stdout).unwrap()
}

#[track_caller]
fn shell(s: &Sandbox, script: &str) -> ExecOutcome {
    outcome(s, &[], &["sh", "-c", script])
}

fn runs(command: &str) -> bool {
    processes().iter().any(|(_, line)| line.trim_end() == command)
}

fn gone(command: &str) {
    wait_for(&format!("the end of {command}"), SOON, || {
        when(runs(command), |runs| !runs)
    });
}

#[test]
fn the_status_and_both_streams_come_back() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let ended = shell(s, "echo out; echo err >&2; echo again > /dev/stdout; cat; exit 3");
        let expected = ExecOutcome {
            exit_code: 3,
            stdout: b"out\nagain\n".to_vec(),
            stderr: b"err\n".to_vec(),
            ..ExecOutcome::default()
        };
        assert_eq!(ended, expected, "there is no input");
        assert_eq!(outcome(s, &[], &["true"]), ExecOutcome::default());
        assert_eq!(shell(s, "kill -9 $$").exit_code, 137);
        assert_eq!(shell(s, "kill $$").exit_code, 143);
        assert_eq!(outcome(s, &[], &["echo", "-t", "--wait"]).stdout, b"-t --wait\n");
        let audit = s.audit();
        let first = audit.iter().find(|record| record["event"] == "exec").unwrap();
        assert_eq!(
            (&first["event"], &first["result"]),
            (&json!("exec"), &json!("success")),
            "{first}"
        );
        assert!(audit.iter().all(|record| record["event"] != "exec_shim"));
        assert!(!s.bundle(&s.id).join("logs/exec.log").exists());
    });
}

#[test]
fn what_cannot_be_executed_ends_as_in_a_shell() {
    sandbox(|s| {
        let mut config = sleeper(s);
        config["process"]["cwd"] = json!("/work");
        running(s, &config);
        for (program, code, reason) in [
            ("nosuch", 127, "not found in PATH"),
            ("/no/such", 127, "no such file or directory"),
            ("/etc/passwd", 126, "permission denied"),
            ("/etc", 126, "is a directory"),
        ] {
            let ended = outcome(s, &[], &[program]);
            assert_eq!(ended.exit_code, code);
            assert_eq!(
                String::from_utf8(ended.stderr).unwrap(),
                format!("droplet: {program}: {reason}\n")
            );
        }
        let record = s.audit().pop().unwrap();
        assert_eq!(
            (&record["event"], &record["error"]["message"]),
            (&json!("exec"), &json!("/etc: is a directory"))
        );
        // Nothing of the command: the container itself is not fit.
        shell(s, "rmdir /work");
        assert_eq!(
            s.fails(&["exec", "--wait", &s.id, "true"]),
            "working directory /work: No such file or directory"
        );
        s.ok(&["kill", &s.id, "KILL"]);
        let message = s.fails(&["exec", "--wait", &s.id, "true"]);
        assert_eq!(message, format!("container: {} not running.", s.id));
    });
}

#[test]
fn the_process_is_like_init_in_everything() {
    sandbox(|s| {
        let mut config = s.config(&s.id, &format!("{SELF_PORTRAIT} echo the end; exec sleep 1000"));
        config["process"]["user"] = json!({ "uid": 33, "gid": 34, "additionalGids": [7, 44], "umask": 0o027 });
        config["process"]["cwd"] = json!("/home/web");
        config["process"]["env"] = json!(["PATH=/bin", "ONE=1"]);
        running(s, &config);
        let of_init = s.log_with("init.log", "the end\n");
        let ended = shell(s, &format!("{{ {SELF_PORTRAIT} echo the end; }} 2>&1"));
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), of_init);
        let ended = shell(s, "ls /proc/self/fd | tr '\\n' ' '; grep . /proc/self/cgroup");
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(
            said.starts_with("0 1 2 3 "),
            "stdio and the directory that ls reads: {said}"
        );
    });
}

#[test]
fn a_timeout_kills_the_process_and_its_descendants() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let begun = Instant::now();
        let script =
            "echo begun; sleep 790 & (sleep 791 & sleep 792) & setsid sleep 793 & trap '' TERM; sleep 794; echo no";
        let ended = outcome(s, &["--timeout", "0.7"], &["sh", "-c", script]);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(700), "{took:?}");
        assert_eq!((ended.exit_code, ended.timed_out), (137, true));
        assert_eq!(ended.stdout, b"begun\n");
        for n in [790, 791, 792, 794] {
            gone(&format!("sleep {n}"));
        }
        assert!(
            runs("sleep 793"),
            "what has made a session of its own is not the command's any more"
        );
        let in_time = outcome(s, &["--timeout=50"], &["sh", "-c", "exit 5"]);
        assert_eq!((in_time.exit_code, in_time.timed_out), (5, false));
    });
}

#[test]
fn it_ends_with_who_waits_for_it() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let spawn = |script: &str| {
            let mut command = s.command(&["exec", "--wait", &s.id, "sh", "-c", script]);
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        };
        // Nobody reads the answer any more, and the process fills its pipes.
        let mut waiting = spawn("sleep 795 & yes");
        find("sleep 795");
        drop(waiting.stdout.take());
        assert_eq!(waiting.wait().unwrap().code(), Some(1));
        gone("sleep 795");
        gone("yes");

        let mut waiting = spawn("exec sleep 796");
        let pid = find("sleep 796");
        assert_eq!(
            parent(pid),
            i32::try_from(waiting.id()).unwrap(),
            "there is no process in between"
        );
        waiting.kill().unwrap();
        waiting.wait().unwrap();
        gone("sleep 796");

        let mut waiting = spawn("exec sleep 797");
        find("sleep 797");
        s.ok(&["kill", &s.id, "KILL"]);
        assert!(waiting.wait().unwrap().success());
        s.ok(&["delete", &s.id]);
        s.gone(&s.id);
    });
}

#[test]
fn of_much_output_the_end_is_kept() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let script = "yes 0123456789abcde | head -c 20000000; echo the end; echo little >&2";
        let ended = shell(s, script);
        assert_eq!(
            (ended.exit_code, ended.stdout.len(), ended.truncated),
            (0, MAX_STREAM, true)
        );
        assert!(ended.stdout.ends_with(b"abcde\nthe end\n"));
        assert_eq!(ended.stderr, b"little\n");
        let whole = shell(s, "head -c 1048576 /dev/zero >&2");
        assert_eq!((whole.stderr.len(), whole.truncated), (MAX_STREAM, false));
    });
}

#[test]
fn what_it_leaves_in_the_background_holds_nothing_up() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let ended = shell(s, "sleep 798 & echo left");
        assert_eq!((ended.exit_code, ended.stdout), (0, b"left\n".to_vec()));
        // The shell may have ended between the fork of this program and its execution.
        let left = find("sleep 798");
        let flooded = shell(s, "while :; do echo more; done & echo $!; kill -STOP $!; exit 4");
        assert_eq!(flooded.exit_code, 4);
        assert_eq!(shell(s, "yes & exit 6").exit_code, 6);
        gone("yes");
        assert_eq!(find("sleep 798"), left);
        signal(left, libc::SIGTERM);
    });
}

#[test]
fn several_at_once_do_not_mix() {
    sandbox(|s| {
        running(s, &sleeper(s));
        let all: Vec<_> = std::thread::scope(|scope| {
            let one = |n: usize| {
                let script = format!("while [ $(ls /tmp | wc -l) -lt 8 ]; do touch /tmp/{n}; done; echo {n}; exit {n}");
                scope.spawn(move || shell(s, &script))
            };
            let threads: Vec<_> = (0..8).map(one).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (n, ended) in all.into_iter().enumerate() {
            assert_eq!(
                (ended.exit_code as usize, ended.stdout),
                (n, format!("{n}\n").into_bytes())
            );
        }
    });
}
