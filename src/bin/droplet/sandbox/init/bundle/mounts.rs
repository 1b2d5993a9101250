//! The mounts of the derived configuration.

use std::path::Path;

use condenser::runtime::defaults::SHM_SIZE;
use serde_json::{Value, json};

use super::Host;
use crate::config::id_mapping::host_id;
use crate::config::{Config, NamespaceKind};
use crate::sandbox::rootfs::bind::Bind;

/// Group id of `tty`.
const TTY_GROUP: u32 = 5;

/// Returns the mandatory mounts of 9.3, then the mounts of the user.
pub fn mounts(config: &Config, host: &Host<'_>) -> Vec<Value> {
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        devpts(config),
        sysfs(config),
    ];
    if host.unified_cgroups {
        mounts.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "nodev", "noexec", "ro"],
        ));
    }
    if config.namespace(NamespaceKind::Ipc).is_some() {
        mounts.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    }
    mounts.extend(host.cgroup_mount.map(bind));
    mounts.push(host.shm.map_or_else(|| shm(config), bind));
    mounts.extend(user_mounts(host));
    mounts
}

fn devpts(config: &Config) -> Value {
    let mut options = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if host_id(&config.linux.gid_mappings, TTY_GROUP).is_some() {
        options.push("gid=5");
    }
    mount("/dev/pts", "devpts", "devpts", &options)
}

fn sysfs(config: &Config) -> Value {
    // sysfs shows a network namespace and needs its owner. With the host's network, only a bind mount is possible.
    match config.namespace(NamespaceKind::Network) {
        Some(_) => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        None => mount(
            "/sys",
            "bind",
            "/sys",
            &["rbind", "rnosuid", "rnoexec", "rnodev", "rro"],
        ),
    }
}

fn shm(config: &Config) -> Value {
    let size = config.shm_size().map_or_else(|| SHM_SIZE.to_string(), str::to_owned);
    let size = format!("size={size}");
    let options = ["nosuid", "noexec", "nodev", "mode=1777", &size];
    mount("/dev/shm", "tmpfs", "shm", &options)
}

/// Returns the files in `/etc`, the tmpfs mounts and the user's bind mounts.
fn user_mounts(host: &Host<'_>) -> Vec<Value> {
    let etc = |file: &Bind| bind_with(file, &["rbind", "rprivate", "nosuid", "nodev", "noexec"]);
    // Symbolic links of the image may put these files into a tmpfs, which must be mounted before.
    let is_in_tmpfs = |bind: &&Bind| host.tmpfs.iter().any(|s| bind.destination.starts_with(&s.destination));
    let (inside, outside): (Vec<&Bind>, Vec<&Bind>) = host.etc.iter().partition(is_in_tmpfs);
    let mut mounts: Vec<Value> = outside.into_iter().map(etc).collect();
    // Mount a directory before what is inside of it; otherwise keep the order of the configuration.
    let depth = |path: &Path| path.components().count();
    let tmpfs = host.tmpfs.iter().map(|s| (depth(&s.destination), s.to_mount()));
    let inside = inside.into_iter().map(|file| (depth(&file.destination), etc(file)));
    let binds = host.binds.iter().map(|b| (depth(&b.destination), bind(b)));
    let mut by_depth: Vec<(usize, Value)> = tmpfs.chain(inside).chain(binds).collect();
    by_depth.sort_by_key(|(depth, _)| *depth);
    mounts.extend(by_depth.into_iter().map(|(_, mount)| mount));
    mounts
}

/// Binds a mount that is already attached with its flags and those of the host's mount. To set the flags again could
/// only clear one, which the kernel refuses. Sub-mounts need a recursive bind; for other sources it makes no
/// difference.
fn bind(mount: &Bind) -> Value {
    bind_with(mount, &["rbind", "rprivate"])
}

fn bind_with(mount: &Bind, options: &[&str]) -> Value {
    json!({ "destination": mount.destination, "type": "bind", "source": mount.source, "options": options })
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}
