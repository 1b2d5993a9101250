//! What containers use and what the daemon does, in figures: statistics, the metrics log and the page for Prometheus.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::support::{Api, Identity, Lab, get, post, wait_for};
use crate::{lab_with_busybox, until_term};

/// The log is written every ten seconds.
const TWO_ROUNDS: Duration = Duration::from_secs(25);

fn stats(api: &Api, container: &str) -> Value {
    api.ok(get(&format!("/v1/containers/{container}/stats")))
}

/// Waits until the statistics of a container are as wanted, and returns them.
fn wait_stats(api: &Api, container: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, TWO_ROUNDS, || {
        let stats = stats(api, container);
        if wanted(&stats) { Ok(stats) } else { Err(stats) }
    })
}

fn number(stats: &Value, name: &str) -> f64 {
    stats[name].as_f64().unwrap_or_else(|| panic!("{name} of {stats}"))
}

fn time(value: &Value) -> Timestamp {
    let time = value.as_str().and_then(|text| text.parse().ok());
    time.unwrap_or_else(|| panic!("{value} is no time"))
}

/// The samples of the page for Prometheus.
fn scrape(api: &Api) -> BTreeMap<String, f64> {
    let reply = api.call(get("/metrics"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(
        reply.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = reply.text();
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    });
    samples.collect()
}

/// A container that burns, one that holds 64 MiB, one that does nothing.
fn three_containers(lab: &Lab, image: &str) -> [String; 3] {
    let burn = json!(["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do :; done"]);
    let hold = json!(["/bin/sh", "-c", "(head -c 64m /dev/zero; sleep 1000) | tail -c 64m"]);
    [("burn", burn), ("hold", hold), ("idle", until_term(0))].map(|(name, command)| {
        lab.api()
            .run(json!({ "image": image, "name": name, "command": command }))
    })
}

#[test]
fn load_is_shown_where_it_is() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let ids = three_containers(&lab, &image);
    let burning = wait_stats(&api, "burn", "a busy processor", |s| number(s, "cpu_percent") > 5.0);
    assert!(number(&burning, "cpu_usage_usec") > 100_000.0, "{burning}");
    assert!(number(&burning, "cpu_percent") < 150.0, "{burning}");
    assert_eq!(
        (number(&burning, "cpu_quota_usec"), number(&burning, "cpu_period_usec")),
        (80_000.0, 100_000.0)
    );
    let held = f64::from(64 << 20);
    let holding = wait_stats(&api, "hold", "64 MiB", |s| number(s, "memory_current_bytes") >= held);
    assert_eq!(holding["memory_max_bytes"], 1 << 30);
    assert!(number(&holding, "memory_percent") >= 6.25, "{holding}");
    let path = holding["cgroup_path"].as_str().unwrap();
    assert!(
        path.starts_with("/sys/fs/cgroup/") && path.ends_with(&format!("raind/{}", ids[1])),
        "{path}"
    );

    let created = api.create(json!({ "image": image, "name": "waits" }));
    let all = api.ok(get("/v1/containers/stats"));
    let all = all.as_array().unwrap();
    let names: Vec<_> = all.iter().map(|s| s["container_name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["burn", "hold", "idle", "waits"],
        "by creation time, none left out"
    );
    let idle = &all[2];
    assert!(number(idle, "cpu_percent") < number(&burning, "cpu_percent"), "{idle}");
    assert!(number(idle, "memory_current_bytes") < held / 2.0, "{idle}");
    assert_eq!(
        (&all[3]["generated_ts"], &all[3]["cpu_usage_usec"], &all[3]["status"]),
        (&json!(""), &json!(0), &json!("created"))
    );
    for id in &ids {
        api.stop(id);
    }
    ids.iter().chain([&created]).for_each(|id| api.delete(id));
    assert_eq!(api.ok(get("/v1/containers/stats")), json!([]));
    lab.assert_unchanged(&before);
}

#[test]
fn a_stopped_container_has_counters_and_no_load() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let [burn, ..] = three_containers(&lab, &image);
    let running = wait_stats(&api, "burn", "load", |s| number(s, "cpu_usage_usec") > 1e6);
    api.stop(&burn);
    let stopped = stats(&api, "burn");
    assert_eq!((&stopped["status"], &stopped["pid"]), (&json!("stopped"), &json!(0)));
    for rate in ["cpu_percent", "memory_current_bytes", "memory_percent"] {
        assert_eq!(number(&stopped, rate), 0.0, "{rate}");
    }
    assert!(number(&stopped, "cpu_usage_usec") >= number(&running, "cpu_usage_usec"));
    assert_eq!(stopped["memory_max_bytes"], running["memory_max_bytes"]);

    // Nothing is read back: a daemon that has never measured it knows nothing; what runs is measured at once.
    lab.daemon().restart();
    let forgotten = stats(&api, "burn");
    assert_eq!(
        (&forgotten["generated_ts"], &forgotten["cpu_usage_usec"]),
        (&json!(""), &json!(0))
    );
    assert!(number(&stats(&api, "idle"), "memory_current_bytes") > 0.0);
    // A new run counts from zero.
    api.start(&burn);
    let again = stats(&api, "burn");
    assert!(
        number(&again, "cpu_usage_usec") < number(&stopped, "cpu_usage_usec"),
        "{again}"
    );
    assert_eq!(
        number(&again, "cpu_percent"),
        0.0,
        "the first has nothing to compare with"
    );
}

#[test]
fn running_containers_are_logged() {
    let (lab, image) = lab_with_busybox();
    let [burn, _, idle] = three_containers(&lab, &image);
    lab.api().stop(&idle);
    let path = "/var/log/raind/raind_metrics.jsonl";
    // The second record of a run is the first with a rate.
    let of_burn = wait_for("two records of a container", TWO_ROUNDS, || {
        let text = lab.machine().read(path);
        let records = text
            .lines()
            .map(|line| serde_json::from_str::<Map<String, Value>>(line).unwrap());
        let records: Vec<_> = records.filter(|record| record["container_id"] == burn).collect();
        if records.len() >= 2 { Ok(records) } else { Err(text) }
    });
    let recorded = include_str!("../fixtures/golden/log-metrics.jsonl");
    let recorded: Map<String, Value> = serde_json::from_str(recorded).unwrap();
    for record in &of_burn {
        assert_eq!(record.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
        assert_eq!(record["status"], "running");
        assert_eq!(record["spiffe_id"], format!("spiffe://raind/container/{burn}"));
    }
    assert!(of_burn[1]["cpu_percent"].as_f64().unwrap() > 5.0, "{of_burn:?}");
    let mode = lab.machine().run(&["stat", "-c", "%a", path]);
    assert_eq!(mode.trim(), "640");
    let stopped_at = time(&lab.api().container(&idle)["stoppedAt"]);
    let log = lab.machine().read(path);
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let late = records.filter(|r| r["container_id"] == idle && time(&r["generated_ts"]) > stopped_at);
    assert_eq!(late.count(), 0, "{log}");
}

#[test]
fn prometheus_gets_containers_and_operations() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let fresh = scrape(&api);
    let ended = |samples: &BTreeMap<String, f64>, operation: &str, outcome: &str| {
        samples[&format!("condenser_operations_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}")]
    };
    assert_eq!(ended(&fresh, "image.pull", "success"), 1.0);
    assert_eq!(ended(&fresh, "container.create", "success"), 0.0);
    let size = api.ok(get("/v1/images"))[0]["size"].as_u64();
    let pulled = fresh["condenser_image_pull_bytes_total"];
    assert!(pulled > 100_000.0, "{pulled} of {size:?}");

    let [burn, ..] = three_containers(&lab, &image);
    api.call(post(&format!("/v1/containers/{burn}/actions/start"), json!({})))
        .refused(409, "");
    api.stop(&burn);
    let samples = scrape(&api);
    assert_eq!(ended(&samples, "container.create", "success"), 3.0);
    assert_eq!(ended(&samples, "container.start", "success"), 3.0);
    assert_eq!(ended(&samples, "container.start", "failure"), 1.0);
    assert_eq!(ended(&samples, "container.stop", "success"), 1.0);
    let took = "condenser_operation_duration_seconds_sum{operation=\"container.create\"}";
    assert!(samples[took] > 0.0 && samples[took] < 60.0, "{}", samples[took]);
    assert_eq!(samples["condenser_containers{state=\"running\"}"], 2.0);
    assert_eq!(samples["condenser_containers{state=\"stopped\"}"], 1.0);
    let of = |name: &str, figure: &str| {
        let found = samples.iter().find(|(series, _)| {
            series.starts_with(&format!("condenser_container_{figure}{{"))
                && series.contains(&format!("container_name=\"{name}\""))
        });
        found.map(|(_, value)| *value)
    };
    assert!(of("hold", "memory_usage_bytes").unwrap() > 0.0);
    assert_eq!(of("hold", "memory_limit_bytes"), Some(f64::from(1 << 30)));
    assert!(of("hold", "pids").unwrap() >= 2.0);
    assert_eq!(of("idle", "pids_limit"), Some(512.0));
    assert_eq!(of("burn", "memory_usage_bytes"), None, "it does not run");

    lab.api_as(7755, Identity::Hook)
        .call(get("/metrics"))
        .refused(403, "forbidden");
}
