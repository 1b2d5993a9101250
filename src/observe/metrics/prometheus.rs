//! The metrics in the Prometheus text exposition format, version 0.0.4, which every scraper and `promtool` can read.
//!
//! Names follow Prometheus' conventions: base units (seconds, bytes), counters end with `_total`. A container has
//! metrics only while it runs; the number of containers per state is always present.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::activity::Activity;
use super::cgroup::Usage;
use super::sample::Sample;
use crate::model::{Container, ContainerState};

/// Media type of the result of [`expose`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PREFIX: &str = "condenser";

/// All metrics, given fresh samples of all containers.
pub fn expose(activity: &Activity, containers: Vec<(Arc<Container>, Sample)>) -> String {
    let mut of_containers = Registry::with_prefix(PREFIX);
    of_containers.register_collector(Box::new(Containers(containers)));
    let mut text = String::new();
    for registry in [activity.registry(), &of_containers] {
        if let Err(error) = encode_registry(&mut text, registry) {
            // Writing to a string does not fail; a value that cannot be encoded would be a bug.
            tracing::error!(%error, "cannot encode some metrics");
        }
    }
    classic(&text)
}

/// A metric of a running container.
struct ContainerMetric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// `None` if this container has no value, for example without a limit.
    value: fn(&Usage) -> Option<f64>,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Usage) -> Option<f64>) -> ContainerMetric {
    ContainerMetric {
        name,
        help,
        kind: MetricType::Counter,
        value,
    }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Usage) -> Option<f64>) -> ContainerMetric {
    ContainerMetric {
        name,
        help,
        kind: MetricType::Gauge,
        value,
    }
}

const CONTAINER_METRICS: [ContainerMetric; 17] = [
    counter("container_cpu_usage_seconds", "Processor time.", |u| {
        seconds(u.cpu_usage_usec)
    }),
    counter("container_cpu_user_seconds", "Processor time in user mode.", |u| {
        seconds(u.cpu_user_usec)
    }),
    counter("container_cpu_system_seconds", "Processor time in the kernel.", |u| {
        seconds(u.cpu_system_usec)
    }),
    counter("container_cpu_periods", "Periods in which it wanted to run.", |u| {
        count(u.cpu_nr_periods)
    }),
    counter(
        "container_cpu_throttled_periods",
        "Periods in which its quota did not suffice.",
        |u| count(u.cpu_nr_throttled),
    ),
    counter(
        "container_cpu_throttled_seconds",
        "Time spent waiting for the next period.",
        |u| seconds(u.cpu_throttled_usec),
    ),
    gauge(
        "container_cpu_limit_cores",
        "Processors that it may keep busy, if limited.",
        |u| (!u.cpu_unlimited).then(|| u.cores(0)),
    ),
    gauge(
        "container_memory_usage_bytes",
        "Memory in use, page cache included.",
        |u| count(u.memory_current_bytes),
    ),
    gauge(
        "container_memory_limit_bytes",
        "Memory that it may use, if limited.",
        |u| u.memory_max_bytes.and_then(count),
    ),
    counter("container_memory_oom_events", "How often it ran out of memory.", |u| {
        count(u.memory_oom)
    }),
    counter(
        "container_memory_oom_kills",
        "Processes killed for lack of memory.",
        |u| count(u.memory_oom_kill),
    ),
    counter("container_io_read_bytes", "Bytes read from block devices.", |u| {
        count(u.io_read_bytes)
    }),
    counter("container_io_written_bytes", "Bytes written to block devices.", |u| {
        count(u.io_write_bytes)
    }),
    counter("container_io_reads", "Reads from block devices.", |u| {
        count(u.io_read_ops)
    }),
    counter("container_io_writes", "Writes to block devices.", |u| {
        count(u.io_write_ops)
    }),
    gauge("container_pids", "Processes and threads.", |u| count(u.pids_current)),
    gauge(
        "container_pids_limit",
        "Processes and threads that it may have, if limited.",
        |u| u.pids_max.and_then(count),
    ),
];

fn seconds(usec: u64) -> Option<f64> {
    Some(usec as f64 / 1e6)
}

fn count(n: u64) -> Option<f64> {
    Some(n as f64)
}

#[derive(Debug)]
struct Containers(Vec<(Arc<Container>, Sample)>);

impl Collector for Containers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let mut family = encoder.encode_descriptor("containers", "Containers by state.", None, MetricType::Gauge)?;
        use ContainerState::{Created, Creating, Running, Stopped};
        for state in [Creating, Created, Running, Stopped] {
            let number = self.0.iter().filter(|(c, _)| c.status.state == state).count();
            let labels = [("state", state.to_string())];
            ConstGauge::new(number).encode(family.encode_family(&labels)?)?;
        }
        for metric in &CONTAINER_METRICS {
            self.encode_metric(metric, &mut encoder)?;
        }
        Ok(())
    }
}

impl Containers {
    fn encode_metric(&self, metric: &ContainerMetric, encoder: &mut DescriptorEncoder) -> std::fmt::Result {
        let mut family = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
        for (container, sample) in &self.0 {
            if container.status.state != ContainerState::Running || sample.taken_at.is_none() {
                continue;
            }
            let Some(value) = (metric.value)(&sample.usage) else {
                continue;
            };
            let labels = [("container_id", &container.id), ("container_name", &container.name)];
            let series = family.encode_family(&labels)?;
            match metric.kind {
                MetricType::Counter => ConstCounter::new(value).encode(series)?,
                _ => ConstGauge::new(value).encode(series)?,
            }
        }
        Ok(())
    }
}

/// Converts from OpenMetrics, the library's output format, which describes a counter under its name without the
/// `_total` of its samples. The older format uses one name for both.
fn classic(openmetrics: &str) -> String {
    let counter_name = |line: &'_ str| {
        line.strip_prefix("# TYPE ")?
            .strip_suffix(" counter")
            .map(str::to_owned)
    };
    let counters: HashSet<String> = openmetrics.lines().filter_map(counter_name).collect();
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    for line in openmetrics.lines() {
        // Writing to a string does not fail.
        let _ = match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            ["#", word, name, rest] if counters.contains(name) => writeln!(text, "# {word} {name}_total {rest}"),
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::model::fixtures::container;
    use crate::observe::metrics::Verb;

    /// A strict parser: every sample must belong to a family that was described once, directly before it.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        assert!(text.ends_with('\n'));
        let mut samples = BTreeMap::new();
        let mut described = BTreeSet::new();
        let (mut help, mut family, mut kind) = ("", "", "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').unwrap().0;
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                (family, kind) = rest.split_once(' ').unwrap();
                assert_eq!(help, family, "TYPE follows HELP");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(described.insert(family.to_owned()), "{family} is described twice");
                continue;
            }
            assert!(!line.starts_with('#'), "{line}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffix = name
                .strip_prefix(family)
                .unwrap_or_else(|| panic!("{line} in {family}"));
            let suffixes: &[&str] = if kind == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            assert!(suffixes.contains(&suffix), "{line} in {family}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(
                samples.insert(series.to_owned(), value).is_none(),
                "{series} is there twice"
            );
        }
        samples
    }

    fn running() -> (Arc<Container>, Sample) {
        let usage = Usage {
            cpu_usage_usec: 1_500_000,
            cpu_unlimited: true,
            memory_current_bytes: 4096,
            memory_max_bytes: Some(1 << 30),
            memory_limited: true,
            pids_current: 3,
            ..Usage::default()
        };
        let sample = Sample {
            taken_at: Some(jiff::Timestamp::UNIX_EPOCH),
            cgroup_path: String::new(),
            usage,
        };
        let row = container("01m85d6ag2dj", "web").in_state(ContainerState::Running);
        (Arc::new(row), sample)
    }

    #[test]
    fn a_running_container_has_its_metrics_and_others_only_count() {
        let stopped = container("01m85d6ag2dk", "gone").in_state(ContainerState::Stopped);
        let all = vec![running(), (Arc::new(stopped), running().1)];
        let samples = parse(&expose(&Activity::default(), all));
        let value_of = |metric: &str| {
            let series =
                format!("condenser_container_{metric}{{container_id=\"01m85d6ag2dj\",container_name=\"web\"}}");
            samples.get(&series).copied()
        };
        assert_eq!(value_of("cpu_usage_seconds_total"), Some(1.5));
        assert_eq!(value_of("memory_usage_bytes"), Some(4096.0));
        assert_eq!(value_of("memory_limit_bytes"), Some(f64::from(1 << 30)));
        assert_eq!(value_of("pids"), Some(3.0));
        assert_eq!(
            (value_of("cpu_limit_cores"), value_of("pids_limit")),
            (None, None),
            "no limit"
        );
        assert_eq!(samples["condenser_containers{state=\"running\"}"], 1.0);
        assert_eq!(samples["condenser_containers{state=\"stopped\"}"], 1.0);
        assert_eq!(samples["condenser_containers{state=\"created\"}"], 0.0);
        assert!(!samples.keys().any(|series| series.contains("gone")));
    }

    #[tokio::test]
    async fn operations_are_counted_by_how_they_end() {
        let activity = Activity::default();
        let fine = async { Ok::<_, ()>(7) };
        assert_eq!(activity.observe(Verb::ContainerCreate, fine).await, Ok(7));
        for _ in 0..2 {
            let failing = async { Err::<(), _>("no") };
            assert_eq!(activity.observe(Verb::ContainerStop, failing).await, Err("no"));
        }
        activity.pulled(1000);
        activity.pulled(24);
        let samples = parse(&expose(&activity, Vec::new()));
        let ended = |operation: &str, outcome: &str| {
            samples[&format!("condenser_operations_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}")]
        };
        assert_eq!(ended("container.create", "success"), 1.0);
        assert_eq!(ended("container.create", "failure"), 0.0);
        assert_eq!(ended("container.stop", "failure"), 2.0);
        assert_eq!(ended("image.pull", "success"), 0.0, "there before the first");
        let durations = |suffix: &str| {
            samples[&format!("condenser_operation_duration_seconds_{suffix}operation=\"container.stop\"}}")]
        };
        assert_eq!(durations("count{"), 2.0);
        assert_eq!(durations("bucket{le=\"+Inf\","), 2.0);
        assert_eq!(samples["condenser_image_pull_bytes_total"], 1024.0);
    }
}
