//! `bsm.json`: bottles (`docs/spec/storage.md` 3.6). Pure.
//!
//! A container that no longer exists stays listed: our bottle is then `abnormal`, which tells clients that a part is
//! missing, and starting it says which.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::json::{Time, nullable, version_0_1};
use crate::model::{Bottle, BottleService, Condition, Container, ContainerRequest, Dependency};

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(deserialize_with = "version_0_1")]
    version: String,
    #[serde(default, deserialize_with = "nullable")]
    bottles: BTreeMap<String, Record>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    bottle_id: String,
    bottle_name: String,
    #[serde(deserialize_with = "nullable")]
    services: BTreeMap<String, Entry>,
    #[serde(deserialize_with = "nullable")]
    start_order: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    containers: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    policies: Vec<OldPolicy>,
    network: String,
    network_auto: bool,
    created_at: Time,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Entry {
    image: String,
    #[serde(deserialize_with = "nullable")]
    command: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    mount: Vec<String>,
    network: String,
    tty: bool,
    #[serde(deserialize_with = "nullable")]
    depends_on: Vec<String>,
}

/// The policies themselves are in their own store; only the id is read here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct OldPolicy {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    destination: String,
    protocol: String,
    dest_port: i64,
    comment: String,
}

impl Stored {
    /// Whether the bottle exists.
    pub(super) fn has(&self, id: &str) -> bool {
        self.bottles.contains_key(id)
    }

    /// The bottle that a policy belongs to.
    pub(super) fn owner_of(&self, policy: &str) -> Option<String> {
        let has_policy = |(_, bottle): &(&String, &Record)| bottle.policies.iter().any(|p| p.id == policy);
        self.bottles.iter().find(has_policy).map(|(id, _)| id.clone())
    }

    pub(super) fn rows(&self, containers: &[Container], now: Timestamp, warnings: &mut Vec<String>) -> Vec<Bottle> {
        let mut rows = Vec::new();
        for (id, record) in &self.bottles {
            for (service, container) in &record.containers {
                if !containers.iter().any(|c| c.id == *container) {
                    let name = &record.bottle_name;
                    warnings.push(format!(
                        "bottle {name}: the container of {service} is gone ({container})"
                    ));
                }
            }
            // A service that is missing from the order would never be started, and an unknown one in it cannot be.
            let mut start_order: Vec<String> = Vec::new();
            for name in record.start_order.iter().chain(record.services.keys()) {
                if record.services.contains_key(name) && !start_order.contains(name) {
                    start_order.push(name.clone());
                }
            }
            rows.push(Bottle {
                id: id.clone(),
                name: record.bottle_name.clone(),
                services: record
                    .services
                    .iter()
                    .map(|(name, e)| (name.clone(), service(e)))
                    .collect(),
                start_order,
                containers: record.containers.clone(),
                volumes: Vec::new(),
                new_volumes: Vec::new(),
                network: record.network_auto.then(|| record.network.clone()),
                operation: None,
                created_at: record.created_at.0.unwrap_or(now),
            });
        }
        rows
    }
}

fn service(entry: &Entry) -> BottleService {
    let mut depends_on: Vec<Dependency> = Vec::new();
    for service in &entry.depends_on {
        if !depends_on.iter().any(|d| d.service == *service) {
            depends_on.push(Dependency {
                service: service.clone(),
                condition: Condition::Started,
            });
        }
    }
    BottleService {
        request: ContainerRequest {
            image: entry.image.clone(),
            command: entry.command.clone(),
            env: entry.env.clone(),
            ports: entry.ports.clone(),
            mounts: entry.mount.clone(),
            network: entry.network.clone(),
            tty: entry.tty,
            ..ContainerRequest::default()
        },
        depends_on,
    }
}
