//! One entry of `spec.containers` (`docs/spec/api.md` 11.2).

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::error::ManifestError;
use super::probe::NamedPort;
use super::protocol::{not_a_protocol, protocol};
use super::reader::{Field, Object};
use super::{checked, probe, quantity};
use crate::model::names::is_container_name;
use crate::model::{ContainerOptions, ContainerRequest, PodContainer, PullPolicy, Volume, VolumeMount, VolumeSource};
use crate::runtime::mounts;
use crate::workload::container::{OptionsRequest, pull_policy_of};

/// Unsupported fields that would change what runs.
const REFUSED: &[&str] = &[
    "envFrom",
    "lifecycle",
    "startupProbe",
    "volumeDevices",
    "restartPolicy",
    "restartPolicyRules",
];

/// Settings that a container inherits from its pod.
pub(super) struct Surroundings {
    pub volumes: Vec<Volume>,
    pub stop_seconds: Option<u32>,
    pub identity: Identity,
}

/// The user of the processes; `None` is the image's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Identity {
    user: Option<u32>,
    group: Option<u32>,
    not_root: Option<bool>,
}

type Result<T> = std::result::Result<T, ManifestError>;

pub(super) fn read(field: &Field<'_>, pod: &Surroundings) -> Result<PodContainer> {
    field.object(|object| {
        object.refuse(REFUSED)?;
        let name = name(object)?;
        let image = object.string("image")?;
        if image.is_empty() {
            return Err(object.missing("image", format!("container {name:?} needs an image")));
        }
        let pull = object.optional("imagePullPolicy", pull_policy)?.flatten();
        let mut request = ContainerRequest {
            pull: pull.unwrap_or_else(|| pull_policy_of(&image)),
            image,
            env: env(object)?,
            tty: object.get("tty", Field::boolean)?,
            ..ContainerRequest::default()
        };
        command(&mut request, object)?;
        let named = ports(&mut request, object)?;
        request.mounts = mount_strings(object)?;
        let volume_mounts = volume_mounts(&name, object, &pod.volumes)?;
        request.working_dir = object.get("workingDir", |field| {
            let working_dir = field.string()?;
            checked(
                field,
                &OptionsRequest {
                    working_dir: working_dir.clone(),
                    ..OptionsRequest::default()
                },
            )?;
            Ok(working_dir)
        })?;
        request.options = limits(object)?;
        request.options.stop_seconds = pod.stop_seconds;
        request.options.tmpfs = object.get("tmpfs", |field| {
            let tmpfs = field.strings()?;
            let options = OptionsRequest {
                tmpfs,
                ..OptionsRequest::default()
            };
            Ok(checked(field, &options)?.tmpfs)
        })?;
        request.user = security(&mut request.options, object, pod.identity)?;
        let options = &mut request.options;
        options.health_check = object.optional("livenessProbe", |field| probe::liveness(field, &named))?;
        options.end_unhealthy = options.health_check.is_some();
        options.readiness_check = object.optional("readinessProbe", |field| probe::readiness(field, &named))?;
        Ok(PodContainer {
            name,
            request,
            volume_mounts,
        })
    })
}

/// It becomes part of the container's own name, `<name>-<8 characters>`.
fn name(object: &mut Object<'_>) -> Result<String> {
    let Some(field) = object.field("name").filter(|field| !field.is_nothing()) else {
        return Err(object.missing("name", "a container needs a name"));
    };
    let name = field.string()?;
    match is_container_name(&format!("{name}-00000000")) {
        true => Ok(name),
        false => Err(field.error(format!("{name:?} cannot be a part of the container's name"))),
    }
}

fn command(entry: &mut ContainerRequest, object: &mut Object<'_>) -> Result<()> {
    let (command, args) = (object.items("command")?, object.items("args")?);
    entry.keep_entrypoint = command.is_empty() && !args.is_empty();
    let variables = entry.env.iter().filter_map(|variable| variable.split_once('='));
    let known = variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let words = command.iter().chain(&args);
    entry.command = words
        .map(|word| word.expand(&word.string()?, &known))
        .collect::<Result<_>>()?;
    Ok(())
}

fn pull_policy(field: &Field<'_>) -> Result<Option<PullPolicy>> {
    match &field.string()?[..] {
        "" => Ok(None),
        "IfNotPresent" => Ok(Some(PullPolicy::IfNotPresent)),
        "Always" => Ok(Some(PullPolicy::Always)),
        "Never" => Ok(Some(PullPolicy::Never)),
        other => Err(field.error(format!("{other:?} is not Always, IfNotPresent or Never"))),
    }
}

fn env(object: &mut Object<'_>) -> Result<Vec<String>> {
    let mut env: Vec<String> = Vec::new();
    // Variables defined above it are known. Of duplicates the last one wins.
    let mut known = HashMap::new();
    for field in object.items("env")? {
        let (name, value) = field.object(|entry| {
            entry.refuse(&["valueFrom"])?;
            Ok((entry.string("name")?, entry.string("value")?))
        })?;
        match &name[..] {
            "" => field.warn("has no name and no effect"),
            name if name.contains('=') => return Err(field.error(format!("the name {name:?} contains '='"))),
            _ => {
                let value = field.expand(&value, &known)?;
                env.push(format!("{name}={value}"));
                known.insert(name, value);
            }
        }
    }
    Ok(env)
}

/// Fills in the published ports. Those without `hostPort` only give a name.
fn ports(entry: &mut ContainerRequest, object: &mut Object<'_>) -> Result<Vec<NamedPort>> {
    let mut named = Vec::new();
    for field in object.items("ports")? {
        field.object(|port| {
            let number = |field: &Field<'_>| field.integer(1..=65535);
            let name = port.string("name")?;
            let written = port.string("protocol")?;
            let protocol = match &written[..] {
                "" => crate::model::Protocol::Tcp,
                written => protocol(written).ok_or_else(|| port.missing("protocol", not_a_protocol(written)))?,
            };
            let container = port.optional("containerPort", number)?;
            let host = port.optional("hostPort", number)?;
            let Some(container) = container else {
                return Err(port.missing("containerPort", "a port from 1 to 65535 is required"));
            };
            let at = port.get("hostIP", host_address)?;
            match host {
                Some(host) if at.is_empty() => entry.ports.push(format!("{host}:{container}:{protocol}")),
                Some(host) => entry.ports.push(format!("{at}:{host}:{container}:{protocol}")),
                None => {}
            }
            named.push(NamedPort {
                name,
                port: container as u16,
            });
            Ok(())
        })?;
    }
    Ok(named)
}

fn host_address(field: &Field<'_>) -> Result<String> {
    let text = field.string()?;
    match text.parse::<Ipv4Addr>() {
        Err(_) if !text.is_empty() => Err(field.error(format!("{text:?} is not an IPv4 address"))),
        _ => Ok(text),
    }
}

fn mount_strings(object: &mut Object<'_>) -> Result<Vec<String>> {
    let read = |field: &Field<'_>| {
        let text = field.string()?;
        mounts::parse(&text).map_err(|error| field.error(error.to_string()))?;
        Ok(text)
    };
    object.items("mount")?.iter().map(read).collect()
}

fn volume_mounts(container: &str, object: &mut Object<'_>, volumes: &[Volume]) -> Result<Vec<VolumeMount>> {
    let mut mounts: Vec<VolumeMount> = Vec::new();
    for field in object.items("volumeMounts")? {
        let mount = field.object(|mount| {
            mount.refuse(&["subPath", "subPathExpr"])?;
            if let Some(propagation) = mount.field("mountPropagation").filter(|field| !field.is_nothing())
                && propagation.string()? != "None"
            {
                return Err(propagation.error("only mountPropagation None is supported"));
            }
            Ok(VolumeMount {
                volume: mount.string("name")?,
                path: mount.string("mountPath")?,
                read_only: mount.get("readOnly", Field::boolean)?,
            })
        })?;
        if mount.volume.is_empty() || mount.path.is_empty() {
            field.warn("has no name or no mountPath, and no effect");
            continue;
        }
        let Some(volume) = volumes.iter().find(|volume| volume.name == mount.volume) else {
            return Err(field.error(format!("container {container:?}: volume {:?} not found", mount.volume)));
        };
        check_mount(volume, &mount).map_err(|problem| field.error(problem))?;
        if mounts.iter().any(|other| other.path == mount.path) {
            return Err(field.error(format!("{} is mounted twice", mount.path)));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

/// The paths must be allowed as mounts of a container (`docs/spec/api.md` 4.7).
fn check_mount(volume: &Volume, mount: &VolumeMount) -> std::result::Result<(), String> {
    // The daemon chooses the directory of an emptyDir; check any allowed source in its place.
    let source = match &volume.source {
        VolumeSource::HostPath(path) => path,
        VolumeSource::EmptyDir => "/volume",
    };
    if source.contains(':') || mount.path.contains(':') {
        return Err("a path with ':' cannot be mounted".into());
    }
    let text = format!("{source}:{}", mount.path);
    mounts::parse(&text).map(drop).map_err(|error| error.to_string())
}

fn limits(object: &mut Object<'_>) -> Result<ContainerOptions> {
    let mut request = OptionsRequest::default();
    if let Some(field) = object.field("resources") {
        field.object(|resources| {
            resources.refuse(&["claims"])?;
            let Some(limits) = resources.field("limits") else {
                return Ok(());
            };
            limits.object(|limits| {
                let not_a_quantity = |field: &Field<'_>| field.error("must be a quantity, such as 64Mi, 0.5 or 500m");
                request.memory = limits.get("memory", |field| {
                    let memory = quantity::bytes(&field.string()?).ok_or_else(|| not_a_quantity(field))?;
                    checked(
                        field,
                        &OptionsRequest {
                            memory,
                            ..OptionsRequest::default()
                        },
                    )?;
                    Ok(memory)
                })?;
                request.cpus = limits.get("cpu", |field| {
                    let millis = quantity::millis(&field.string()?).ok_or_else(|| not_a_quantity(field))?;
                    let cpus = f64::from(millis) / 1000.0;
                    checked(
                        field,
                        &OptionsRequest {
                            cpus,
                            ..OptionsRequest::default()
                        },
                    )?;
                    Ok(cpus)
                })?;
                Ok(())
            })
        })?;
    }
    checked(object.whole(), &request)
}

/// Applies the security context, and returns the user in the form of `docker run --user`; a group alone is combined
/// with the image's user.
fn security(options: &mut ContainerOptions, object: &mut Object<'_>, pod: Identity) -> Result<String> {
    options.not_root = pod.not_root == Some(true);
    let Some(field) = object.field("securityContext") else {
        return pod.user(object.whole());
    };
    field.object(|context| {
        if let Some(field) = context.field("privileged").filter(|field| !field.is_nothing()) {
            return Err(field.error("privileged containers are not supported"));
        }
        options.read_only = context.get("readOnlyRootFilesystem", Field::boolean)?;
        if let Some(field) = context.field("allowPrivilegeEscalation")
            && field.boolean()?
        {
            field.warn("has no effect: no process ever gains privileges");
        }
        options.capabilities = context.get("capabilities", |field| {
            let (cap_add, cap_drop) = field.object(|capabilities| {
                Ok((
                    capabilities.get("add", Field::strings)?,
                    capabilities.get("drop", Field::strings)?,
                ))
            })?;
            Ok(checked(
                field,
                &OptionsRequest {
                    cap_add,
                    cap_drop,
                    ..OptionsRequest::default()
                },
            )?
            .capabilities)
        })?;
        if let Some(field) = context.field("procMount").filter(|field| !field.is_nothing())
            && field.string()? != "Default"
        {
            return Err(field.error("only procMount Default is supported"));
        }
        let own = identity(context)?;
        let identity = Identity {
            user: own.user.or(pod.user),
            group: own.group.or(pod.group),
            not_root: own.not_root.or(pod.not_root),
        };
        options.not_root = identity.not_root == Some(true);
        identity.user(context.whole())
    })
}

/// The fields that the security contexts of pods and containers share.
pub(super) fn identity(context: &mut Object<'_>) -> Result<Identity> {
    for profile in ["seccompProfile", "appArmorProfile"] {
        context.get(profile, |field| {
            field.object(|profile| match profile.field("type") {
                Some(kind) if !matches!(&kind.string()?[..], "" | "RuntimeDefault") => {
                    Err(kind.error("only RuntimeDefault, which every container has, is supported"))
                }
                _ => Ok(()),
            })
        })?;
    }
    let id = |field: &Field<'_>| Ok(field.integer(0..=i64::from(i32::MAX))? as u32);
    Ok(Identity {
        user: context.optional("runAsUser", id)?,
        group: context.optional("runAsGroup", id)?,
        not_root: context.optional("runAsNonRoot", Field::boolean)?,
    })
}

impl Identity {
    fn user(self, place: &Field<'_>) -> Result<String> {
        match (self.user, self.group) {
            (Some(0), _) if self.not_root == Some(true) => {
                Err(place.error("runAsNonRoot and a runAsUser of 0 exclude each other"))
            }
            (None, Some(group)) => Ok(format!(":{group}")),
            (None, None) => Ok(String::new()),
            (Some(user), None) => Ok(user.to_string()),
            (Some(user), Some(group)) => Ok(format!("{user}:{group}")),
        }
    }
}
