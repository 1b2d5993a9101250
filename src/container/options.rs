//! Limits and other choices of a create request: checked, and translated into what is stored. Pure.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::Capability;

use crate::runtime::defaults::CAPABILITIES;
use crate::store::{ContainerOptions, HealthCheck, Probe, RestartPolicy};

use super::ContainerError;

/// Least memory that a container can start with, in bytes.
const MIN_MEMORY: u64 = 6 << 20;
/// Most processes that a kernel can have.
const MAX_PIDS: u32 = 1 << 22;
/// Longest grace period of a stop: one hour.
const MAX_STOP_SECONDS: u32 = 3600;
/// Longest time of a health check in seconds, and most retries.
const MAX_CHECK: u32 = 3600;
/// Most labels, and most bytes of a name or value.
const MAX_LABELS: usize = 256;
const MAX_LABEL_BYTES: usize = 4096;
/// Signals that may ask a container to end.
const STOP_SIGNALS: [&str; 9] = ["TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL", "WINCH", "PWR"];

/// Choices as the client wrote them. Zero values stand for the default.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the wire type in `api::management` describes them")]
pub struct OptionsRequest {
    pub entrypoint: Vec<String>,
    pub user: String,
    pub working_dir: String,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub memory: u64,
    pub cpus: f64,
    pub pids_limit: u32,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub read_only: bool,
    pub stop_signal: String,
    pub stop_timeout: Option<u32>,
    pub restart_policy: RestartRequest,
    pub health_check: Option<HealthCheckRequest>,
}

/// A restart policy as the client wrote it.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct RestartRequest {
    pub name: String,
    pub max_retries: u32,
}

/// A health check as the client wrote it. Times in seconds; `None` is the default.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct HealthCheckRequest {
    pub exec: Vec<String>,
    pub tcp: u16,
    pub interval: Option<u32>,
    pub timeout: Option<u32>,
    pub retries: Option<u32>,
    pub start_period: Option<u32>,
    pub start_interval: Option<u32>,
    pub end_unhealthy: bool,
}

/// Checks a request. What it leaves open stays open.
pub fn check(request: &OptionsRequest) -> Result<ContainerOptions, ContainerError> {
    let dir = &request.working_dir;
    if !dir.is_empty() && (!dir.starts_with('/') || dir.contains('\0')) {
        return Err(invalid(format!("workingDir {dir:?} is not an absolute path")));
    }
    Ok(ContainerOptions {
        hostname: hostname(&request.hostname)?,
        labels: labels(&request.labels)?,
        memory_bytes: memory(request.memory)?,
        cpu_millis: cpu(request.cpus)?,
        pids: pids(request.pids_limit)?,
        capabilities: capabilities(&request.cap_add, &request.cap_drop)?,
        read_only: request.read_only,
        stop_signal: stop_signal(&request.stop_signal)?,
        stop_seconds: stop_seconds(request.stop_timeout)?,
        restart: restart(&request.restart_policy)?,
        health_check: request.health_check.as_ref().map(health_check).transpose()?,
        end_unhealthy: request.health_check.as_ref().is_some_and(|check| check.end_unhealthy),
        readiness_check: None,
    })
}

fn invalid(message: impl Into<String>) -> ContainerError {
    ContainerError::InvalidOption(message.into())
}

/// RFC 1123: labels of letters, digits and hyphens, separated by dots; at most 63 characters fit the kernel.
fn hostname(name: &str) -> Result<Option<String>, ContainerError> {
    if name.is_empty() {
        return Ok(None);
    }
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes.first().is_some_and(|b| *b != b'-')
            && bytes.last().is_some_and(|b| *b != b'-')
    };
    if name.len() > 63 || !name.split('.').all(label) {
        return Err(invalid(format!(
            "hostname {name:?} is not up to 63 letters, digits, '-' and '.'"
        )));
    }
    Ok(Some(name.to_owned()))
}

fn labels(labels: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ContainerError> {
    let fits = |text: &String| text.len() <= MAX_LABEL_BYTES;
    if labels.len() > MAX_LABELS || !labels.iter().all(|(k, v)| !k.is_empty() && fits(k) && fits(v)) {
        return Err(invalid(format!(
            "labels: at most {MAX_LABELS}, with a name and at most {MAX_LABEL_BYTES} bytes each"
        )));
    }
    Ok(labels.clone())
}

fn memory(bytes: u64) -> Result<Option<u64>, ContainerError> {
    match bytes {
        0 => Ok(None),
        _ if bytes < MIN_MEMORY || bytes > i64::MAX as u64 => Err(invalid(format!(
            "memory {bytes} is not a number of bytes from {MIN_MEMORY} on"
        ))),
        _ => Ok(Some(bytes)),
    }
}

fn cpu(cpus: f64) -> Result<Option<u32>, ContainerError> {
    if cpus == 0.0 {
        return Ok(None);
    }
    if !(0.01..=4096.0).contains(&cpus) {
        return Err(invalid(format!("cpus {cpus} is not between 0.01 and 4096")));
    }
    Ok(Some((cpus * 1000.0).round() as u32))
}

fn pids(limit: u32) -> Result<Option<u32>, ContainerError> {
    if limit > MAX_PIDS {
        return Err(invalid(format!("pidsLimit {limit} is more than {MAX_PIDS}")));
    }
    Ok((limit > 0).then_some(limit))
}

/// The default set without those dropped and with those added. Names with or without `CAP_`, in any case; `ALL` may be
/// dropped, so that only those added remain.
fn capabilities(add: &[String], drop: &[String]) -> Result<Option<Vec<String>>, ContainerError> {
    if add.is_empty() && drop.is_empty() {
        return Ok(None);
    }
    let mut set: BTreeSet<String> = CAPABILITIES.map(str::to_owned).into();
    for name in drop {
        if name.eq_ignore_ascii_case("ALL") {
            set.clear();
        } else {
            set.remove(&capability(name)?);
        }
    }
    for name in add {
        set.insert(capability(name)?);
    }
    Ok(Some(set.into_iter().collect()))
}

fn capability(name: &str) -> Result<String, ContainerError> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    let known = serde_json::from_value::<Capability>(serde_json::Value::String(full.clone())).is_ok();
    if known {
        Ok(full)
    } else {
        Err(invalid(format!("{name:?} is not a capability")))
    }
}

fn stop_signal(name: &str) -> Result<Option<String>, ContainerError> {
    if name.is_empty() {
        return Ok(None);
    }
    let upper = name.to_ascii_uppercase();
    let word = upper.strip_prefix("SIG").unwrap_or(&upper);
    if !STOP_SIGNALS.contains(&word) {
        return Err(invalid(format!(
            "stopSignal {name:?} is not one of {}",
            STOP_SIGNALS.join(", ")
        )));
    }
    Ok(Some(format!("SIG{word}")))
}

fn stop_seconds(seconds: Option<u32>) -> Result<Option<u32>, ContainerError> {
    match seconds {
        Some(seconds) if seconds > MAX_STOP_SECONDS => Err(invalid(format!(
            "stopTimeout {seconds} is more than {MAX_STOP_SECONDS} seconds"
        ))),
        other => Ok(other),
    }
}

fn restart(request: &RestartRequest) -> Result<RestartPolicy, ContainerError> {
    let policy = match &request.name[..] {
        "" | "no" => RestartPolicy::No,
        // A user's stop ends both.
        "always" | "unless-stopped" => RestartPolicy::Always,
        "on-failure" => {
            return Ok(RestartPolicy::OnFailure {
                max_retries: request.max_retries,
            });
        }
        other => {
            return Err(invalid(format!(
                "restartPolicy {other:?} is not no, on-failure, always or unless-stopped"
            )));
        }
    };
    if request.max_retries > 0 {
        return Err(invalid("maxRetries goes with the restart policy on-failure only"));
    }
    Ok(policy)
}

fn health_check(request: &HealthCheckRequest) -> Result<HealthCheck, ContainerError> {
    let probe = match (&request.exec[..], request.tcp) {
        ([], 0) => return Err(invalid("healthCheck needs exec (a command) or tcp (a port)")),
        (words, 0) if words.iter().any(|word| word.contains('\0')) => {
            return Err(invalid("exec of the healthCheck contains a NUL character"));
        }
        ([program, ..], 0) if !program.is_empty() => Probe::Exec(request.exec.clone()),
        ([], port) => Probe::Tcp(port),
        _ => return Err(invalid("healthCheck takes one of exec (a command) and tcp (a port)")),
    };
    let within = |name: &str, value: Option<u32>, default, least| match value.unwrap_or(default) {
        value if (least..=MAX_CHECK).contains(&value) => Ok(value),
        value => Err(invalid(format!(
            "{name} {value} of the healthCheck is not between {least} and {MAX_CHECK}"
        ))),
    };
    Ok(HealthCheck {
        probe,
        interval: within("interval", request.interval, 30, 1)?,
        timeout: within("timeout", request.timeout, 30, 1)?,
        retries: within("retries", request.retries, 3, 1)?,
        successes: 1,
        start_period: within("startPeriod", request.start_period, 0, 0)?,
        start_interval: request
            .start_interval
            .map(|value| within("startInterval", Some(value), 1, 1))
            .transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| w.to_string()).collect()
    }

    fn checked(check: HealthCheckRequest) -> OptionsRequest {
        OptionsRequest {
            health_check: Some(check),
            ..Default::default()
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_stored() {
        assert_eq!(check(&OptionsRequest::default()).unwrap(), ContainerOptions::default());
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let set = |add: &[&str], drop: &[&str]| capabilities(&strings(add), &strings(drop)).unwrap();
        assert_eq!(set(&["net_admin"], &["ALL"]), Some(strings(&["CAP_NET_ADMIN"])));
        let without = set(&[], &["CAP_NET_RAW", "mknod"]).unwrap();
        assert_eq!(without.len(), CAPABILITIES.len() - 2);
        assert!(!without.contains(&"CAP_NET_RAW".to_owned()));
    }

    #[rstest]
    #[case(OptionsRequest { memory: 1024, ..Default::default() }, "memory 1024")]
    #[case(OptionsRequest { cpus: -1.0, ..Default::default() }, "cpus -1")]
    #[case(OptionsRequest { cpus: f64::NAN, ..Default::default() }, "cpus NaN")]
    #[case(OptionsRequest { hostname: "-a".into(), ..Default::default() }, "hostname")]
    #[case(OptionsRequest { hostname: "a..b".into(), ..Default::default() }, "hostname")]
    #[case(OptionsRequest { working_dir: "tmp".into(), ..Default::default() }, "workingDir")]
    #[case(OptionsRequest { cap_add: vec!["CAP_NOPE".into()], ..Default::default() }, "CAP_NOPE")]
    #[case(OptionsRequest { stop_signal: "SIGSTOP".into(), ..Default::default() }, "stopSignal")]
    #[case(OptionsRequest { stop_timeout: Some(4000), ..Default::default() }, "stopTimeout")]
    #[case(OptionsRequest { restart_policy: RestartRequest { name: "maybe".into(), max_retries: 0 }, ..Default::default() }, "restartPolicy")]
    #[case(OptionsRequest { restart_policy: RestartRequest { name: "always".into(), max_retries: 1 }, ..Default::default() }, "maxRetries")]
    #[case(OptionsRequest { pids_limit: u32::MAX, ..Default::default() }, "pidsLimit")]
    #[case(checked(HealthCheckRequest::default()), "needs exec (a command) or tcp (a port)")]
    #[case(checked(HealthCheckRequest { exec: strings(&[""]), ..Default::default() }), "takes one of")]
    #[case(checked(HealthCheckRequest { exec: strings(&["true"]), tcp: 80, ..Default::default() }), "takes one of")]
    #[case(checked(HealthCheckRequest { exec: strings(&["a\0"]), ..Default::default() }), "NUL")]
    #[case(checked(HealthCheckRequest { tcp: 80, interval: Some(0), ..Default::default() }), "interval 0")]
    #[case(checked(HealthCheckRequest { tcp: 80, timeout: Some(3601), ..Default::default() }), "timeout 3601")]
    #[case(checked(HealthCheckRequest { tcp: 80, retries: Some(0), ..Default::default() }), "retries 0")]
    #[case(checked(HealthCheckRequest { tcp: 80, start_period: Some(4000), ..Default::default() }), "startPeriod 4000")]
    fn what_cannot_be_is_refused(#[case] request: OptionsRequest, #[case] part: &str) {
        let error = check(&request).unwrap_err().to_string();
        assert!(error.starts_with("invalid option: ") && error.contains(part), "{error}");
    }

    #[test]
    fn stop_signals_have_one_spelling() {
        for text in ["term", "SIGTERM", "TERM"] {
            assert_eq!(stop_signal(text).unwrap().as_deref(), Some("SIGTERM"));
        }
    }
}
