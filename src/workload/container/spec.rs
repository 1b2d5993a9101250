//! `config.json`: one container as an OCI runtime bundle that the original Droplet, ours and strict runtimes accept
//! (`docs/spec/runtime.md` 15.2). Pure: all data of the host comes in through [`SpecContext`].

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, Capability, Hook, HookBuilder, HooksBuilder, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxPidsBuilder, LinuxResourcesBuilder, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder,
    LinuxSyscallBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder,
    RootBuilder, SpecBuilder, UserBuilder,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::resources;
use crate::model::{Container, ContainerOptions, Ulimit};
use crate::runtime::defaults::{
    ALLOWED_BY_CAPABILITY, ANNOTATION_CONFINED, ANNOTATION_INIT, APPARMOR_PROFILE, CAPABILITIES, CPU_PERIOD, CPU_QUOTA,
    DENIED_SYSCALLS, MASKED_PATHS, MEMORY_LIMIT, PIDS_LIMIT, READONLY_PATHS, seccomp_architecture,
};
use crate::runtime::dir::ContainerDir;
use crate::runtime::hook::HookEvent;
use crate::runtime::mounts::MountPolicy;
use crate::runtime::tmpfs::Tmpfs;
use crate::runtime::{mounts as bind_mounts, tmpfs};

/// Highest group id of `net.ipv4.ping_group_range` (`icmp(7)`).
const MAX_PING_GROUP: u32 = i32::MAX as u32;

/// How the runtime's hooks reach the daemon. The same for all containers of a daemon.
#[derive(Debug, Clone)]
pub struct HookSettings {
    /// The hook agent.
    pub agent: PathBuf,
    /// Directory of `raind.crt` and the hook client pair.
    pub cert_dir: PathBuf,
    /// Port of the hook listener.
    pub hook_port: u16,
    /// Port of the certificate listener.
    pub ca_port: u16,
    /// Value of `RAIND_ROOT_DIR`, when it is not the default.
    pub root_env: Option<PathBuf>,
}

/// Data of the host for the configuration of one container.
#[derive(Debug)]
pub struct SpecContext<'a> {
    /// Directory of the container.
    pub dir: &'a ContainerDir,
    /// Layer directories, topmost first.
    pub lower_dirs: &'a [PathBuf],
    /// Checked bind mounts.
    pub mounts: Vec<Mount>,
    /// The policy that allowed them; the runtime checks again.
    pub policy: &'a MountPolicy,
    /// For a member of a pod: pid of the infra process whose namespaces the container joins.
    pub host: Option<i32>,
    /// Address of the container's bridge.
    pub gateway: Ipv4Addr,
    /// Prefix length of its network.
    pub prefix_len: u8,
    /// Interface of the default route; informative.
    pub host_interface: &'a str,
    /// Address at which the daemon is reached from inside the container.
    pub host_address: Ipv4Addr,
    /// Whether AppArmor is enabled and the profile is loaded.
    pub apparmor: bool,
    /// Whether AppArmor is required.
    pub require_apparmor: bool,
    /// Whether this kernel can limit swap.
    pub counts_swap: bool,
    /// Default resource limits.
    pub ulimits: &'a [Ulimit],
    /// User and group ids of the host, in the form of [`defaults::ids_of`](crate::runtime::defaults::ids_of).
    pub ids: [&'a [(u32, u32)]; 2],
    /// Hooks.
    pub hooks: &'a HookSettings,
}

/// The document as a JSON value: it has keys that the `oci-spec` types cannot express.
pub fn config_json(container: &Container, context: &SpecContext<'_>) -> Result<Value, OciSpecError> {
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(context.dir.merged())
                .readonly(container.spec.options.read_only)
                .build()?,
        )
        .hostname(container.spec.options.hostname.as_ref().unwrap_or(&container.id))
        .mounts(mounts(&container.spec.options, &context.mounts)?)
        .process(process(container, context)?)
        .linux(linux(container, context)?)
        .hooks(
            HooksBuilder::default()
                .create_runtime(vec![
                    certificate_hook(context)?,
                    hook(context, HookEvent::CreateRuntime)?,
                ])
                .create_container(match is_unreachable(container) {
                    true => Vec::new(),
                    false => vec![hook(context, HookEvent::CreateContainer)?],
                })
                .poststart(vec![hook(context, HookEvent::Poststart)?])
                .poststop(vec![hook(context, HookEvent::Poststop)?])
                .build()?,
        )
        .annotations(annotations(container, context))
        .build()?;
    let stop_hook = hook(context, HookEvent::StopContainer)?;
    // Converting plain data to a JSON value cannot fail.
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    value["hooks"]["stopContainer"] = json!([stop_hook]);
    value["linux"]["apparmorProfile"] = json!(APPARMOR_PROFILE);
    if context.apparmor {
        value["process"]["apparmorProfile"] = json!(APPARMOR_PROFILE);
    }
    Ok(value)
}

/// Whether the daemon cannot be reached from the container's network: a command of a build with `--network=none`.
pub(super) fn is_unreachable(container: &Container) -> bool {
    container.is_build() && container.status.attachment.is_none()
}

fn process(container: &Container, context: &SpecContext<'_>) -> Result<oci_spec::runtime::Process, OciSpecError> {
    let spec = &container.spec;
    let allowed = capabilities(&container.spec.options);
    ProcessBuilder::default()
        .terminal(container.spec.tty)
        .user(
            UserBuilder::default()
                .uid(spec.process.uid)
                .gid(spec.process.gid)
                .additional_gids(spec.process.additional_gids.clone())
                .build()?,
        )
        .args(spec.process.args.clone())
        .env(environment(container))
        .cwd(&spec.process.cwd)
        .no_new_privileges(true)
        .rlimits(rlimits(&resources::effective(
            context.ulimits,
            &container.spec.options.ulimits,
        ))?)
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(allowed.clone())
                .permitted(allowed.clone())
                .effective(allowed)
                .inheritable(HashSet::new())
                .ambient(HashSet::new())
                .build()?,
        )
        .build()
}

/// Stored names were checked before they were stored.
fn rlimits(limits: &[Ulimit]) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let known = limits
        .iter()
        .filter_map(|limit| Some((named::<PosixRlimitType>(&limit.resource)?, limit)));
    let rlimit = |(kind, limit): (_, &Ulimit)| {
        let rlimit = PosixRlimitBuilder::default().typ(kind);
        rlimit.soft(limit.soft).hard(limit.hard).build()
    };
    known.map(rlimit).collect()
}

/// The environment of the row, plus the host name, which shells and programs read.
fn environment(container: &Container) -> Vec<String> {
    let mut env = container.spec.process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOSTNAME=")) {
        let name = container.spec.options.hostname.as_ref().unwrap_or(&container.id);
        env.push(format!("HOSTNAME={name}"));
    }
    env
}

/// Shared memory with a custom size, the user's tmpfs mounts, and bind mounts, in that order. They override the default
/// tmpfs mounts of a read-only container.
fn mounts(options: &ContainerOptions, binds: &[Mount]) -> Result<Vec<Mount>, OciSpecError> {
    // Checked before they were stored.
    let mut all: Vec<Tmpfs> = options
        .tmpfs
        .iter()
        .filter_map(|text| tmpfs::parse(text).ok())
        .collect();
    if options.read_only && options.read_only_tmpfs.unwrap_or(true) {
        let taken = all.iter().map(|tmpfs| &tmpfs.destination);
        let taken: Vec<&Path> = taken
            .chain(binds.iter().map(Mount::destination))
            .map(PathBuf::as_path)
            .collect();
        let scratch = tmpfs::scratch(&taken);
        all.extend(scratch);
    }
    let in_memory = |destination: &Path, source: &str, options: Vec<String>| {
        let mount = MountBuilder::default().destination(destination).typ(tmpfs::KIND);
        mount.source(source).options(options).build()
    };
    let shm = options.shm_bytes.map(|bytes| {
        let size = format!("size={bytes}");
        let options = ["nosuid", "noexec", "nodev", "mode=1777", &size].map(str::to_owned);
        in_memory(Path::new("/dev/shm"), "shm", options.to_vec())
    });
    let entries = all
        .iter()
        .map(|tmpfs| in_memory(&tmpfs.destination, tmpfs::KIND, tmpfs.to_config()));
    shm.into_iter()
        .chain(entries)
        .chain(binds.iter().cloned().map(Ok))
        .collect()
}

/// The enum value for a name in an OCI document.
fn named<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(json!(name)).ok()
}

/// The default set or the client's. Stored names were checked before they were stored.
fn capabilities(options: &ContainerOptions) -> HashSet<Capability> {
    match &options.capabilities {
        None => CAPABILITIES.into_iter().filter_map(named).collect(),
        Some(names) => names.iter().filter_map(|name| named(name)).collect(),
    }
}

fn linux(container: &Container, context: &SpecContext<'_>) -> Result<oci_spec::runtime::Linux, OciSpecError> {
    let options = &container.spec.options;
    let resources = LinuxResourcesBuilder::default()
        .memory(memory(options, context.counts_swap)?)
        .cpu(
            LinuxCpuBuilder::default()
                .quota(
                    options
                        .cpu_millis
                        .map_or(CPU_QUOTA, |millis| i64::from(millis) * CPU_PERIOD as i64 / 1000),
                )
                .period(CPU_PERIOD)
                .build()?,
        )
        .pids(
            LinuxPidsBuilder::default()
                .limit(options.pids.map_or(PIDS_LIMIT, i64::from))
                .build()?,
        )
        .build()?;
    let identity = |ids: &[(u32, u32)]| -> Result<Vec<LinuxIdMapping>, OciSpecError> {
        let mapping = |(first, count): &(u32, u32)| {
            let mapping = LinuxIdMappingBuilder::default().container_id(*first).host_id(*first);
            mapping.size(*count).build()
        };
        ids.iter().map(mapping).collect()
    };
    let [uids, gids] = context.ids;
    let groups = identity(gids)?;
    let sysctl = match context.host {
        // The sysctls of the joined network namespace are already set.
        Some(_) => HashMap::new(),
        None => network_sysctls(&groups),
    };
    LinuxBuilder::default()
        .cgroups_path(format!("/raind/{}", container.id))
        .resources(resources)
        .namespaces(namespaces(context.host)?)
        .uid_mappings(identity(uids)?)
        .gid_mappings(groups)
        .sysctl(sysctl)
        .seccomp(seccomp(options)?)
        .masked_paths(MASKED_PATHS.map(String::from).to_vec())
        .readonly_paths(READONLY_PATHS.map(String::from).to_vec())
        .build()
}

/// OCI, like Docker, counts swap together with memory: a value equal to the memory limit means no swap.
fn memory(options: &ContainerOptions, counts_swap: bool) -> Result<oci_spec::runtime::LinuxMemory, OciSpecError> {
    let limit = options.memory_bytes.map_or(MEMORY_LIMIT, |bytes| bytes as i64);
    let memory = LinuxMemoryBuilder::default().limit(limit);
    match counts_swap {
        true => memory.swap(options.memory_swap.unwrap_or(limit)),
        // The file does not exist, and writing it would fail.
        false => memory,
    }
    .build()
}

/// Allows low ports and ping for non-root users; the container's own network namespace confines the effect.
fn network_sysctls(groups: &[LinuxIdMapping]) -> HashMap<String, String> {
    // The kernel refuses a range with a group that is not mapped in the user namespace.
    let ends = groups
        .iter()
        .map(|groups| groups.container_id().saturating_add(groups.size()));
    let last = ends.max().unwrap_or(1).saturating_sub(1).min(MAX_PING_GROUP);
    HashMap::from([
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
        ("net.ipv4.ping_group_range".to_owned(), format!("0 {last}")),
    ])
}

/// New namespaces; or for a member of a pod, paths to the shared ones of the infra container, the user namespace first
/// because it owns the others.
fn namespaces(host: Option<i32>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let own = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let Some(host) = host else {
        return [Mount, Network, Uts, Pid, Ipc, User, Cgroup]
            .into_iter()
            .map(own)
            .collect();
    };
    let shared = [(User, "user"), (Network, "net"), (Ipc, "ipc"), (Uts, "uts")];
    let joined = shared.into_iter().map(|(kind, file)| {
        let path = format!("/proc/{host}/ns/{file}");
        LinuxNamespaceBuilder::default().typ(kind).path(path).build()
    });
    joined.chain([Mount, Pid, Cgroup].into_iter().map(own)).collect()
}

fn seccomp(options: &ContainerOptions) -> Result<LinuxSeccomp, OciSpecError> {
    let chosen = options.capabilities.as_deref().unwrap_or_default();
    let allowed = |call: &str| {
        let by_capability = ALLOWED_BY_CAPABILITY.into_iter().find(|(name, _)| *name == call);
        by_capability.is_some_and(|(_, capability)| chosen.iter().any(|name| name == capability))
    };
    let denied = DENIED_SYSCALLS.into_iter().filter(|call| !allowed(call));
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(named::<Arch>(seccomp_architecture()).into_iter().collect::<Vec<_>>())
        .syscalls(vec![
            LinuxSyscallBuilder::default()
                .names(denied.map(String::from).collect::<Vec<_>>())
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(1u32)
                .build()?,
        ])
        .build()
}

/// A hook that reports to the hook listener with the container's own certificate.
///
/// `createContainer` runs in the container's network namespace and needs an address reachable from there; all others
/// use `localhost`, which stays valid when the host's address changes.
fn hook(context: &SpecContext<'_>, event: HookEvent) -> Result<Hook, OciSpecError> {
    let host = match event {
        HookEvent::CreateContainer => context.host_address.to_string(),
        _ => "localhost".to_owned(),
    };
    let url = format!("https://{host}:{}/v1/hooks/droplet", context.hooks.hook_port);
    let cert = context.dir.cert();
    agent(
        context.hooks,
        &url,
        event.as_str(),
        &cert.join("client.crt"),
        &cert.join("client.key"),
    )
}

/// The hook that requests the container's certificate, with the shared hook client pair.
fn certificate_hook(context: &SpecContext<'_>) -> Result<Hook, OciSpecError> {
    let url = format!("https://localhost:{}/v1/pki/sign", context.hooks.ca_port);
    let dir = &context.hooks.cert_dir;
    agent(
        context.hooks,
        &url,
        "requestCert",
        &dir.join("raindHookClient.crt"),
        &dir.join("raindHookClient.key"),
    )
}

fn agent(hooks: &HookSettings, url: &str, event: &str, cert: &Path, key: &Path) -> Result<Hook, OciSpecError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let ca = hooks.cert_dir.join("raind.crt");
    let mut env = vec!["RAIND-HOOK-SETTER=CONDENSER".to_owned()];
    env.extend(
        hooks
            .root_env
            .iter()
            .map(|root| format!("{}={}", crate::runtime::dir::ROOT_ENV, root.display())),
    );
    let args = [
        text(&hooks.agent),
        "--url".into(),
        url.into(),
        "--event".into(),
        event.into(),
        "--ca".into(),
        text(&ca),
        "--cert".into(),
        text(cert),
        "--key".into(),
        text(key),
    ];
    HookBuilder::default()
        .path(&hooks.agent)
        .args(args.to_vec())
        .env(env)
        .build()
}

fn annotations(container: &Container, context: &SpecContext<'_>) -> HashMap<String, String> {
    let attachment = container.status.attachment.as_ref();
    let net = json!({
        "hostInterface": context.host_interface,
        "bridgeInterface": attachment.map_or("", |a| &a.network),
        "interface": {
            "name": container.veth(),
            "ipv4": {
                "address": attachment.map_or(String::new(), |a| format!("{}/{}", a.address, context.prefix_len)),
                "gateway": attachment.map_or(String::new(), |_| context.gateway.to_string()),
            },
            "dns": { "servers": ["8.8.8.8"] },
        },
    });
    let image = json!({
        "rootfsType": "overlay",
        "imageLayer": context.lower_dirs,
        "upperDir": context.dir.diff(),
        "workDir": context.dir.work(),
    });
    let of_image = container.spec.inherited.annotations.clone();
    let mut annotations: HashMap<String, String> = of_image.into_iter().collect();
    annotations.extend([
        ("io.raind.runtime.annotation.version".into(), "0.1.0".into()),
        ("io.raind.hooks.args".into(), "argv0".into()),
        ("io.raind.net.config".into(), net.to_string()),
        ("io.raind.image.config".into(), image.to_string()),
    ]);
    for (name, wanted) in [
        (ANNOTATION_INIT, container.spec.options.init),
        (ANNOTATION_CONFINED, context.require_apparmor),
    ] {
        if wanted {
            annotations.insert(name.to_owned(), true.to_string());
        }
    }
    if !context.mounts.is_empty() {
        annotations.insert(bind_mounts::POLICY_ANNOTATION.into(), json!(context.policy).to_string());
    }
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;

    fn rendered() -> Value {
        rendered_in(None)
    }

    fn rendered_in(host: Option<i32>) -> Value {
        rendered_with(host, ContainerOptions::default())
    }

    fn rendered_with(host: Option<i32>, options: ContainerOptions) -> Value {
        let dir = ContainerDir::new(Path::new("/etc/raind/container"), "01abcdefghjk");
        let hooks = HookSettings {
            agent: "/usr/local/bin/condenser-hook-agent".into(),
            cert_dir: "/etc/raind/cert".into(),
            hook_port: 7756,
            ca_port: 7757,
            root_env: None,
        };
        let context = SpecContext {
            dir: &dir,
            lower_dirs: &["/etc/raind/image/l/AB".into(), "/etc/raind/image/l/CD".into()],
            mounts: Vec::new(),
            policy: &MountPolicy::of_runtime(),
            host,
            gateway: [10, 166, 0, 254].into(),
            prefix_len: 24,
            host_interface: "ens3",
            host_address: [192, 0, 2, 2].into(),
            apparmor: false,
            require_apparmor: false,
            counts_swap: true,
            ulimits: &[Ulimit {
                resource: "RLIMIT_NOFILE".into(),
                soft: 4096,
                hard: 4096,
            }],
            ids: [&[(0, u32::MAX)]; 2],
            hooks: &hooks,
        };
        let mut c = container("01abcdefghjk", "web");
        c.spec.options = options;
        if host.is_none() {
            c = c.address("10.166.0.7");
        }
        c.spec.process.args = vec!["/bin/sh".into(), "-c".into(), "echo 'a  b'\n".into()];
        config_json(&c, &context).unwrap()
    }

    /// Sorts sets of capabilities, which are unordered.
    fn sorted(mut value: Value) -> Value {
        for set in ["bounding", "permitted", "effective"] {
            if let Value::Array(names) = &mut value["process"]["capabilities"][set] {
                names.sort_by_key(|n| n.to_string());
            }
        }
        value
    }

    #[test]
    fn the_document_is_the_superset_of_the_contract() {
        insta::assert_json_snapshot!(sorted(rendered()));
    }

    #[test]
    fn a_member_of_a_pod_joins_by_path_and_has_no_address() {
        let value = rendered_in(Some(4711));
        let namespaces = value["linux"]["namespaces"].as_array().unwrap();
        let said: Vec<String> = namespaces
            .iter()
            .map(|n| format!("{} {}", n["type"].as_str().unwrap(), n["path"].as_str().unwrap_or("-")))
            .collect();
        assert_eq!(
            said,
            [
                "user /proc/4711/ns/user",
                "network /proc/4711/ns/net",
                "ipc /proc/4711/ns/ipc",
                "uts /proc/4711/ns/uts",
                "mount -",
                "pid -",
                "cgroup -"
            ]
        );
        assert!(value["linux"].get("sysctl").is_none_or(|sysctl| *sysctl == json!({})));
        assert!(value["linux"]["uidMappings"].is_array());
        let net: Value = serde_json::from_str(value["annotations"]["io.raind.net.config"].as_str().unwrap()).unwrap();
        assert_eq!(net["interface"]["ipv4"], json!({ "address": "", "gateway": "" }));
    }

    #[test]
    fn what_is_chosen_is_in_its_place() {
        let value = rendered_with(
            None,
            ContainerOptions {
                memory_bytes: Some(8 << 20),
                memory_swap: Some(9 << 20),
                shm_bytes: Some(1 << 20),
                ulimits: vec![Ulimit {
                    resource: "RLIMIT_CORE".into(),
                    soft: 0,
                    hard: u64::MAX,
                }],
                capabilities: Some(vec!["CAP_SYS_PTRACE".into()]),
                init: true,
                ..ContainerOptions::default()
            },
        );
        let memory = &value["linux"]["resources"]["memory"];
        assert_eq!(*memory, json!({ "limit": 8 << 20, "swap": 9 << 20 }));
        let shm = &value["mounts"][0];
        assert_eq!(
            (&shm["destination"], &shm["type"]),
            (&json!("/dev/shm"), &json!("tmpfs"))
        );
        assert_eq!(shm["options"][4], "size=1048576");
        assert_eq!(
            value["process"]["rlimits"],
            json!([
                { "type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096 },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX },
            ])
        );
        let denied = &value["linux"]["seccomp"]["syscalls"][0]["names"];
        let denies = |name: &str| denied.as_array().unwrap().contains(&json!(name));
        assert!(
            !denies("kcmp") && denies("open_by_handle_at") && denies("mount"),
            "{denied}"
        );
        assert_eq!(value["annotations"][ANNOTATION_INIT], "true");
    }

    #[test]
    fn the_range_of_ping_ends_with_the_last_group_that_there_is() {
        let mapping = |first: u32, size: u32| {
            let mapping = LinuxIdMappingBuilder::default().container_id(first).host_id(first);
            mapping.size(size).build().unwrap()
        };
        let range = |groups: &[LinuxIdMapping]| network_sysctls(groups)["net.ipv4.ping_group_range"].clone();
        assert_eq!(range(&[mapping(0, 65_535)]), "0 65534");
        assert_eq!(
            range(&[mapping(0, 65_535), mapping(65_536, u32::MAX - 65_536)]),
            "0 2147483647"
        );
    }

    #[test]
    fn a_read_only_root_has_places_to_write_unless_others_are_there() {
        let bind = MountBuilder::default()
            .destination("/run")
            .source("/srv")
            .typ("bind")
            .build();
        let binds = [bind.unwrap()];
        let mut options = ContainerOptions {
            tmpfs: vec!["/tmp:size=1m".into()],
            ..ContainerOptions::default()
        };
        let said = |options: &ContainerOptions| -> Vec<String> {
            let mounts = mounts(options, &binds).unwrap();
            let said = |m: &Mount| format!("{} {}", m.destination().display(), m.typ().as_deref().unwrap_or(""));
            mounts.iter().map(said).collect()
        };
        assert_eq!(said(&options), ["/tmp tmpfs", "/run bind"]);
        options.read_only = true;
        assert_eq!(said(&options), ["/tmp tmpfs", "/var/tmp tmpfs", "/run bind"]);
        options.read_only_tmpfs = Some(false);
        assert_eq!(said(&options), ["/tmp tmpfs", "/run bind"]);
    }

    #[test]
    fn what_the_types_cannot_say_is_there() {
        let value = rendered();
        assert_eq!(value["linux"]["apparmorProfile"], "raind-default");
        assert_eq!(value["hooks"]["stopContainer"][0]["args"][4], "stopContainer");
        assert!(value["process"].get("apparmorProfile").is_none());
        assert!(value["linux"]["seccomp"].get("defaultErrnoRet").is_none());
    }

    #[test]
    fn every_hook_has_argv0_and_only_one_uses_the_host_address() {
        let value = rendered();
        let hooks = value["hooks"].as_object().unwrap();
        let mut from_inside = 0;
        for hook in hooks.values().flat_map(|list| list.as_array().unwrap()) {
            assert_eq!(hook["args"][0], hook["path"]);
            from_inside += usize::from(hook["args"][2].as_str().unwrap().contains("192.0.2.2"));
        }
        assert_eq!(from_inside, 1);
    }
}
