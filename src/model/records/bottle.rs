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
    /// The services, each after all that it depends on.
    pub start_order: Vec<String>,
    /// Service -> id of its container, entered together with the container's row. The names of containers that are not
    /// in here are kept free for them. A container in here may be gone.
    pub containers: BTreeMap<String, String>,
    /// Names of its volumes.
    pub volumes: Vec<String>,
    /// Those of them that its registration makes, while it is being made.
    #[serde(default)]
    pub new_volumes: Vec<String>,
    /// The network that comes and goes with it; `None` when a service names one.
    pub network: Option<String>,
    /// What the daemon is in the middle of. Recovery undoes or finishes it.
    pub operation: Option<BottleOperation>,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// The journal of a bottle. Both entries lead to the same end: nothing of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BottleOperation {
    /// It is being made. After a crash all of it is undone.
    Register,
    /// It is being removed. After a crash that is finished.
    Delete {
        /// Whether its volumes go too.
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

/// Something that a service waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Another service of the bottle.
    pub service: String,
    /// How far it has to be.
    pub condition: Condition,
}

/// How far a service has to be before those that depend on it are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Its process was released.
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
