//! Logs that are followed, put aside and dated.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use crate::support::{Answer, Api, Lab, get, post, wait_for};
use crate::{lab_with_busybox, until_term};

fn log(api: &Api, container: &str, query: &str) -> String {
    let reply = api.call(get(&format!("/v1/containers/{container}/log?{query}")));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.headers["content-type"], "text/plain; charset=utf-8");
    reply.text()
}

fn follow(api: &Api, container: &str, query: &str) -> Answer {
    api.open(get(&format!("/v1/containers/{container}/log?follow=1&{query}")))
}

/// Makes a file in the container, which may end because of it before anybody can see how the command ended.
fn touch(api: &Api, container: &str, file: &str) {
    let path = format!("/v1/containers/{container}/actions/exec");
    api.ok(post(&path, json!({ "command": ["touch", file] })));
}

fn shell(script: &str) -> serde_json::Value {
    json!(["/bin/sh", "-c", script])
}

/// A lab whose daemon keeps logs within that size, in so many files, and has busybox.
fn lab_with_limits(bytes: u32, files: u32) -> (Lab, String) {
    let (lab, image) = lab_with_busybox();
    lab.daemon().set("CONDENSER_LOG_MAX_BYTES", &bytes.to_string());
    lab.daemon().set("CONDENSER_LOG_MAX_FILES", &files.to_string());
    lab.daemon().restart();
    (lab, image)
}

#[test]
fn a_log_is_followed_until_its_container_has_ended() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    // Each line is written when the one before was read.
    let script = "echo one; while [ ! -e /go ]; do sleep 0.02; done; echo two; printf 'no line break'; exit 3";
    let id = api.create(json!({ "image": image, "name": "talker", "command": shell(script) }));
    let (mut all, mut new) = (follow(&api, "talker", "all=1"), follow(&api, &id, "tail_lines=0"));
    api.start(&id);
    all.until("one\n");
    new.until("one\n");
    let mut late = follow(&api, &id, "tail_lines=0");
    let mut last = follow(&api, &id, "");
    last.until("one\n");
    touch(&api, &id, "/go");
    for mut follower in [all, new, last] {
        follower.until("two\n");
        assert_eq!(follower.rest(), "no line break");
    }
    assert_eq!(late.until("two\n"), "two\n", "without what was there before");
    assert_eq!(late.rest(), "no line break");
    api.wait_state(&id, "stopped");
    assert_eq!(
        follow(&api, &id, "all=1").rest(),
        "one\ntwo\nno line break",
        "of a container that has ended"
    );
    assert_eq!(log(&api, &id, "all=1"), "one\ntwo\nno line break");
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn lines_have_times() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let script = "echo one; while [ ! -e /go ]; do sleep 0.02; done; echo two; echo three";
    let begun = Timestamp::now();
    let id = api.run(json!({ "image": image, "command": shell(script) }));
    follow(&api, &id, "all=1").until("one\n");
    // Times are in milliseconds.
    std::thread::sleep(Duration::from_millis(3));
    let between = Timestamp::now();
    std::thread::sleep(Duration::from_millis(3));
    touch(&api, &id, "/go");
    api.wait_state(&id, "stopped");
    let ended = Timestamp::now();
    assert_eq!(log(&api, &id, &format!("since={between}")), "two\nthree\n");
    assert_eq!(log(&api, &id, &format!("since={between}&tail_lines=1")), "three\n");
    assert_eq!(log(&api, &id, &format!("since={begun}")), "one\ntwo\nthree\n");
    assert_eq!(log(&api, &id, &format!("since={ended}")), "");
    assert_eq!(log(&api, &id, "since=1h"), "one\ntwo\nthree\n");
    for query in ["all=1&timestamps=1", "timestamps=1", "follow=1&timestamps=1"] {
        let dated = log(&api, &id, query);
        let lines: Vec<_> = dated.lines().map(|line| line.split_once(' ').unwrap()).collect();
        assert_eq!(
            lines.iter().map(|line| line.1).collect::<Vec<_>>(),
            ["one", "two", "three"]
        );
        let times: Vec<Timestamp> = lines.iter().map(|line| line.0.parse().unwrap()).collect();
        assert!(
            begun.as_millisecond() <= times[0].as_millisecond() && times[0] < between,
            "{dated}"
        );
        assert!(
            between < times[1] && times[1] <= times[2] && times[2] <= ended,
            "{dated}"
        );
    }
    for query in ["since=yesterday", "follow=maybe", "all=1&tail_lines=3", "tail_lines=x"] {
        let reply = api.call(get(&format!("/v1/containers/{id}/log?{query}")));
        reply.refused(400, "invalid ");
    }
    api.call(get("/v1/containers/nobody/log?follow=1"))
        .refused(404, "tail failed: container: nobody not found");
    api.delete(&id);
}

#[test]
fn what_is_shown_on_a_terminal_and_what_was_written_before_a_crash_is_there() {
    let (lab, image) = lab_with_busybox();
    let script = "echo before; while [ ! -e /mnt/go ]; do sleep 0.02; done; echo without a daemon; \
                  while [ ! -e /mnt/end ]; do sleep 0.02; done; echo after";
    lab.machine().write("/mnt/signs/none", "");
    let id = lab
        .api()
        .run(json!({ "image": image, "tty": true, "command": shell(script), "mount": ["/mnt/signs:/mnt"] }));
    let mut cut_off = follow(&lab.api(), &id, "all=1");
    cut_off.until("before\r\n");
    lab.daemon().kill9();
    lab.machine().write("/mnt/signs/go", "");
    let console = format!("/etc/raind/container/{id}/logs/console.log");
    wait_for("a line", Duration::from_secs(10), || {
        let text = lab.machine().read(&console);
        if text.contains("without a daemon") {
            Ok(())
        } else {
            Err(text)
        }
    });
    lab.daemon().start();
    let mut follower = follow(&lab.api(), &id, "all=1");
    follower.until("before\r\nwithout a daemon\r\n");
    lab.machine().write("/mnt/signs/end", "");
    assert_eq!(follower.rest(), "after\r\n");
    let dated = log(&lab.api(), &id, "all=1&timestamps=1");
    assert_eq!(dated.lines().count(), 3, "{dated}");
    assert!(!dated.contains("0001-01-01"), "{dated}");
}

#[test]
fn an_orderly_end_of_the_daemon_cuts_followers_off_and_is_not_held_up() {
    let (lab, image) = lab_with_busybox();
    let id = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let mut follower = follow(&lab.api(), &id, "all=1");
    follower.until("started\n");
    let begun = Instant::now();
    assert!(lab.daemon().stop().success());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let end = follower.piece();
    assert!(end.is_err(), "the container goes on, so this is no end: {end:?}");
}

/// What a follower of numbered lines has seen.
#[derive(Default)]
struct Numbers {
    begun: Vec<u8>,
    next: usize,
}

impl Numbers {
    fn take(&mut self, piece: &[u8]) {
        self.begun.extend_from_slice(piece);
        let whole = self
            .begun
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |newline| newline + 1);
        for line in self.begun[..whole].split_inclusive(|byte| *byte == b'\n') {
            let number: usize = std::str::from_utf8(&line[..9]).unwrap().parse().unwrap();
            assert_eq!((number, line.len()), (self.next, LINE));
            self.next += 1;
        }
        self.begun.drain(..whole);
    }

    fn all(mut follower: Answer) -> usize {
        let mut numbers = Self::default();
        while let Some(piece) = follower.piece().unwrap() {
            numbers.take(&piece);
        }
        assert!(numbers.begun.is_empty());
        numbers.next
    }
}

/// Length and number of lines: 100 MB.
const LINE: usize = 500;
const LINES: usize = 200_000;

#[test]
fn a_hundred_megabytes_arrive_whole_while_files_are_put_aside() {
    let (lab, image) = lab_with_limits(4 << 20, 100);
    let api = lab.api();
    let before = lab.inventory();
    let script = format!(
        "while [ ! -e /go ]; do sleep 0.02; done; \
         awk 'BEGIN {{ for (i = 0; i < {LINES}; i++) {{ printf \"%09d%0{}d\\n\", i, 0; \
         if (i % 10000 == 0) system(\"sleep 0.1\") }} }}'",
        LINE - 10
    );
    let id = api.run(json!({ "image": image, "command": shell(&script) }));
    let followers = [follow(&api, &id, "all=1"), follow(&api, &id, "all=1")];
    let stalled = follow(&api, &id, "all=1");
    touch(&api, &id, "/go");
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.daemon().pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap()
            .to_owned();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before_it = memory();
    let counts: Vec<_> = std::thread::scope(|scope| {
        let reading: Vec<_> = followers
            .map(|follower| scope.spawn(|| Numbers::all(follower)))
            .into_iter()
            .collect();
        reading.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(counts, [LINES; 2]);
    assert_eq!(
        api.wait_state(&id, "stopped")["exitCode"],
        0,
        "a follower that stopped reading held nobody up"
    );
    let grown = memory() - before_it;
    assert!(grown < 20 << 10, "the daemon's memory grew by {grown} KiB");
    assert_eq!(Numbers::all(stalled), LINES, "and still gets all of it");
    assert_eq!(
        Numbers::all(api.open(get(&format!("/v1/containers/{id}/log?all=1")))),
        LINES
    );
    let last = log(&api, &id, "tail_lines=5000");
    assert_eq!(
        (last.lines().count(), &last[..9]),
        (5000, "000195000"),
        "over several files"
    );
    let files = lab
        .machine()
        .run(&["sh", "-c", &format!("ls /etc/raind/container/{id}/logs")]);
    assert!(files.contains("init.log.4"), "{files}");
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn a_log_stays_within_its_limit() {
    let (lab, image) = lab_with_limits(1 << 20, 2);
    let api = lab.api();
    let script = "i=0; while [ $i -lt 40 ]; do i=$((i + 1)); sleep 0.05; \
                  yes 'a line of some length, so that it takes not too long' | head -n 20000; done";
    let id = api.run(json!({ "image": image, "command": shell(script) }));
    wait_for("the end", Duration::from_secs(60), || {
        let found = api.container(&id);
        if found["state"] == "stopped" {
            Ok(())
        } else {
            Err(found)
        }
    });
    let logs = format!("/etc/raind/container/{id}/logs");
    let size = || {
        let said = lab.machine().run(&["du", "--bytes", "--summarize", &logs]);
        said.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    // Files are put aside a little late, the more so on a busy machine.
    assert!(size() < 20 << 20, "{} bytes of 42 MB are kept", size());
    let text = log(&api, &id, "all=1");
    assert!(
        text.lines()
            .all(|line| line == "a line of some length, so that it takes not too long")
    );
    api.delete(&id);
}
