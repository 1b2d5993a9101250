//! Applying and deleting manifests (`docs/spec/api.md` 11.5, 11.6).
//!
//! ```text
//! text -> resources -> checks against the state -> images of what is replaced -> pods -> services -> sets
//! ```
//!
//! Everything is checked before the first change. What may fail late comes first: pods need images and processes,
//! services and sets are rows. Each change leaves its undo; a failure unwinds them in reverse, so that what this request
//! made is removed and what it changed is put back, and the message says so. Each resource is stored with what it shall be
//! in one transaction, a pod that replaces another one before that one goes. So a crash in between leaves resources that
//! the controllers finish, and nothing of those that were not reached; the same manifest applied again goes on from there,
//! since what is as it shall be is not touched.
//!
//! What it never does: know HTTP, or keep anything of its own.

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

/// How often a resource is looked at that others keep making and removing.
const TRIES: usize = 5;

/// The services below this one.
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

/// What became of a stream.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Its resources, in its order.
    pub resources: Vec<AppliedResource>,
    /// Fields without effect, by document.
    pub warnings: Vec<DocumentWarning>,
}

/// A resource as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedResource {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its id.
    pub id: String,
    /// Its name; of a set the shown one.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Of a pod: the ids of its members in the order of the template.
    pub containers: Vec<String>,
}

/// A field without effect, and the document that it is in.
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

/// Reads a stream away from the executor: a hostile one takes long.
async fn read<T: Send + 'static>(text: &str, reader: fn(&str) -> Result<T, ManifestError>) -> Result<T, ApplyError> {
    let text = text.to_owned();
    blocking(move || Ok(reader(&text)?)).await
}

impl Applier {
    /// Makes true what the stream says. It is done to its end, also when the caller is dropped.
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

    /// What can be known to be wrong before anything is changed.
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

    /// What somebody else makes or removes between the look and the deed is looked at again.
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

/// Pods, then services, then sets; each in the order of the stream.
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

/// With an identity of its own.
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

/// The object of that name. A name that is another object's id does not mean that one here.
fn by_name<R: Record>(snapshot: &Snapshot, namespace: &str, name: &str) -> Option<Arc<R>> {
    let claim = Claim::Name(R::KIND, namespace.to_owned(), name.to_owned());
    snapshot.get::<R>(&snapshot.holder(&claim)?.id).cloned()
}
