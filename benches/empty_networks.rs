//! How long the first create in an empty network takes: the first packets of a container, to the daemon, are sent through
//! a bridge that has just got a carrier. One that is lost costs a second.
//!
//! ```text
//! cargo bench --bench empty_networks            500 creates; CREATES=n for another number
//! ```
//! Half of the networks are new, half are the default one after its last container was removed. It fails when a create
//! fails or takes more than three times the median.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation ends the measurement"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{ImageSpec, Lab, delete, post};

/// How much longer than the median one may take.
const FACTOR: u32 = 3;

fn main() -> ExitCode {
    let creates = std::env::var("CREATES").map_or(500, |n| n.parse().expect("CREATES is a number"));
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let (mut times, mut failures) = (Vec::new(), Vec::new());
    for round in 0..creates {
        match one(&lab, &image, round) {
            Ok(time) => times.push(time),
            Err(said) => failures.push(format!("create {round}: {said}")),
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let (median, worst) = (at(50), at(100));
    let slow = times.iter().filter(|time| **time > median * FACTOR).count();
    println!(
        "{creates} creates in empty networks: {} failures, p50 {median:.1?}, p99 {:.1?}, worst {worst:.1?} ({:.1} times the median, \
         {slow} over {FACTOR})",
        failures.len(),
        at(99),
        worst.as_secs_f64() / median.as_secs_f64(),
    );
    failures.iter().for_each(|failure| println!("{failure}"));
    ExitCode::from(u8::from(!failures.is_empty() || slow > 0))
}

/// The only container of a network.
fn one(lab: &Lab, image: &str, round: usize) -> Result<Duration, String> {
    let api = lab.api();
    let fresh = format!("empty{round}");
    let network = if round.is_multiple_of(2) { &fresh } else { "raind0" };
    if network == fresh {
        api.ok(post("/v1/networks", json!({ "bridge": network })));
    }
    let request = post("/v1/containers", json!({ "image": image, "network": network }));
    let begun = Instant::now();
    let reply = api.call(request);
    let time = begun.elapsed();
    if reply.status == 200 {
        api.delete(reply.json()["data"]["id"].as_str().unwrap());
    }
    if network == fresh {
        api.ok(delete(&format!("/v1/networks/{network}/actions/delete")));
    }
    match reply.status {
        200 => Ok(time),
        _ => Err(reply.text()),
    }
}
