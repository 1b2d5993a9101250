//! How soon services are true: from what happens to a pod, or is asked for, to the rules in the kernel.
//!
//! `cargo bench --bench services`, as root. It drives the real daemon in a lab and reads the rules with iptables-save,
//! whose own time (some milliseconds) is in each figure.
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

use serde_json::json;
use support::{Forks, ImageSpec, Lab, delete, get, post, send, wait_for};

/// Pods that die, and services that are made, one after the other.
const ROUNDS: usize = 12;
/// Services of the burst.
const BURST: usize = 100;
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    println!("{:<52} {:>12} {:>12} {:>12}", "", "measured", "target", "original");
    endpoints();
    burst();
}

/// Prints one line. `target` is what the port has to reach.
fn report(work: &str, measured: impl ToString, target: &str, original: &str) {
    println!("{work:<52} {:>12} {target:>12} {original:>12}", measured.to_string());
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn create(lab: &Lab, name: &str, port: usize) -> String {
    let manifest = format!(
        "kind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: shop}}, ports: [{{port: {port}, targetPort: 80}}]}}\n"
    );
    let reply = lab.api().call(send("POST", "/v1/services", manifest));
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.json()["data"]["serviceId"].as_str().unwrap().into()
}

fn rules(lab: &Lab) -> String {
    lab.machine().run(&["iptables-save", "-t", "nat"])
}

/// How long it takes until the rules are so.
fn until(lab: &Lab, what: &str, is_so: impl Fn(&str) -> bool) -> Duration {
    let begun = Instant::now();
    wait_for(what, LIMIT, || if is_so(&rules(lab)) { Ok(()) } else { Err("not yet") });
    begun.elapsed()
}

fn endpoints() {
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let api = lab.api();
    let service = create(&lab, "shop", 11240);
    for n in 0..ROUNDS {
        let web =
            json!({ "name": "web", "image": image, "command": ["/bin/sh", "-c", "while :; do sleep 1000; done"] });
        let pod = json!({ "name": format!("pod{n}"), "labels": { "app": "shop" }, "containers": [web] });
        api.ok(post("/v1/pods", pod));
    }
    let mut gained = Vec::new();
    let mut lost = Vec::new();
    for n in 0..ROUNDS {
        api.ok(send("POST", &format!("/v1/pods/pod{n}/actions/start"), Vec::new()));
        let answered = Instant::now();
        wait_for("the endpoint", LIMIT, || {
            let count = rules(&lab).matches("--to-destination 10.166.0").count();
            if count == n + 1 { Ok(()) } else { Err(count) }
        });
        gained.push(answered.elapsed());
    }
    let shown = api.ok(get(&format!("/v1/services/{service}")));
    for endpoint in shown["endpoints"].as_array().unwrap() {
        let pod = endpoint["podId"].as_str().unwrap();
        let infra = api.container(&format!("condenser-pod-infra-{}", &pod[..12]));
        let address = format!("{}:80", endpoint["address"].as_str().unwrap());
        let begun = Instant::now();
        lab.machine().run(&["kill", "-9", &infra["pid"].to_string()]);
        until(&lab, "the end of the endpoint", |rules| !rules.contains(&address));
        lost.push(begun.elapsed());
    }
    report(
        "a started pod, from the answer to the rules",
        milliseconds(median(gained)),
        "100 ms",
        "5000 ms",
    );
    report(
        "a killed pod, from SIGKILL to the rules",
        milliseconds(median(lost)),
        "100 ms",
        "5000 ms",
    );
    let mut made = Vec::new();
    for n in 0..ROUNDS {
        let begun = Instant::now();
        let id = create(&lab, "more", 12_000 + n);
        until(&lab, "the chain", |rules| rules.contains(&format!("-{}", 12_000 + n)));
        made.push(begun.elapsed());
        api.ok(delete(&format!("/v1/services/{id}")));
    }
    report(
        "a new service, from the request to the rules",
        milliseconds(median(made)),
        "100 ms",
        "5000 ms",
    );
}

fn burst() {
    let lab = Lab::running();
    let forks = Forks::below(lab.daemon().pid());
    let next = Mutex::new(0..BURST);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(n) = { next.lock().unwrap().next() } {
                    create(&lab, &format!("shop{n}"), 20_000 + n);
                }
            });
        }
    });
    let asked = begun.elapsed();
    until(&lab, "all chains", |rules| {
        rules.matches("\n:RAIND-SVC-").count() == BURST
    });
    let whole = begun.elapsed();
    report(
        &format!("{BURST} services, 8 requests at a time"),
        milliseconds(asked),
        "",
        "",
    );
    report(
        &format!("{BURST} services, from the first to the rules"),
        milliseconds(whole),
        "",
        "",
    );
    let runs = forks.map_or("not counted".to_owned(), |forks| {
        let commands = forks.end();
        commands
            .iter()
            .filter(|command| command.contains("iptables"))
            .count()
            .to_string()
    });
    report(&format!("{BURST} services, runs of iptables"), runs, "few", "");
}
