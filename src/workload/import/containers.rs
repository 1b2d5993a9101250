//! `csm.json`: containers (`docs/spec/storage.md` 3.1). Pure.
//!
//! The store has no environment, mounts or working directory; they are taken from the container's config.json, or from
//! its image if that cannot be read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{Time, nullable, version_0_1};
use super::machine::{Looks, Seen};
use super::{bottles, images, ipam, pods};
use crate::image::ImageRef;
use crate::model::{
    Container, ContainerImage, ContainerOptions, ContainerSpec, ContainerState, ContainerStatus, Exit, INFRA_PREFIX,
    Image, ImageRunConfig, Inherited, PodGoal, ProcessId, ProcessSpec, RestartPolicy, Role,
};
use crate::runtime::dir::valid_id;
use crate::runtime::state::{REASON_COMPLETED, REASON_ERROR};
use crate::workload::container::unseen_exit;

/// Prefix of the ids of containers that run a build step. Such a container is useless without the build.
const BUILD: &str = "build-";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(deserialize_with = "version_0_1")]
    version: String,
    #[serde(default, deserialize_with = "nullable")]
    containers: BTreeMap<String, Record>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    container_id: String,
    name: String,
    pod_id: String,
    spiffe_id: String,
    state: String,
    pid: i32,
    #[serde(rename = "exit_code")]
    exit_code: i32,
    reason: String,
    message: String,
    #[serde(rename = "log_path")]
    log_path: String,
    tty: bool,
    image_repository: String,
    image_reference: String,
    #[serde(deserialize_with = "nullable")]
    command: Vec<String>,
    bottle_id: String,
    creating_at: Time,
    created_at: Time,
    stated_at: Time,
    stopped_at: Time,
    #[serde(rename = "finished_at")]
    finished_at: Time,
    // The original never set it.
    labels: Value,
    annotations: Value,
    attempt: u64,
}

/// The other inputs of a row.
pub(super) struct Around<'a> {
    pub seen: &'a Seen,
    pub images: &'a [Image],
    pub ipam: &'a ipam::Stored,
    pub pods: &'a pods::Stored,
    pub bottles: &'a bottles::Stored,
    pub now: Timestamp,
}

impl Stored {
    /// The ids that become rows and their recorded pids.
    pub(super) fn pids(&self) -> impl Iterator<Item = (&String, i32)> {
        self.kept().map(|(id, record)| (id, record.pid))
    }

    /// Whether a container of that id becomes a row.
    pub(super) fn keeps(&self, id: &str) -> bool {
        self.kept().any(|(kept, _)| kept == id)
    }

    /// An id becomes part of paths, so skip containers with an id that the original cannot have assigned.
    fn kept(&self) -> impl Iterator<Item = (&String, &Record)> {
        self.containers
            .iter()
            .filter(|(id, _)| valid_id(id) && !id.starts_with(BUILD))
    }

    pub(super) fn rows(&self, around: &Around<'_>, warnings: &mut Vec<String>) -> Vec<Container> {
        let dropped = self.containers.keys().filter(|id| !self.keeps(id));
        warnings
            .extend(dropped.map(|id| format!("container {id} is left out: it is of a build, or its id is not valid")));
        let rows = self.kept().map(|(id, record)| row(id, record, around, warnings));
        let mut rows: Vec<_> = rows.collect();
        join(&mut rows, around.seen);
        rows
    }
}

/// Members of a pod that are in the network namespace of the pod's infra container are bound to its process.
fn join(rows: &mut [Container], seen: &Seen) {
    let network = |c: &Container| seen.get(&c.id).and_then(|looks| looks.network);
    let infra: BTreeMap<String, (ProcessId, (u64, u64))> = rows
        .iter()
        .filter(|c| c.is_infra())
        .filter_map(|c| Some((c.role.pod()?.to_owned(), (c.status.process.clone()?, network(c)?))))
        .collect();
    for row in rows.iter_mut().filter(|c| c.is_member()) {
        let host = row.role.pod().and_then(|pod| infra.get(pod));
        row.journal.joined = host
            .filter(|(_, of_infra)| row.status.process.is_some() && network(row) == Some(*of_infra))
            .map(|(process, _)| process.clone());
    }
}

fn row(id: &str, record: &Record, around: &Around<'_>, warnings: &mut Vec<String>) -> Container {
    let nothing = Looks::default();
    let looks = around.seen.get(id).unwrap_or(&nothing);
    let (state, process, exit) = life(record, looks);
    let image = images::image(&record.image_repository, &record.image_reference);
    let adopted = image.as_ref().map(ImageRef::canonical);
    let adopted = adopted.and_then(|id| around.images.iter().find(|row| row.id == id));
    tell(record, looks, exit.as_ref(), adopted, around, warnings);
    let repository = image.as_ref().map_or(&*record.image_repository, ImageRef::repository);
    let (attachment, forwards) = around.ipam.place(id, warnings);
    let role = role(record, around);
    let goal = role.pod().and_then(|pod| around.pods.goal(pod));
    let is_member = matches!(role, Role::Member { .. });
    let spec = ContainerSpec {
        image: ContainerImage {
            repository: repository.to_owned(),
            reference: record.image_reference.clone(),
            layers: adopted.map_or_else(Vec::new, |image| {
                image.layers.iter().map(|l| l.diff_id.clone()).collect()
            }),
        },
        process: process_spec(record, looks, adopted.map(|image| &image.config)),
        tty: record.tty,
        options: ContainerOptions {
            hostname: looks
                .bundle
                .as_ref()
                .and_then(|b| text(&b.hostname))
                .filter(|name| name != id),
            restart: match is_member && goal.is_some() {
                true => RestartPolicy::Always,
                false => RestartPolicy::No,
            },
            ..ContainerOptions::default()
        },
        mounts: mounts(looks),
        forwards,
        inherited: Inherited::default(),
    };
    let mut row = Container::new(id.to_owned(), record.name.clone(), role, spec);
    row.journal.stopped_by_user = is_member && state == ContainerState::Stopped && goal != Some(PodGoal::Running);
    row.status = ContainerStatus {
        state,
        process,
        exit,
        attachment,
        spiffe_id: text(&record.spiffe_id),
        creating_at: record.creating_at.0,
        created_at: record.created_at.0.or(record.creating_at.0).or(Some(around.now)),
        started_at: record.stated_at.0,
        stopped_at: match state {
            ContainerState::Stopped => record.stopped_at.0.or(record.finished_at.0).or(Some(around.now)),
            _ => None,
        },
        ..ContainerStatus::default()
    };
    row
}

/// The original identifies infra containers by name only.
fn role(record: &Record, around: &Around<'_>) -> Role {
    let bottle = || text(&record.bottle_id).filter(|bottle| around.bottles.has(bottle));
    match text(&record.pod_id) {
        Some(pod) if record.name.starts_with(INFRA_PREFIX) => Role::Infra { pod },
        Some(pod) => Role::Member { pod },
        None => bottle().map_or(Role::Alone, |bottle| Role::Service { bottle }),
    }
}

/// Warns about facts an operator should know.
fn tell(
    record: &Record,
    looks: &Looks,
    exit: Option<&Exit>,
    image: Option<&Image>,
    around: &Around<'_>,
    warnings: &mut Vec<String>,
) {
    let name = &record.name;
    if let Some(exit) = exit.filter(|_| record.state != "stopped" || !looks.directory) {
        let (state, why) = (&record.state, &exit.message);
        warnings.push(format!("container {name}: was {state}, is stopped: {why}"));
    }
    if image.is_none() {
        let (repository, reference) = (&record.image_repository, &record.image_reference);
        warnings.push(format!(
            "container {name}: its image {repository}:{reference} is not there, it cannot be started again"
        ));
    }
    if let Some(bottle) = text(&record.bottle_id).filter(|bottle| !around.bottles.has(bottle)) {
        warnings.push(format!(
            "container {name}: its bottle {bottle} is not there, it stands alone"
        ));
    }
}

fn mounts(looks: &Looks) -> Vec<String> {
    let mount = |m: &super::machine::Mount| {
        let read_only = m.options.iter().any(|option| option == "ro");
        format!("{}:{}{}", m.source, m.destination, if read_only { ":ro" } else { "" })
    };
    looks
        .bundle
        .iter()
        .flat_map(|bundle| &bundle.mounts)
        .map(mount)
        .collect()
}

/// The state of the container, from its record and the findings.
fn life(record: &Record, looks: &Looks) -> (ContainerState, Option<ProcessId>, Option<Exit>) {
    let ended = |exit: Exit| (ContainerState::Stopped, None, Some(exit));
    let failed = |message: &str| Exit {
        message: message.to_owned(),
        ..unseen_exit()
    };
    match (&*record.state, &looks.process) {
        _ if !looks.directory => ended(failed("the directory of the container is missing; delete it")),
        ("running", Some(process)) => (ContainerState::Running, Some(process.clone()), None),
        ("created", Some(process)) => (ContainerState::Created, Some(process.clone()), None),
        ("creating", _) => ended(failed("its creation was not finished; delete it")),
        ("stopped", _) => ended(recorded(record)),
        _ => ended(unseen_exit()),
    }
}

fn recorded(record: &Record) -> Exit {
    let reason = match record.exit_code {
        _ if !record.reason.is_empty() => &record.reason,
        0 => REASON_COMPLETED,
        _ => REASON_ERROR,
    };
    Exit {
        code: record.exit_code,
        reason: reason.to_owned(),
        message: record.message.clone(),
    }
}

/// The process that ran and will run again: always as the runtime's root, as in the original.
fn process_spec(record: &Record, looks: &Looks, image: Option<&ImageRunConfig>) -> ProcessSpec {
    let of_image = ImageRunConfig::default();
    let of_image = image.unwrap_or(&of_image);
    let process = looks.bundle.as_ref().map(|bundle| &bundle.process);
    let default: Vec<String> = of_image.entrypoint.iter().chain(&of_image.cmd).cloned().collect();
    let args = [process.map(|p| &p.args), Some(&record.command), Some(&default)];
    let cwd = [process.map(|p| &p.cwd), Some(&of_image.working_dir)];
    ProcessSpec {
        args: args
            .into_iter()
            .flatten()
            .find(|args| !args.is_empty())
            .cloned()
            .unwrap_or_default(),
        env: process.map_or(&of_image.env, |process| &process.env).clone(),
        cwd: cwd
            .into_iter()
            .flatten()
            .find(|dir| !dir.is_empty())
            .map_or("/", |dir| dir)
            .to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: vec![0],
    }
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
