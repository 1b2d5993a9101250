//! `/v1/containers` (`docs/spec/api.md` 5).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use axum::extract::State;
use axum::response::Response;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::Management;
use super::conditions::{ConditionView, views};
use crate::api::time::rfc3339;
use crate::api::{
    ApiError, AuditEntry, Code, Failure, OptionalJson, PathParams, StrictJson, Success, SuccessBody, success,
};
use crate::image::ImageRef;
use crate::model::{Container, ContainerRequest, Health, Protocol};
use crate::runtime::mounts;
use crate::workload::conditions::of_container;
use crate::workload::container;
use crate::workload::container::{ContainerError, HealthCheckRequest, OptionsRequest, RestartRequest};
use crate::workload::pod::PodError;

/// A container as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerView {
    /// Id, 12 characters.
    container_id: String,
    /// Name.
    name: String,
    /// Pod it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_id: Option<String>,
    /// `creating`, `created`, `running` or `stopped`.
    state: String,
    /// Process id on the host; 0 without a process.
    pid: i32,
    /// Repository of the image; always contains a `/`.
    image_repository: String,
    /// Tag or digest of the image.
    image_reference: String,
    /// Effective argument vector.
    command: Vec<String>,
    /// IPv4 address.
    address: String,
    /// Published ports.
    forwards: Vec<ForwardView>,
    /// When its making began.
    creating_at: String,
    /// When it was made.
    created_at: String,
    /// Last start (sic).
    stated_at: String,
    /// Last end.
    stopped_at: String,
    /// Exit status of the last run; absent before the first end.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// Why the last run ended: `Completed`, `Error`, `OOMKilled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// More about the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Labels: those of the image, and those of the client, which win.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// What is mounted in it: first its anonymous volumes, then what the client asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<MountView>,
    /// Ports that its image exposes, as `80/tcp`; `forwards` has those that are published.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    exposed_ports: BTreeSet<String>,
    /// How often the restart policy has started it again since a user did.
    #[serde(skip_serializing_if = "is_zero")]
    restart_count: u32,
    /// `starting`, `healthy` or `unhealthy`; absent without a health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    health: Option<Health>,
    /// What is, or is not, as it should be with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<ConditionView>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A published port.
#[derive(Debug, Serialize, ToSchema)]
pub struct ForwardView {
    /// Address of the host; absent for the configured one (`publish_address`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Ipv4)]
    address: Option<Ipv4Addr>,
    /// Port of the host.
    source: u16,
    /// Port of the container.
    destination: u16,
    /// `tcp` or `udp`.
    #[schema(value_type = String)]
    protocol: Protocol,
}

/// A mount of a container.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MountView {
    /// `volume` for an anonymous volume of the image, which is removed with the container; `bind` for a path of the host.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: &'static str,
    /// Path on the host; absent for a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// Path in the container.
    destination: String,
    /// Whether the container cannot write to it.
    read_only: bool,
}

impl MountView {
    fn of(container: &Container) -> Vec<Self> {
        let volumes = container.spec.inherited.volumes.iter().map(|path| Self {
            kind: "volume",
            source: None,
            destination: path.clone(),
            read_only: false,
        });
        let binds = container.spec.mounts.iter().filter_map(|text| mounts::parse(text).ok());
        let binds = binds.map(|mount| Self {
            kind: "bind",
            source: Some(mount.source.display().to_string()),
            destination: mount.destination.display().to_string(),
            read_only: mount.read_only,
        });
        volumes.chain(binds).collect()
    }
}

impl ContainerView {
    /// For a member of a pod, `address` is the pod's address.
    pub(super) fn new(c: &Container, address: Option<Ipv4Addr>) -> Self {
        let exit = c.status.exit.as_ref();
        Self {
            container_id: c.id.clone(),
            name: c.name.clone(),
            pod_id: c.role.pod().map(str::to_owned),
            state: c.status.state.to_string(),
            pid: c.status.process.as_ref().map_or(0, |p| p.pid),
            image_repository: c.spec.image.repository.clone(),
            image_reference: c.spec.image.reference.clone(),
            command: c.spec.process.args.clone(),
            address: address.map_or_else(String::new, |address| address.to_string()),
            forwards: c
                .spec
                .forwards
                .iter()
                .map(|f| ForwardView {
                    address: f.host_address,
                    source: f.host_port,
                    destination: f.container_port,
                    protocol: f.protocol,
                })
                .collect(),
            creating_at: rfc3339(c.status.creating_at),
            created_at: rfc3339(c.status.created_at),
            stated_at: rfc3339(c.status.started_at),
            stopped_at: rfc3339(c.status.stopped_at),
            exit_code: exit.map(|e| e.code),
            reason: exit.map(|e| e.reason.clone()),
            message: exit.map(|e| e.message.clone()),
            labels: c.spec.options.labels.clone(),
            mounts: MountView::of(c),
            exposed_ports: c.spec.inherited.exposed_ports.clone(),
            restart_count: c.status.restarts,
            health: c.status.health,
            conditions: Vec::new(),
        }
    }

    pub(super) fn with_conditions(self, conditions: Vec<ConditionView>) -> Self {
        Self { conditions, ..self }
    }
}

impl ContainerView {
    /// The same with other strings for the four times.
    pub(super) fn with_times(self, [creating_at, created_at, stated_at, stopped_at]: [String; 4]) -> Self {
        Self {
            creating_at,
            created_at,
            stated_at,
            stopped_at,
            ..self
        }
    }

    /// A container of that image that no longer exists.
    pub(super) fn missing(image: &str) -> Self {
        let never = || rfc3339(None);
        let reference = ImageRef::parse(image);
        let of_image = |part: fn(&ImageRef) -> &str| reference.as_ref().map_or("", part).to_owned();
        Self {
            container_id: String::new(),
            name: String::new(),
            pod_id: None,
            state: "missing".to_owned(),
            pid: 0,
            image_repository: of_image(ImageRef::repository),
            image_reference: of_image(ImageRef::reference),
            command: Vec::new(),
            address: String::new(),
            forwards: Vec::new(),
            creating_at: never(),
            created_at: never(),
            stated_at: never(),
            stopped_at: never(),
            exit_code: None,
            reason: None,
            message: None,
            labels: BTreeMap::new(),
            mounts: Vec::new(),
            exposed_ports: BTreeSet::new(),
            restart_count: 0,
            health: None,
            conditions: Vec::new(),
        }
    }
}

/// A new container.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CreateBody {
    /// Image reference, required; pulled when it is not present.
    #[schema(required, example = "docker.io/library/nginx:1.27")]
    image: String,
    /// Replaces entrypoint and cmd of the image.
    command: Vec<String>,
    /// `[[<address>:]<host>:]<container>[/tcp|udp]`, numbers or ranges; without `<host>` a port that is free
    #[schema(example = json!(["8080:80", "127.0.0.1:5353:53/udp", "7000-7009:7000-7009"]))]
    port: Vec<String>,
    /// Whether each port that the image exposes is published at a free port of the host. Not in a pod.
    #[serde(rename = "publishAll")]
    publish_all: bool,
    /// `<host path>:<container path>[:ro|rw]`
    mount: Vec<String>,
    /// `KEY=VALUE`
    env: Vec<String>,
    /// Name of a network [default: raind0]
    network: String,
    /// Pseudo-terminal.
    tty: bool,
    /// Name [default: random]
    name: String,
    /// Pod to join.
    #[serde(rename = "podId")]
    pod_id: String,
    /// Stands before `command` and replaces entrypoint and cmd of the image; `[""]` only does away with the entrypoint.
    entrypoint: Vec<String>,
    /// `user[:group]`, names or numbers [default: the image's]
    user: String,
    /// Working directory [default: the image's, else /]
    #[serde(rename = "workingDir")]
    working_dir: String,
    /// Host name [default: the id]
    hostname: String,
    /// Free words for clients; added to those of the image, and in place of those with the same name.
    labels: BTreeMap<String, String>,
    /// Most memory, in bytes [default: 1 GiB]
    memory: u64,
    /// Most memory and swap together, in bytes; -1 for as much swap as the host has [default: no swap]
    #[serde(rename = "memorySwap")]
    memory_swap: i64,
    /// Size of /dev/shm, in bytes [default: 64 MiB]
    #[serde(rename = "shmSize")]
    shm_size: u64,
    /// `<name>=<soft>[:<hard>]`, -1 for no limit; names as in `ulimit` of `docker run`
    #[schema(example = json!(["nofile=1024:4096", "core=0"]))]
    ulimits: Vec<String>,
    /// Whether a small init is the first process: it passes signals on and reaps what nobody waits for.
    init: bool,
    /// Most processors, as in 0.5 [default: 0.8]
    cpus: f64,
    /// Most processes and threads [default: 512]
    #[serde(rename = "pidsLimit")]
    pids_limit: u32,
    /// Capabilities beyond the default set.
    #[serde(rename = "capAdd")]
    cap_add: Vec<String>,
    /// Capabilities to take from the default set; `ALL` for every one.
    #[serde(rename = "capDrop")]
    cap_drop: Vec<String>,
    /// Read-only root file system.
    #[serde(rename = "readOnly")]
    read_only: bool,
    /// With `readOnly`: whether `/run`, `/tmp` and `/var/tmp` are in memory and writable [default: true]
    #[serde(rename = "readOnlyTmpfs")]
    read_only_tmpfs: Option<bool>,
    /// File systems in memory: `<container path>[:<options>]`, or an object `{"<container path>": "<options>"}`.
    #[serde(deserialize_with = "tmpfs")]
    #[schema(example = json!(["/run:size=64m,mode=755,exec"]))]
    tmpfs: Vec<String>,
    /// Signal that asks it to end: a name with or without `SIG`, a number, `RTMIN+n` [default: the image's, else TERM]
    #[serde(rename = "stopSignal")]
    stop_signal: String,
    /// Seconds from that signal to KILL [default: 3]
    #[serde(rename = "stopTimeout")]
    stop_timeout: Option<u32>,
    /// What happens when it ends by itself.
    #[serde(rename = "restartPolicy")]
    restart_policy: RestartBody,
    /// How to find out whether it works [default: the image's `HEALTHCHECK`]
    #[serde(rename = "healthCheck")]
    health_check: Option<HealthCheckBody>,
}

/// A list of strings, or a map from paths to options, like Docker's `HostConfig.Tmpfs`.
fn tmpfs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list as [\"/run:size=64m\"], or an object as {\"/run\": \"size=64m\"}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut texts = Vec::new();
            while let Some(text) = list.next_element()? {
                texts.push(text);
            }
            Ok(texts)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<Vec<String>, A::Error> {
            let mut texts = Vec::new();
            while let Some((place, options)) = mapping.next_entry::<String, String>()? {
                texts.push(format!("{place}:{options}"));
            }
            Ok(texts)
        }
    }
    d.deserialize_any(Either)
}

/// What happens when a container ends by itself.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestartBody {
    /// `no`, `on-failure`, `always` or `unless-stopped`, which are the same: a user's stop ends both [default: no]
    name: String,
    /// With `on-failure`: at most that often in a row [default: any number]
    #[serde(rename = "maxRetries")]
    max_retries: u32,
}

/// A health check: one of `exec` and `tcp`, or `disable`. Times in seconds.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheckBody {
    /// No health check, the image's neither. Nothing else counts then.
    disable: bool,
    /// A command in the container; healthy when it ends with 0.
    exec: Vec<String>,
    /// A TCP port of the container; healthy when it accepts a connection.
    tcp: u16,
    /// From the end of a try to the next one [default: 30]
    interval: Option<u32>,
    /// How long a try may take [default: 30]
    timeout: Option<u32>,
    /// How many failures in a row make it unhealthy [default: 3]
    retries: Option<u32>,
    /// How long after a start failures do not count [default: 0]
    #[serde(rename = "startPeriod")]
    start_period: Option<u32>,
    /// From the end of a try to the next one in that time [default: 1, or the interval if that is shorter]
    #[serde(rename = "startInterval")]
    start_interval: Option<u32>,
    /// Whether it is ended when it is unhealthy, so that its restart policy takes over.
    #[serde(rename = "endUnhealthy")]
    end_unhealthy: bool,
}

impl CreateBody {
    fn into_request(self) -> Result<ContainerRequest, ContainerError> {
        let b = self;
        let request = ContainerRequest {
            image: b.image,
            command: b.command,
            ports: b.port,
            publish_all: b.publish_all,
            mounts: b.mount,
            env: b.env,
            network: b.network,
            tty: b.tty,
            ..ContainerRequest::default()
        };
        let options = OptionsRequest {
            entrypoint: b.entrypoint,
            user: b.user,
            working_dir: b.working_dir,
            hostname: b.hostname,
            labels: b.labels,
            memory: b.memory,
            memory_swap: b.memory_swap,
            shm_size: b.shm_size,
            ulimits: b.ulimits,
            init: b.init,
            cpus: b.cpus,
            pids_limit: b.pids_limit,
            cap_add: b.cap_add,
            cap_drop: b.cap_drop,
            read_only: b.read_only,
            read_only_tmpfs: b.read_only_tmpfs,
            tmpfs: b.tmpfs,
            stop_signal: b.stop_signal,
            stop_timeout: b.stop_timeout,
            restart_policy: RestartRequest {
                name: b.restart_policy.name,
                max_retries: b.restart_policy.max_retries,
            },
            health_check: b.health_check.map(|h| HealthCheckRequest {
                disable: h.disable,
                exec: h.exec,
                tcp: h.tcp,
                interval: h.interval,
                timeout: h.timeout,
                retries: h.retries,
                start_period: h.start_period,
                start_interval: h.start_interval,
                end_unhealthy: h.end_unhealthy,
            }),
        };
        options.complete(request)
    }
}

/// The id of a container.
#[derive(Debug, Serialize, ToSchema)]
pub struct Id {
    /// Id, or the parameter as given where the route says so.
    pub(super) id: String,
}

/// Start options. The value has no effect: the container's own `tty` counts.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StartBody {
    /// Ignored.
    #[allow(dead_code, reason = "clients send it")]
    tty: bool,
}

/// Sets the container of a request in the audit record.
pub(super) fn about(m: &Management, entry: &AuditEntry, parameter: &str) {
    entry.target(|target| match m.containers.find(parameter) {
        Ok(container) => {
            target.container_id = container.id.clone();
            target.container_name = container.name.clone();
        }
        Err(_) => target.container_id = parameter.to_owned(),
    });
}

/// The error of an operation on one container; `data.id` has the parameter.
fn of(parameter: &str) -> impl Fn(crate::workload::container::ContainerError) -> ApiError + '_ {
    move |error| {
        ApiError::from(error)
            .prefixed("service failed: ")
            .with_data(json!({ "id": parameter }))
    }
}

/// All containers by creation time
#[utoipa::path(get, path = "/v1/containers", tag = "containers",
    responses((status = 200, body = SuccessBody<Vec<ContainerView>>)))]
pub async fn list(State(m): State<Management>) -> Response {
    let (conditions, snapshot) = (m.conditions.revision(), m.store.snapshot());
    m.cached.containers.get((snapshot.revision(), conditions), || {
        let containers = container::list(&snapshot);
        let own = |c: &Container| c.status.attachment.as_ref().map(|a| a.address);
        // In a pod, only the infra container has an address.
        let of_pods: HashMap<&str, Ipv4Addr> = containers
            .iter()
            .filter_map(|c| Some((c.role.pod()?, own(c)?)))
            .collect();
        let address = |c: &Container| own(c).or_else(|| of_pods.get(c.role.pod()?).copied());
        let view = |c: &Container| {
            let conditions = views(of_container(c, &m.conditions));
            ContainerView::new(c, address(c)).with_conditions(conditions)
        };
        let views: Vec<_> = containers.iter().map(|c| view(c)).collect();
        success("retrieve container list success", views)
    })
}

/// One container
#[utoipa::path(get, path = "/v1/containers/{containerId}", tag = "containers",
    params(("containerId" = String, Path, description = "Name, id, or unique id prefix of at least 4 characters")),
    responses((status = 200, body = SuccessBody<ContainerView>), (status = 404, body = Failure),
        (status = 409, body = Failure, description = "The prefix is ambiguous")))]
pub async fn get(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Success<SuccessBody<ContainerView>>, ApiError> {
    about(&m, &entry, &id);
    let container = m.containers.find(&id)?;
    Ok(success(
        "retrieve container info success",
        ContainerView::new(&container, m.containers.address(&container))
            .with_conditions(views(of_container(&container, &m.conditions))),
    ))
}

/// Create a container; it is not started
#[utoipa::path(post, path = "/v1/containers", tag = "containers", request_body = CreateBody,
    responses((status = 200, body = SuccessBody<Id>), (status = 400, body = Failure),
        (status = 404, body = Failure, description = "Image, pod or network unknown"),
        (status = 409, body = Failure, description = "Name, host port or last address taken"),
        (status = 413, body = Failure), (status = 500, body = Failure),
        (status = 502, body = Failure, description = "The registry failed or refused")))]
pub async fn create(
    State(m): State<Management>,
    entry: AuditEntry,
    body: Result<StrictJson<CreateBody>, ApiError>,
) -> Result<Success<SuccessBody<Id>>, ApiError> {
    let no_id = json!({ "id": "" });
    let StrictJson(mut body) = body.map_err(|e| e.with_data(no_id.clone()))?;
    entry.target(|target| {
        target.container_name = body.name.clone();
        target.image_ref = body.image.clone();
        target.command = body.command.clone();
        target.port = body.port.clone();
        target.mount = body.mount.clone();
        target.network = body.network.clone();
        target.tty = body.tty;
    });
    if let Some(n) = body
        .env
        .iter()
        .position(|entry| entry.find('=').is_none_or(|at| at == 0))
    {
        // The message must not contain the entry, which may be a secret.
        let message = format!("env[{n}] is not NAME=value; variables of the client's environment are not known here");
        return Err(ApiError::new(Code::InvalidBody, message)
            .prefixed("service failed: ")
            .with_data(no_id));
    }
    let (pod, name) = (std::mem::take(&mut body.pod_id), std::mem::take(&mut body.name));
    let created = match &pod[..] {
        "" => create_alone(&m, name, body).await.map_err(ApiError::from),
        pod => create_in_pod(&m, pod, name, body).await.map_err(ApiError::from),
    };
    let id = created.map_err(|e| e.prefixed("service failed: ").with_data(no_id))?;
    entry.target(|target| target.container_id = id.clone());
    Ok(success("cotainer created", Id { id }))
}

async fn create_alone(m: &Management, name: String, body: CreateBody) -> Result<String, ContainerError> {
    m.containers.create(name, body.into_request()?).await
}

async fn create_in_pod(m: &Management, pod: &str, name: String, body: CreateBody) -> Result<String, PodError> {
    let pod = m.pods.find(pod, super::pods::DEFAULT_NAMESPACE)?;
    m.pods.add(&pod.id, name, body.into_request()?).await
}

/// Start a created or stopped container
#[utoipa::path(post, path = "/v1/containers/{containerId}/actions/start", tag = "containers",
    params(("containerId" = String, Path)), request_body = StartBody,
    responses((status = 200, body = SuccessBody<Id>), (status = 400, body = Failure), (status = 404, body = Failure),
        (status = 409, body = Failure), (status = 500, body = Failure)))]
pub async fn start(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    body: Result<OptionalJson<StartBody>, ApiError>,
) -> Result<Success<SuccessBody<Id>>, ApiError> {
    about(&m, &entry, &id);
    body.map_err(|e| e.with_data(json!({ "id": id })))?;
    let started = m.containers.start(&id).await.map_err(of(&id))?;
    Ok(success("container started", Id { id: started }))
}

/// Stop a running container: its stop signal, KILL after its stop time-out
#[utoipa::path(post, path = "/v1/containers/{containerId}/actions/stop", tag = "containers",
    params(("containerId" = String, Path)),
    responses((status = 200, body = SuccessBody<Id>), (status = 404, body = Failure), (status = 409, body = Failure),
        (status = 500, body = Failure)))]
pub async fn stop(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Success<SuccessBody<Id>>, ApiError> {
    about(&m, &entry, &id);
    let stopped = m.containers.stop(&id).await.map_err(of(&id))?;
    Ok(success("container stopped", Id { id: stopped }))
}

/// Delete a container that does not run
#[utoipa::path(delete, path = "/v1/containers/{containerId}/actions/delete", tag = "containers",
    params(("containerId" = String, Path)),
    responses((status = 200, body = SuccessBody<Id>), (status = 404, body = Failure), (status = 409, body = Failure),
        (status = 500, body = Failure)))]
pub async fn delete(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Success<SuccessBody<Id>>, ApiError> {
    about(&m, &entry, &id);
    let deleted = m.containers.delete(&id).await.map_err(of(&id))?;
    Ok(success("container deleted", Id { id: deleted }))
}

/// Where the log of a container is
#[utoipa::path(get, path = "/v1/containers/{containerId}/logpath", tag = "containers",
    params(("containerId" = String, Path)),
    responses((status = 200, body = SuccessBody<String>), (status = 404, body = Failure)))]
pub async fn log_path(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Success<SuccessBody<String>>, ApiError> {
    about(&m, &entry, &id);
    let path = m
        .containers
        .log_path(&id)
        .map_err(|e| ApiError::from(e).prefixed("log path: "))?;
    Ok(success("log path", path.to_string_lossy().into_owned()))
}
