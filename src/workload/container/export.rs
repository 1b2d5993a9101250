//! Takes the files of a container: as an archive, or as a new image.

use super::freeze::Frozen;
use super::{ContainerError, ContainerService, blocking};
use crate::image::{ByteStream, CommitRequest, ImageRef};
use crate::model::{Container, ContainerState};
use crate::observe::metrics::Verb;

/// An image to make of a container.
#[derive(Debug, Clone)]
pub struct CommitOptions {
    /// Name of the new image.
    pub target: ImageRef,
    /// Instructions of a build file that make no files.
    pub changes: Vec<String>,
    /// Who makes the image; may be empty.
    pub author: String,
    /// Remark for its history; may be empty.
    pub message: String,
    /// Whether its processes stand still while its files are read.
    pub pause: bool,
}

impl ContainerService {
    /// The files that a container sees, without what is mounted in it, as a tar. It may run meanwhile.
    pub async fn export(&self, parameter: &str) -> Result<ByteStream, ContainerError> {
        let container = self.find(parameter)?;
        check("export", &container)?;
        let upper = self.dir(&container.id).diff();
        let images = &self.0.services.images;
        Ok(images.export(&container.spec.image.layers, upper).await?)
    }

    /// Makes an image of a container; returns the image's canonical string.
    pub async fn commit(&self, parameter: &str, options: CommitOptions) -> Result<String, ContainerError> {
        let container = self.find(parameter)?;
        let (service, parameter) = (self.clone(), parameter.to_owned());
        self.detached(Verb::ContainerCommit, async move {
            let id = container.id.clone();
            let _lock = service.0.locks.lock(&id).await;
            let container = service.find(&id).map_err(|_| ContainerError::NotFound(parameter))?;
            check("commit", &container)?;
            let runs = container.status.state == ContainerState::Running;
            let freezing = id.clone();
            let frozen = match runs && options.pause {
                true => Some(blocking(move || Ok(Frozen::freeze(&freezing)?)).await?),
                false => None,
            };
            let request = service.request(&container, options, runs && frozen.is_none());
            let image = service.0.services.images.commit(request, frozen).await?;
            tracing::info!(container.id = %id, image = image.id, "container committed");
            Ok(image.id.clone())
        })
        .await
    }

    fn request(&self, container: &Container, options: CommitOptions, is_live: bool) -> CommitRequest {
        let image = &container.spec.image;
        let snapshot = self.snapshot();
        let base = snapshot
            .images()
            .get(&format!("{}:{}", image.repository, image.reference));
        CommitRequest {
            layers: image.layers.clone(),
            base: base.filter(|row| row.diff_ids() == image.layers).cloned(),
            upper: self.dir(&container.id).diff(),
            is_live,
            target: options.target,
            changes: options.changes,
            author: options.author,
            message: options.message,
            made_by: container.spec.process.args.join(" "),
        }
    }
}

/// A container that is being created has no files of its own yet.
fn check(operation: &'static str, container: &Container) -> Result<(), ContainerError> {
    match container.status.state {
        ContainerState::Creating => Err(ContainerError::WrongState {
            operation,
            state: ContainerState::Creating,
        }),
        _ => Ok(()),
    }
}
