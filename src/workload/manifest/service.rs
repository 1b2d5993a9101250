//! `kind: Service` (`docs/spec/api.md` 11.4).

use super::error::{ManifestError, Problem};
use super::metadata::{identity, or_default};
use super::protocol::{not_a_protocol, protocol};
use super::reader::{Field, Object};
use crate::model::ServicePort;
use crate::workload::balancer::{MAX_AFFINITY, NewService};

/// Default session affinity of a manifest that sets no time, in seconds.
const AFFINITY_SECONDS: i64 = 10_800;

type Result<T> = std::result::Result<T, ManifestError>;

pub(super) fn read(object: &mut Object<'_>) -> Result<NewService> {
    let (name, namespace) = object.get("metadata", |field| field.object(identity))?;
    if name.is_empty() {
        return Err(object.whole().problem(Problem::NoServiceName));
    }
    let mut manifest = NewService {
        name,
        namespace: or_default(namespace),
        ..NewService::default()
    };
    if let Some(spec) = object.field("spec") {
        spec.object(|spec| fill(&mut manifest, spec))?;
    }
    if manifest.ports.is_empty() {
        return Err(object.missing("spec.ports", "a service needs at least one port"));
    }
    if manifest.selector.is_empty() {
        let message = "is missing: the service has no endpoints until it selects pods by their labels";
        object.warn_of_missing("spec.selector", message);
    }
    Ok(manifest)
}

fn fill(manifest: &mut NewService, spec: &mut Object<'_>) -> Result<()> {
    spec.refuse(&["loadBalancerSourceRanges", "externalName"])?;
    manifest.selector = spec.get("selector", Field::string_map)?;
    for field in spec.items("ports")? {
        let port = field.object(port)?;
        let taken = |other: &ServicePort| (other.port, other.protocol) == (port.port, port.protocol);
        if manifest.ports.iter().any(taken) {
            return Err(field.error(format!("port {}/{} is in the service twice", port.port, port.protocol)));
        }
        manifest.ports.push(port);
    }
    if let Some(field) = spec.field("type") {
        match &field.string()?[..] {
            "ExternalName" => return Err(field.error("a service without pods (ExternalName) is not supported")),
            "" | "ClusterIP" => {}
            _ => field.warn("has no effect: every service listens on its ports of the host"),
        }
    }
    manifest.affinity_seconds = affinity(spec)?;
    Ok(())
}

fn port(object: &mut Object<'_>) -> Result<ServicePort> {
    let number = |field: &Field<'_>| Ok(field.integer(1..=65535)? as u16);
    let port = object
        .optional("port", number)?
        .ok_or_else(|| object.missing("port", "a port from 1 to 65535 is required"))?;
    let target_port = object.optional("targetPort", |field| match field.plain() {
        Some(_) => number(field),
        None => Err(field.error("must be a port number; names of ports are not supported here")),
    })?;
    // The name is informational.
    object.field("name");
    let written_protocol = match object.string("protocol")? {
        none if none.is_empty() => "tcp".to_owned(),
        written => written,
    };
    let protocol =
        protocol(&written_protocol).ok_or_else(|| object.missing("protocol", not_a_protocol(&written_protocol)))?;
    Ok(ServicePort {
        port,
        target_port: target_port.unwrap_or(port),
        protocol,
        written_protocol,
    })
}

fn affinity(spec: &mut Object<'_>) -> Result<Option<u32>> {
    let asked = match spec.field("sessionAffinity") {
        None => false,
        Some(field) => match &field.string()?[..] {
            "" | "None" => false,
            "ClientIP" => true,
            other => return Err(field.error(format!("{other:?} is not None or ClientIP"))),
        },
    };
    let seconds = spec.get("sessionAffinityConfig", |field| {
        field.object(|config| {
            config.get("clientIP", |field| {
                let seconds = |field: &Field<'_>| field.integer(1..=i64::from(MAX_AFFINITY));
                field.object(|client| client.optional("timeoutSeconds", seconds))
            })
        })
    })?;
    Ok(asked.then(|| seconds.unwrap_or(AFFINITY_SECONDS) as u32))
}
