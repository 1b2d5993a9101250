//! The container's cgroups (`docs/spec/runtime.md` 11).
//!
//! On cgroup v2 there is one directory, made and removed by the daemon. On v1 and hybrid machines there is one per
//! hierarchy, made by libcontainer and removed here. libcontainer writes the limits and moves init; this module does
//! the rest: joining, counting kills by the out-of-memory killer, killing, cleaning up.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use condenser::runtime::state::MemoryEvents;
use rustix::process::{Pid, Signal, kill_process};

use crate::config::{Config, Resources};

/// Tasks per container when the configuration says nothing.
pub const DEFAULT_PIDS: i64 = 512;
const ROOT: &str = "/sys/fs/cgroup";
/// Leaf for all monitors, outside the daemon's service cgroup. The underscore cannot occur in a container id.
const MONITORS: &str = "raind/_monitors";
/// Those of v1 in whose hierarchies libcontainer puts a container.
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
/// How long the kernel may take until a cgroup without processes can be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The configured path cannot be a cgroup of a container.
    #[error("cgroupsPath {}: must be absolute and without \"..\"", .0.display())]
    Path(PathBuf),
    /// The error names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The directories of one container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Layout,
    path: PathBuf,
}

/// How the machine's cgroups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    Unified,
    /// Mount points of the hierarchies.
    Legacy(Vec<PathBuf>),
}

/// Absolute path of the container's cgroup below each hierarchy, `/raind/<id>` by default.
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

/// Whether this machine has only cgroup v2.
pub fn unified() -> bool {
    Layout::detect().is_ok_and(|layout| layout == Layout::Unified)
}

/// Moves this process to the cgroup of the monitors, on cgroup v2.
pub fn join_monitors() -> std::io::Result<()> {
    if !unified() {
        return Ok(());
    }
    let directory = Path::new(ROOT).join(MONITORS);
    fs_err::create_dir_all(&directory)?;
    fs_err::write(directory.join("cgroup.procs"), "0")
}

impl Cgroup {
    /// The cgroup of a container. Nothing is made.
    pub fn new(config: &Config, id: &str) -> Result<Self, CgroupError> {
        Ok(Self {
            layout: Layout::detect()?,
            path: path(config, id)?,
        })
    }

    /// Moves this process, which must have one thread, into the cgroup, in every hierarchy that the container is in.
    pub fn join(&self) -> std::io::Result<()> {
        let file = match self.layout {
            Layout::Unified => "cgroup.procs",
            // For a thread that moves itself the kernel need not wait until all others have noticed (milliseconds).
            Layout::Legacy(_) => "tasks",
        };
        for directory in self.directories().filter(|directory| directory.exists()) {
            fs_err::write(directory.join(file), "0")?;
        }
        Ok(())
    }

    /// Writes the limits, on v1. For user namespaces (14.4): libcontainer would also set rules for devices there, which
    /// only the machine's root may.
    pub fn limit(&self, resources: &Resources) -> std::io::Result<()> {
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
            let files = mounts.iter().map(|mount| self.below(mount).join(name));
            if let (Some(value), Some(file)) = (value, files.into_iter().find(|file| file.exists())) {
                fs_err::write(file, value.to_string())?;
            }
        }
        Ok(())
    }

    /// How often it ran out of memory, and how many of its processes the kernel has killed for that. `None` where nothing
    /// counts it, or the group is gone.
    pub fn memory_events(&self) -> Option<MemoryEvents> {
        let file = match &self.layout {
            Layout::Unified => Some(self.below(Path::new(ROOT)).join("memory.events")),
            Layout::Legacy(mounts) => mounts
                .iter()
                .map(|mount| self.below(mount).join("memory.oom_control"))
                .find(|file| file.exists()),
        };
        Some(memory_events(&std::fs::read_to_string(file?).ok()?))
    }

    /// Kills everything in it at once. `false` when the kernel has no such means (v1, old kernels).
    pub fn kill(&self) -> bool {
        self.layout == Layout::Unified && std::fs::write(self.below(Path::new(ROOT)).join("cgroup.kill"), "1").is_ok()
    }

    /// Kills everything in it, by pid where the kernel has no better means.
    pub fn kill_all(&self) {
        if self.kill() {
            return;
        }
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// The processes in it, some of them repeatedly. A number may mean another process a moment later.
    pub fn processes(&self) -> Vec<Pid> {
        let mut all = Vec::new();
        for directory in self.directories() {
            let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            all.extend(processes.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
        }
        all
    }

    /// Removes the directories that this runtime made: those of v1. Waits for the kernel to let go of them.
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

    /// Makes the directories of v1 that a container gets, before libcontainer does, and returns them with the names of their
    /// hierarchies (`cpu,cpuacct`). Empty on v2, where the daemon makes the one there is.
    pub fn make(&self) -> std::io::Result<Vec<(String, PathBuf)>> {
        let Layout::Legacy(mounts) = &self.layout else {
            return Ok(Vec::new());
        };
        let name = |mount: &PathBuf| Some(mount.file_name()?.to_str()?.to_owned());
        let named = mounts
            .iter()
            .filter_map(|mount| Some((name(mount)?, self.below(mount))));
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
        mounts.into_iter().map(|mount| self.below(&mount))
    }

    fn below(&self, mount: &Path) -> PathBuf {
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

/// Version 1 (`memory.oom_control`) has no line `oom`: there the kills count.
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

/// Mount points of cgroup v1 hierarchies (`proc(5)`, mountinfo: field 5, and the type after the separator).
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
    fn only_v1_hierarchies_count() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         33 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                         33 31 0:31 / /elsewhere/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(legacy_mounts(mountinfo), [Path::new("/sys/fs/cgroup/cpu")]);
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        let v2 = include_str!("../../../tests/fixtures/cgroup/v2/memory.events");
        let v1 = include_str!("../../../tests/fixtures/cgroup/v1/memory.oom_control");
        let counts = |text| {
            let events = memory_events(text);
            (events.oom, events.oom_kill)
        };
        assert_eq!((counts(v2), counts(v1), counts("")), ((2, 1), (1, 1), (0, 0)));
    }

    #[test]
    fn the_path_cannot_leave_the_hierarchy() {
        let with = |text: &str| {
            let mut config = Config::default();
            config.linux.cgroups_path = text.into();
            path(&config, "abc")
        };
        assert_eq!(with("").unwrap(), Path::new("/raind/abc"));
        assert_eq!(with("/raind/x").unwrap(), Path::new("/raind/x"));
        for bad in ["raind/x", "/", "/raind/../x"] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }
}
