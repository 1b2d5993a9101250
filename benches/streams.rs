//! What the daemon adds between a terminal and who is attached to it, and how fast a log is followed.
//!
//! `cargo bench --bench streams`. It drives the real daemon in a lab. The terminal is also spoken to directly, at the
//! runtime's socket, so the difference is the daemon, TLS and WebSocket, on both sides.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation ends the measurement"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Answer, ImageSpec, Lab, get, post, wait_for};

const ROUNDS: usize = 2_000;
const MEGABYTES: usize = 256;

fn main() {
    println!("{:<52} {:>12} {:>12}", "", "measured", "target");
    let lab = Lab::start();
    // One file, so that only following is measured.
    lab.daemon().set("CONDENSER_LOG_MAX_BYTES", &(1u64 << 30).to_string());
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    echo(&lab, &image);
    throughput(&lab, &image);
}

fn report(work: &str, measured: &str, target: &str) {
    println!("{work:<52} {measured:>12} {target:>12}");
}

fn echo(lab: &Lab, image: &str) {
    let api = lab.api();
    let script = "stty raw -echo; echo ready; exec cat";
    let id = api.run(json!({ "image": image, "tty": true, "command": ["/bin/sh", "-c", script] }));
    wait_for("the terminal", Duration::from_secs(10), || {
        let said = api.log(&id);
        if said.contains("ready") { Ok(()) } else { Err(said) }
    });
    let socket = lab.machine().path(&format!("/etc/raind/container/{id}/tty.sock"));
    let mut direct = UnixStream::connect(socket).unwrap();
    let mut byte = [0];
    let direct = median(|| {
        direct.write_all(b"\0\0\0\0\x01x").unwrap();
        direct.read_exact(&mut byte).unwrap();
    });
    let mut terminal = api.attach(&format!("/v1/containers/{id}/attach"));
    let through = median(|| {
        terminal.type_in("y");
        terminal.expect("y");
    });
    report("echo of a key at the runtime's socket, median", &micros(direct), "");
    report("echo of a key through the daemon, median", &micros(through), "");
    report(
        "added by the daemon, median",
        &micros(through.saturating_sub(direct)),
        "1000 us",
    );
    api.stop(&id);
    api.delete(&id);
}

fn throughput(lab: &Lab, image: &str) {
    let api = lab.api();
    let script = format!(
        "while [ ! -e /go ]; do sleep 0.01; done; \
         yes 'a line of a log, as long as such lines usually are: about ninety bytes, or a little less' \
         | head -c {}",
        MEGABYTES << 20
    );
    let id = api.run(json!({ "image": image, "command": ["/bin/sh", "-c", script] }));
    let log = |query: &str| api.open(get(&format!("/v1/containers/{id}/log?{query}")));
    let live = log("all=1&follow=1");
    let command = json!({ "command": ["touch", "/go"] });
    api.ok(post(&format!("/v1/containers/{id}/actions/exec"), command));
    report("a log followed while it is written", &rate(live), "");
    api.wait_state(&id, "stopped");
    report("a log read to its end", &rate(log("all=1&follow=1")), "200 MB/s");
    report("the same with times", &rate(log("all=1&timestamps=1")), "");
    api.delete(&id);
}

/// Reads it to the end.
fn rate(mut log: Answer) -> String {
    let (begun, mut read) = (Instant::now(), 0);
    while let Some(piece) = log.piece().unwrap() {
        read += piece.len();
    }
    assert!(read >= MEGABYTES << 20, "{read} bytes");
    format!("{:.0} MB/s", read as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

fn median(mut work: impl FnMut()) -> Duration {
    let times = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    });
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn micros(time: Duration) -> String {
    format!("{} us", time.as_micros())
}
