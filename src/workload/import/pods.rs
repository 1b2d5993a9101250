//! `psm.json`: pods, templates, replica sets (`docs/spec/storage.md` 3.4). Pure.
//!
//! Our pods contain their template, so a template that no pod and no set uses is simply not read. Namespaces and their
//! owner are not stored: they follow from the infra container's process, which was checked.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::json::{Time, nullable, version};
use super::services::namespace;
use crate::model::{
    ContainerRequest, Pod, PodContainer, PodGoal, PodSpec, PodTemplate, ReplicaSet, RestartPolicy, Rollout,
    UpdateStrategy,
};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    #[serde(deserialize_with = "version_0_3")]
    version: String,
    #[serde(default, deserialize_with = "nullable")]
    pods: BTreeMap<String, Record>,
    #[serde(default, deserialize_with = "nullable")]
    pod_templates: BTreeMap<String, Template>,
    #[serde(default, deserialize_with = "nullable")]
    replica_sets: BTreeMap<String, Set>,
}

/// Earlier versions lack only templates and sets.
fn version_0_3<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    version(d, &["0.1.0", "0.2.0", "0.3.0"])
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    #[serde(rename = "podId")]
    pod_id: String,
    #[serde(rename = "templateId")]
    template_id: String,
    name: String,
    namespace: String,
    uid: String,
    state: String,
    #[serde(rename = "ownerPid")]
    owner_pid: i64,
    #[serde(rename = "networkNS")]
    network_ns: String,
    #[serde(rename = "ipcNS")]
    ipc_ns: String,
    #[serde(rename = "utsNS")]
    uts_ns: String,
    #[serde(rename = "userNS")]
    user_ns: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
    #[serde(rename = "createdAt")]
    created_at: Time,
    #[serde(rename = "startedAt")]
    started_at: Time,
    #[serde(rename = "stoppedAt")]
    stopped_at: Time,
    #[serde(rename = "stoppedByUser")]
    stopped_by_user: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Template {
    template_id: String,
    spec: TemplateSpec,
    created_at: Time,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct TemplateSpec {
    name: String,
    namespace: String,
    #[serde(rename = "networkNS")]
    network_ns: String,
    #[serde(rename = "ipcNS")]
    ipc_ns: String,
    #[serde(rename = "utsNS")]
    uts_ns: String,
    #[serde(rename = "userNS")]
    user_ns: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    containers: Vec<Entry>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    name: String,
    image: String,
    #[serde(deserialize_with = "nullable")]
    command: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    port: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    mount: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    network: String,
    tty: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Set {
    replica_set_id: String,
    spec: SetSpec,
    created_at: Time,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SetSpec {
    name: String,
    namespace: String,
    /// The original accepted any number, and a negative one failed later.
    replicas: i64,
    template_id: String,
    #[serde(deserialize_with = "nullable")]
    selector: BTreeMap<String, String>,
}

impl Stored {
    /// Desired state of a pod; `None` if there is no such pod. The original restarts a pod that its user did not stop.
    /// A pod without a template cannot be recreated, so no controller touches it.
    pub(super) fn goal(&self, pod: &str) -> Option<PodGoal> {
        let record = self.pods.get(pod)?;
        Some(match &*record.state {
            _ if record.stopped_by_user => PodGoal::Stopped,
            _ if !self.pod_templates.contains_key(&record.template_id) => PodGoal::Created,
            "running" | "degraded" | "stopped" => PodGoal::Running,
            _ => PodGoal::Created,
        })
    }

    pub(super) fn rows(&self, now: Timestamp, warnings: &mut Vec<String>) -> (Vec<Pod>, Vec<ReplicaSet>) {
        let mut sets = Vec::new();
        for (id, set) in &self.replica_sets {
            match self.pod_templates.get(&set.spec.template_id) {
                Some(template) => {
                    if u32::try_from(set.spec.replicas).is_err() {
                        let (name, replicas) = (&set.spec.name, set.spec.replicas);
                        warnings.push(format!(
                            "replica set {name}: {replicas} is no number of replicas, it has none"
                        ));
                    }
                    sets.push(set_row(id, set, template, now));
                }
                None => warnings.push(format!("replica set {} is left out: it has no template", set.spec.name)),
            }
        }
        let pods = self.pods.iter().map(|(id, record)| {
            let template = self.pod_templates.get(&record.template_id);
            if template.is_none() {
                warnings.push(format!("pod {} has no template: it is left as it is", record.name));
            }
            let owner = sets.iter().find(|set| set.template.id == record.template_id);
            Pod {
                id: id.clone(),
                name: record.name.clone(),
                namespace: namespace(&record.namespace),
                uid: record.uid.clone(),
                owner: owner.map(|set| set.id.clone()),
                template: PodTemplate {
                    id: record.template_id.clone(),
                    labels: record.labels.clone(),
                    annotations: record.annotations.clone(),
                    spec: template.map(|t| spec(&t.spec)).unwrap_or_default(),
                },
                goal: self.goal(id).unwrap_or(PodGoal::Created),
                created_at: record.created_at.0.unwrap_or(now),
                started_at: record.started_at.0,
                stopped_at: record.stopped_at.0,
                problem: None,
                successor: None,
            }
        });
        (pods.collect(), sets)
    }
}

fn set_row(id: &str, set: &Set, template: &Template, now: Timestamp) -> ReplicaSet {
    let name = [&set.spec.name, &template.spec.name]
        .into_iter()
        .find(|name| !name.is_empty());
    let name = name.map_or(id, |name| name).to_owned();
    let selector = match set.spec.selector.is_empty() {
        true => &template.spec.labels,
        false => &set.spec.selector,
    };
    ReplicaSet {
        id: id.to_owned(),
        manifest_name: name.clone(),
        name,
        namespace: namespace(&set.spec.namespace),
        replicas: u32::try_from(set.spec.replicas).unwrap_or(0),
        selector: selector.clone(),
        template: PodTemplate {
            id: set.spec.template_id.clone(),
            labels: template.spec.labels.clone(),
            annotations: template.spec.annotations.clone(),
            spec: spec(&template.spec),
        },
        update: UpdateStrategy::Replace,
        rollout: Rollout::default(),
        removing: false,
        created_at: set.created_at.0.unwrap_or(now),
    }
}

/// The original restarts members that exited.
fn spec(old: &TemplateSpec) -> PodSpec {
    let entry = |entry: &Entry| PodContainer {
        name: entry.name.clone(),
        request: ContainerRequest {
            image: entry.image.clone(),
            command: entry.command.clone(),
            env: entry.env.clone(),
            ports: entry.port.clone(),
            mounts: entry.mount.clone(),
            network: entry.network.clone(),
            tty: entry.tty,
            ..ContainerRequest::default()
        },
        volume_mounts: Vec::new(),
    };
    PodSpec {
        restart: RestartPolicy::Always,
        containers: old
            .containers
            .iter()
            .filter(|e| !e.name.is_empty())
            .map(entry)
            .collect(),
        ..PodSpec::default()
    }
}
