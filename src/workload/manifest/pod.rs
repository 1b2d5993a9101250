//! `kind: Pod` and the templates of sets (`docs/spec/api.md` 11.2).

use std::collections::BTreeSet;

use super::container::Surroundings;
use super::error::ManifestError;
use super::metadata::{identity, or_default};
use super::reader::{Field, Object};
use super::{PodManifest, checked, container};
use crate::model::{PodSpec, RestartPolicy, Volume, VolumeSource};
use crate::workload::container::{OptionsRequest, Published, parse_ports};

/// Unsupported fields that would change what runs.
const REFUSED: &[&str] = &[
    "initContainers",
    "ephemeralContainers",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
    "hostAliases",
    "dnsConfig",
    "activeDeadlineSeconds",
    "runtimeClassName",
    "setHostnameAsFQDN",
];
/// The same in `securityContext`.
const REFUSED_SECURITY: &[&str] = &["fsGroup", "supplementalGroups", "sysctls"];

type Result<T> = std::result::Result<T, ManifestError>;

pub(super) fn read(object: &mut Object<'_>) -> Result<PodManifest> {
    let pod = read_template(object)?;
    if pod.name.is_empty() {
        return Err(object.whole().error("pod name is required"));
    }
    if pod.spec.containers.is_empty() {
        return Err(object.missing("spec.containers", "a pod needs at least one container"));
    }
    Ok(PodManifest {
        namespace: or_default(pod.namespace),
        ..pod
    })
}

/// The same, but name and namespace are optional.
pub(super) fn read_template(object: &mut Object<'_>) -> Result<PodManifest> {
    let mut pod = PodManifest::default();
    if let Some(metadata) = object.field("metadata") {
        metadata.object(|metadata| {
            (pod.name, pod.namespace) = identity(metadata)?;
            pod.labels = metadata.get("labels", |field| {
                let labels = field.string_map()?;
                let request = OptionsRequest {
                    labels,
                    ..OptionsRequest::default()
                };
                Ok(checked(field, &request)?.labels)
            })?;
            pod.annotations = metadata.get("annotations", Field::string_map)?;
            Ok(())
        })?;
    }
    pod.spec.restart = RestartPolicy::Always;
    if let Some(spec) = object.field("spec") {
        pod.spec = spec.object(read_spec)?;
    }
    Ok(pod)
}

fn read_spec(spec: &mut Object<'_>) -> Result<PodSpec> {
    spec.refuse(REFUSED)?;
    let hostname = spec.optional("hostname", |field| {
        let hostname = field.string()?;
        Ok(checked(
            field,
            &OptionsRequest {
                hostname,
                ..OptionsRequest::default()
            },
        )?
        .hostname)
    })?;
    let restart = match spec.field("restartPolicy") {
        None => RestartPolicy::Always,
        Some(field) => match &field.string()?[..] {
            "Always" => RestartPolicy::Always,
            "OnFailure" => RestartPolicy::OnFailure { max_retries: 0 },
            "Never" => RestartPolicy::No,
            other => return Err(field.error(format!("{other:?} is not Always, OnFailure or Never"))),
        },
    };
    let stop_seconds = spec.optional("terminationGracePeriodSeconds", |field| {
        let seconds = field.integer(0..=i64::from(u32::MAX))? as u32;
        let stop_timeout = Some(seconds);
        Ok(checked(
            field,
            &OptionsRequest {
                stop_timeout,
                ..OptionsRequest::default()
            },
        )?
        .stop_seconds)
    })?;
    let surroundings = Surroundings {
        volumes: volumes(spec)?,
        stop_seconds: stop_seconds.flatten(),
        identity: spec.get("securityContext", |field| {
            field.object(|context| {
                context.refuse(REFUSED_SECURITY)?;
                container::identity(context)
            })
        })?,
    };
    let mut containers = Vec::new();
    let (mut names, mut ports) = (BTreeSet::new(), Published::default());
    for field in spec.items("containers")? {
        let container = container::read(&field, &surroundings)?;
        if !names.insert(container.name.clone()) {
            return Err(field.error(format!("container name {:?} is in the pod twice", container.name)));
        }
        for port in parse_ports(&container.request.ports).map_err(|error| field.error(error.to_string()))? {
            ports.add(&port).map_err(|error| field.error(error.to_string()))?;
        }
        containers.push(container);
    }
    Ok(PodSpec {
        hostname: hostname.flatten(),
        restart,
        containers,
        volumes: surroundings.volumes,
    })
}

fn volumes(spec: &mut Object<'_>) -> Result<Vec<Volume>> {
    let mut volumes: Vec<Volume> = Vec::new();
    for field in spec.items("volumes")? {
        let Some(volume) = field.object(volume)? else {
            field.warn("has no name and no effect");
            continue;
        };
        if volumes.iter().any(|other| other.name == volume.name) {
            return Err(field.error(format!("volume name {:?} is in the pod twice", volume.name)));
        }
        volumes.push(volume);
    }
    Ok(volumes)
}

fn volume(volume: &mut Object<'_>) -> Result<Option<Volume>> {
    let name = volume.string("name")?;
    let host_path = volume.get("hostPath", |field| {
        field.object(|source| {
            if let Some(kind) = source.field("type").filter(|kind| !kind.is_nothing()) {
                kind.warn("has no effect: the path must exist");
            }
            source.string("path")
        })
    })?;
    // An empty `emptyDir:` is null, which means an absent field everywhere else.
    let empty_dir = volume.has("emptyDir");
    volume.get("emptyDir", |field| field.object(|source| source.refuse(&["medium"])))?;
    let source = match (&host_path[..], empty_dir) {
        ("", true) => VolumeSource::EmptyDir,
        ("", false) if name.is_empty() => return Ok(None),
        (_, false) if !host_path.is_empty() => VolumeSource::HostPath(host_path),
        _ => {
            let problem =
                format!("volume {name:?}: only hostPath and emptyDir volumes are supported, one of them each");
            return Err(volume.whole().error(problem));
        }
    };
    Ok((!name.is_empty()).then_some(Volume { name, source }))
}
