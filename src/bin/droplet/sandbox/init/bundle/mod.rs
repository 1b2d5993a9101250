//! Derives the configuration for libcontainer from ours (`docs/spec/runtime.md` 9, 15.4).
//!
//! This module does no I/O: [`Host`] has everything that depends on the machine. Hooks, seccomp, environment, search
//! path and working directory are left out, because this runtime handles them itself.

mod mounts;

use std::path::Path;

use condenser::runtime::defaults::{MASKED_PATHS, READONLY_PATHS};
use libcontainer::oci_spec::runtime::Capability;
use serde_json::{Map, Value, json};

use crate::config::id_mapping::id_mappings;
use crate::config::{Capabilities, Config, NamespaceKind};
use crate::sandbox::cgroup::DEFAULT_PIDS;
use crate::sandbox::namespaces::Joined;
use crate::sandbox::rootfs::bind::Bind;
use crate::sandbox::rootfs::tmpfs::StagedTmpfs;
use mounts::mounts;

/// The input that depends on this machine.
#[derive(Debug)]
pub struct Host<'a> {
    /// Whether only cgroup v2 is mounted.
    pub unified_cgroups: bool,
    /// Whether libcontainer sets the limits. It cannot in a foreign user namespace on cgroup v1.
    pub limits: bool,
    /// Absolute path of the container's cgroup.
    pub cgroup: &'a Path,
    /// Whether init gets a pseudo-terminal.
    pub terminal: bool,
    /// Working directory of init while it is still root.
    pub cwd: &'a Path,
    /// Namespaces to join.
    pub joined: &'a Joined,
    /// The user's bind mounts, in order, already attached with their final flags.
    pub binds: &'a [Bind],
    /// The user's tmpfs mounts.
    pub tmpfs: &'a [StagedTmpfs],
    /// Files of the container's directory to mount in `/etc`.
    pub etc: &'a [Bind],
    /// The cgroup mount of the container on v1 and hybrid machines.
    pub cgroup_mount: Option<&'a Bind>,
    /// `/dev/shm` of the container whose IPC namespace is joined.
    pub shm: Option<&'a Bind>,
}

/// Returns the derived config.json.
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
        spec["linux"]["uidMappings"] = json!(id_mappings(&config.linux.uid_mappings));
        spec["linux"]["gidMappings"] = json!(id_mappings(&config.linux.gid_mappings));
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
        // Without HOME, libcontainer looks it up with the image's name service switch, and loads libraries of the
        // image. It does not need any other variable.
        "env": ["HOME=/"],
        "cwd": host.cwd,
        "capabilities": capabilities(&process.capabilities),
        "rlimits": process.rlimits,
        "noNewPrivileges": true,
        "oomScoreAdj": process.oom_score_adj,
    })
}

/// Skips unknown names, which grants less than configured, never more.
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
            Some(path) => json!({ "type": namespace_name(namespace.kind), "path": path }),
            None => json!({ "type": namespace_name(namespace.kind) }),
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

/// Skips limits that are absent or not positive; then there is no limit (G1).
fn resources(config: &Config, unified_cgroups: bool) -> Value {
    let resources = &config.linux.resources;
    let mut value = Map::new();
    if let Some(limit) = resources.memory.limit.filter(|limit| *limit > 0) {
        let mut memory = json!({ "limit": limit });
        match resources.memory.swap_limit() {
            // libcontainer takes a swap limit of 0, without memory, for no limit. So write the v2 file directly.
            Some(swap) if unified_cgroups => {
                let swap_only = if swap == -1 {
                    "max".to_owned()
                } else {
                    (swap - limit).to_string()
                };
                value.insert("unified".into(), json!({ "memory.swap.max": swap_only }));
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

fn union(built_in: &[&str], configured: &[String]) -> Vec<String> {
    let mut paths: Vec<String> = built_in.iter().map(|path| (*path).to_owned()).collect();
    for path in configured {
        if !paths.contains(path) {
            paths.push(path.clone());
        }
    }
    paths
}

fn namespace_name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Mount => "mount",
        NamespaceKind::Network => "network",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Pid => "pid",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::User => "user",
        NamespaceKind::Cgroup => "cgroup",
        // `Config::parse` drops unknown types.
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
                tmpfs: &[],
                etc: &[Bind {
                    source: "/e".into(),
                    destination: "/etc/hosts".into(),
                }],
                cgroup_mount: (!unified_cgroups).then_some(&Bind {
                    source: "/v".into(),
                    destination: "/sys/fs/cgroup".into(),
                }),
                shm: None,
            },
        )
    }

    #[test]
    fn libcontainer_can_read_the_derived_configuration() {
        let value = derive(&config(""), true);
        insta::assert_json_snapshot!(value);
        serde_json::from_value::<libcontainer::oci_spec::runtime::Spec>(value).unwrap();
    }

    #[test]
    fn a_limit_that_is_not_positive_is_left_out() {
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
    fn swap_is_limited_on_both_cgroup_versions() {
        let resources = |swap: &str, unified| {
            let memory = format!(r#","resources":{{"memory":{{"limit":5{swap}}},"pids":{{"limit":0}}}}"#);
            derive(&config(&memory), unified)["linux"]["resources"].clone()
        };
        let v2 = |swap_only: &str| json!({ "memory": { "limit": 5 }, "unified": { "memory.swap.max": swap_only } });
        assert_eq!(resources(r#","swap":5"#, true), v2("0"));
        assert_eq!(resources(r#","swap":8"#, true), v2("3"));
        assert_eq!(resources(r#","swap":-1"#, true), v2("max"));
        assert_eq!(
            resources(r#","swap":5"#, false),
            json!({ "memory": { "limit": 5, "swap": 5 } })
        );
        for none in ["", r#","swap":4"#, r#","swap":0"#] {
            assert_eq!(resources(none, true), json!({ "memory": { "limit": 5 } }), "{none}");
        }
    }

    #[test]
    fn the_container_sees_its_cgroups_on_every_machine() {
        // The bind mount is already read-only at its source (`cgroup_mount`).
        for (unified, kind, read_only) in [(true, "cgroup", true), (false, "bind", false)] {
            let value = derive(&config(""), unified);
            let mounts = value["mounts"].as_array().unwrap();
            let cgroup_mounts: Vec<_> = mounts.iter().filter(|m| m["destination"] == "/sys/fs/cgroup").collect();
            let [mount] = cgroup_mounts[..] else {
                panic!("{cgroup_mounts:?}")
            };
            assert_eq!(mount["type"], kind);
            let options = mount["options"].as_array().unwrap();
            assert_eq!(options.contains(&json!("ro")), read_only, "{mount}");
        }
    }

    #[test]
    fn settings_of_a_missing_namespace_are_left_out() {
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
}
