use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ContainerRequest;

/// A bottle: containers that were described in one file and live and go together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bottle {
    /// 12 characters, like a container's.
    pub id: String,
    /// Unique among names and ids of bottles.
    pub name: String,
    /// Its services by name, as they were written.
    pub services: BTreeMap<String, BottleService>,
    /// The services, each after its dependencies.
    pub start_order: Vec<String>,
    /// Service -> id of its container, set in the transaction that inserts the container's row. While a container is
    /// missing here, its name is reserved for it. A container listed here may have been removed.
    pub containers: BTreeMap<String, String>,
    /// Names of its volumes.
    pub volumes: Vec<String>,
    /// Those of its volumes that the registration in progress creates.
    #[serde(default)]
    pub new_volumes: Vec<String>,
    /// The network that is created and removed with it; `None` when a service names one.
    pub network: Option<String>,
    /// The operation in progress. Recovery undoes or finishes it.
    pub operation: Option<BottleOperation>,
    /// Registration time.
    pub created_at: Timestamp,
}

/// The journal of a bottle. Recovery treats both entries alike: it removes the whole bottle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BottleOperation {
    /// Registration. After a crash all of it is undone.
    Register,
    /// Removal. After a crash it is finished.
    Delete {
        /// Whether its volumes are removed too.
        volumes: bool,
    },
}

/// A service of a bottle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BottleService {
    /// Its container as it was asked for.
    pub request: ContainerRequest,
    /// What has to be started before it; no service twice.
    pub depends_on: Vec<Dependency>,
}

/// A dependency of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Another service of the bottle.
    pub service: String,
    /// The state it must have reached.
    pub condition: Condition,
}

/// The state a service must reach before its dependents are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Its process has been started.
    #[default]
    Started,
    /// Its health check succeeds.
    Healthy,
}

impl Bottle {
    /// Name of the container of a service.
    pub fn container_name(&self, service: &str) -> String {
        format!("{}-{service}", self.name)
    }
}
