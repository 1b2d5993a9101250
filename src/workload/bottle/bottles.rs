//! The operations on bottles.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::BottleError;
use super::volumes::Volumes;
use crate::model::{Bottle, BottleOperation, Claim, Kind, Snapshot, by_creation};
use crate::net::enforcement::Networks;
use crate::net::policy::PolicyService;
use crate::ops::conditions::{ConditionType, Conditions, Failure};
use crate::ops::lock::KeyedLocks;
use crate::ops::task::Operations;
use crate::store::Store;
use crate::workload::container::{ContainerError, ContainerService};

/// Dependencies of the service.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct BottleParts {
    pub store: Store,
    pub containers: ContainerService,
    pub networks: Networks,
    pub policies: PolicyService,
    pub conditions: Conditions,
    /// Directory of the volumes of all bottles.
    pub volume_root: PathBuf,
}

/// All operations on bottles. Clones share state.
#[derive(Clone)]
pub struct Bottles(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) parts: BottleParts,
    pub(super) locks: KeyedLocks,
    operations: Operations,
    /// By bottle, cancels the start that waits for a service to become healthy.
    waiting: Mutex<HashMap<String, CancellationToken>>,
}

impl Bottles {
    /// A service on top of these. Nothing happens before [`Bottles::recover`].
    pub fn new(parts: BottleParts) -> Self {
        Self(Arc::new(Inner {
            parts,
            locks: KeyedLocks::default(),
            operations: Operations::default(),
            waiting: Mutex::default(),
        }))
    }

    /// All bottles by creation time, then id.
    pub fn list(&self) -> Vec<Arc<Bottle>> {
        by_creation(self.snapshot().bottles().iter().cloned())
    }

    /// The bottle of that name, else of that id.
    pub fn find(&self, parameter: &str) -> Result<Arc<Bottle>, BottleError> {
        find_in(&self.snapshot(), parameter).ok_or_else(|| BottleError::NotFound(parameter.to_owned()))
    }

    /// Starts all containers that do not run, in order. A service whose dependency failed is skipped; all others are
    /// started, and the first failure is returned.
    pub async fn start(&self, parameter: &str) -> Result<(), BottleError> {
        self.locked(parameter, async |service, bottle| {
            if bottle.operation.is_some() {
                return Err(BottleError::Unfinished(bottle.name.clone()));
            }
            let stop = service.begin_waiting(&bottle.id);
            let started = service.start_in_order(&bottle, &stop).await;
            service.note_start(&bottle.id, &started);
            started?;
            tracing::info!(bottle.id = %bottle.id, bottle.name = %bottle.name, "bottle started");
            Ok(())
        })
        .await
    }

    /// Stops all running containers in reverse order, continuing after failures. Returns the first failure.
    pub async fn stop(&self, parameter: &str) -> Result<(), BottleError> {
        self.end_waiting(parameter);
        self.locked(parameter, async |service, bottle| {
            let mut result = Ok(());
            for name in bottle.start_order.iter().rev() {
                let Some(id) = bottle.containers.get(name) else {
                    continue;
                };
                match service.0.parts.containers.stop_in_bottle(id).await {
                    Ok(()) | Err(ContainerError::WrongState { .. } | ContainerError::NotFound(_)) => {}
                    Err(source) => {
                        let service = name.clone();
                        result = result.and(Err(BottleError::Service { service, source }));
                    }
                }
            }
            let subject = (Kind::Bottle, &bottle.id[..]);
            service.0.parts.conditions.clear(subject, ConditionType::Started);
            tracing::info!(bottle.id = %bottle.id, bottle.name = %bottle.name, ok = result.is_ok(), "bottle stopped");
            result
        })
        .await
    }

    /// Removes a bottle and all its parts, its volumes only on request. Can be repeated after a failure.
    pub async fn delete(&self, parameter: &str, volumes: bool) -> Result<(), BottleError> {
        self.end_waiting(parameter);
        self.locked(parameter, async move |service, bottle| {
            service.dismantle(&bottle, BottleOperation::Delete { volumes }).await?;
            tracing::info!(bottle.id = %bottle.id, bottle.name = %bottle.name, "bottle deleted");
            Ok(())
        })
        .await
    }

    /// Waits until no operation is in progress, but cancels waits for services to become healthy.
    pub async fn finish_operations(&self) {
        {
            let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.values().for_each(CancellationToken::cancel);
        }
        self.0.operations.finish().await;
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.0.parts.store.snapshot()
    }

    pub(super) fn volumes(&self, bottle: &str) -> Volumes {
        Volumes(self.0.parts.volume_root.join(bottle))
    }

    /// Runs an operation on a bottle under its lock.
    async fn locked<F: Future<Output = Result<(), BottleError>> + Send>(
        &self,
        parameter: &str,
        operation: impl FnOnce(Self, Arc<Bottle>) -> F + Send + 'static,
    ) -> Result<(), BottleError> {
        let (id, parameter, service) = (self.find(parameter)?.id.clone(), parameter.to_owned(), self.clone());
        self.detached(async move {
            let _lock = service.0.locks.lock(&id).await;
            // It may have been removed or changed while this waited for the lock.
            let bottle = service.snapshot().bottles().get(&id).cloned();
            let bottle = bottle.ok_or(BottleError::NotFound(parameter))?;
            operation(service.clone(), bottle).await
        })
        .await
    }

    /// Runs an operation to completion, even if the caller is dropped.
    pub(super) fn detached<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, BottleError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, BottleError>> {
        self.0.operations.run(operation)
    }

    /// Records the result of the last start for clients.
    fn note_start(&self, id: &str, started: &Result<(), BottleError>) {
        let (conditions, subject) = (&self.0.parts.conditions, (Kind::Bottle, id));
        match started {
            Ok(()) => conditions.succeed(subject, ConditionType::Started),
            Err(error) => {
                let failure = Failure::new(error.reason(), error);
                conditions.fail(subject, ConditionType::Started, &failure, None);
            }
        }
    }

    /// A token that cancels the wait of a start. The latest one counts: starts of a bottle are serialised.
    fn begin_waiting(&self, id: &str) -> CancellationToken {
        let token = CancellationToken::new();
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(id.to_owned(), token.clone());
        token
    }

    /// Cancels the wait of a start, which must not block a stop or removal.
    fn end_waiting(&self, parameter: &str) {
        let Ok(bottle) = self.find(parameter) else { return };
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = waiting.remove(&bottle.id) {
            token.cancel();
        }
    }
}

fn find_in(snapshot: &Snapshot, parameter: &str) -> Option<Arc<Bottle>> {
    let claim = Claim::Name(Kind::Bottle, String::new(), parameter.to_owned());
    snapshot.bottles().get(&snapshot.holder(&claim)?.id).cloned()
}
