//! Containers of bottles: only the bottle starts, stops and removes them, and they resolve each other by service name.

use std::path::Path;

use super::hosts::{hosts, hosts_of_services};
use super::membership::place_of;
use super::part::{BottlePart, Part};
use super::{ContainerError, ContainerService, blocking, bundle};
use crate::image::{Copied, ImageRef};
use crate::model::{Bottle, ContainerRequest, PullPolicy, Txn};

/// Enters a container in its bottle, which passes the name on to it.
pub(super) fn enter(t: &mut Txn, part: &BottlePart, id: &str) -> Result<(), ContainerError> {
    let (service, id) = (part.service.clone(), id.to_owned());
    let entered = t.update::<Bottle>(&part.bottle_id, |bottle| drop(bottle.containers.insert(service, id)));
    match entered.map_err(|taken| ContainerError::taken(taken, t.snapshot()))? {
        Some(_) => Ok(()),
        None => Err(ContainerError::BottleNotFound(part.bottle_id.clone())),
    }
}

impl ContainerService {
    /// Refuses what [`ContainerService::create_in_bottle`] would, as far as it can be known before.
    pub async fn check_for_bottle(&self, name: String, request: ContainerRequest) -> Result<(), ContainerError> {
        self.check(name, request, Part::Alone).await.map(drop)
    }

    /// Copies a directory of an image, which is pulled if absent, to an empty directory of the host.
    pub async fn copy_from_image(&self, image: &str, path: &str, target: &Path) -> Result<Copied, ContainerError> {
        let reference = ImageRef::parse(image)?;
        let image = self.obtain_image(&reference, PullPolicy::IfNotPresent).await?;
        let images = &self.0.services.images;
        Ok(images.copy_directory(&image, path, target.to_owned()).await?)
    }

    /// Makes the container of a service that waits for its start, and returns its id.
    pub async fn create_in_bottle(
        &self,
        name: String,
        request: ContainerRequest,
        part: BottlePart,
    ) -> Result<String, ContainerError> {
        self.create_as(name, request, Part::Bottle(part)).await
    }

    /// [`ContainerService::start`], called by the container's bottle.
    pub async fn start_in_bottle(&self, id: &str) -> Result<(), ContainerError> {
        self.start_found(self.row(id)?, id).await.map(drop)
    }

    /// [`ContainerService::stop`], called by the container's bottle.
    pub async fn stop_in_bottle(&self, id: &str) -> Result<(), ContainerError> {
        self.stop_found(self.row(id)?, id).await.map(drop)
    }

    /// Updates the container's `/etc/hosts` with all services of its bottle that have an address by now.
    pub async fn refresh_hosts(&self, id: &str) -> Result<(), ContainerError> {
        let _lock = self.0.locks.lock(id).await;
        let (snapshot, container) = (self.snapshot(), self.row(id)?);
        let file = self.dir(id).etc().join("hosts");
        let address = place_of(&snapshot, &container).map(|place| place.address);
        let text = hosts(&container, address, &hosts_of_services(&snapshot, &container));
        blocking(move || bundle::overwrite(&file, &text)).await
    }
}
