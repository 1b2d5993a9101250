//! Limits and other options of a create request: checked and converted to the stored form. Pure.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::Capability;

use super::{ContainerError, resources};
use crate::model::names::is_host_name;
use crate::model::{ContainerOptions, ContainerRequest, HealthCheck, ImageRunConfig, Probe, RestartPolicy};
use crate::runtime::defaults::CAPABILITIES;
use crate::runtime::{signal, tmpfs};

/// Minimum memory limit with which a container can start, in bytes.
const MIN_MEMORY: u64 = 6 << 20;
/// Maximum number of processes that a kernel supports.
const MAX_PIDS: u32 = 1 << 22;
/// Longest grace period of a stop: one hour.
const MAX_STOP_SECONDS: u32 = 3600;
/// Maximum time of a health check in seconds, and maximum number of retries.
const MAX_CHECK: u32 = 3600;
/// Maximum number of labels, and maximum length of a name or value in bytes.
const MAX_LABELS: usize = 256;
const MAX_LABEL_BYTES: usize = 4096;
/// How many bytes of labels a container takes over from its image.
const MAX_IMAGE_LABELS: usize = 256 << 10;

/// Options as the client wrote them. Zero values stand for the default.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the wire type in `api::management` describes them")]
pub struct OptionsRequest {
    pub entrypoint: Vec<String>,
    pub user: String,
    pub working_dir: String,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub memory: u64,
    pub memory_swap: i64,
    pub shm_size: u64,
    pub ulimits: Vec<String>,
    pub init: bool,
    pub cpus: f64,
    pub pids_limit: u32,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub read_only: bool,
    pub read_only_tmpfs: Option<bool>,
    pub tmpfs: Vec<String>,
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
    pub disable: bool,
    pub exec: Vec<String>,
    pub tcp: u16,
    pub interval: Option<u32>,
    pub timeout: Option<u32>,
    pub retries: Option<u32>,
    pub start_period: Option<u32>,
    pub start_interval: Option<u32>,
    pub end_unhealthy: bool,
}

impl OptionsRequest {
    /// Checks the choices and adds them to what else is asked for.
    pub fn complete(self, request: ContainerRequest) -> Result<ContainerRequest, ContainerError> {
        Ok(ContainerRequest {
            options: check(&self)?,
            no_health_check: self.health_check.is_some_and(|check| check.disable),
            entrypoint: self.entrypoint,
            user: self.user,
            working_dir: self.working_dir,
            ..request
        })
    }
}

/// Checks a request. What it leaves open stays open.
pub fn check(request: &OptionsRequest) -> Result<ContainerOptions, ContainerError> {
    let dir = &request.working_dir;
    if !dir.is_empty() && (!dir.starts_with('/') || dir.contains('\0')) {
        return Err(invalid(format!("workingDir {dir:?} is not an absolute path")));
    }
    // A disabled check means no check, not even that of the image.
    let own = request.health_check.as_ref().filter(|check| !check.disable);
    Ok(ContainerOptions {
        hostname: hostname(&request.hostname)?,
        labels: labels(&request.labels)?,
        memory_bytes: memory(request.memory)?,
        memory_swap: resources::memory_swap(request.memory_swap, request.memory)?,
        shm_bytes: resources::shm(request.shm_size)?,
        ulimits: resources::ulimits(&request.ulimits)?,
        init: request.init,
        cpu_millis: cpu(request.cpus)?,
        pids: pids(request.pids_limit)?,
        capabilities: capabilities(&request.cap_add, &request.cap_drop)?,
        read_only: request.read_only,
        read_only_tmpfs: request.read_only_tmpfs,
        tmpfs: tmpfs(&request.tmpfs)?,
        stop_signal: stop_signal(&request.stop_signal)?,
        stop_seconds: stop_seconds(request.stop_timeout)?,
        restart: restart(&request.restart_policy)?,
        health_check: own.map(health_check).transpose()?,
        end_unhealthy: request.health_check.as_ref().is_some_and(|check| check.end_unhealthy),
        not_root: false,
        readiness_check: None,
    })
}

fn invalid(message: impl Into<String>) -> ContainerError {
    ContainerError::InvalidOption(message.into())
}

fn hostname(name: &str) -> Result<Option<String>, ContainerError> {
    if name.is_empty() {
        return Ok(None);
    }
    if !is_host_name(name) {
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

/// The default set minus the dropped and plus the added ones. Names with or without `CAP_`, in any case; dropping `ALL`
/// leaves only the added ones.
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

/// In-memory file systems, at most one per path.
fn tmpfs(texts: &[String]) -> Result<Vec<String>, ContainerError> {
    let mut places = BTreeSet::new();
    for text in texts {
        let tmpfs = tmpfs::parse(text).map_err(|error| invalid(error.to_string()))?;
        if !places.insert(tmpfs.destination) {
            return Err(invalid(format!("tmpfs {text:?} is at a place that another one has")));
        }
    }
    Ok(texts.to_vec())
}

fn stop_signal(name: &str) -> Result<Option<String>, ContainerError> {
    if name.is_empty() {
        return Ok(None);
    }
    match spelled(name) {
        None => Err(invalid(format!(
            "stopSignal {name:?} is not a signal, as SIGTERM, INT, 3 or SIGRTMIN+3"
        ))),
        signal => Ok(signal),
    }
}

/// The stored spelling of a signal; `None` if the name is not a signal.
fn spelled(text: &str) -> Option<String> {
    let name = signal::name(signal::parse(text)?);
    let has_name = name.bytes().any(|b| b.is_ascii_alphabetic());
    Some(if has_name { format!("SIG{name}") } else { name })
}

/// Fills options that the request leaves open from the image: stop signal, health check and labels. `checks` tells
/// whether the image's health check counts (Kubernetes has its own).
pub(super) fn complete(options: &mut ContainerOptions, image: &ImageRunConfig, checks: bool) {
    if options.stop_signal.is_none() && !image.stop_signal.is_empty() {
        options.stop_signal = spelled(&image.stop_signal);
        if options.stop_signal.is_none() {
            tracing::warn!(
                signal = image.stop_signal,
                "the image's StopSignal is no signal; TERM takes its place"
            );
        }
    }
    if options.health_check.is_none() && checks {
        options.health_check.clone_from(&image.health_check);
    }
    let size = |(name, value): (&String, &String)| name.len() + value.len();
    if image.labels.iter().map(size).sum::<usize>() > MAX_IMAGE_LABELS {
        tracing::warn!("the image has more than {MAX_IMAGE_LABELS} bytes of labels; its containers do without");
        return;
    }
    for (name, value) in &image.labels {
        options.labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
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
        // Both end with a user's stop.
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
    use crate::model::fixtures::tcp_check;

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
    #[case(OptionsRequest { stop_signal: "SIGNOPE".into(), ..Default::default() }, "stopSignal")]
    #[case(OptionsRequest { tmpfs: strings(&["/proc"]), ..Default::default() }, "invalid tmpfs \"/proc\"")]
    #[case(OptionsRequest { tmpfs: strings(&["/run", "/run/:exec"]), ..Default::default() }, "that another one has")]
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
        for text in ["37", "SIGRTMIN+3", "rtmin+3"] {
            assert_eq!(stop_signal(text).unwrap().as_deref(), Some("SIGRTMIN+3"));
        }
        assert_eq!(stop_signal("32").unwrap().as_deref(), Some("32"));
    }

    #[test]
    fn the_image_says_what_the_request_does_not() {
        let check = |retries| HealthCheck { retries, ..tcp_check() };
        let image = ImageRunConfig {
            stop_signal: "quit".into(),
            health_check: Some(check(7)),
            ..ImageRunConfig::default()
        };
        let completed = |mut options: ContainerOptions, image: &ImageRunConfig, checks| {
            complete(&mut options, image, checks);
            (
                options.stop_signal.unwrap_or_default(),
                options.health_check.map(|check| check.retries),
            )
        };
        let open = ContainerOptions::default();
        assert_eq!(completed(open.clone(), &image, true), ("SIGQUIT".into(), Some(7)));
        assert_eq!(completed(open.clone(), &image, false), ("SIGQUIT".into(), None));
        let own = ContainerOptions {
            stop_signal: Some("SIGINT".into()),
            health_check: Some(check(2)),
            ..ContainerOptions::default()
        };
        assert_eq!(completed(own, &image, true), ("SIGINT".into(), Some(2)));
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let labelled = ImageRunConfig {
            labels: labels(&[("a", "image"), ("b", "image")]),
            ..ImageRunConfig::default()
        };
        let mut own = ContainerOptions {
            labels: labels(&[("b", "own"), ("c", "own")]),
            ..ContainerOptions::default()
        };
        super::complete(&mut own, &labelled, true);
        assert_eq!(own.labels, labels(&[("a", "image"), ("b", "own"), ("c", "own")]));
        let large = ImageRunConfig {
            labels: labels(&[("a", &"x".repeat(MAX_IMAGE_LABELS))]),
            ..ImageRunConfig::default()
        };
        super::complete(&mut own, &large, true);
        assert_eq!(own.labels.len(), 3);
        let odd = ImageRunConfig {
            stop_signal: "nonsense".into(),
            ..ImageRunConfig::default()
        };
        assert_eq!(completed(open, &odd, true), (String::new(), None));
    }
}
