//! The bottle file: YAML to validated values (`docs/spec/api.md` 12.1 and, for our extensions of the original,
//! `docs/bottles.md`). Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::BottleError;
use super::ports::port;
use super::process_options::{command, environment};
use super::service_options::{health_check, limits, restart};
use crate::model::names::is_name;
use crate::model::{BottleService, Condition, ContainerRequest, Dependency};
use crate::runtime::tmpfs as memory;
use crate::workload::container::{HealthCheckRequest, OptionsRequest};
use crate::workload::manifest::reader::{Field, Object, Source};
use crate::workload::manifest::{ManifestError, Warning, yaml};

/// Maximum length of the name of a bottle, service or volume, in bytes.
const MAX_NAME: usize = 63;

/// A bottle as its file describes it.
#[derive(Debug, Clone)]
pub struct BottleFile {
    /// Name of the bottle.
    pub name: String,
    /// Its services by name; at least one.
    pub services: BTreeMap<String, ServiceFile>,
    /// Its policies, in the order of the file.
    pub policies: Vec<PolicyFile>,
    /// Names of its volumes.
    pub volumes: BTreeSet<String>,
    /// Fields that have no effect.
    pub warnings: Vec<Warning>,
}

/// A service: its stored part, and the options of its container.
#[derive(Debug, Clone)]
pub struct ServiceFile {
    /// As it is stored and shown, but for its choices.
    pub kept: BottleService,
    /// Limits, restart policy, health check and other choices, as they were written.
    pub options: OptionsRequest,
}

/// A policy as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields of the file")]
pub struct PolicyFile {
    pub kind: String,
    pub source: String,
    pub destination: String,
    pub protocol: String,
    pub dest_port: i64,
    pub comment: String,
}

type Result<T> = std::result::Result<T, ManifestError>;

/// Parses a file. Unknown fields are ignored and reported as warnings.
pub fn parse(text: &str) -> std::result::Result<BottleFile, BottleError> {
    let documents = yaml::documents(text).map_err(ManifestError::from)?;
    let (number, node) = match &documents[..] {
        [] => return Err(BottleError::NoName),
        [one] => one,
        [_, (number, second), ..] => {
            let source = Source::new(*number);
            let second = Field::root(&source, String::new(), second);
            return Err(second.error("a bottle file has one document").into());
        }
    };
    let source = Source::new(*number);
    let mut file = Field::root(&source, String::new(), node).object(|root| {
        let services = root.get("services", |field| named(field, service))?;
        Ok(BottleFile {
            name: root.get("bottle", |field| field.object(|bottle| bottle.get("name", name)))?,
            volumes: root.get("volumes", |field| named(field, volume))?.into_keys().collect(),
            policies: root.items("policies")?.iter().map(policy).collect::<Result<_>>()?,
            services,
            warnings: Vec::new(),
        })
    })?;
    if file.name.is_empty() {
        return Err(BottleError::NoName);
    }
    if file.services.is_empty() {
        return Err(BottleError::NoServices);
    }
    file.warnings = source.take_warnings();
    check_volumes(&file)?;
    Ok(file)
}

/// The entries of a mapping whose keys are names.
fn named<T>(field: &Field<'_>, read: impl Fn(&Field<'_>) -> Result<T>) -> Result<BTreeMap<String, T>> {
    let entry = |(key, entry): (&str, Field<'_>)| {
        check_name(&entry, key)?;
        Ok((key.to_owned(), read(&entry)?))
    };
    field.mapping()?.into_iter().map(entry).collect()
}

fn name(field: &Field<'_>) -> Result<String> {
    let name = field.string()?;
    if !name.is_empty() {
        check_name(field, &name)?;
    }
    Ok(name)
}

/// Names become names of containers and directories, and `<bottle>-<service>` must fit too.
fn check_name(field: &Field<'_>, name: &str) -> Result<()> {
    if is_name(name, MAX_NAME) {
        return Ok(());
    }
    Err(field.error(format!(
        "{name:?} is not a name; use up to {MAX_NAME} letters, digits, '_', '.', '-', beginning with a letter or digit"
    )))
}

fn service(field: &Field<'_>) -> Result<ServiceFile> {
    if field.is_nothing() {
        return Err(field.error("image is required"));
    }
    field.object(|object| {
        let image = object.string("image")?;
        if image.is_empty() {
            return Err(object.missing("image", "image is required"));
        }
        let mut mounts = object.get("mount", Field::strings)?;
        mounts.extend(object.get("volumes", Field::strings)?);
        let mut env = object.get("env", Field::strings)?;
        env.extend(object.get("environment", environment)?);
        let request = ContainerRequest {
            image,
            command: object.get("command", command)?,
            env,
            ports: object.items("ports")?.iter().map(port).collect::<Result<_>>()?,
            mounts,
            network: object.string("network")?,
            tty: object.get("tty", Field::boolean)?,
            ..ContainerRequest::default()
        };
        let kept = BottleService {
            request,
            depends_on: object.get("depends_on", depends_on)?,
        };
        Ok(ServiceFile {
            kept,
            options: options(object)?,
        })
    })
}

fn options(object: &mut Object<'_>) -> Result<OptionsRequest> {
    let health_check: Option<HealthCheckRequest> = object.get("healthcheck", health_check)?;
    Ok(OptionsRequest {
        restart_policy: object.get("restart", restart)?,
        health_check,
        read_only: object.get("read_only", Field::boolean)?,
        tmpfs: object.get("tmpfs", tmpfs)?,
        ..limits(object)?
    })
}

/// One entry or a list of them, as in compose files.
fn tmpfs(field: &Field<'_>) -> Result<Vec<String>> {
    let texts = match field.is_list() {
        true => field.strings()?,
        false => vec![field.string()?],
    };
    for text in &texts {
        memory::parse(text).map_err(|error| field.error(error.to_string()))?;
    }
    Ok(texts)
}

/// A list of names, or a mapping from names to `{condition: …}`. Duplicates count once.
fn depends_on(field: &Field<'_>) -> Result<Vec<Dependency>> {
    let mut all: Vec<Dependency> = if field.is_mapping() {
        let entry = |(name, entry): (&str, Field<'_>)| {
            let condition = match entry.is_nothing() {
                true => Condition::Started,
                false => entry.object(|object| object.get("condition", condition))?,
            };
            let service = name.to_owned();
            Ok(Dependency { service, condition })
        };
        field.mapping()?.into_iter().map(entry).collect::<Result<_>>()?
    } else {
        let condition = Condition::Started;
        let names = field.strings()?.into_iter();
        names.map(|service| Dependency { service, condition }).collect()
    };
    let mut seen = BTreeSet::new();
    all.retain(|dependency| seen.insert(dependency.service.clone()));
    Ok(all)
}

fn condition(field: &Field<'_>) -> Result<Condition> {
    match &field.string()?[..] {
        "" | "service_started" => Ok(Condition::Started),
        "service_healthy" => Ok(Condition::Healthy),
        other => Err(field.error(format!("condition {other:?} is not service_started or service_healthy"))),
    }
}

/// A volume is a directory; it has no options.
fn volume(field: &Field<'_>) -> Result<()> {
    match field.is_nothing() {
        true => Ok(()),
        false => field.object(|_| Ok(())),
    }
}

fn policy(field: &Field<'_>) -> Result<PolicyFile> {
    field.object(|object| {
        let mut required = |name: &str| match object.string(name)? {
            text if text.is_empty() => Err(object.missing(name, format!("{name} is required"))),
            text => Ok(text),
        };
        Ok(PolicyFile {
            kind: required("type")?,
            source: required("source")?,
            destination: required("destination")?,
            protocol: object.string("protocol")?,
            dest_port: object.get("dest_port", |field| field.integer(i64::MIN..=i64::MAX))?,
            comment: object.string("comment")?,
        })
    })
}

/// A mount source is a path of the host or a volume of the bottle.
fn check_volumes(file: &BottleFile) -> std::result::Result<(), BottleError> {
    for (service, entry) in &file.services {
        let sources = entry
            .kept
            .request
            .mounts
            .iter()
            .filter_map(|mount| Some(mount.split_once(':')?.0));
        let mut unknown = sources.filter(|source| is_name(source, MAX_NAME) && !file.volumes.contains(*source));
        if let Some(source) = unknown.next() {
            let message = format!("service {service:?} mounts the volume {source:?}, which is not listed in volumes");
            return Err(BottleError::Invalid(message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
