//! Containers of bottles: only their bottle starts, stops and removes them, and they know each other by name.

use std::fmt::Write;
use std::path::Path;

use super::pod::place_of;
use super::{ContainerError, ContainerService, CreateRequest, PodPart, PodRole, bundle};
use crate::image::{Copied, ImageRef};
use crate::model::{Bottle, Container, PullPolicy, Role, Snapshot, Txn};

/// What a container is in a bottle. The caller holds the bottle's lock.
#[derive(Debug, Clone)]
pub struct BottlePart {
    /// The bottle. Its row keeps the name of the container free.
    pub bottle_id: String,
    /// Name of the service.
    pub service: String,
}

/// What a new container is a part of.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// Of nothing.
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

    /// What the row says of it.
    pub fn role(&self) -> Role {
        match self {
            Self::Alone => Role::Alone,
            Self::Pod(PodPart { pod_id, role, .. }) => {
                let pod = pod_id.clone();
                match role {
                    PodRole::Infra => Role::Infra { pod },
                    PodRole::Member { .. } | PodRole::Added { .. } => Role::Member { pod },
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

/// Enters a container in its bottle, which gives up the name for it.
pub(super) fn enter(t: &mut Txn, part: &BottlePart, id: &str) -> Result<(), ContainerError> {
    let (service, id) = (part.service.clone(), id.to_owned());
    let entered = t.update::<Bottle>(&part.bottle_id, |bottle| drop(bottle.containers.insert(service, id)));
    match entered.map_err(|taken| ContainerError::taken(taken, t.snapshot()))? {
        Some(_) => Ok(()),
        None => Err(ContainerError::BottleNotFound(part.bottle_id.clone())),
    }
}

/// Lines of `/etc/hosts` for the services of the container's bottle, itself included, that have an address.
pub(super) fn hosts_of_services(snapshot: &Snapshot, container: &Container) -> String {
    let mut lines = String::new();
    let bottle = container.role.bottle().and_then(|id| snapshot.bottles().get(id));
    for (service, id) in bottle.iter().flat_map(|bottle| &bottle.containers) {
        let member = snapshot.containers().get(id);
        if let Some((member, place)) = member.and_then(|member| Some((member, place_of(snapshot, member)?))) {
            // Writing to a string has no way to fail.
            let _ = writeln!(lines, "{} {service} {}", place.address, member.name);
        }
    }
    lines
}

impl ContainerService {
    /// Refuses what [`ContainerService::create_in_bottle`] would, as far as it can be known before.
    pub async fn check_for_bottle(&self, request: CreateRequest) -> Result<(), ContainerError> {
        self.check(request, Part::Alone).await.map(drop)
    }

    /// Copies a directory of an image, pulled if it is not here, to an empty directory of the host.
    pub async fn copy_from_image(&self, image: &str, path: &str, target: &Path) -> Result<Copied, ContainerError> {
        let reference = ImageRef::parse(image)?;
        let image = self.obtain_image(&reference, PullPolicy::IfNotPresent).await?;
        let images = &self.0.services.images;
        Ok(images.copy_directory(&image, path, target.to_owned()).await?)
    }

    /// Makes the container of a service that waits for its start, and returns its id.
    pub async fn create_in_bottle(&self, request: CreateRequest, part: BottlePart) -> Result<String, ContainerError> {
        self.create_as(request, Part::Bottle(part)).await
    }

    /// [`ContainerService::start`] for the bottle of a container.
    pub async fn start_in_bottle(&self, id: &str) -> Result<(), ContainerError> {
        self.start_found(self.row(id)?, id).await.map(drop)
    }

    /// [`ContainerService::stop`] for the bottle of a container.
    pub async fn stop_in_bottle(&self, id: &str) -> Result<(), ContainerError> {
        self.stop_found(self.row(id)?, id).await.map(drop)
    }

    /// Has the container see in its `/etc/hosts` all services of its bottle that have an address by now.
    pub async fn refresh_hosts(&self, id: &str) -> Result<(), ContainerError> {
        let _lock = self.0.locks.lock(id).await;
        let (snapshot, container) = (self.snapshot(), self.row(id)?);
        let file = self.dir(id).etc().join("hosts");
        let address = place_of(&snapshot, &container).map(|place| place.address);
        let text = bundle::hosts(&container, address, &hosts_of_services(&snapshot, &container));
        super::blocking(move || bundle::overwrite(&file, &text)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{bottle, container};

    #[test]
    fn services_with_an_address_are_in_hosts() {
        let member = |id: &str, name: &str| {
            let mut member = container(id, name);
            member.role = Role::Service { bottle: "b1".into() };
            member
        };
        let snapshot = Snapshot::build(|t| {
            let mut blog = bottle("b1", "blog", &["db", "web", "gone", "later"]);
            for (service, id) in [("db", "a"), ("web", "b"), ("gone", "c")] {
                blog.containers.insert(service.into(), id.into());
            }
            t.put(blog).unwrap();
            t.put(member("a", "blog-db").address("10.166.1.1")).unwrap();
            t.put(member("b", "blog-web").address("10.166.1.2")).unwrap();
            t.put(container("d", "other").address("10.166.0.1")).unwrap();
        });
        let lines = |id: &str| hosts_of_services(&snapshot, snapshot.containers().get(id).unwrap());
        assert_eq!(lines("a"), "10.166.1.1 db blog-db\n10.166.1.2 web blog-web\n");
        assert_eq!(lines("b"), lines("a"));
        assert_eq!(lines("d"), "");
    }
}
