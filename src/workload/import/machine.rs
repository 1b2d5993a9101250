//! Inspects the machine for the original's containers: which of them run, and what their bundles contain. The only
//! module that does this, and the one that completes their state files.
//!
//! The original recorded only a pid, which may have been reused. So we accept a process as the container's if it is in
//! the container's cgroup, or if it is older than the state file that names it. The result is then written to the state
//! file, in the members that our runtime uses and the original ignores; from then on a reused pid is recognised.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::Places;
use super::json::nullable;
use crate::model::{Container, ContainerState, ProcessId};
use crate::runtime::dir::ContainerDir;
use crate::runtime::state::{RuntimeState, Status};

/// Tolerance between the kernel's start time of a process and the clock.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The findings on each container, by id.
pub(super) type Seen = BTreeMap<String, Looks>;

/// The findings on a container.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks {
    /// Whether its directory exists.
    pub directory: bool,
    /// Its process, if it runs.
    pub process: Option<ProcessId>,
    /// The network namespace of that process: device and inode.
    pub network: Option<(u64, u64)>,
    /// The content of its config.json, if it can be read.
    pub bundle: Option<Bundle>,
}

/// The parts of a config.json that are used.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "members of the OCI runtime specification")]
pub(super) struct Bundle {
    pub process: Process,
    pub hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Process {
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    pub cwd: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Mount {
    pub source: String,
    pub destination: String,
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<String>,
}

/// Inspects all of them, given their ids and recorded pids.
pub(super) fn look<'a>(pids: impl Iterator<Item = (&'a String, i32)>, places: &Places) -> Seen {
    let looks = |(id, pid): (&String, i32)| (id.clone(), look_at(id, pid, places));
    pids.map(looks).collect()
}

fn look_at(id: &str, recorded: i32, places: &Places) -> Looks {
    let dir = ContainerDir::new(&places.containers, id);
    let state = RuntimeState::read(&dir.state()).ok().flatten();
    let pid = match &state {
        Some(state) if state.pid > 0 => state.pid,
        _ => recorded,
    };
    let is_its = |process: &ProcessId| {
        is_member(&places.cgroups.join(id).join("cgroup.procs"), process.pid)
            || state.as_ref().is_some_and(|s| s.pid == pid) && is_older_than(process, &dir.state())
    };
    let process = ProcessId::of(pid).filter(is_its);
    let namespace = |p: &ProcessId| fs_err::metadata(format!("/proc/{}/ns/net", p.pid)).ok();
    Looks {
        directory: dir.path().is_dir(),
        network: process.as_ref().and_then(namespace).map(|m| (m.dev(), m.ino())),
        process,
        bundle: fs_err::read(dir.config())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok()),
    }
}

fn is_member(procs: &Path, pid: i32) -> bool {
    let text = fs_err::read_to_string(procs).unwrap_or_default();
    text.lines().any(|line| line.trim().parse() == Ok(pid))
}

/// Whether a process existed when a file was last written.
fn is_older_than(process: &ProcessId, file: &Path) -> bool {
    let written = fs_err::metadata(file).and_then(|m| m.modified());
    let (Ok(written), Some(started)) = (written, started_at(process)) else {
        return false;
    };
    started <= written + CLOCK_SLACK
}

fn started_at(process: &ProcessId) -> Option<SystemTime> {
    let stat = fs_err::read_to_string("/proc/stat").ok()?;
    let boot: u64 = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let since_boot = process.start_time.checked_div(ticks.try_into().ok()?)?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot.checked_add(since_boot)?))
}

/// Writes the findings to the state files. Idempotent. A file that cannot be read is left unchanged: the original does
/// not replace them atomically, and the row has the findings.
pub(super) fn complete_states(root: &Path, containers: &[Container]) -> io::Result<()> {
    for container in containers {
        let dir = ContainerDir::new(root, &container.id);
        let before = match RuntimeState::read(&dir.state()) {
            Ok(Some(before)) => before,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(container.id = %container.id, %error, "import: a state file is left as it is");
                continue;
            }
        };
        let after = completed(before.clone(), container);
        if after != before {
            replace(&dir.state(), &after)?;
        }
    }
    Ok(())
}

fn completed(mut state: RuntimeState, container: &Container) -> RuntimeState {
    match (&container.status.process, container.status.state) {
        (Some(process), _) => {
            state.pid = process.pid;
            state.pid_start_time = Some(process.start_time);
            state.boot_id = Some(process.boot_id.clone());
        }
        // Whatever process has this pid now, it is not the container.
        (None, ContainerState::Stopped) if state.status != Status::Stopped => {
            state.status = Status::Stopped;
            (state.pid, state.shim_pid) = (0, 0);
            state.pid_start_time = None;
        }
        _ => {}
    }
    state
}

fn replace(path: &Path, state: &RuntimeState) -> io::Result<()> {
    let temporary = path.with_extension("json.import");
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(state)?)?;
    file.sync_all()?;
    fs_err::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;

    fn state(pid: i32) -> String {
        format!(
            r#"{{"ociVersion":"1.3.0","id":"01m85d6ag2dj","status":"running","pid":{pid},"shimPid":0,"rootfs":"","bundle":"","annotations":{{"a":"b"}}}}"#
        )
    }

    fn places() -> (tempfile::TempDir, Places) {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            stores: root.path().join("store"),
            containers: root.path().join("container"),
            cgroups: root.path().join("cgroup"),
        };
        std::fs::create_dir_all(places.containers.join("01m85d6ag2dj")).unwrap();
        std::fs::create_dir_all(places.cgroups.join("01m85d6ag2dj")).unwrap();
        (root, places)
    }

    fn set_time(path: &Path, time: SystemTime) {
        std::fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }

    #[test]
    fn a_process_is_believed_when_it_is_in_the_cgroup_or_older_than_the_state_file() {
        let (_root, places) = places();
        let own = ProcessId::of(std::process::id() as i32).unwrap();
        let path = places.containers.join("01m85d6ag2dj/state.json");
        let looks = || look_at("01m85d6ag2dj", own.pid, &places).process;
        assert_eq!(looks(), None, "a pid alone says nothing");
        std::fs::write(&path, state(own.pid)).unwrap();
        assert_eq!(looks(), Some(own.clone()));
        set_time(&path, SystemTime::now() - Duration::from_secs(86_400 * 365));
        assert_eq!(looks(), None, "the pid was given again");
        let procs = places.cgroups.join("01m85d6ag2dj/cgroup.procs");
        std::fs::write(&procs, format!("1\n{}\n", own.pid)).unwrap();
        assert_eq!(looks(), Some(own.clone()));
        std::fs::write(&path, state(i32::MAX)).unwrap();
        assert_eq!(looks(), None);
    }

    #[test]
    fn a_state_file_is_completed_once() {
        let (_root, places) = places();
        let path = places.containers.join("01m85d6ag2dj/state.json");
        std::fs::write(&path, state(77)).unwrap();
        let mut row = container("01m85d6ag2dj", "web").in_state(ContainerState::Running);
        row.status.process = Some(ProcessId {
            pid: 77,
            start_time: 5,
            boot_id: "b".into(),
        });
        complete_states(&places.containers, &[row.clone(), container("nowhere", "x")]).unwrap();
        let read = || RuntimeState::read(&path).unwrap().unwrap();
        assert_eq!(read().process(), row.status.process);
        assert_eq!(read().annotations["a"], "b");
        let inode = || std::fs::metadata(&path).unwrap().ino();
        let before = inode();
        complete_states(&places.containers, &[row.clone()]).unwrap();
        assert_eq!(inode(), before);
        let mut dead = row.in_state(ContainerState::Stopped);
        dead.status.process = None;
        complete_states(&places.containers, &[dead]).unwrap();
        assert_eq!(
            (read().status, read().pid, read().process()),
            (Status::Stopped, 0, None)
        );
    }

    #[test]
    fn a_broken_state_file_stops_nothing() {
        let (_root, places) = places();
        let path = places.containers.join("01m85d6ag2dj/state.json");
        std::fs::write(&path, "{\"status\":\"runn").unwrap();
        let row = container("01m85d6ag2dj", "web").in_state(ContainerState::Stopped);
        complete_states(&places.containers, &[row]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"status\":\"runn");
    }
}
