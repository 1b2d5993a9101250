//! Deletes the resources that a manifest names (`docs/spec/api.md` 11.6).

use std::sync::Arc;

use futures_util::future::join_all;

use super::error::{ApplyError, Failed, word};
use super::{Applier, by_name};
use crate::model::{Pod, ReplicaSet, Service};
use crate::workload::balancer::ServiceError;
use crate::workload::manifest;
use crate::workload::manifest::{Reference, ResourceKind};
use crate::workload::pod::PodError;
use crate::workload::replica_set::SetError;

/// The deleted and the missing resources, each in stream order.
#[derive(Debug, Clone, Default)]
pub struct Deleted {
    /// Pods, with their containers.
    pub pods: Vec<Arc<Pod>>,
    /// Replica sets, with their pods.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// Resources that do not exist.
    pub missing: Vec<Reference>,
}

/// A resource that exists.
#[derive(Clone)]
enum Found {
    Pod(Arc<Pod>),
    Set(Arc<ReplicaSet>),
    Service(Arc<Service>),
}

impl Applier {
    /// Removes all resources that the stream names and that exist. Runs to completion, even if the caller is dropped.
    pub async fn delete(&self, text: &str) -> Result<Deleted, ApplyError> {
        let references = super::read(text, manifest::references).await?;
        let service = self.clone();
        self.operations
            .run(async move { service.delete_all(references).await })
            .await
    }

    async fn delete_all(&self, references: Vec<Reference>) -> Result<Deleted, ApplyError> {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for reference in references {
            match self.look_up(&reference) {
                Some(object) => found.push(object),
                None => missing.push(reference),
            }
        }
        if let (true, Some(first)) = (found.is_empty(), missing.first()) {
            return Err(ApplyError::NotFound(first.kind));
        }
        // Stopping takes seconds, so run in parallel, and to completion even if some fail.
        let removals = join_all(found.iter().map(|object| self.remove(object))).await;
        let results: Vec<_> = found.into_iter().zip(removals).collect();
        if results.iter().any(|(_, result)| result.is_err()) {
            return Err(failure(results));
        }
        let mut deleted = Deleted {
            missing,
            ..Deleted::default()
        };
        for (object, _) in results {
            match object {
                Found::Pod(pod) => deleted.pods.push(pod),
                Found::Set(set) => deleted.sets.push(set),
                Found::Service(service) => deleted.services.push(service),
            }
        }
        Ok(deleted)
    }

    fn look_up(&self, wanted: &Reference) -> Option<Found> {
        let snapshot = self.store.snapshot();
        let (namespace, name) = (&wanted.namespace[..], &wanted.name[..]);
        match wanted.kind {
            ResourceKind::Pod => by_name(&snapshot, namespace, name).map(Found::Pod),
            ResourceKind::ReplicaSet => self.sets.named(name, namespace).map(Found::Set),
            ResourceKind::Service => by_name(&snapshot, namespace, name).map(Found::Service),
        }
    }

    async fn remove(&self, object: &Found) -> Result<(), Failed> {
        match object {
            Found::Pod(pod) => match self.pods.remove(&pod.id).await {
                Ok(()) | Err(PodError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Found::Set(set) => match self.sets.remove(&set.id).await {
                Ok(()) | Err(SetError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Found::Service(service) => match self.services.remove(&service.id).await {
                Ok(_) | Err(ServiceError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// The first failure, and the results of the others.
fn failure(results: Vec<(Found, Result<(), Failed>)>) -> ApplyError {
    let (mut first, mut others, mut removed) = (None, Vec::new(), Vec::new());
    for (object, result) in results {
        match result {
            Ok(()) => removed.push(object.to_string()),
            Err(failed) if first.is_none() => first = Some((failed, object.to_string())),
            Err(failed) => others.push(format!("{object} ({failed})")),
        }
    }
    let Some((failed, what)) = first else {
        return ApplyError::Panicked;
    };
    let mut rest = match &removed[..] {
        [] => "nothing else was removed".to_owned(),
        removed => format!("removed: {}", removed.join(", ")),
    };
    if !others.is_empty() {
        rest += &format!("; not removed: {}", others.join(", "));
    }
    let failed = Box::new(failed);
    ApplyError::Remove { failed, what, rest }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, namespace, name) = match self {
            Self::Pod(pod) => (ResourceKind::Pod, &pod.namespace, &pod.name),
            Self::Set(set) => (ResourceKind::ReplicaSet, &set.namespace, &set.name),
            Self::Service(service) => (ResourceKind::Service, &service.namespace, &service.name),
        };
        write!(f, "{} {namespace}/{name}", word(kind))
    }
}
