//! How long things take, each beside what the original needs and what the port has to reach.
//!
//! Run it with `scripts/bench.sh`. It drives the real daemon in a lab through the API and prints medians. Absolute
//! times move between machines; the originals were measured on two cores.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation ends the measurement"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use condenser::model::Container;
use condenser::store::Store;
use serde_json::{Value, json};
use support::{Forks, ImageSpec, Lab, Layer, delete, get, post};

/// Rounds of what is quick.
const ROUNDS: usize = 20;
/// Containers that are measured.
const MEASURED: usize = 200;
/// Rows of the long list.
const ROWS: usize = 1_000;

fn main() {
    println!("{:<52} {:>12} {:>12} {:>12}", "", "measured", "target", "original");
    one_container();
    many_at_once();
    long_list();
    statistics();
    pulls();
}

/// Prints one line. `target` is what the port has to reach.
fn report(work: &str, measured: impl ToString, target: &str, original: &str) {
    println!("{work:<52} {:>12} {target:>12} {original:>12}", measured.to_string());
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The median of how long `work` takes.
fn median(rounds: usize, mut work: impl FnMut()) -> Duration {
    let times = (0..rounds).map(|_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    });
    middle(times.collect())
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Resident memory of the daemon.
fn resident(lab: &Lab) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.daemon().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = line.split_ascii_whitespace().next().unwrap().parse().unwrap();
    format!("{} MB", kilobytes / 1024)
}

fn until_term() -> Value {
    json!([
        "/bin/sh",
        "-c",
        "trap 'exit 0' TERM; echo started; while :; do sleep 1000 & wait $!; done"
    ])
}

fn one_container() {
    let lab = Lab::running();
    let starts = (0..5).map(|_| {
        lab.daemon().stop();
        let begun = Instant::now();
        lab.daemon().start();
        begun.elapsed()
    });
    report(
        "start to listening",
        milliseconds(middle(starts.collect())),
        "61 ms",
        "122 ms",
    );
    let handshake = median(ROUNDS, || drop(lab.api().call(get("/v1/networks"))));
    report(
        "new mTLS connection and a GET",
        milliseconds(handshake),
        "3 ms",
        "11.9 ms",
    );
    report("resident memory, idle", resident(&lab), "13 MB", "13 MB");

    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let api = lab.api();
    let request = json!({ "image": image, "command": until_term(), "port": ["8080:80"] });
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let mut id = String::new();
        times[0].push(median(1, || id = api.create(request.clone())));
        times[1].push(median(1, || api.start(&id)));
        // Its handler is set when it has said so.
        support::wait_for("a container at work", Duration::from_secs(5), || {
            api.log(&id).contains("started").then_some(()).ok_or("nothing yet")
        });
        times[2].push(median(1, || api.stop(&id)));
        times[3].push(median(1, || api.delete(&id)));
    }
    let [create, start, stop, remove] = times.map(middle);
    report(
        "POST /v1/containers, image present",
        milliseconds(create),
        "50 ms",
        "419 ms",
    );
    report("start", milliseconds(start), "11 ms", "22 ms");
    report(
        "create and start together",
        milliseconds(create + start),
        "50 ms",
        "441 ms",
    );
    report(
        "stop of a process that ends on TERM",
        milliseconds(stop),
        "18 ms",
        "73 ms",
    );
    report("delete", milliseconds(remove), "18 ms", "106 ms");
    let count = Forks::below(lab.daemon().pid()).map(|forks| {
        let id = api.create(request.clone());
        let commands = forks.end();
        api.delete(&id);
        commands.len().to_string()
    });
    report("processes per create", count.unwrap_or("not counted".into()), "8", "73");
}

fn many_at_once() {
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let api = &lab.api();
    let request = &json!({ "image": image, "command": until_term() });
    let ids = Mutex::new(Vec::new());
    let eight_at_a_time = |work: &(dyn Fn(usize) + Sync)| {
        let next = Mutex::new(0..20);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some(number) = { next.lock().unwrap().next() } {
                        work(number);
                    }
                });
            }
        });
    };
    let rounds = (0..3).map(|_| {
        ids.lock().unwrap().drain(..).for_each(|id: String| api.delete(&id));
        median(1, || {
            eight_at_a_time(&|_| ids.lock().unwrap().push(api.create(request.clone())))
        })
    });
    report(
        "20 creates, 8 at a time",
        milliseconds(middle(rounds.collect())),
        "600 ms",
        "4350 ms",
    );
    let ids = ids.into_inner().unwrap();
    eight_at_a_time(&|number| api.start(&ids[number]));
    report("resident memory, 20 running", resident(&lab), "19 MB", "19 MB");
}

/// Rows of stopped containers are put into the database: a list does not look at the machine.
fn long_list() {
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let id = lab.api().create(json!({ "image": image, "command": ["/bin/true"] }));
    lab.api().start(&id);
    lab.api().wait_state(&id, "stopped");
    lab.daemon().stop();
    // SQLite resolves the way into the lab to a path that is outside of it: its files come out and one goes back.
    let here = tempfile::tempdir().unwrap();
    let there = |suffix: &str| lab.machine().path(&format!("/etc/raind/store/condenser.db{suffix}"));
    for suffix in ["", "-wal", "-shm"] {
        let file = there(suffix);
        if file.exists() {
            std::fs::copy(&file, here.path().join(format!("condenser.db{suffix}"))).unwrap();
            std::fs::remove_file(&file).unwrap();
        }
    }
    let database = here.path().join("condenser.db");
    multiply(&database);
    support::wait_for("a closed database", Duration::from_secs(5), || {
        let open = here.path().join("condenser.db-wal").exists();
        (!open).then_some(()).ok_or("it is open")
    });
    std::fs::copy(&database, there("")).unwrap();
    lab.daemon().start();

    let mut session = lab.api().session().unwrap();
    let mut ask = |path: &str| {
        let reply = session.call(get(path)).unwrap();
        assert_eq!(reply.status, 200);
        reply.body.len()
    };
    assert!(ask("/v1/containers") > 100 * ROWS);
    let list = median(50, || {
        ask("/v1/containers");
    });
    report("list of 1,000 containers", milliseconds(list), "2 ms", "31 ms");
    let one = median(50, || {
        ask("/v1/containers/copy-0500");
    });
    report("get one of 1,000", milliseconds(one), "0.3 ms", "30 ms");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut session = lab.api().session().unwrap();
                for _ in 0..100 {
                    session.call(get("/v1/containers")).unwrap();
                }
            });
        }
    });
    let rate = format!("{:.0} /s", 800.0 / begun.elapsed().as_secs_f64());
    report("lists of 1,000, 8 clients", rate, "1410 /s", "47 /s");
    report("resident memory, 1,000 rows", resident(&lab), "26 MB", "26 MB");
    lab.daemon().stop();
    let begun = Instant::now();
    lab.daemon().start();
    report(
        "start to listening, 1,000 rows",
        milliseconds(begun.elapsed()),
        "136 ms",
        "273 ms",
    );
}

fn multiply(database: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Store::open(database).unwrap();
    let row = store.snapshot().containers().iter().next().unwrap().as_ref().clone();
    let copies = runtime.block_on(
        store.transact(move |t| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            for number in 1..ROWS {
                let mut copy = Container {
                    id: format!("copy0000{number:04}"),
                    name: format!("copy-{number:04}"),
                    ..row.clone()
                };
                (copy.journal.joined, copy.status.attachment) = (None, None);
                t.put(copy)?;
            }
            Ok(())
        }),
    );
    copies.unwrap();
}

/// Statistics come from the cgroups; the log, which the original reads them from, is full.
fn statistics() {
    let lab = Lab::start();
    lab.machine()
        .write("/var/log/raind/raind_metrics.jsonl", "{}\n".repeat((50 << 20) / 3));
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let request = json!({ "image": image, "command": ["/bin/sleep", "100000"] });
    let first = lab.api().run(request.clone());
    let ask = |path: &str, rounds: usize| {
        let mut session = lab.api().session().unwrap();
        let mut times: Vec<_> = (0..rounds)
            .map(|_| median(1, || assert_eq!(session.call(get(path)).unwrap().status, 200)))
            .collect();
        times.sort_unstable();
        times
    };
    let one = ask(&format!("/v1/containers/{first}/stats"), 100);
    report(
        "stats with a 50 MiB metrics log",
        milliseconds(middle(one)),
        "1 ms",
        "256 ms",
    );
    let left = Mutex::new(1..MEASURED);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while { left.lock().unwrap().next() }.is_some() {
                    lab.api().run(request.clone());
                }
            });
        }
    });
    let all = ask("/v1/containers/stats", 500);
    report(
        &format!("stats of {MEASURED} running containers, p99"),
        milliseconds(all[all.len() * 99 / 100]),
        "20 ms",
        "",
    );
}

fn pulls() {
    let large = large_image();
    let compressed: usize = large.layers.iter().map(|layer| layer.blob().len()).sum();
    let mut times = Vec::new();
    let mut small = Vec::new();
    for round in 0..3 {
        // A new file system each time: ext4 is slow for minutes after many removals.
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pull-{}-{round}.img", std::process::id()));
        let lab = Lab::start();
        std::fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
        let disk_path = disk.to_str().unwrap();
        lab.machine().run(&["mkfs.ext4", "-q", disk_path]);
        lab.machine().run(&["mount", "-o", "loop", disk_path, "/etc/raind"]);
        std::fs::remove_file(&disk).unwrap();
        lab.daemon().start();
        let name = lab.push(&large, "bench/large:1");
        times.push(median(1, || {
            drop(lab.api().ok(post("/v1/images", json!({ "image": name }))))
        }));
        let name = lab.push(&ImageSpec::busybox(), "bench/small:1");
        for _ in 0..5 {
            small.push(median(1, || {
                drop(lab.api().ok(post("/v1/images", json!({ "image": name }))))
            }));
            lab.api().ok(delete("/v1/images").json(&json!({ "image": name })));
        }
    }
    let work = format!("pull of 8 layers, {} MB compressed", compressed / 1_000_000);
    report(&work, milliseconds(middle(times)), "690 ms", "2060 ms");
    report("pull of a 1 MB image", milliseconds(middle(small)), "18 ms", "37 ms");
}

/// 8 layers, 14,600 files, 179 MB of which a third cannot be compressed.
fn large_image() -> ImageSpec {
    let mut image = ImageSpec::scratch();
    for number in 0..8 {
        let mut layer = Layer::new().dir(&format!("layer{number}"), 0o755);
        for file in 0..1_825 {
            let mut content = vec![b'.'; 12_260];
            rand::fill(&mut content[..4_000]);
            layer = layer.file(&format!("layer{number}/file{file}"), 0o644, content);
        }
        image = image.layer(layer);
    }
    image
}
