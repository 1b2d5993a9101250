//! Applying and deleting manifests (`docs/spec/api.md` 11.5, 11.6).
//!
//! ```text
//! text -> resources -> checks against the state -> images of what is replaced -> pods -> services -> sets
//! ```
//!
//! Everything is checked before the first change. The steps that are likely to fail come first: pods need images and
//! processes, services and sets are only rows. Each change records its undo; a failure runs them in reverse, which
//! removes what this request created and restores what it changed, and the message says so. Each resource is stored
//! with its desired state in one transaction, and a replacement pod is stored before the old one is removed. So a crash
//! leaves resources that the controllers finish, and nothing of those that were not reached; applying the same manifest
//! again continues from there, since resources that match are not touched.
//!
//! This module does not know HTTP and keeps no state of its own.

mod delete;
mod error;
mod pods;
mod undo;

use std::sync::Arc;

use crate::model::fresh_ulid;
use crate::model::{Claim, PodTemplate, Record, Service, Snapshot};
use crate::ops::task::{Operations, blocking};
use crate::store::Store;
use crate::workload::balancer::{NewService, ServiceRegistry};
use crate::workload::manifest;
use crate::workload::manifest::{Document, ManifestError, Resource, ResourceKind, SetManifest, Warning};
use crate::workload::pod::PodService;
use crate::workload::replica_set::{NewSet, ReplicaSets};

pub use delete::Deleted;
pub use error::{ApplyError, Failed, ResourceError};
use undo::Undo;

/// How often to retry a resource that others keep creating and removing.
const TRIES: usize = 5;

/// The underlying services.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Applier {
    pub store: Store,
    pub pods: PodService,
    pub sets: ReplicaSets,
    pub services: ServiceRegistry,
    /// Requests in progress.
    pub operations: Operations,
}

/// The result of applying a stream.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Its resources, in its order.
    pub resources: Vec<AppliedResource>,
    /// Fields without effect, by document.
    pub warnings: Vec<DocumentWarning>,
}

/// A resource in its current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedResource {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its id.
    pub id: String,
    /// Its name; for a set, the display name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// For a pod: the ids of its members in template order.
    pub containers: Vec<String>,
}

/// A field without effect, and its document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentWarning {
    /// Number of the document, from 1.
    pub document: usize,
    /// `kind` as written.
    pub kind: String,
    /// Name of the resource.
    pub name: String,
    /// The field.
    pub warning: Warning,
}

/// Parses a stream off the executor: a malicious one takes long.
async fn read<T: Send + 'static>(text: &str, reader: fn(&str) -> Result<T, ManifestError>) -> Result<T, ApplyError> {
    let text = text.to_owned();
    blocking(move || Ok(reader(&text)?)).await
}

impl Applier {
    /// Applies the stream. Runs to completion, even if the caller is dropped.
    pub async fn apply(&self, text: &str) -> Result<Applied, ApplyError> {
        let documents = read(text, manifest::parse).await?;
        let service = self.clone();
        self.operations
            .run(async move { service.apply_all(documents).await })
            .await
    }

    /// Waits until no request is in progress.
    pub async fn finish_operations(&self) {
        self.operations.finish().await;
    }

    async fn apply_all(&self, documents: Vec<Document>) -> Result<Applied, ApplyError> {
        for document in &documents {
            let checked = self.check(&document.resource).await;
            checked.map_err(|failed| ApplyError::refused(failed, document))?;
        }
        let mut undo = Vec::new();
        let mut done: Vec<(usize, AppliedResource)> = Vec::new();
        for (at, document) in in_order(&documents) {
            match self.carry_out(&document.resource, &mut undo).await {
                Ok(resource) => done.push((at, resource)),
                Err(failed) => {
                    let undone = self.undo_all(undo).await;
                    return Err(ApplyError::failed(failed, document, undone));
                }
            }
        }
        done.sort_by_key(|(at, _)| *at);
        Ok(Applied {
            resources: done.into_iter().map(|(_, resource)| resource).collect(),
            warnings: documents.into_iter().flat_map(warnings).collect(),
        })
    }

    /// Checks that can be made before anything is changed.
    async fn check(&self, resource: &Resource) -> Result<(), Failed> {
        let template = match resource {
            Resource::Pod(pod) => template(pod),
            Resource::ReplicaSet(set) => template(&set.template),
            Resource::Service(service) => return Ok(service.check()?),
        };
        self.pods.check_template(&template)?;
        match resource {
            Resource::Pod(pod) => self.check_pod(pod).await,
            _ => Ok(()),
        }
    }

    /// Retries a resource that others created or removed between the check and the change.
    async fn carry_out(&self, resource: &Resource, undo: &mut Vec<Undo>) -> Result<AppliedResource, Failed> {
        for _ in 1..TRIES {
            match self.carry_out_once(resource, undo).await {
                Err(failed) if failed.is_overtaken() => {}
                outcome => return outcome,
            }
        }
        self.carry_out_once(resource, undo).await
    }

    async fn carry_out_once(&self, resource: &Resource, undo: &mut Vec<Undo>) -> Result<AppliedResource, Failed> {
        match resource {
            Resource::Pod(pod) => self.apply_pod(pod, undo).await,
            Resource::Service(service) => self.apply_service(service, undo).await,
            Resource::ReplicaSet(set) => self.apply_set(set, undo).await,
        }
    }

    async fn apply_service(&self, wish: &NewService, undo: &mut Vec<Undo>) -> Result<AppliedResource, Failed> {
        let snapshot = self.store.snapshot();
        let existing = by_name::<Service>(&snapshot, &wish.namespace, &wish.name);
        let service = match existing {
            Some(service) if NewService::from(&*service) == *wish => service,
            Some(before) => {
                let now = self.services.replace(&before.id, wish.clone()).await?;
                undo.push(Undo::RestoreService(before));
                now
            }
            None => {
                let new = self.services.create(wish.clone()).await?;
                undo.push(Undo::RemoveService(new.clone()));
                new
            }
        };
        Ok(AppliedResource {
            kind: ResourceKind::Service,
            id: service.id.clone(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            containers: Vec::new(),
        })
    }

    async fn apply_set(&self, wish: &SetManifest, undo: &mut Vec<Undo>) -> Result<AppliedResource, Failed> {
        let applied = self.sets.apply(new_set(wish)).await?;
        match applied.before {
            None => undo.push(Undo::RemoveSet(applied.set.clone())),
            Some(before) if before != applied.set => undo.push(Undo::RestoreSet(before)),
            Some(_) => {}
        }
        Ok(AppliedResource {
            kind: ResourceKind::ReplicaSet,
            id: applied.set.id.clone(),
            name: applied.set.name.clone(),
            namespace: applied.set.namespace.clone(),
            containers: Vec::new(),
        })
    }
}

/// Pods, then services, then sets; each in stream order.
fn in_order(documents: &[Document]) -> Vec<(usize, &Document)> {
    let rank = |document: &Document| match document.resource {
        Resource::Pod(_) => 0,
        Resource::Service(_) => 1,
        Resource::ReplicaSet(_) => 2,
    };
    let mut ordered: Vec<_> = documents.iter().enumerate().collect();
    ordered.sort_by_key(|(at, document)| (rank(document), *at));
    ordered
}

fn warnings(document: Document) -> impl Iterator<Item = DocumentWarning> {
    let (_, _, name) = document.resource.key();
    let (number, kind, name) = (document.number, document.kind.clone(), name.to_owned());
    document.warnings.into_iter().map(move |warning| DocumentWarning {
        document: number,
        kind: kind.clone(),
        name: name.clone(),
        warning,
    })
}

/// A template with a new id.
fn template(pod: &manifest::PodManifest) -> PodTemplate {
    PodTemplate {
        id: fresh_ulid(),
        labels: pod.labels.clone(),
        annotations: pod.annotations.clone(),
        spec: pod.spec.clone(),
    }
}

fn new_set(wish: &SetManifest) -> NewSet {
    NewSet {
        manifest_name: wish.manifest_name.clone(),
        name: wish.name.clone(),
        namespace: wish.namespace.clone(),
        replicas: wish.replicas,
        selector: wish.selector.clone(),
        template: template(&wish.template),
        update: wish.update,
        rollout: wish.rollout,
    }
}

/// The object of that name. Here a name never matches another object's id.
fn by_name<R: Record>(snapshot: &Snapshot, namespace: &str, name: &str) -> Option<Arc<R>> {
    let claim = Claim::Name(R::KIND, namespace.to_owned(), name.to_owned());
    snapshot.get::<R>(&snapshot.holder(&claim)?.id).cloned()
}
