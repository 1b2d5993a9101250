//! Finds a container's cgroup and reads it.
//!
//! The directories are derived from `/proc/<pid>/cgroup` of the container's process and from the mounts of this
//! process, so this works however the hierarchies are mounted and in any cgroup namespace. The files are kept open:
//! reading one again costs a tenth of opening it. [`Hierarchies::find`] and [`Group::read`] block.

#![expect(
    clippy::disallowed_methods,
    reason = "errors name the file, and their numbers matter"
)]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

use super::cgroup;
use super::cgroup::{Usage, V1_FILES, V2_FILES};

/// Large enough for most of the files; a longer file is read again with a larger buffer.
const BUFFER: usize = 4 << 10;

/// Why a container cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The process is gone, or was never in a cgroup of its own.
    #[error("process {pid} is in no cgroup named {id}")]
    NoGroup {
        /// Process id.
        pid: i32,
        /// Container id.
        id: String,
    },
    /// The cgroup was removed: the container has stopped.
    #[error("the cgroup {} is gone", .0.display())]
    Gone(PathBuf),
    /// A cgroup file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

/// The cgroup file systems visible to this process.
#[derive(Debug, Default)]
pub struct Hierarchies {
    v2: Option<Mount>,
    v1: Vec<(Vec<String>, Mount)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Mount {
    /// The cgroup that is visible at the mount point.
    root: String,
    point: PathBuf,
}

/// The cgroup of one container.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    files: Files,
}

/// In the order of [`V1_FILES`] and [`V2_FILES`]. `None` if the kernel has no such file.
#[derive(Debug)]
enum Files {
    V1([Option<GroupFile>; V1_FILES.len()]),
    V2([Option<GroupFile>; V2_FILES.len()]),
}

#[derive(Debug)]
struct GroupFile {
    path: PathBuf,
    /// `None` if descriptors are scarce.
    open: Option<File>,
}

impl Hierarchies {
    /// The currently mounted ones.
    pub fn mounted() -> Result<Self, GroupError> {
        let path = "/proc/self/mountinfo";
        let mounts = std::fs::read_to_string(path).map_err(|source| GroupError::Read {
            path: path.into(),
            source,
        })?;
        Ok(Self::parse(&mounts))
    }

    /// `proc_pid_mountinfo(5)`: id, parent, device, root, mount point, options, …, `-`, type, source, super options.
    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
            let (Some(root), Some(point)) = (left.next(), left.next()) else {
                continue;
            };
            let mount = Mount {
                root: root.to_owned(),
                point: point.into(),
            };
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => found.v2 = found.v2.or(Some(mount)),
                (Some("cgroup"), Some(options)) => {
                    found.v1.push((options.split(',').map(str::to_owned).collect(), mount));
                }
                _ => {}
            }
        }
        found
    }

    /// The cgroup of the container that the process belongs to. With `keep_open` its files stay open.
    pub fn find(&self, pid: i32, id: &str, keep_open: bool) -> Result<Group, GroupError> {
        let no_group = || GroupError::NoGroup { pid, id: id.to_owned() };
        let memberships = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|_| no_group())?;
        if self.uses_v1() {
            let directory = |controller| self.v1_directory(controller, &memberships, id);
            let path = directory("memory")
                .or_else(|| directory("cpuacct"))
                .ok_or_else(no_group)?;
            let paths = V1_FILES.map(|(controller, file)| Some(directory(controller)?.join(file)));
            let files = Files::V1(open_all(paths, keep_open)?);
            Ok(Group { path, files })
        } else {
            let path = self.v2_directory(&memberships, id).ok_or_else(no_group)?;
            let paths = V2_FILES.map(|file| Some(path.join(file)));
            let files = Files::V2(open_all(paths, keep_open)?);
            Ok(Group { path, files })
        }
    }

    /// Whether the controllers are v1 controllers, with or without a v2 hierarchy that has none (hybrid).
    fn uses_v1(&self) -> bool {
        let measured = |name: &String| V1_FILES.iter().any(|(controller, _)| controller == name);
        self.v1.iter().any(|(options, _)| options.iter().any(measured))
    }

    fn v1_directory(&self, controller: &str, memberships: &str, id: &str) -> Option<PathBuf> {
        let (_, mount) = self
            .v1
            .iter()
            .find(|(options, _)| options.iter().any(|o| o == controller))?;
        let has_controller = |names: &str| names.split(',').any(|name| name == controller);
        mount.directory(membership(memberships, has_controller)?, id)
    }

    fn v2_directory(&self, memberships: &str, id: &str) -> Option<PathBuf> {
        self.v2.as_ref()?.directory(membership(memberships, str::is_empty)?, id)
    }
}

/// The path in `/proc/<pid>/cgroup` (`cgroups(7)`: `hierarchy:controllers:path`) of the hierarchy with these
/// controllers.
fn membership(text: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    text.lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .find(|(controllers, _)| wanted(controllers))
        .map(|(_, path)| path)
}

impl Mount {
    /// The directory of the container's cgroup, given the path of a process in it. `None` if the process is in no
    /// cgroup of that name: never measure a container by another one's cgroup.
    fn directory(&self, path: &str, id: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        let components: Vec<_> = below.components().collect();
        // A process may have created groups of its own below.
        let end = components.iter().position(|c| *c == Component::Normal(id.as_ref()))?;
        Some(self.point.join(components[..=end].iter().collect::<PathBuf>()))
    }
}

fn open_all<const N: usize>(
    paths: [Option<PathBuf>; N],
    keep_open: bool,
) -> Result<[Option<GroupFile>; N], GroupError> {
    let mut files = [const { None }; N];
    for (file, path) in files.iter_mut().zip(paths) {
        let Some(path) = path else { continue };
        match File::open(&path) {
            Ok(open) => {
                *file = Some(GroupFile {
                    path,
                    open: keep_open.then_some(open),
                });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(GroupError::Read { path, source }),
        }
    }
    Ok(files)
}

impl Group {
    /// Maximum number of descriptors of a group.
    pub const FILES: usize = V1_FILES.len();

    /// Its directory; with cgroup v1, that of the memory controller, if there is one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the files. A rate needs two readings and is not computed here.
    pub fn read(&self) -> Result<Usage, GroupError> {
        match &self.files {
            Files::V1(files) => {
                let texts = self.read_all(files)?;
                Ok(cgroup::v1(texts.each_ref().map(String::as_str), ticks_per_second()))
            }
            Files::V2(files) => {
                let texts = self.read_all(files)?;
                Ok(cgroup::v2(texts.each_ref().map(String::as_str)))
            }
        }
    }

    fn read_all<const N: usize>(&self, files: &[Option<GroupFile>; N]) -> Result<[String; N], GroupError> {
        let mut texts = [const { String::new() }; N];
        for (text, file) in texts.iter_mut().zip(files) {
            let Some(file) = file else { continue };
            *text = file.read().map_err(|source| self.failed(&file.path, source))?;
        }
        Ok(texts)
    }

    fn failed(&self, path: &Path, source: io::Error) -> GroupError {
        // Reading an open file of a removed cgroup fails with ENODEV.
        if source.kind() == ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV) {
            return GroupError::Gone(self.path.clone());
        }
        GroupError::Read {
            path: path.to_owned(),
            source,
        }
    }
}

impl GroupFile {
    fn read(&self) -> io::Result<String> {
        let opened;
        let file = match &self.open {
            Some(file) => file,
            None => {
                opened = File::open(&self.path)?;
                &opened
            }
        };
        let mut bytes = vec![0; BUFFER];
        loop {
            // Reading at offset 0 makes the kernel regenerate the file.
            let length = file.read_at(&mut bytes, 0)?;
            if length < bytes.len() {
                bytes.truncate(length);
                return String::from_utf8(bytes).map_err(io::Error::other);
            }
            bytes.resize(length * 4, 0);
        }
    }
}

/// `USER_HZ`, the unit of CPU times in cgroup v1.
fn ticks_per_second() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|n| u64::try_from(n).ok()).unwrap_or(100)
}

/// Number of online CPUs of the host.
pub fn processors() -> u32 {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01m85d6ag2dj";
    const V1_MOUNTS: &str = include_str!("../../../tests/fixtures/cgroup/v1/mountinfo");
    const V1_MEMBERSHIPS: &str = include_str!("../../../tests/fixtures/cgroup/v1/proc-cgroup");

    #[test]
    fn every_controller_has_its_hierarchy() {
        let found = Hierarchies::parse(V1_MOUNTS);
        assert!(found.uses_v1(), "hybrid: the controllers are in version 1");
        for (controller, _) in V1_FILES {
            let directory = found.v1_directory(controller, V1_MEMBERSHIPS, ID).unwrap();
            assert_eq!(directory, Path::new(&format!("/sys/fs/cgroup/{controller}/raind/{ID}")));
        }
        // The recorded process is in the root of this hierarchy.
        assert_eq!(found.v1_directory("freezer", V1_MEMBERSHIPS, ID), None);
    }

    #[test]
    fn controllers_may_share_a_hierarchy() {
        let found = Hierarchies::parse("1 2 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n");
        let directory = found.v1_directory("cpuacct", "4:cpu,cpuacct:/raind/01m85d6ag2dj\n", ID);
        assert_eq!(
            directory.unwrap(),
            Path::new("/sys/fs/cgroup/cpu,cpuacct/raind/01m85d6ag2dj")
        );
    }

    #[test]
    fn version_2_has_one_directory() {
        let found = Hierarchies::parse("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
        assert!(!found.uses_v1());
        let at = |path: &str| found.v2_directory(&format!("0::{path}\n"), ID);
        let expected = Some(PathBuf::from("/sys/fs/cgroup/raind/01m85d6ag2dj"));
        assert_eq!(at("/raind/01m85d6ag2dj"), expected);
        assert_eq!(at("/raind/01m85d6ag2dj/made/inside"), expected);
        for other in ["/", "/raind", "/raind/01m85d6ag2dk", "/system.slice/condenser.service"] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn the_namespace_of_the_daemon_does_not_matter() {
        // A mount that shows more than the daemon's namespace, and one that shows less.
        let outside = Hierarchies::parse("30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let expected = Some(PathBuf::from("/sys/fs/cgroup/raind/01m85d6ag2dj"));
        assert_eq!(outside.v2_directory("0::/../raind/01m85d6ag2dj\n", ID), expected);
        let inside = Hierarchies::parse("30 23 0:26 /lab /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(inside.v2_directory("0::/lab/raind/01m85d6ag2dj\n", ID), expected);
        assert_eq!(inside.v2_directory("0::/raind/01m85d6ag2dj\n", ID), None);
    }

    #[test]
    fn a_process_without_a_group_of_that_name_is_not_measured() {
        let hierarchies = Hierarchies::mounted().unwrap();
        let me = std::process::id() as i32;
        let error = hierarchies.find(me, ID, true).unwrap_err();
        assert_eq!(error.to_string(), format!("process {me} is in no cgroup named {ID}"));
        assert!(matches!(
            hierarchies.find(i32::MAX, ID, true),
            Err(GroupError::NoGroup { .. })
        ));
    }

    #[test]
    fn a_long_file_is_read_whole_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("io.stat");
        std::fs::write(&path, "x".repeat(3 * BUFFER)).unwrap();
        for open in [Some(File::open(&path).unwrap()), None] {
            let file = GroupFile {
                path: path.clone(),
                open,
            };
            for _ in 0..2 {
                assert_eq!(file.read().unwrap().len(), 3 * BUFFER);
            }
        }
    }

    /// A busy process in a group of its own, in every hierarchy of this machine.
    struct Busy {
        child: std::process::Child,
        directories: Vec<PathBuf>,
    }

    impl Busy {
        fn start(hierarchies: &Hierarchies) -> Self {
            let mut child = std::process::Command::new("sh");
            let child = child.args(["-c", "while :; do :; done"]).spawn().unwrap();
            let mounts = hierarchies.v1.iter().map(|(_, mount)| mount).chain(&hierarchies.v2);
            let parents = mounts.map(|mount| mount.point.join(format!("raind-test-{}", child.id())));
            let directories: Vec<_> = parents.map(|parent| parent.join(ID)).collect();
            for directory in &directories {
                std::fs::create_dir_all(directory).unwrap();
                // An empty cpuset accepts no process.
                let _ = std::fs::write(directory.join("cgroup.procs"), child.id().to_string());
            }
            Self { child, directories }
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
            for directory in &self.directories {
                while std::fs::remove_dir(directory).is_err_and(|e| e.kind() == ErrorKind::ResourceBusy) {
                    std::thread::yield_now();
                }
                std::fs::remove_dir(directory.parent().unwrap()).unwrap();
            }
        }
    }

    #[test]
    fn a_group_is_read_until_it_is_removed() {
        let hierarchies = Hierarchies::mounted().unwrap();
        let busy = Busy::start(&hierarchies);
        let find = |keep_open| hierarchies.find(busy.child.id() as i32, ID, keep_open).unwrap();
        let groups = [find(true), find(false)];
        for group in &groups {
            assert!(group.path().ends_with(ID), "{group:?}");
            let before = group.read().unwrap();
            while group.read().unwrap().cpu_usage_usec < before.cpu_usage_usec + 1000 {
                std::thread::yield_now();
            }
        }
        drop(busy);
        for group in &groups {
            assert!(matches!(group.read(), Err(GroupError::Gone(_))), "{group:?}");
        }
    }
}
