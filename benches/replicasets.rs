//! How long a replica set takes from 0 to 50 pods, to 3 and to none again, and what it costs the daemon.
//!
//! Run it with `cargo bench --bench replicasets`. It drives the real daemon in a lab through the API. Absolute times move
//! between machines.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation ends the measurement"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::{Api, ImageSpec, Lab, get, post, send, wait_for};

const LIMIT: Duration = Duration::from_secs(300);
/// Ticks of `/proc/<pid>/stat` per second, the same on every Linux that the daemon runs on.
const TICKS: f64 = 100.0;

fn main() {
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let api = lab.api();
    let manifest = format!(
        "kind: ReplicaSet\nmetadata: {{name: web}}\nspec:\n  replicas: 0\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: \"{image}\", command: [/bin/httpd, -f]}}]}}\n"
    );
    assert_eq!(api.call(send("POST", "/v1/resource/apply", manifest)).status, 201);
    println!(
        "{:<28} {:>12} {:>18} {:>16}",
        "", "converged", "CPU of the daemon", "CPU at rest"
    );
    for (from, to) in [(0, 50), (50, 3), (3, 0)] {
        let (cpu, begun) = (processor_time(&lab), Instant::now());
        api.ok(post("/v1/replicasets/web/actions/scale", json!({ "replicas": to })));
        wait_for(&format!("{to} ready pods"), LIMIT, || settled(&api, to));
        let (spent, took) = (processor_time(&lab) - cpu, begun.elapsed());
        println!(
            "{:<28} {:>10.2} s {:>16.2} s {:>14.1} %",
            format!("scale {from} -> {to}"),
            took.as_secs_f64(),
            spent.as_secs_f64(),
            at_rest(&lab)
        );
    }
}

fn settled(api: &Api, replicas: usize) -> Result<(), String> {
    let set = api.ok(get("/v1/replicasets/web"));
    let pods = api.ok(get("/v1/pods")).as_array().unwrap().len();
    std::thread::sleep(Duration::from_millis(20));
    match set["ready"] == replicas && set["current"] == replicas && pods == replicas {
        true => Ok(()),
        false => Err(format!("{set} {pods} pods")),
    }
}

/// Share of one processor that the daemon takes while nothing changes.
fn at_rest(lab: &Lab) -> f64 {
    let (cpu, begun) = (processor_time(lab), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    100.0 * (processor_time(lab) - cpu).as_secs_f64() / begun.elapsed().as_secs_f64()
}

/// User and system time of the daemon so far, without its children.
fn processor_time(lab: &Lab) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", lab.daemon().pid())).unwrap();
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    Duration::from_secs_f64(ticks / TICKS)
}
