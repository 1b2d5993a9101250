//! `ssm.json`: services (`docs/spec/storage.md` 3.5). Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ipam::protocol;
use super::json::{Time, nullable, version_0_1};
use crate::model::{Service, ServicePort};

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(deserialize_with = "version_0_1")]
    version: String,
    #[serde(default, deserialize_with = "nullable")]
    services: BTreeMap<String, Record>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(default)]
    service_id: String,
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default, deserialize_with = "nullable")]
    selector: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<Port>,
    #[serde(default)]
    created_at: Time,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    port: u16,
    #[serde(default)]
    target_port: u16,
    #[serde(default)]
    protocol: String,
}

impl Stored {
    pub(super) fn rows(&self, now: Timestamp, warnings: &mut Vec<String>) -> Vec<Service> {
        let mut rows = Vec::new();
        for (id, record) in &self.services {
            let mut ports: Vec<ServicePort> = Vec::new();
            for port in &record.ports {
                let Some(protocol) = protocol(&port.protocol) else {
                    let (name, number, word) = (&record.name, port.port, &port.protocol);
                    warnings.push(format!(
                        "service {name}: port {number} is left out: unknown protocol {word:?}"
                    ));
                    continue;
                };
                if ports.iter().any(|p| (p.port, p.protocol) == (port.port, protocol)) {
                    let (name, number) = (&record.name, port.port);
                    warnings.push(format!("service {name}: port {number} is left out: it is there twice"));
                    continue;
                }
                ports.push(ServicePort {
                    port: port.port,
                    target_port: if port.target_port == 0 {
                        port.port
                    } else {
                        port.target_port
                    },
                    protocol,
                    written_protocol: port.protocol.clone(),
                });
            }
            rows.push(Service {
                id: id.clone(),
                name: record.name.clone(),
                namespace: namespace(&record.namespace),
                selector: record.selector.clone(),
                ports,
                affinity_seconds: None,
                created_at: record.created_at.0.unwrap_or(now),
            });
        }
        rows
    }
}

/// A namespace; empty is the default one.
pub(super) fn namespace(written: &str) -> String {
    if written.is_empty() { "default" } else { written }.to_owned()
}
