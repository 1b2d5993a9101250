//! The cgroups of a container (`docs/spec/runtime.md` 11).
//!
//! On cgroup v2 a container has one directory, which the daemon makes and removes. On v1 and hybrid machines it has one
//! per hierarchy, which libcontainer makes and this module removes. libcontainer writes the limits and moves init; this
//! module does the rest: it joins, counts OOM kills, kills and cleans up.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use condenser::runtime::state::MemoryEvents;
use rustix::process::{Pid, Signal, kill_process};

use crate::config::{Config, Resources};

/// Maximum number of tasks if the configuration has no limit.
pub const DEFAULT_PIDS: i64 = 512;
const ROOT: &str = "/sys/fs/cgroup";
/// Cgroup of all monitors, outside of the daemon's service cgroup. A container id cannot contain the underscore.
const MONITORS: &str = "raind/_monitors";
/// The v1 controllers whose hierarchies libcontainer puts a container into.
const CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];
/// Time limit for the kernel to release a cgroup without processes.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The configured path cannot be the cgroup of a container.
    #[error("cgroupsPath {}: must be absolute and without \"..\"", .0.display())]
    Path(PathBuf),
    /// The error names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The cgroup of one container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Layout,
    path: PathBuf,
}

/// How the cgroup hierarchies are mounted on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    Unified,
    /// Mount points of the v1 hierarchies.
    Legacy(Vec<PathBuf>),
}

/// Returns the absolute path of the container's cgroup in each hierarchy. The default is `/raind/<id>`.
pub fn path(config: &Config, id: &str) -> Result<PathBuf, CgroupError> {
    let path = &config.linux.cgroups_path;
    if path.as_os_str().is_empty() {
        return Ok(PathBuf::from("/raind").join(id));
    }
    let mut components = path.components();
    let rooted = components.next() == Some(Component::RootDir);
    let mut names = 0;
    let plain = components.all(|c| {
        names += 1;
        matches!(c, Component::Normal(_))
    });
    match rooted && plain && names > 0 {
        true => Ok(path.clone()),
        false => Err(CgroupError::Path(path.clone())),
    }
}

/// Returns whether this machine has only cgroup v2.
pub fn unified() -> bool {
    Layout::detect().is_ok_and(|layout| layout == Layout::Unified)
}

/// On cgroup v2, moves this process to the cgroup of the monitors.
pub fn join_monitors() -> std::io::Result<()> {
    if !unified() {
        return Ok(());
    }
    let directory = Path::new(ROOT).join(MONITORS);
    fs_err::create_dir_all(&directory)?;
    fs_err::write(directory.join("cgroup.procs"), "0")
}

impl Cgroup {
    /// Returns the cgroup of a container. Does not make any directory.
    pub fn new(config: &Config, id: &str) -> Result<Self, CgroupError> {
        Ok(Self {
            layout: Layout::detect()?,
            path: path(config, id)?,
        })
    }

    /// Moves this process into the cgroup, in every hierarchy of the container. This process must have one thread.
    pub fn join(&self) -> std::io::Result<()> {
        let file = match self.layout {
            Layout::Unified => "cgroup.procs",
            // To move one thread, the kernel need not synchronize with all others, which takes milliseconds.
            Layout::Legacy(_) => "tasks",
        };
        for directory in self.directories().filter(|directory| directory.exists()) {
            fs_err::write(directory.join(file), "0")?;
        }
        Ok(())
    }

    /// Writes the limits on v1. In a user namespace (14.4) libcontainer cannot do that: it would also write device
    /// rules, which only root on the host may.
    pub fn write_v1_limits(&self, resources: &Resources) -> std::io::Result<()> {
        let Layout::Legacy(mounts) = &self.layout else {
            return Ok(());
        };
        let positive = |value: Option<i64>| value.filter(|value| *value > 0);
        let limits = [
            ("memory.limit_in_bytes", positive(resources.memory.limit)),
            ("memory.memsw.limit_in_bytes", resources.memory.swap_limit()),
            (
                "cpu.cfs_period_us",
                positive(resources.cpu.period.and_then(|period| period.try_into().ok())),
            ),
            ("cpu.cfs_quota_us", positive(resources.cpu.quota)),
            ("pids.max", positive(Some(resources.pids.limit.unwrap_or(DEFAULT_PIDS)))),
        ];
        for (name, value) in limits {
            let files = mounts.iter().map(|mount| self.directory_in(mount).join(name));
            if let (Some(value), Some(file)) = (value, files.into_iter().find(|file| file.exists())) {
                fs_err::write(file, value.to_string())?;
            }
        }
        Ok(())
    }

    /// Returns how often the cgroup ran out of memory and how many processes the OOM killer has killed. Returns `None`
    /// if the kernel does not count them or the cgroup is gone.
    pub fn memory_events(&self) -> Option<MemoryEvents> {
        let file = match &self.layout {
            Layout::Unified => Some(self.directory_in(Path::new(ROOT)).join("memory.events")),
            Layout::Legacy(mounts) => mounts
                .iter()
                .map(|mount| self.directory_in(mount).join("memory.oom_control"))
                .find(|file| file.exists()),
        };
        Some(memory_events(&fs_err::read_to_string(file?).ok()?))
    }

    /// Kills all processes at once. Returns `false` if the kernel does not support it (v1, old kernels).
    pub fn kill_at_once(&self) -> bool {
        self.layout == Layout::Unified
            && std::fs::write(self.directory_in(Path::new(ROOT)).join("cgroup.kill"), "1").is_ok()
    }

    /// Kills all processes, one by one where the kernel cannot kill them at once.
    pub fn kill_all(&self) {
        if self.kill_at_once() {
            return;
        }
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Returns the pids of all processes, possibly several times. A pid may be reused at any time.
    pub fn processes(&self) -> Vec<Pid> {
        let mut all = Vec::new();
        for directory in self.directories() {
            let processes = fs_err::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            all.extend(processes.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
        }
        all
    }

    /// Removes the v1 directories, which this runtime made. Waits until the kernel releases them.
    pub fn remove(&self) -> std::io::Result<()> {
        let Layout::Legacy(_) = self.layout else {
            return Ok(());
        };
        let deadline = Instant::now() + REMOVE_LIMIT;
        let mut result = Ok(());
        for directory in self.directories() {
            if let Err(error) = remove(&directory, deadline) {
                result = Err(error);
            }
        }
        result
    }

    /// Makes the v1 directories of the container before libcontainer does. Returns them with the names of their
    /// hierarchies, such as `cpu,cpuacct`. Returns nothing on v2, where the daemon makes the directory.
    pub fn make_v1_directories(&self) -> std::io::Result<Vec<(String, PathBuf)>> {
        let Layout::Legacy(mounts) = &self.layout else {
            return Ok(Vec::new());
        };
        let name = |mount: &PathBuf| Some(mount.file_name()?.to_str()?.to_owned());
        let named = mounts
            .iter()
            .filter_map(|mount| Some((name(mount)?, self.directory_in(mount))));
        let used = named.filter(|(name, _)| name.split(',').any(|name| CONTROLLERS.contains(&name)));
        used.map(|(name, directory)| {
            fs_err::create_dir_all(&directory)?;
            Ok((name, directory))
        })
        .collect()
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let mounts = match &self.layout {
            Layout::Unified => vec![PathBuf::from(ROOT)],
            Layout::Legacy(mounts) => mounts.clone(),
        };
        mounts.into_iter().map(|mount| self.directory_in(&mount))
    }

    fn directory_in(&self, mount: &Path) -> PathBuf {
        mount.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }
}

impl Layout {
    fn detect() -> std::io::Result<Self> {
        let magic = rustix::fs::statfs(ROOT)?.f_type;
        #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
        if i64::from(magic) == i64::from(libc::CGROUP2_SUPER_MAGIC) {
            return Ok(Self::Unified);
        }
        let mountinfo = fs_err::read_to_string("/proc/self/mountinfo")?;
        Ok(Self::Legacy(legacy_mounts(&mountinfo)))
    }
}

/// On v1, `memory.oom_control` has no line `oom`, so this returns the number of kills for it.
fn memory_events(text: &str) -> MemoryEvents {
    let count = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(name, _)| *name == key)?;
        value.trim().parse().ok()
    };
    let oom_kill = count("oom_kill").unwrap_or(0);
    MemoryEvents {
        oom: count("oom").unwrap_or(oom_kill),
        oom_kill,
    }
}

/// Returns the mount points of the v1 hierarchies (`proc(5)`, mountinfo: field 5, and the type after the separator).
fn legacy_mounts(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter(|line| line.contains(" - cgroup "))
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount| mount.starts_with(ROOT))
        .map(PathBuf::from)
        .collect()
}

fn remove(directory: &Path, deadline: Instant) -> std::io::Result<()> {
    loop {
        match fs_err::remove_dir(directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_v1_hierarchies_are_found() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         33 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                         33 31 0:31 / /elsewhere/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(legacy_mounts(mountinfo), [Path::new("/sys/fs/cgroup/cpu")]);
    }

    #[test]
    fn oom_kills_are_counted_on_both_versions() {
        let v2 = include_str!("../../../../tests/fixtures/cgroup/v2/memory.events");
        let v1 = include_str!("../../../../tests/fixtures/cgroup/v1/memory.oom_control");
        let counts = |text| {
            let events = memory_events(text);
            (events.oom, events.oom_kill)
        };
        assert_eq!((counts(v2), counts(v1), counts("")), ((2, 1), (1, 1), (0, 0)));
    }

    #[test]
    fn the_path_cannot_leave_the_hierarchy() {
        let path_of = |text: &str| {
            let mut config = Config::default();
            config.linux.cgroups_path = text.into();
            path(&config, "abc")
        };
        assert_eq!(path_of("").unwrap(), Path::new("/raind/abc"));
        assert_eq!(path_of("/raind/x").unwrap(), Path::new("/raind/x"));
        for bad in ["raind/x", "/", "/raind/../x"] {
            assert!(path_of(bad).is_err(), "{bad}");
        }
    }
}
