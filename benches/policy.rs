//! How long a commit of policies takes, and what a container pays for those that are in force.
//!
//! `cargo bench --bench policy`. It drives the real daemon in a lab. The original needed 112 ms for a commit without
//! policies and 2,448 ms with 200, in 37 and 837 processes, and 2,631 ms for a container with 200 in force.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation ends the measurement"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use serde_json::json;
use support::{Forks, ImageSpec, Lab, Session, post, send};

const ROUNDS: usize = 10;

fn main() {
    println!("{:<62} {:>12} {:>12}", "", "measured", "target");
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    for name in ["web", "db"] {
        lab.api()
            .run(json!({ "image": image, "name": name, "command": ["/bin/sleep", "100000"] }));
    }
    let mut api = lab.api().session().unwrap();
    let mut ports = 1..;
    let mut in_force = 0;
    create(&lab, &image, in_force);
    for (count, target) in [(0, "14 ms"), (200, "25 ms"), (2_000, "150 ms")] {
        for port in ports.by_ref().take(count - in_force) {
            add(&mut api, port);
        }
        let forks = Forks::below(lab.daemon().pid());
        let first = commit(&mut api);
        let processes = forks.map_or_else(|| "?".into(), |forks| forks.end().len().to_string());
        report(
            &format!("commit of {} more to {in_force}", count - in_force),
            &ms(first),
            "",
        );
        report("  processes", &processes, "1 or 2");
        in_force = count;
        let one_more = |api: &mut Session| {
            add(api, ports.next().unwrap());
            in_force += 1;
            commit(api)
        };
        report(
            &format!("commit of one more to {count}, median"),
            &ms(median(&mut api, one_more)),
            target,
        );
        let nothing = median(&mut api, commit);
        report(
            &format!("commit of nothing with {in_force} in force, median"),
            &ms(nothing),
            target,
        );
        create(&lab, &image, in_force);
    }
}

fn report(work: &str, measured: &str, target: &str) {
    println!("{work:<62} {measured:>12} {target:>12}");
}

fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn add(api: &mut Session, port: usize) {
    let policy = json!({ "chain": "RAIND-EW", "source": "web", "dest": "db", "protocol": "tcp", "dport": port });
    assert_eq!(api.call(post("/v1/policies", policy)).unwrap().status, 200);
}

fn commit(api: &mut Session) -> f64 {
    let begun = Instant::now();
    let reply = api.call(send("POST", "/v1/policies/commit", Vec::new())).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    begun.elapsed().as_secs_f64()
}

fn median(api: &mut Session, mut measure: impl FnMut(&mut Session) -> f64) -> f64 {
    let mut all: Vec<_> = (0..ROUNDS).map(|_| measure(api)).collect();
    all.sort_by(f64::total_cmp);
    all[ROUNDS / 2]
}

fn create(lab: &Lab, image: &str, in_force: usize) {
    let api = lab.api();
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let id = api.create(json!({ "image": image, "command": ["/bin/sleep", "100000"] }));
        all.push(begun.elapsed().as_secs_f64());
        api.delete(&id);
    }
    all.sort_by(f64::total_cmp);
    report(
        &format!("create of a container with {in_force} in force, median"),
        &ms(all[ROUNDS / 2]),
        "as without",
    );
}
