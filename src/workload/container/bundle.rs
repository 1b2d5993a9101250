//! The bundle: the container's directory, the files of its `/etc`, and `config.json`.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};

use super::hosts::{host_name, hosts, hosts_of_services};
use super::membership::place_of;
use super::spec::{SpecContext, config_json};
use super::{ContainerError, ContainerService, blocking, cgroup, resources, volumes};
use crate::base::cause::Cause;
use crate::model::{Container, Network, ProcessId};
use crate::runtime::dir::ContainerDir;
use crate::runtime::mounts::{MountError, MountPolicy};
use crate::runtime::{defaults, mounts};

/// Resolver of a container without its own network; its queries are redirected like all others.
const FALLBACK_RESOLVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

impl ContainerService {
    /// Writes all files that the runtime reads. A restart writes them again: the host's address, and with it the URL of
    /// a hook, may have changed.
    pub(super) async fn write_bundle(
        &self,
        container: &Container,
        host: Option<&ProcessId>,
    ) -> Result<(), ContainerError> {
        let apparmor = self.confinement().await?;
        let snapshot = self.snapshot();
        let place = place_of(&snapshot, container).cloned();
        let network = place
            .as_ref()
            .and_then(|place| snapshot.networks().get(&place.network))
            .cloned();
        let default = snapshot.networks().get(&self.0.settings.default_network).cloned();
        let uplink = self.0.services.networks.uplink().borrow().clone();
        let (container, settings) = (container.clone(), self.0.settings.clone());
        self.0
            .services
            .images
            .check_layers(&container.spec.image.layers)
            .await?;
        let lower_dirs = self.0.services.images.lower_dirs(&container.spec.image.layers);
        let policy = self.bundle_policy(&container);
        let services = hosts_of_services(&snapshot, &container);
        let host = host.map(|host| host.pid);
        let dir = self.dir(&container.id);
        blocking(move || {
            let gateway = network.as_ref().map(|n| n.gateway);
            // The container's changes to its root survive a restart.
            let is_new = !dir.diff().exists();
            make_directories(&dir)?;
            if is_new {
                inherit_root(&dir.diff(), &lower_dirs)?;
            }
            let hosts = hosts(&container, place.map(|place| place.address), &services);
            write_etc(&dir, &container, &hosts, gateway)?;
            cgroup::create(&container.id)?;
            let ids = ["/proc/self/uid_map", "/proc/self/gid_map"]
                .map(|map| defaults::ids_of(&fs_err::read_to_string(map).unwrap_or_default()));
            let gateway_or_none = gateway.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let context = SpecContext {
                dir: &dir,
                lower_dirs: &lower_dirs,
                mounts: [
                    volumes::binds(&container, &dir)?,
                    mounts(&container.spec.mounts, &policy)?,
                ]
                .concat(),
                policy: &policy,
                host,
                gateway: gateway_or_none,
                prefix_len: network.as_ref().map_or(24, |n| n.subnet.prefix_len()),
                host_interface: uplink.as_ref().map_or("", |u| &u.interface),
                host_address: host_address(uplink.as_ref().map(|u| u.address), default.as_deref(), gateway_or_none),
                apparmor,
                require_apparmor: settings.require_apparmor,
                counts_swap: cgroup::counts_swap(&container.id),
                ulimits: &resources::default_ulimits(),
                ids: [&ids[0], &ids[1]],
                hooks: &settings.hooks,
            };
            let config = config_json(&container, &context).map_err(|e| ContainerError::Spec(e.into()))?;
            replace(&dir.config(), 0o600, &format!("{config:#}\n"))?;
            Ok(())
        })
        .await
    }
}

/// The address at which a container reaches the daemon: the host's, else that of the default network's bridge.
fn host_address(uplink: Option<Ipv4Addr>, default: Option<&Network>, gateway: Ipv4Addr) -> Ipv4Addr {
    uplink.or(default.map(|n| n.gateway)).unwrap_or(gateway)
}

impl ContainerService {
    /// The mount sources that the bundle of a container may use.
    fn bundle_policy(&self, container: &Container) -> MountPolicy {
        let mut policy = self
            .mount_policy(container.role.pod(), container.role.bottle())
            .with_accepted(sources(&container.spec.mounts));
        if container.is_build() {
            // The daemon has chosen them, in directories of its own.
            let sources = sources(&container.spec.mounts);
            policy = sources
                .iter()
                .filter_map(|source| source.parent())
                .fold(policy, MountPolicy::with_volumes);
        }
        if !container.spec.inherited.volumes.is_empty() {
            policy = policy.with_volumes(&self.dir(&container.id).volumes());
        }
        policy
    }

    /// The mount sources that a container of that pod or bottle may use.
    pub(super) fn mount_policy(&self, pod_id: Option<&str>, bottle_id: Option<&str>) -> MountPolicy {
        let (settings, snapshot) = (&self.0.settings, self.snapshot());
        let of_pod = pod_id.map(|id| settings.pod_root.join(id).join("volumes"));
        let bottle = bottle_id.and_then(|id| snapshot.bottles().get(id));
        let volumes = of_pod.or_else(|| Some(settings.volume_root.join(&bottle?.name)));
        let policy = settings.mount_policy.clone();
        volumes
            .into_iter()
            .fold(policy, |policy, volumes| policy.with_volumes(&volumes))
    }

    /// Refuses mount strings that can never be used to create a container. For stored descriptions: containers created
    /// from them later may use the mounts accepted here. Checks only the strings.
    pub(crate) fn check_mount_sources<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<(), MountError> {
        let policy = &self.0.settings.mount_policy;
        texts
            .into_iter()
            .try_for_each(|text| mounts::parse(text)?.check_source(policy))
    }
}

/// Sources of mount strings.
pub(super) fn sources(texts: &[String]) -> Vec<PathBuf> {
    texts
        .iter()
        .filter_map(|text| Some(mounts::parse(text).ok()?.source))
        .collect()
}

/// Checks mount strings against the policy and the host's files (`docs/spec/runtime.md` 5.4).
pub(super) fn mounts(texts: &[String], policy: &MountPolicy) -> Result<Vec<Mount>, ContainerError> {
    texts
        .iter()
        .map(|text| mount(text, policy).map_err(ContainerError::InvalidMount))
        .collect()
}

fn mount(text: &str, policy: &MountPolicy) -> Result<Mount, Cause> {
    let mount = mounts::parse(text)?;
    let source = mount.open_source(policy)?;
    let (kind, options) = mount.to_config(source.directory);
    MountBuilder::default()
        .destination(&mount.destination)
        .typ(kind)
        .source(&mount.source)
        .options(options.into_iter().map(str::to_owned).collect::<Vec<_>>())
        .build()
        .map_err(Cause::from)
}

fn make_directories(dir: &ContainerDir) -> Result<(), ContainerError> {
    let make = |path: &Path, mode| {
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|e| named(path, e))
    };
    // `diff` is the container's root and needs its own mode, so this directory keeps others out.
    make(dir.path(), 0o700)?;
    for path in [dir.diff(), dir.work(), dir.merged(), dir.etc()] {
        make(&path, 0o755)?;
    }
    make(&dir.logs(), 0o750)?;
    make(&dir.cert(), 0o700)
}

/// The root of an overlay shows the attributes of its upper directory. Gives `upper` the owner and mode of the topmost
/// layer that sets them for its root, that is, whose root does not have the initial ones.
fn inherit_root(upper: &Path, lower_dirs: &[PathBuf]) -> Result<(), ContainerError> {
    for layer in lower_dirs {
        let root = fs_err::metadata(layer)?;
        let (uid, gid, mode) = (root.uid(), root.gid(), root.mode() & 0o7777);
        if (uid, gid, mode) != (0, 0, 0o755) {
            std::os::unix::fs::chown(upper, Some(uid), Some(gid)).map_err(|e| named(upper, e))?;
            fs_err::set_permissions(upper, std::fs::Permissions::from_mode(mode))?;
            break;
        }
    }
    Ok(())
}

fn write_etc(
    dir: &ContainerDir,
    container: &Container,
    hosts: &str,
    gateway: Option<Ipv4Addr>,
) -> Result<(), ContainerError> {
    let resolver = gateway.unwrap_or(FALLBACK_RESOLVER);
    for (file, text) in [
        ("hosts", hosts),
        ("hostname", &format!("{}\n", host_name(container))),
        ("resolv.conf", &format!("nameserver {resolver}\n")),
    ] {
        replace(&dir.etc().join(file), 0o644, text)?;
    }
    Ok(())
}

/// Overwrites a file that is mounted in a container in place: the mount keeps its inode.
#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
pub(super) fn overwrite(path: &Path, text: &str) -> Result<(), ContainerError> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    };
    write().map_err(|e| named(path, e))
}

/// Replaces a file atomically: after a crash it has the old text or the new one.
#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
fn replace(path: &Path, mode: u32, text: &str) -> Result<(), ContainerError> {
    let staged = path.with_extension("new");
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&staged)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&staged, path)
    };
    write().map_err(|e| named(path, e))
}

fn named(path: &Path, error: std::io::Error) -> ContainerError {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}
