//! How long a daemon that was killed takes until it serves again, and until it has every container in hand.
//!
//! Run it with `cargo bench --bench recovery`; `RECOVERY_CONTAINERS` sets how many run (500). They are real: each has an
//! init, a monitor, a veth and a row. Two rounds: nothing happened meanwhile, and all of them ended meanwhile. Absolute
//! times move between machines.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation ends the measurement"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Api, ImageSpec, Lab, get, post, wait_for};

const CONTAINERS: usize = 500;
/// As many as fit into a /24.
const PER_NETWORK: usize = 250;
const AT_ONCE: usize = 8;
const LIMIT: Duration = Duration::from_secs(120);
/// What the daemon says when every row has been compared.
const RECOVERED: &str = "containers are recovered";

fn main() {
    let count = std::env::var("RECOVERY_CONTAINERS").map_or(CONTAINERS, |text| text.parse().unwrap());
    let lab = Lab::running();
    // As an operator runs it.
    lab.daemon().set("CONDENSER_LOG_LEVEL", "info");
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let begun = Instant::now();
    run_many(&lab, &image, count);
    println!("{count} containers run after {:.0} s", begun.elapsed().as_secs_f64());

    println!(
        "{:<44} {:>14} {:>14} {:>14}",
        "after a kill -9", "API answers", "all in hand", "ready"
    );
    for round in 1..=3 {
        lab.daemon().kill9();
        recover(&lab, &format!("{count} run on, round {round}"), count, "running");
    }
    at_rest(&lab);
    let pids: Vec<String> = containers(&lab.api())
        .iter()
        .map(|row| row["pid"].to_string())
        .collect();
    lab.daemon().kill9();
    for some in pids.chunks(100) {
        let arguments: Vec<&str> = ["kill", "-9"]
            .into_iter()
            .chain(some.iter().map(String::as_str))
            .collect();
        lab.machine().run(&arguments);
    }
    wait_for("the end of all processes", LIMIT, || {
        let left = pids
            .iter()
            .filter(|pid| !lab.machine().read(&format!("/proc/{pid}/cmdline")).is_empty());
        match left.count() {
            0 => Ok(()),
            left => Err(format!("{left} processes left")),
        }
    });
    // The kernel takes network namespaces apart afterwards, one by one and under the lock that every start needs.
    wait_for("the end of all interfaces", LIMIT, || {
        match lab.machine().run(&["ip", "-o", "link"]).matches(": rd_").count() {
            0 => Ok(()),
            left => Err(format!("{left} interfaces left")),
        }
    });
    recover(&lab, &format!("{count} ended meanwhile"), count, "stopped");
    lab.daemon().kill9();
    recover(&lab, &format!("{count} are stopped"), count, "stopped");
}

/// What the resyncs cost while nothing changes: of the daemon itself, and of the tools that it runs.
fn at_rest(lab: &Lab) {
    let times = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", lab.daemon().pid())).unwrap();
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        let ticks =
            |range: std::ops::Range<usize>| fields[range].iter().map(|f| f.parse::<f64>().unwrap()).sum::<f64>();
        [ticks(11..13), ticks(13..15)]
    };
    let (before, begun) = (times(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let after = times();
    // A hundred ticks are a second: as many per second are one processor in per cent.
    let share = |n: usize| (after[n] - before[n]) / begun.elapsed().as_secs_f64();
    println!(
        "at rest: daemon {:.1} % of a processor, its tools {:.1} %",
        share(0),
        share(1)
    );
}

/// Starts the daemon and prints how long it took. Then all containers have to be in that state.
fn recover(lab: &Lab, what: &str, count: usize, state: &str) {
    let before = lab.daemon().log().len();
    let said = |word: &str| match lab.daemon().log()[before..].contains(word) {
        true => Ok(()),
        false => Err(format!("not said: {word}")),
    };
    let begun = Instant::now();
    lab.daemon().launch();
    let times = std::thread::scope(|scope| {
        let answers = scope.spawn(|| {
            // A new client each time: the first start with these networks issues a new server certificate.
            wait_for("an answer", LIMIT, || lab.api().try_call(get("/v1/networks")).map(drop));
            begun.elapsed()
        });
        wait_for("recovery", LIMIT, || said(RECOVERED));
        let recovered = begun.elapsed();
        wait_for("the daemon", LIMIT, || said(" ready "));
        [answers.join().unwrap(), recovered, begun.elapsed()]
    });
    let [answers, recovered, ready] = times.map(|time| format!("{:.0} ms", time.as_secs_f64() * 1e3));
    println!("{what:<44} {answers:>14} {recovered:>14} {ready:>14}");
    let rows = containers(&lab.api());
    assert_eq!(rows.len(), count);
    let other: Vec<_> = rows.iter().filter(|row| row["state"] != state).collect();
    assert!(other.is_empty(), "{} are not {state}: {}", other.len(), other[0]);
}

fn containers(api: &Api) -> Vec<Value> {
    api.ok(get("/v1/containers")).as_array().unwrap().clone()
}

fn run_many(lab: &Lab, image: &str, count: usize) {
    let api = &lab.api();
    for network in 1..=(count / PER_NETWORK) {
        api.ok(post("/v1/networks", json!({ "bridge": format!("bench{network}") })));
    }
    let next = &Mutex::new(0..count);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(number) = { next.lock().unwrap().next() } {
                    let network = match number / PER_NETWORK {
                        0 => "raind0".to_owned(),
                        other => format!("bench{other}"),
                    };
                    let port = format!("{}:80", 20_000 + number);
                    api.run(json!({
                        "image": image, "network": network, "port": [port], "command": ["/bin/sleep", "100000"]
                    }));
                }
            });
        }
    });
}
