//! The daemon's part of cgroups (`docs/spec/runtime.md` 11): on a pure cgroup v2 machine it creates the parent, enables
//! the controllers, and removes the directories of containers. On cgroup v1 and hybrid machines the runtime does all
//! this, and this module only removes what a killed runtime left ([`remove_everywhere`]).

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MOUNT: &str = "/sys/fs/cgroup";
const PARENT: &str = "/sys/fs/cgroup/raind";
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// How long a cgroup may stay busy after its last process ended.
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// Whether the machine uses only cgroup v2.
fn is_unified() -> bool {
    rustix::fs::statfs(MOUNT).is_ok_and(|fs| fs.f_type == nix::sys::statfs::CGROUP2_SUPER_MAGIC.0)
}

/// Creates the parent and enables all available controllers. Returns a sentence for the log.
pub(super) fn prepare() -> std::io::Result<String> {
    if !is_unified() {
        return Ok("cgroup v1 or hybrid: limits are set in the v1 hierarchies by the runtime".into());
    }
    fs_err::create_dir_all(PARENT)?;
    // Another manager may own the root and refuse the write; then the controllers that it has enabled must do.
    let mut missing = Vec::new();
    for directory in [MOUNT, PARENT] {
        missing = enable(Path::new(directory));
    }
    Ok(match missing[..] {
        [] => "cgroup v2 with all controllers".into(),
        _ => format!("cgroup v2 without {}: these limits have no effect", missing.join(", ")),
    })
}

/// Enables the controllers for the children of a cgroup; returns those that could not be enabled.
fn enable(directory: &Path) -> Vec<&'static str> {
    let control = directory.join("cgroup.subtree_control");
    let enabled = || fs_err::read_to_string(&control).unwrap_or_default();
    let is_on = |text: &str, name: &str| text.split_ascii_whitespace().any(|word| word == name);
    CONTROLLERS
        .into_iter()
        .filter(|name| {
            if !is_on(&enabled(), name) {
                let _ = fs_err::write(&control, format!("+{name}"));
            }
            !is_on(&enabled(), name)
        })
        .collect()
}

fn directory(id: &str) -> PathBuf {
    Path::new(PARENT).join(id)
}

/// Creates the directory of a container; the runtime uses an existing one.
pub(super) fn create(id: &str) -> std::io::Result<()> {
    if is_unified() {
        fs_err::create_dir_all(directory(id))
    } else {
        Ok(())
    }
}

/// The parents of containers' directories: one, or one for each hierarchy of version 1.
pub(super) fn parents() -> Vec<PathBuf> {
    if is_unified() {
        return vec![PARENT.into()];
    }
    let hierarchies = fs_err::read_dir(MOUNT).into_iter().flatten().flatten();
    let is_directory = |entry: &fs_err::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    hierarchies
        .filter(is_directory)
        .map(|entry| entry.path().join("raind"))
        .collect()
}

/// Removes all directories of a container without processes, with cgroups that the container created in them. Continues
/// after an error and returns the last one.
pub(super) fn remove_everywhere(id: &str) -> std::io::Result<()> {
    let mut result = Ok(());
    for directory in parents().iter().map(|parent| parent.join(id)) {
        if directory.is_dir() {
            result = remove_tree(&directory).and(result);
        }
    }
    result
}

/// The kernel owns the files of a cgroup: only directories can be removed, innermost first.
fn remove_tree(directory: &Path) -> std::io::Result<()> {
    for entry in fs_err::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs_err::remove_dir(directory)
}

/// Whether swap can be limited here, as seen in the existing directory of a container. A kernel may be built or booted
/// without swap accounting (`swapaccount=0`).
pub(super) fn counts_swap(id: &str) -> bool {
    match is_unified() {
        true => directory(id).join("memory.swap.max").exists(),
        false => Path::new(MOUNT).join("memory/memory.memsw.limit_in_bytes").exists(),
    }
}

/// Sets mode 0555 after the runtime has written the limits.
pub(super) fn seal(id: &str) {
    if is_unified()
        && let Err(error) = fs_err::set_permissions(directory(id), std::fs::Permissions::from_mode(0o555))
    {
        tracing::debug!(container.id = %id, %error, "the cgroup directory keeps its mode");
    }
}

/// Removes the directory of a container, unless the runtime already has.
pub(super) async fn remove(id: &str) -> std::io::Result<()> {
    if !is_unified() {
        return Ok(());
    }
    let deadline = tokio::time::Instant::now() + BUSY_LIMIT;
    loop {
        match fs_err::remove_dir(directory(id)) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ResourceBusy && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => return Err(e),
        }
    }
}
