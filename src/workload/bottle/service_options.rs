//! Limits, restart policy and health check of a service, in the syntax of compose files. Pure.

use super::duration::{MOST, seconds};
use super::process_options::process;
use crate::workload::container::{HealthCheckRequest, OptionsRequest, RestartRequest};
use crate::workload::manifest::ManifestError;
use crate::workload::manifest::reader::{Field, Object};

type Result<T> = std::result::Result<T, ManifestError>;

/// `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:<most in a row>`.
pub(super) fn restart(field: &Field<'_>) -> Result<RestartRequest> {
    let text = field.string()?;
    let (name, max_retries) = match text.strip_prefix("on-failure:") {
        Some(most) => ("on-failure", most.parse().ok().filter(|most| *most > 0)),
        None => (&text[..], Some(0)),
    };
    match (name, max_retries) {
        ("" | "no" | "always" | "unless-stopped" | "on-failure", Some(max_retries)) => Ok(RestartRequest {
            name: name.to_owned(),
            max_retries,
        }),
        _ => Err(field.error(format!(
            "restart {text:?} is not no, always, unless-stopped, on-failure or on-failure:<number>"
        ))),
    }
}

/// `mem_limit`, `memswap_limit`, `shm_size`, `ulimits`, `init`, `cpus`, `pids_limit`, and the fields of [`process`].
pub(super) fn limits(object: &mut Object<'_>) -> Result<OptionsRequest> {
    let cpus = |field: &Field<'_>| match field.string()?.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() => Ok(cpus),
        _ => Err(field.error("must be a number of processors, as 0.5")),
    };
    let memory = |field: &Field<'_>| {
        let text = field.string()?;
        bytes(&text).ok_or_else(|| field.error(format!("{text:?} is not an amount of memory, as 512m or 1g")))
    };
    let swap = |field: &Field<'_>| match &field.string()?[..] {
        "-1" => Ok(-1),
        _ => Ok(i64::try_from(memory(field)?).unwrap_or(i64::MAX)),
    };
    Ok(OptionsRequest {
        memory: object.get("mem_limit", memory)?,
        memory_swap: object.get("memswap_limit", swap)?,
        shm_size: object.get("shm_size", memory)?,
        ulimits: object.get("ulimits", ulimits)?,
        init: object.get("init", Field::boolean)?,
        cpus: object.get("cpus", cpus)?,
        pids_limit: object.get("pids_limit", |field| number(field, 0, u32::MAX))?,
        ..process(object)?
    })
}

/// A mapping from names to numbers, or to `{soft: …, hard: …}`; as in `docker run`.
fn ulimits(field: &Field<'_>) -> Result<Vec<String>> {
    let limit = |(name, value): (&str, Field<'_>)| {
        if !value.is_mapping() {
            return Ok(format!("{name}={}", value.string()?));
        }
        let (soft, hard) = value.object(|object| Ok((object.string("soft")?, object.string("hard")?)))?;
        Ok(format!("{name}={soft}:{hard}"))
    };
    field.mapping()?.into_iter().map(limit).collect()
}

/// A number of bytes with one of the units b, k, m and g (also kb, mb, gb, Ki, Mi, Gi), all powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite())?;
    let power = match &unit.trim_start().to_ascii_lowercase()[..] {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 1,
        "m" | "mb" | "mi" | "mib" => 2,
        "g" | "gb" | "gi" | "gib" => 3,
        _ => return None,
    };
    let bytes = number * 1024f64.powi(power);
    (bytes <= i64::MAX as f64).then_some(bytes as u64)
}

/// A health check. A disabled one is recorded explicitly, so that the image's is not used instead.
pub(super) fn health_check(field: &Field<'_>) -> Result<Option<HealthCheckRequest>> {
    field.object(|object| {
        let disabled = object.get("disable", Field::boolean)?;
        let test = object.optional("test", test)?;
        let exec = object.optional("exec", Field::strings)?;
        let tcp = object.get("tcp", |field| number(field, 1, 65_535))? as u16;
        let check = HealthCheckRequest {
            tcp,
            interval: object.optional("interval", seconds)?,
            timeout: object.optional("timeout", seconds)?,
            retries: object.optional("retries", |field| number(field, 1, MOST))?,
            start_period: object.optional("start_period", seconds)?,
            start_interval: object.optional("start_interval", seconds)?,
            ..HealthCheckRequest::default()
        };
        let exec = match (test, exec) {
            (Some(None), None) if tcp == 0 => return Ok(Some(none())),
            (Some(Some(command)), None) | (None, Some(command)) if tcp == 0 => command,
            (None, None) if tcp > 0 => Vec::new(),
            _ if disabled => return Ok(Some(none())),
            _ => return Err(object.whole().error("a healthcheck needs one of test, exec and tcp")),
        };
        let check = HealthCheckRequest { exec, ..check };
        Ok(Some(if disabled { none() } else { check }))
    })
}

fn none() -> HealthCheckRequest {
    HealthCheckRequest {
        disable: true,
        ..HealthCheckRequest::default()
    }
}

/// A command line for the shell, or a list: `[CMD, …]`, `[CMD-SHELL, …]`, `[NONE]`.
fn test(field: &Field<'_>) -> Result<Option<Vec<String>>> {
    let shell = |line: &str| Some(["/bin/sh", "-c", line].map(str::to_owned).to_vec());
    if !field.is_list() {
        return Ok(shell(&field.string()?));
    }
    let words = field.strings()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match &words[..] {
        ["NONE"] => Ok(None),
        ["CMD", command @ ..] if !command.is_empty() => Ok(Some(command.iter().map(|w| (*w).to_owned()).collect())),
        ["CMD-SHELL", line] => Ok(shell(line)),
        _ => Err(field.error("must be a command line, [CMD, <program>, …], [CMD-SHELL, <line>] or [NONE]")),
    }
}

fn number(field: &Field<'_>, least: u32, most: u32) -> Result<u32> {
    // In the range of both types.
    Ok(field.integer(least.into()..=most.into())? as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_the_units_of_compose_files() {
        let expected = [
            ("512m", 512 << 20),
            ("1.5g", 3 << 29),
            ("64Mi", 64 << 20),
            ("100", 100),
            ("10 kB", 10_240),
            ("7b", 7),
        ];
        for (text, value) in expected {
            assert_eq!(bytes(text), Some(value), "{text}");
        }
        for text in ["", "m", "-1", "1t", "1.2.3m", "99999999999g", "1e3"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
