//! Parses the kernel's cgroup files, v2 and v1, into one form. Pure: text in, [`Usage`] out.
//!
//! A missing file or key (a disabled controller, an older kernel) counts as zero or as no limit; a missing file is
//! passed as the empty text. Formats: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

use serde::Serialize;
use utoipa::ToSchema;

/// Resource usage of a container since its start, current usage, and limits. The names are those of the metrics log
/// and of the statistics of the API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// CPU time, in microseconds.
    pub cpu_usage_usec: u64,
    /// CPU time in user mode, in microseconds.
    pub cpu_user_usec: u64,
    /// CPU time in the kernel, in microseconds.
    pub cpu_system_usec: u64,
    /// Number of CPU periods in which the container was runnable, while it has a quota.
    pub cpu_nr_periods: u64,
    /// Number of periods in which it was throttled.
    pub cpu_nr_throttled: u64,
    /// Total time throttled, in microseconds.
    pub cpu_throttled_usec: u64,
    /// CPU time that it may use per period, in microseconds; 0 without a limit.
    pub cpu_quota_usec: u64,
    /// Length of a period, in microseconds.
    pub cpu_period_usec: u64,
    /// Whether it has no CPU quota.
    pub cpu_unlimited: bool,
    /// Recent CPU usage in percent of its limit: its quota, otherwise all CPUs of the host. 0 until there are two
    /// samples.
    pub cpu_percent: f64,
    /// Memory in use, page cache included, in bytes.
    pub memory_current_bytes: u64,
    /// Memory limit in bytes; `null` without a limit.
    pub memory_max_bytes: Option<u64>,
    /// Whether its memory is limited.
    pub memory_limited: bool,
    /// Memory in percent of the limit; 0 without a limit.
    pub memory_percent: f64,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_write_bytes: u64,
    /// Reads from block devices.
    pub io_read_ops: u64,
    /// Writes to block devices.
    pub io_write_ops: u64,
    /// How often it ran out of memory. cgroup v1 counts only the kills.
    pub memory_oom: u64,
    /// Number of its processes killed by the out-of-memory killer.
    pub memory_oom_kill: u64,
    /// Processes and threads. Not part of the contract of the log and the API.
    #[serde(skip)]
    pub pids_current: u64,
    /// Limit of processes and threads.
    #[serde(skip)]
    pub pids_max: Option<u64>,
}

/// The files of cgroup v2, all in one directory.
pub const V2_FILES: [&str; 8] = [
    "cpu.stat",
    "cpu.max",
    "memory.current",
    "memory.max",
    "memory.events",
    "io.stat",
    "pids.current",
    "pids.max",
];

/// The files of cgroup v1, each with the controller whose hierarchy contains it.
pub const V1_FILES: [(&str, &str); 12] = [
    ("cpuacct", "cpuacct.usage"),
    ("cpuacct", "cpuacct.stat"),
    ("cpu", "cpu.stat"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpu", "cpu.cfs_period_us"),
    ("memory", "memory.usage_in_bytes"),
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.oom_control"),
    ("blkio", "blkio.throttle.io_service_bytes"),
    ("blkio", "blkio.throttle.io_serviced"),
    ("pids", "pids.current"),
    ("pids", "pids.max"),
];

/// With cgroup v1 no limit is the largest number of bytes in whole pages, of up to 64 KiB.
const V1_NO_LIMIT: u64 = i64::MAX as u64 & !0xffff;

/// Parses the content of [`V2_FILES`], in their order.
pub fn v2(texts: [&str; 8]) -> Usage {
    let [cpu_stat, cpu_max, current, max, events, io, pids, pids_max] = texts;
    let (quota, period) = cpu_max.split_once(' ').unwrap_or_default();
    let io = |key| summed(io, |rest| rest.split(' ').find_map(|pair| pair.strip_prefix(key)));
    Usage {
        cpu_usage_usec: keyed(cpu_stat, "usage_usec"),
        cpu_user_usec: keyed(cpu_stat, "user_usec"),
        cpu_system_usec: keyed(cpu_stat, "system_usec"),
        cpu_nr_periods: keyed(cpu_stat, "nr_periods"),
        cpu_nr_throttled: keyed(cpu_stat, "nr_throttled"),
        cpu_throttled_usec: keyed(cpu_stat, "throttled_usec"),
        memory_current_bytes: number(current).unwrap_or(0),
        io_read_bytes: io("rbytes="),
        io_write_bytes: io("wbytes="),
        io_read_ops: io("rios="),
        io_write_ops: io("wios="),
        memory_oom: keyed(events, "oom"),
        memory_oom_kill: keyed(events, "oom_kill"),
        pids_current: number(pids).unwrap_or(0),
        pids_max: number(pids_max),
        ..Usage::default()
    }
    .limited(number(quota), number(period), number(max))
}

/// Parses the content of [`V1_FILES`], in their order. `ticks` is the kernel's `USER_HZ`, per second.
pub fn v1(texts: [&str; 12], ticks: u64) -> Usage {
    let [
        usage,
        acct,
        cpu_stat,
        quota,
        period,
        current,
        max,
        oom,
        io_bytes,
        io_ops,
        pids,
        pids_max,
    ] = texts;
    let io = |text, kind| summed(text, |rest| rest.strip_prefix(kind));
    let ticks_to_usec = |n: u64| n.saturating_mul(1_000_000) / ticks.max(1);
    let kills = keyed(oom, "oom_kill");
    Usage {
        cpu_usage_usec: number(usage).unwrap_or(0) / 1000,
        cpu_user_usec: ticks_to_usec(keyed(acct, "user")),
        cpu_system_usec: ticks_to_usec(keyed(acct, "system")),
        cpu_nr_periods: keyed(cpu_stat, "nr_periods"),
        cpu_nr_throttled: keyed(cpu_stat, "nr_throttled"),
        cpu_throttled_usec: keyed(cpu_stat, "throttled_time") / 1000,
        memory_current_bytes: number(current).unwrap_or(0),
        io_read_bytes: io(io_bytes, "Read "),
        io_write_bytes: io(io_bytes, "Write "),
        io_read_ops: io(io_ops, "Read "),
        io_write_ops: io(io_ops, "Write "),
        memory_oom: kills,
        memory_oom_kill: kills,
        pids_current: number(pids).unwrap_or(0),
        pids_max: number(pids_max),
        ..Usage::default()
    }
    // A quota of -1, which does not parse as a number here, means no quota.
    .limited(
        number(quota),
        number(period),
        number(max).filter(|max| *max < V1_NO_LIMIT),
    )
}

impl Usage {
    fn limited(mut self, quota: Option<u64>, period: Option<u64>, memory: Option<u64>) -> Self {
        self.cpu_quota_usec = quota.unwrap_or(0);
        self.cpu_period_usec = period.unwrap_or(0);
        self.cpu_unlimited = self.cpu_quota_usec == 0;
        self.memory_max_bytes = memory;
        self.memory_limited = memory.is_some();
        self.memory_percent = match memory {
            Some(max) if max > 0 => self.memory_current_bytes as f64 / max as f64 * 100.0,
            _ => 0.0,
        };
        self
    }

    /// CPU limit in cores, on a host with that many.
    pub fn cores(&self, host: u32) -> f64 {
        if self.cpu_quota_usec > 0 && self.cpu_period_usec > 0 {
            self.cpu_quota_usec as f64 / self.cpu_period_usec as f64
        } else {
            f64::from(host)
        }
    }

    /// Usage of a stopped container: counters are kept, current values are zero.
    pub fn at_rest(self) -> Self {
        Self {
            cpu_percent: 0.0,
            memory_current_bytes: 0,
            memory_percent: 0.0,
            pids_current: 0,
            ..self
        }
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The value of a line `key value`.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| number(value))
        .unwrap_or(0)
}

/// Sums `value` of the rest of the line over all devices (`8:0 rest`). The total line of cgroup v1 starts with no
/// device, so it is skipped.
fn summed<'a>(text: &'a str, value: impl Fn(&'a str) -> Option<&'a str>) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(device, _)| device.contains(':'))
        .filter_map(|(_, rest)| value(rest).and_then(number))
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// See `tests/fixtures/cgroup/README.md`.
    macro_rules! recorded {
        ($version:literal, $($file:literal),* $(,)?) => {
            [$(include_str!(concat!("../../../tests/fixtures/cgroup/", $version, "/", $file))),*]
        };
    }

    fn v2_files() -> [&'static str; 8] {
        recorded!(
            "v2",
            "cpu.stat",
            "cpu.max",
            "memory.current",
            "memory.max",
            "memory.events",
            "io.stat",
            "pids.current",
            "pids.max"
        )
    }

    fn v1_files() -> [&'static str; 12] {
        recorded!(
            "v1",
            "cpuacct.usage",
            "cpuacct.stat",
            "cpu.stat",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "memory.usage_in_bytes",
            "memory.limit_in_bytes",
            "memory.oom_control",
            "blkio.throttle.io_service_bytes",
            "blkio.throttle.io_serviced",
            "pids.current",
            "pids.max"
        )
    }

    #[test]
    fn version_2() {
        let expected = Usage {
            cpu_usage_usec: 1_234_567,
            cpu_user_usec: 1_000_000,
            cpu_system_usec: 234_567,
            cpu_nr_periods: 10,
            cpu_nr_throttled: 1,
            cpu_throttled_usec: 500,
            cpu_quota_usec: 80_000,
            cpu_period_usec: 100_000,
            cpu_unlimited: false,
            cpu_percent: 0.0,
            memory_current_bytes: 4 << 20,
            memory_max_bytes: Some(1 << 30),
            memory_limited: true,
            memory_percent: 0.390_625,
            io_read_bytes: 4196,
            io_write_bytes: 8192,
            io_read_ops: 2,
            io_write_ops: 2,
            memory_oom: 2,
            memory_oom_kill: 1,
            pids_current: 2,
            pids_max: Some(512),
        };
        assert_eq!(v2(v2_files()), expected);
        assert!((expected.cores(2) - 0.8).abs() < 1e-9);
    }

    #[test]
    fn version_1() {
        let expected = Usage {
            cpu_usage_usec: 535_270,
            cpu_user_usec: 460_000,
            cpu_system_usec: 70_000,
            cpu_nr_periods: 55,
            cpu_nr_throttled: 53,
            cpu_throttled_usec: 5_608_860,
            cpu_quota_usec: 10_000,
            cpu_period_usec: 100_000,
            cpu_unlimited: false,
            cpu_percent: 0.0,
            memory_current_bytes: 241_664,
            memory_max_bytes: Some(64 << 20),
            memory_limited: true,
            memory_percent: 241_664.0 / f64::from(64 << 20) * 100.0,
            io_read_bytes: 4196,
            io_write_bytes: 8192,
            io_read_ops: 2,
            io_write_ops: 2,
            memory_oom: 1,
            memory_oom_kill: 1,
            pids_current: 2,
            pids_max: Some(512),
        };
        assert_eq!(v1(v1_files(), 100), expected);
    }

    #[test]
    fn without_limits() {
        let mut texts = v2_files();
        (texts[1], texts[3], texts[7]) = ("max 100000\n", "max\n", "max\n");
        let v2 = v2(texts);
        let mut texts = v1_files();
        // The value of an unlimited group on this kernel.
        (texts[3], texts[6], texts[11]) = ("-1\n", "9223372036854771712\n", "max\n");
        let v1 = v1(texts, 100);
        for usage in [v1, v2] {
            assert!(usage.cpu_unlimited && !usage.memory_limited, "{usage:?}");
            assert_eq!((usage.cpu_quota_usec, usage.cpu_period_usec), (0, 100_000));
            assert_eq!((usage.memory_max_bytes, usage.pids_max), (None, None));
            assert!(usage.memory_percent == 0.0 && usage.cores(4) == 4.0);
        }
    }

    #[test]
    fn controllers_that_are_off_count_as_zero() {
        // The files of a v2 group without controllers.
        let mut texts = [""; 8];
        texts[0] = "usage_usec 7\nuser_usec 5\nsystem_usec 2\n";
        let expected = Usage {
            cpu_usage_usec: 7,
            cpu_user_usec: 5,
            cpu_system_usec: 2,
            cpu_unlimited: true,
            ..Usage::default()
        };
        assert_eq!(v2(texts), expected);
        let expected = Usage {
            cpu_unlimited: true,
            ..Usage::default()
        };
        assert_eq!(v1([""; 12], 100), expected);
    }

    #[test]
    fn a_container_at_rest_keeps_what_counts_up() {
        let mut busy = v2(v2_files());
        busy.cpu_percent = 50.0;
        let rest = busy.clone().at_rest();
        assert_eq!(
            (rest.cpu_percent, rest.memory_current_bytes, rest.memory_percent),
            (0.0, 0, 0.0)
        );
        assert_eq!(
            (rest.cpu_usage_usec, rest.memory_max_bytes, rest.memory_oom_kill),
            (busy.cpu_usage_usec, busy.memory_max_bytes, 1)
        );
    }

    #[test]
    fn keys_are_whole_words() {
        assert_eq!(keyed("oom_kill 3\noom 2\n", "oom"), 2);
        assert_eq!(keyed("oom_kill 3\n", "oom"), 0);
    }
}
