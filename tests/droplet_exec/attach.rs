//! `droplet attach`.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::support::sandbox::{Sandbox, sandbox};
use crate::support::{SOON, wait_for, when};

fn running(s: &Sandbox, script: &str) {
    let mut config = s.config(&s.id, script);
    config["process"]["terminal"] = json!(true);
    s.write(&s.id, &config);
    s.ok(&["create", "-t", &s.id]);
    s.ok(&["start", &s.id]);
}

/// `attach` on a terminal of its own; its master and slave.
fn attached(s: &Sandbox) -> (Child, std::fs::File, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    size(&master, 11, 22);
    let mut command = s.command(&["attach", &s.id]);
    command
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap());
    // SAFETY: only system calls between fork and execve.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(std::io::stdin())?)
        });
    }
    (command.spawn().unwrap(), master.into(), slave)
}

fn size(master: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size).unwrap();
}

fn expect(master: &mut std::fs::File, text: &str) {
    let (mut seen, mut buffer) = (String::new(), [0; 1024]);
    while !seen.contains(text) {
        let n = master.read(&mut buffer).unwrap();
        seen += &String::from_utf8_lossy(&buffer[..n]);
    }
}

#[test]
fn a_terminal_is_passed_through_and_put_back() {
    sandbox(|s| {
        running(s, "while read line; do echo got $line; stty size; done; exit 3");
        let (mut child, mut master, slave) = attached(s);
        let raw = || !tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ICANON);
        wait_for("raw mode", SOON, || when(raw(), |raw| *raw));
        // The interrupt key is for the container's program, not for ours.
        master.write_all(b"abc\n").unwrap();
        expect(&mut master, "got abc\r\n11 22\r\n");
        let master_fd = OwnedFd::from(master.try_clone().unwrap());
        size(&master_fd, 33, 44);
        // The new size arrives with a signal, not in the order of the input.
        wait_for("the new size", SOON, || {
            master.write_all(b"\n").unwrap();
            when(s.log("console.log"), |log| log.contains("33 44"))
        });
        master.write_all(b"\x04").unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!raw());
        assert_eq!(s.ended(&s.id)["exit_code"], 3);
    });
}

#[test]
fn a_signal_detaches_and_puts_the_terminal_back() {
    sandbox(|s| {
        running(s, "while read line; do echo got $line; done");
        let (mut child, _master, slave) = attached(s);
        let raw = || !tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ICANON);
        wait_for("raw mode", SOON, || when(raw(), |raw| *raw));
        crate::support::sandbox::signal(child.id() as i32, libc::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
        assert!(!raw());
        assert_eq!(s.state(&s.id)["status"], "running");
    });
}

#[test]
fn pipes_work_too_and_the_end_of_input_detaches() {
    sandbox(|s| {
        running(s, "stty -echo; while read line; do echo got $line; done");
        let mut child = s
            .command(&["attach", &s.id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        input.write_all(b"one\n").unwrap();
        let (mut seen, mut buffer) = (String::new(), [0; 100]);
        while !seen.contains("got one\r\n") {
            let n = output.read(&mut buffer).unwrap();
            seen += &String::from_utf8_lossy(&buffer[..n]);
        }
        input.write_all(b"two\n").unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
        s.log_with("console.log", "got two\r\n");
        assert_eq!(s.state(&s.id)["status"], "running");
    });
}

#[test]
fn without_a_terminal_there_is_nothing_to_attach_to() {
    sandbox(|s| {
        s.bundle_with("exec sleep 1000");
        s.up();
        let error = s.fails(&["attach", &s.id]);
        assert!(
            error.starts_with(&format!("container {} has no terminal to attach to: ", s.id)),
            "{error}"
        );
        assert!(s.fails(&["attach"]).contains("id is required"));
    });
}
