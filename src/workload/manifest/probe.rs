//! Liveness and readiness probes.

use super::error::ManifestError;
use super::reader::{Field, Object};
use crate::model::{HealthCheck, Probe};

/// Maximum duration of a probe setting in seconds, and maximum number of tries: one day's worth.
const MOST: i64 = 86_400;

/// A port of the container with the name that probes may use.
pub(super) struct NamedPort {
    pub name: String,
    pub port: u16,
}

type Result<T> = std::result::Result<T, ManifestError>;

/// A container that fails it is stopped.
pub(super) fn liveness(field: &Field<'_>, ports: &[NamedPort]) -> Result<HealthCheck> {
    let check = read(field, ports)?;
    match check.successes {
        1 => Ok(check),
        _ => Err(field.error("successThreshold of a liveness probe must be 1")),
    }
}

/// A container that fails it receives no clients from services.
pub(super) fn readiness(field: &Field<'_>, ports: &[NamedPort]) -> Result<HealthCheck> {
    read(field, ports)
}

fn read(field: &Field<'_>, ports: &[NamedPort]) -> Result<HealthCheck> {
    field.object(|object| {
        let number = |least: i64| move |field: &Field<'_>| Ok(field.integer(least..=MOST)? as u32);
        Ok(HealthCheck {
            probe: handler(object, ports)?,
            interval: object.optional("periodSeconds", number(1))?.unwrap_or(10),
            timeout: object.optional("timeoutSeconds", number(1))?.unwrap_or(1),
            retries: object.optional("failureThreshold", number(1))?.unwrap_or(3),
            successes: object.optional("successThreshold", number(1))?.unwrap_or(1),
            start_period: object.optional("initialDelaySeconds", number(0))?.unwrap_or(0),
            start_interval: None,
        })
    })
}

fn handler(object: &mut Object<'_>, ports: &[NamedPort]) -> Result<Probe> {
    object.refuse(&["grpc"])?;
    let exec = object.optional("exec", |field| {
        let command = field.object(|exec| exec.get("command", Field::strings))?;
        match command.first().is_none_or(String::is_empty) {
            true => Err(field.error("a command is required")),
            false => Ok(Probe::Exec(command)),
        }
    })?;
    let tcp = object.optional("tcpSocket", |field| {
        field.object(|tcp| {
            tcp.refuse(&["host"])?;
            Ok(Probe::Tcp(port(tcp, ports)?))
        })
    })?;
    let http = object.optional("httpGet", |field| field.object(|get| http(get, ports)))?;
    let mut handlers = [exec, tcp, http].into_iter().flatten();
    match (handlers.next(), handlers.next()) {
        (Some(probe), None) => Ok(probe),
        _ => Err(object.whole().error("a probe needs one of exec, tcpSocket and httpGet")),
    }
}

fn http(get: &mut Object<'_>, ports: &[NamedPort]) -> Result<Probe> {
    get.refuse(&["host", "httpHeaders"])?;
    if let Some(scheme) = get.field("scheme").filter(|field| !field.is_nothing())
        && !scheme.string()?.eq_ignore_ascii_case("http")
    {
        return Err(scheme.error("only the scheme HTTP is supported"));
    }
    let path = get.get("path", |field| {
        let path = field.string()?;
        match path.bytes().all(|b| b.is_ascii_graphic()) && (path.is_empty() || path.starts_with('/')) {
            true => Ok(path),
            false => Err(field.error(format!("{path:?} is not an absolute path of visible ASCII characters"))),
        }
    })?;
    let path = if path.is_empty() { "/".to_owned() } else { path };
    Ok(Probe::Http {
        path,
        port: port(get, ports)?,
    })
}

/// A number, or the name of a container port.
fn port(object: &mut Object<'_>, ports: &[NamedPort]) -> Result<u16> {
    let Some(field) = object.field("port") else {
        return Err(object.missing("port", "a port is required"));
    };
    let name = field.string()?;
    let named = ports.iter().find(|port| !name.is_empty() && port.name == name);
    match named {
        Some(port) => Ok(port.port),
        None if name.bytes().all(|b| b.is_ascii_digit()) => Ok(field.integer(1..=65535)? as u16),
        None => Err(field.error(format!("the container has no port named {name:?}"))),
    }
}
