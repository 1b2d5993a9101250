//! The owner of a new container: none, a pod or a bottle.

use crate::model::Role;

/// Membership of a container in a pod. The caller holds the pod's lock.
#[derive(Debug, Clone)]
pub struct PodPart {
    /// The pod.
    pub pod_id: String,
    /// Its role in the pod.
    pub role: PodRole,
    /// Host name of all containers of the pod.
    pub host_name: String,
}

/// The role of a container in a pod.
#[derive(Debug, Clone)]
pub enum PodRole {
    /// Holds the namespaces. If the request has no image, it uses the built-in one.
    Infra,
    /// Made from the pod's template.
    Member,
    /// Made by a client, who will start it.
    Added,
}

/// Membership of a container in a bottle. The caller holds the bottle's lock.
#[derive(Debug, Clone)]
pub struct BottlePart {
    /// The bottle. Its row reserves the name of the container.
    pub bottle_id: String,
    /// Name of the service.
    pub service: String,
}

/// The owner of a new container.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// No owner.
    Alone,
    Pod(PodPart),
    Bottle(BottlePart),
}

impl Part {
    pub fn pod(&self) -> Option<&PodPart> {
        match self {
            Self::Pod(part) => Some(part),
            Self::Alone | Self::Bottle(_) => None,
        }
    }

    pub fn bottle(&self) -> Option<&BottlePart> {
        match self {
            Self::Bottle(part) => Some(part),
            Self::Alone | Self::Pod(_) => None,
        }
    }

    /// The role that the row records.
    pub fn role(&self) -> Role {
        match self {
            Self::Alone => Role::Alone,
            Self::Pod(PodPart { pod_id, role, .. }) => {
                let pod = pod_id.clone();
                match role {
                    PodRole::Infra => Role::Infra { pod },
                    PodRole::Member | PodRole::Added => Role::Member { pod },
                }
            }
            Self::Bottle(part) => Role::Service {
                bottle: part.bottle_id.clone(),
            },
        }
    }

    pub fn pod_id(&self) -> Option<&str> {
        self.pod().map(|part| &*part.pod_id)
    }

    pub fn bottle_id(&self) -> Option<&str> {
        self.bottle().map(|part| &*part.bottle_id)
    }
}
