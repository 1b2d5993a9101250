//! The configuration that libcontainer gets: derived from ours, never the file itself (`docs/spec/runtime.md` 9, 15.4).
//!
//! Pure: everything that depends on the machine comes in through [`Host`]. Hooks, seccomp, environment, search path and
//! working directory stay out; this runtime does them itself.

use std::path::{Path, PathBuf};

use condenser::runtime::defaults::{MASKED_PATHS, READONLY_PATHS, SHM_SIZE};
use condenser::runtime::dir::ContainerDir;
use libcontainer::oci_spec::runtime::Capability;
use serde_json::{Map, Value, json};

use crate::cgroup::DEFAULT_PIDS;
use crate::config::{Capabilities, Config, IdMapping, NamespaceKind};
use crate::namespaces::Joined;
use crate::scratch::Scratch;

/// Group of terminals.
const TTY_GROUP: u32 = 5;

/// What the derived configuration takes from this machine.
#[derive(Debug)]
pub struct Host<'a> {
    /// Only cgroup v2 is mounted.
    pub unified_cgroups: bool,
    /// Whether libcontainer sets the limits. In a foreign user namespace and on cgroup v1 it cannot.
    pub limits: bool,
    /// Absolute path of the container's cgroup.
    pub cgroup: &'a Path,
    /// Whether init gets a pseudo-terminal.
    pub terminal: bool,
    /// Where init goes while it is still root.
    pub cwd: &'a Path,
    /// Namespaces to join.
    pub joined: &'a Joined,
    /// The user's bind mounts, in order, attached with their final flags.
    pub binds: &'a [Bind],
    /// File systems in memory.
    pub scratch: &'a [Scratch],
    /// Files of the container's directory that exist, and where the image has them.
    pub etc: &'a [Bind],
    /// On v1 and hybrid machines: what the container sees of its cgroups.
    pub cgroup_view: Option<&'a Bind>,
    /// Shared memory of the container whose IPC namespace is joined.
    pub shm: Option<&'a Bind>,
}

/// A bind mount whose source has been checked and whose destination has no symbolic links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
}

/// The id mappings of a container: those of the configuration, or identity of 65535 (9.6).
pub fn mappings(configured: &[IdMapping]) -> Vec<IdMapping> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    vec![IdMapping {
        container_id: 0,
        host_id: 0,
        size: 65535,
    }]
}

/// Id on the host of an id in the container; `None` when it has none.
pub fn host_id(configured: &[IdMapping], id: u32) -> Option<u32> {
    mappings(configured).iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id)?;
        (offset < mapping.size).then(|| mapping.host_id.checked_add(offset))?
    })
}

/// The derived config.json.
pub fn spec(config: &Config, host: &Host<'_>) -> Value {
    let new_namespace = |kind| config.namespace(kind).is_some_and(|n| n.path.is_none());
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": config.root.path, "readonly": config.root.readonly },
        "process": process(config, host),
        "mounts": mounts(config, host),
        "linux": linux(config, host),
    });
    if new_namespace(NamespaceKind::Uts) && !config.hostname.is_empty() {
        spec["hostname"] = json!(config.hostname);
    }
    if new_namespace(NamespaceKind::User) {
        spec["linux"]["uidMappings"] = json!(mappings(&config.linux.uid_mappings));
        spec["linux"]["gidMappings"] = json!(mappings(&config.linux.gid_mappings));
    }
    spec
}

fn process(config: &Config, host: &Host<'_>) -> Value {
    let process = &config.process;
    json!({
        "terminal": host.terminal,
        "user": {
            "uid": process.user.uid,
            "gid": process.user.gid,
            "umask": process.user.umask.unwrap_or(0o022),
            "additionalGids": process.user.additional_gids,
        },
        "args": process.args,
        // libcontainer looks HOME up through the image's name service switch when it has none, loading what the image
        // names there. Nothing else of the environment matters to it.
        "env": ["HOME=/"],
        "cwd": host.cwd,
        "capabilities": capabilities(&process.capabilities),
        "rlimits": process.rlimits,
        "noNewPrivileges": true,
        "oomScoreAdj": process.oom_score_adj,
    })
}

/// Names that do not exist are left out: less is granted than asked for, never more.
fn capabilities(capabilities: &Capabilities) -> Value {
    let known = |names: &[String]| -> Vec<Value> {
        let exists = |name: &Value| serde_json::from_value::<Capability>(name.clone()).is_ok();
        names.iter().map(|name| json!(name)).filter(exists).collect()
    };
    json!({
        "bounding": known(&capabilities.bounding),
        "effective": known(&capabilities.effective),
        "permitted": known(&capabilities.permitted),
        "inheritable": known(&capabilities.inheritable),
        "ambient": known(&capabilities.ambient),
    })
}

fn linux(config: &Config, host: &Host<'_>) -> Value {
    let linux = &config.linux;
    let namespaces: Vec<Value> = linux
        .namespaces
        .iter()
        .map(|namespace| match host.joined.path(namespace.kind) {
            Some(path) => json!({ "type": name(namespace.kind), "path": path }),
            None => json!({ "type": name(namespace.kind) }),
        })
        .collect();
    let mut value = json!({
        "cgroupsPath": host.cgroup,
        "namespaces": namespaces,
        "maskedPaths": union(&MASKED_PATHS, &linux.masked_paths),
        "readonlyPaths": union(&READONLY_PATHS, &linux.readonly_paths),
        "sysctl": linux.sysctl,
        "rootfsPropagation": "private",
    });
    if host.limits {
        value["resources"] = resources(config, host.unified_cgroups);
    }
    value
}

/// Missing or not positive limits are left out, which means none (G1).
fn resources(config: &Config, unified_cgroups: bool) -> Value {
    let resources = &config.linux.resources;
    let mut value = Map::new();
    if let Some(limit) = resources.memory.limit.filter(|limit| *limit > 0) {
        let mut memory = json!({ "limit": limit });
        match resources.memory.swap_limit() {
            // libcontainer takes 0 of swap alone, which is all that is above the memory, for no limit.
            Some(swap) if unified_cgroups => {
                let alone = if swap == -1 {
                    "max".to_owned()
                } else {
                    (swap - limit).to_string()
                };
                value.insert("unified".into(), json!({ "memory.swap.max": alone }));
            }
            Some(swap) => memory["swap"] = json!(swap),
            None => {}
        }
        value.insert("memory".into(), memory);
    }
    let mut cpu = Map::new();
    if let Some(quota) = resources.cpu.quota.filter(|quota| *quota > 0) {
        cpu.insert("quota".into(), json!(quota));
    }
    if let Some(period) = resources.cpu.period.filter(|period| *period > 0) {
        cpu.insert("period".into(), json!(period));
    }
    if !cpu.is_empty() {
        value.insert("cpu".into(), cpu.into());
    }
    let pids = resources.pids.limit.unwrap_or(DEFAULT_PIDS);
    if pids > 0 {
        value.insert("pids".into(), json!({ "limit": pids }));
    }
    value.into()
}

/// The mandatory mounts of 9.3, then those of the user.
fn mounts(config: &Config, host: &Host<'_>) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let terminals = match host_id(&config.linux.gid_mappings, TTY_GROUP) {
        Some(_) => &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"][..],
        None => &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    };
    // sysfs shows a network namespace and belongs to its owner: with the host's, only a bind mount is possible.
    let sys = match config.namespace(NamespaceKind::Network) {
        Some(_) => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        None => mount(
            "/sys",
            "bind",
            "/sys",
            &["rbind", "rnosuid", "rnoexec", "rnodev", "rro"],
        ),
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("/dev/pts", "devpts", "devpts", terminals),
        sys,
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
    mounts.extend(host.cgroup_view.map(bind));
    mounts.push(match host.shm {
        Some(shared) => bind(shared),
        None => {
            let size = config.shm_size().map_or_else(|| SHM_SIZE.to_string(), str::to_owned);
            let size = format!("size={size}");
            mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", &size],
            )
        }
    });
    mounts.extend(chosen(host));
    mounts
}

/// The files of the container's directory, file systems in memory, and the user's bind mounts.
fn chosen(host: &Host<'_>) -> Vec<Value> {
    let etc = |file: &Bind| bind_with(file, &["rbind", "rprivate", "nosuid", "nodev", "noexec"]);
    // Links of the image may lead them into what is mounted afterwards.
    let is_in_scratch = |bind: &&Bind| {
        host.scratch
            .iter()
            .any(|s| bind.destination.starts_with(&s.destination))
    };
    let (inside, outside): (Vec<&Bind>, Vec<&Bind>) = host.etc.iter().partition(is_in_scratch);
    let mut mounts: Vec<Value> = outside.into_iter().map(etc).collect();
    // A directory before what is mounted in it, whatever kinds they are; otherwise in the order of the configuration.
    let depth = |path: &Path| path.components().count();
    let scratch = host.scratch.iter().map(|s| (depth(&s.destination), s.to_mount()));
    let inside = inside.into_iter().map(|file| (depth(&file.destination), etc(file)));
    let binds = host.binds.iter().map(|b| (depth(&b.destination), bind(b)));
    let mut chosen: Vec<(usize, Value)> = scratch.chain(inside).chain(binds).collect();
    chosen.sort_by_key(|(depth, _)| *depth);
    mounts.extend(chosen.into_iter().map(|(_, mount)| mount));
    mounts
}

/// Binds what is attached with its flags already, and has those of the host's mounts: to set them again could only take
/// one away, which the kernel refuses here. Only sub-mounts need a recursive bind; a source without any looks the same.
fn bind(mount: &Bind) -> Value {
    bind_with(mount, &["rbind", "rprivate"])
}

fn bind_with(mount: &Bind, options: &[&str]) -> Value {
    json!({ "destination": mount.destination, "type": "bind", "source": mount.source, "options": options })
}

/// The files of the container's directory that are bound over those of the image (9.3, 14 to 16).
pub fn etc_files(dir: &ContainerDir) -> [(PathBuf, &'static str); 3] {
    ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"].map(|destination| {
        let name = destination.trim_start_matches("/etc/");
        (dir.etc().join(name), destination)
    })
}

fn union(built_in: &[&str], configured: &[String]) -> Vec<String> {
    let mut paths: Vec<String> = built_in.iter().map(|path| (*path).to_owned()).collect();
    for path in configured {
        if !paths.contains(path) {
            paths.push(path.clone());
        }
    }
    paths
}

fn name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Mount => "mount",
        NamespaceKind::Network => "network",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Pid => "pid",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::User => "user",
        NamespaceKind::Cgroup => "cgroup",
        // `Config::parse` drops these.
        NamespaceKind::Unknown => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACES: &str = r#"[{"type":"mount"},{"type":"network"},{"type":"uts"},{"type":"pid"},{"type":"ipc"},
        {"type":"user"},{"type":"cgroup"}]"#;

    fn config(linux: &str) -> Config {
        let text = format!(
            r#"{{"root":{{"path":"/r"}},"hostname":"h","process":{{"args":["sh"],"capabilities":{{
            "bounding":["CAP_CHOWN","CAP_NONE"]}}}},"linux":{{"namespaces":{NAMESPACES}{linux}}}}}"#
        );
        Config::parse(text.as_bytes(), Path::new("config.json")).unwrap()
    }

    fn derive(config: &Config, unified_cgroups: bool) -> Value {
        let joined = Joined::default();
        spec(
            config,
            &Host {
                unified_cgroups,
                limits: true,
                cgroup: Path::new("/raind/x"),
                terminal: false,
                cwd: Path::new("/"),
                joined: &joined,
                binds: &[Bind {
                    source: "/s".into(),
                    destination: "/d".into(),
                }],
                scratch: &[],
                etc: &[Bind {
                    source: "/e".into(),
                    destination: "/etc/hosts".into(),
                }],
                cgroup_view: (!unified_cgroups).then_some(&Bind {
                    source: "/v".into(),
                    destination: "/sys/fs/cgroup".into(),
                }),
                shm: None,
            },
        )
    }

    #[test]
    fn the_derived_configuration_is_one_that_libcontainer_reads() {
        let value = derive(&config(""), true);
        insta::assert_json_snapshot!(value);
        serde_json::from_value::<libcontainer::oci_spec::runtime::Spec>(value).unwrap();
    }

    #[test]
    fn limits_that_are_not_positive_are_none() {
        let value = derive(
            &config(r#","resources":{"memory":{"limit":-1},"cpu":{"quota":0},"pids":{"limit":0}}"#),
            true,
        );
        assert_eq!(value["linux"]["resources"], json!({}));
        let value = derive(
            &config(r#","resources":{"memory":{"limit":5},"cpu":{"quota":8,"period":10}}"#),
            true,
        );
        let expected =
            json!({ "memory": { "limit": 5 }, "cpu": { "quota": 8, "period": 10 }, "pids": { "limit": 512 } });
        assert_eq!(value["linux"]["resources"], expected);
    }

    #[test]
    fn swap_is_limited_on_both_versions() {
        let of = |swap: &str, unified| {
            let memory = format!(r#","resources":{{"memory":{{"limit":5{swap}}},"pids":{{"limit":0}}}}"#);
            derive(&config(&memory), unified)["linux"]["resources"].clone()
        };
        let v2 = |alone: &str| json!({ "memory": { "limit": 5 }, "unified": { "memory.swap.max": alone } });
        assert_eq!(of(r#","swap":5"#, true), v2("0"));
        assert_eq!(of(r#","swap":8"#, true), v2("3"));
        assert_eq!(of(r#","swap":-1"#, true), v2("max"));
        assert_eq!(
            of(r#","swap":5"#, false),
            json!({ "memory": { "limit": 5, "swap": 5 } })
        );
        for none in ["", r#","swap":4"#, r#","swap":0"#] {
            assert_eq!(of(none, true), json!({ "memory": { "limit": 5 } }), "{none}");
        }
    }

    #[test]
    fn the_container_sees_its_cgroups_on_every_machine() {
        // What is bound is read-only where it is attached (`cgroup_view`).
        for (unified, kind, read_only) in [(true, "cgroup", true), (false, "bind", false)] {
            let value = derive(&config(""), unified);
            let mounts = value["mounts"].as_array().unwrap();
            let of_cgroups: Vec<_> = mounts.iter().filter(|m| m["destination"] == "/sys/fs/cgroup").collect();
            let [mount] = of_cgroups[..] else {
                panic!("{of_cgroups:?}")
            };
            assert_eq!(mount["type"], kind);
            let options = mount["options"].as_array().unwrap();
            assert_eq!(options.contains(&json!("ro")), read_only, "{mount}");
        }
    }

    #[test]
    fn what_needs_a_namespace_of_its_own_is_left_out_without_it() {
        let mut config = config("");
        config
            .linux
            .namespaces
            .retain(|n| matches!(n.kind, NamespaceKind::Mount | NamespaceKind::Pid));
        let value = derive(&config, false);
        assert!(value.get("hostname").is_none() && value["linux"].get("uidMappings").is_none());
        let sys = &value["mounts"][3];
        assert_eq!((&sys["destination"], &sys["type"]), (&json!("/sys"), &json!("bind")));
        assert!(!value["mounts"].to_string().contains("mqueue"));
    }

    #[test]
    fn ids_are_mapped() {
        assert_eq!(host_id(&[], 33), Some(33));
        assert_eq!(host_id(&[], 65535), None);
        let shifted = [IdMapping {
            container_id: 0,
            host_id: 100_000,
            size: 10,
        }];
        assert_eq!(host_id(&shifted, 9), Some(100_009));
        assert_eq!(host_id(&shifted, 10), None);
    }
}
