//! Default settings of containers (`docs/spec/runtime.md` 5.1, 5.3, 9.3), used by every writer of a config.json.

/// Capabilities: bounding, permitted and effective.
pub const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// System calls that fail with `EPERM`. The original supports these names (and four more) and aborts on any other, so
/// a config.json contains no others; our runtime adds its own. Of the original's list, we allow these, like Docker's
/// default profile: tracing and reading other processes, which the kernel checks like signals (since 4.8 a tracer
/// cannot bypass the filter), and naming files by handle, which is useless without the call that opens them.
pub const DENIED_SYSCALLS: [&str; 15] = [
    "bpf",
    "perf_event_open",
    "kexec_load",
    "open_by_handle_at",
    "userfaultfd",
    "reboot",
    "swapon",
    "swapoff",
    "init_module",
    "finit_module",
    "delete_module",
    "kcmp",
    "mount",
    "unshare",
    "setns",
];

/// Exceptions: system calls that are allowed with a capability, which the kernel checks again. Call and capability.
pub const ALLOWED_BY_CAPABILITY: [(&str, &str); 2] =
    [("kcmp", "CAP_SYS_PTRACE"), ("open_by_handle_at", "CAP_DAC_READ_SEARCH")];

/// Annotation that makes the runtime start the program under a small init; its value is `true`.
pub const ANNOTATION_INIT: &str = "io.raind.init";
/// Annotation that makes the runtime refuse to start a container without AppArmor confinement; its value is `true`.
pub const ANNOTATION_CONFINED: &str = "io.raind.apparmor.required";

/// Bytes.
pub const MEMORY_LIMIT: i64 = 1 << 30;
/// Microseconds of processor time per [`CPU_PERIOD`].
pub const CPU_QUOTA: i64 = 80_000;
/// Microseconds.
pub const CPU_PERIOD: u64 = 100_000;
/// Tasks.
pub const PIDS_LIMIT: i64 = 512;
/// Bytes of `/dev/shm`.
pub const SHM_SIZE: u64 = 64 << 20;
/// Maximum number of open files of a process. A higher limit slows down programs that iterate over all descriptors.
pub const OPEN_FILES: u64 = 1 << 20;
/// Number of ids in a user namespace by default, as in the original.
pub const ID_COUNT: u32 = 65_535;
/// Name of the AppArmor profile.
pub const APPARMOR_PROFILE: &str = "raind-default";

/// Variables of every process: name, and value if it is missing or blank. `TERM` only with a terminal.
pub const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TERM", "xterm-256color"),
    ("LANG", "C.UTF-8"),
];

/// Hidden from the container.
pub const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
];
/// Read-only in the container.
pub const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// All ids of a user namespace with that map (`/proc/<pid>/uid_map`, `user_namespaces(7)`), as ranges of first id and
/// count. A container gets them unchanged, so that every file of an image has a valid owner. If the map cannot be
/// read, the first [`ID_COUNT`] ids.
pub fn ids_of(map: &str) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, _, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        (count > 0).then_some((first, count))
    };
    let ids: Vec<_> = map.lines().filter_map(line).collect();
    match ids.is_empty() {
        true => vec![(0, ID_COUNT)],
        false => ids,
    }
}

/// `SCMP_ARCH_…` of this machine.
pub fn seccomp_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        _ => "SCMP_ARCH_X86_64",
    }
}

/// Merges environment entries: a later entry replaces an earlier one with the same name, in its position. Missing or
/// blank variables of [`ENVIRONMENT`] are appended. Entries without `=` or name are dropped.
pub fn environment<'a>(entries: impl IntoIterator<Item = &'a str>, terminal: bool) -> Vec<String> {
    let mut variables: Vec<(&str, &str)> = Vec::new();
    let mut set = |name, value, only_if_blank: bool| match variables.iter_mut().find(|(n, _)| *n == name) {
        Some(variable) if !only_if_blank || variable.1.trim().is_empty() => variable.1 = value,
        Some(_) => {}
        None => variables.push((name, value)),
    };
    let assignments = entries.into_iter().filter_map(|entry| entry.split_once('='));
    for (name, value) in assignments.filter(|(name, _)| !name.is_empty()) {
        set(name, value, false);
    }
    for (name, value) in ENVIRONMENT.into_iter().filter(|(name, _)| terminal || *name != "TERM") {
        set(name, value, true);
    }
    variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win_and_blanks_are_filled() {
        let path = format!("PATH={}", ENVIRONMENT[0].1);
        assert_eq!(
            environment(["A=1", "PATH= ", "junk", "=x", "B=2", "A=3=4", "TERM=dumb"], false),
            ["A=3=4", &path, "B=2", "TERM=dumb", "LANG=C.UTF-8"]
        );
        assert_eq!(environment([], false), [&path, "LANG=C.UTF-8"]);
        assert_eq!(environment([], true), [&path, "TERM=xterm-256color", "LANG=C.UTF-8"]);
    }

    #[test]
    fn a_container_has_all_ids_of_the_host() {
        assert_eq!(ids_of("         0          0 4294967295\n"), [(0, u32::MAX)]);
        assert_eq!(ids_of("0 100000 65536\n70000 1 1\n"), [(0, 65_536), (70_000, 1)]);
        assert_eq!(ids_of(""), [(0, ID_COUNT)]);
    }
}
