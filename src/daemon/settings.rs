//! Derives the settings of each service from the configuration. Pure.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::following::RESYNC;
use crate::api::listener::BoundListener;
use crate::daemon::config::{Config, PullLatest};
use crate::image::{ImageSettings, Patience, RegistrySettings};
use crate::net::bridges::DEFAULT_NETWORK;
use crate::net::firewall::FirewallSettings;
use crate::runtime::apparmor::AppArmor;
use crate::runtime::dir::{DEFAULT_ROOT, RUNTIME_RUN_DIR};
use crate::runtime::mounts::MountPolicy;
use crate::workload::build::BuildSettings;
use crate::workload::container::{ContainerSettings, HookSettings};
use crate::workload::disk::DiskSettings;
use crate::workload::import;
use crate::workload::pod::PodSettings;

pub(super) fn image(config: &Config) -> ImageSettings {
    ImageSettings {
        root: config.image_root(),
        registry: RegistrySettings {
            registries: config.registries.clone(),
            credential_files: config.registry_credentials.clone(),
            certs_dir: "/etc/docker/certs.d".into(),
            patience: Patience::default(),
        },
        max_layer_bytes: config.max_layer_bytes,
        max_layer_entries: config.max_layer_entries,
        max_layer_ratio: config.max_layer_ratio,
        layer_ratio_from: config.layer_ratio_from,
    }
}

pub(super) fn build(config: &Config) -> BuildSettings {
    BuildSettings {
        max_context_bytes: config.max_context_bytes,
        max_context_entries: config.max_context_entries,
        max_build_bytes: config.max_build_bytes,
        step_time: Duration::from_secs(config.build_step_seconds),
        cache_bytes: config.build_cache_bytes,
        cache_mount_bytes: config.build_cache_mount_bytes,
        secret_dir: config.run_dir.join("build-secrets"),
    }
}

pub(super) fn firewall(config: &Config, ca: &BoundListener) -> FirewallSettings {
    FirewallSettings {
        runtime_subnet: config.runtime_subnet,
        hook_port: config.hook_port(),
        management_port: config.management_address.port(),
        ca_port: ca.address().port(),
        publish_address: config.publish_address,
        verify_every: RESYNC,
        ..FirewallSettings::default()
    }
}

/// TCP ports of the host that may not be published.
pub(super) fn reserved_ports(config: &Config) -> Vec<u16> {
    let ours = [
        config.management_address.port(),
        config.hook_port(),
        config.ca_address.port(),
    ];
    ours.into()
}

pub(super) fn container(config: &Config, apparmor: Arc<AppArmor>) -> ContainerSettings {
    let root = config.container_root();
    ContainerSettings {
        runtime_run_dir: RUNTIME_RUN_DIR.into(),
        default_network: DEFAULT_NETWORK.into(),
        reserved_ports: reserved_ports(config),
        run_as_image_user: config.run_as_image_user,
        apparmor,
        require_apparmor: config.require_apparmor,
        log_limits: config.log_limits,
        pull_latest: config.pull_policy_latest == PullLatest::Always,
        hooks: HookSettings {
            agent: config.hook_agent.clone(),
            cert_dir: config.cert_dir(),
            hook_port: config.hook_port(),
            ca_port: config.ca_address.port(),
            root_env: (root != Path::new(DEFAULT_ROOT)).then(|| root.clone()),
        },
        mount_policy: MountPolicy::of_daemon(
            &config.allowed_mount_prefixes,
            &[config.root_dir.clone(), config.log_dir.clone(), config.run_dir.clone()],
        ),
        pod_root: config.pod_root(),
        volume_root: config.volume_root(),
        root,
    }
}

pub(super) fn disk(config: &Config) -> DiskSettings {
    DiskSettings {
        volume_root: config.volume_root(),
        pod_root: config.pod_root(),
        log_dirs: vec![config.log_dir.clone(), config.root_dir.join("log")],
    }
}

pub(super) fn pod(config: &Config) -> PodSettings {
    PodSettings {
        root: config.pod_root(),
        infra_image: config.infra_image.clone(),
    }
}

/// Paths of an installation of the original.
pub(super) fn import_places(config: &Config) -> import::Places {
    import::Places {
        stores: config.root_dir.join("store"),
        containers: config.container_root(),
        cgroups: "/sys/fs/cgroup/raind".into(),
    }
}
