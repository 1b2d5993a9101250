//! Removal: undoes a registration, deletes a bottle and cleans up after a crash.

use std::sync::Arc;

use super::{BottleError, Bottles};
use crate::model::{Bottle, BottleOperation};
use crate::net::bridges::NetworkError;
use crate::net::enforcement::NetworksError;
use crate::workload::container::ContainerError;

impl Bottles {
    /// Undoes registrations and finishes removals that were interrupted. Containers must be recovered first. Errors of
    /// one bottle are logged; it can be deleted again.
    pub async fn recover(&self) {
        for bottle in self.list() {
            let Some(operation) = bottle.operation else { continue };
            tracing::warn!(bottle.id = %bottle.id, ?operation, "removing a bottle that was interrupted");
            let _lock = self.0.locks.lock(&bottle.id).await;
            if let Err(error) = self.dismantle(&bottle, operation).await {
                tracing::error!(bottle.id = %bottle.id, %error, "a bottle could not be removed");
            }
        }
    }

    /// Removes everything of a bottle; the row, and with it the name, goes last. Every step is idempotent. After an
    /// error it continues but keeps the row, so that the removal can be retried, and returns the first error.
    pub(super) async fn dismantle(&self, bottle: &Bottle, operation: BottleOperation) -> Result<(), BottleError> {
        // Write the journal first: from here on, recovery after a crash finishes the removal.
        let bottle = self
            .update(&bottle.id, move |row| row.operation = Some(operation))
            .await?;
        let mut first = None;
        let mut note = |done: Result<(), BottleError>| {
            if let Err(error) = done {
                tracing::warn!(bottle.id = %bottle.id, %error, "a part of the bottle could not be removed");
                first.get_or_insert(error);
            }
        };
        for service in bottle.start_order.iter().rev() {
            note(self.remove_container(&bottle, service).await);
        }
        note(
            self.0
                .parts
                .policies
                .remove_of(&bottle.id)
                .await
                .map_err(BottleError::RemovePolicies),
        );
        note(self.remove_network(&bottle).await);
        let volumes = self.volumes(&bottle.name);
        note(match operation {
            BottleOperation::Delete { volumes: true } => volumes.remove(&bottle.volumes).await,
            // None of its containers ever ran, so the new volumes contain only files from images.
            BottleOperation::Register => match volumes.remove(&bottle.new_volumes).await {
                Ok(()) => volumes.remove_empty(&bottle.volumes).await,
                failed => failed,
            },
            BottleOperation::Delete { volumes: false } => Ok(()),
        });
        if let Some(error) = first {
            return Err(error);
        }
        let id = bottle.id.clone();
        let remove = self.0.parts.store.transact(move |t| {
            t.remove::<Bottle>(&id);
            Ok::<_, BottleError>(())
        });
        remove.await
    }

    async fn remove_container(&self, bottle: &Arc<Bottle>, service: &str) -> Result<(), BottleError> {
        let Some(id) = bottle.containers.get(service) else {
            return Ok(());
        };
        match self.0.parts.containers.end_and_delete(id).await {
            Ok(()) | Err(ContainerError::NotFound(_)) => Ok(()),
            Err(source) => {
                let service = service.to_owned();
                Err(BottleError::Service { service, source })
            }
        }
    }

    async fn remove_network(&self, bottle: &Bottle) -> Result<(), BottleError> {
        let Some(network) = &bottle.network else {
            return Ok(());
        };
        match self.0.parts.networks.delete(network).await {
            Ok(()) | Err(NetworksError::Network(NetworkError::NotFound(_))) => Ok(()),
            Err(error) => Err(BottleError::RemoveNetwork(error)),
        }
    }
}
