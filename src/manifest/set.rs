//! `kind: ReplicaSet` and `kind: Deployment` (`contract/api.md` 11.3).

use std::collections::BTreeMap;

use super::PodManifest;
use super::error::ManifestError;
use super::pod;
use super::reader::{Field, Object};
use super::resource::or_default;
use crate::pod::MAX_REPLICAS;
use crate::store::{RestartPolicy, UpdateStrategy};

/// What a replica set is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct SetManifest {
    /// What identifies it for re-apply and delete: `metadata.name`, or the shown name when there is none.
    pub manifest_name: String,
    /// The name that is shown and that its pods' names begin with: the template's, or the set's.
    pub name: String,
    /// Namespace of the set and of its pods: the template's, or the set's.
    pub namespace: String,
    /// How many pods there shall be.
    pub replicas: u32,
    /// Labels that a pod without an owner must have to be adopted; empty matches none.
    pub selector: BTreeMap<String, String>,
    /// What its pods are made from. Its own name and namespace are the set's.
    pub template: PodManifest,
    /// How pods of an old template are replaced.
    pub update: UpdateStrategy,
}

type Result<T> = std::result::Result<T, ManifestError>;

pub(super) fn read(object: &mut Object<'_>, deployment: bool) -> Result<SetManifest> {
    let (own_name, own_namespace) = object.get("metadata", |field| field.object(pod::identity))?;
    let spec = object.get("spec", |field| {
        field.object(|spec| read_spec(spec, deployment).map(Some))
    })?;
    let mut template = spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    if template.name.is_empty() {
        template.name = own_name.clone();
    }
    if template.name.is_empty() {
        return Err(object.whole().error("replicaset template name is required"));
    }
    if template.namespace.is_empty() {
        template.namespace = or_default(own_namespace);
    }
    let Some(spec) = spec else {
        return Err(object.missing("spec", "a spec is required"));
    };
    if template.spec.containers.is_empty() {
        let problem = "a set needs pods with at least one container";
        return Err(object.missing("spec.template.spec.containers", problem));
    }
    Ok(SetManifest {
        manifest_name: if own_name.is_empty() {
            template.name.clone()
        } else {
            own_name
        },
        name: template.name.clone(),
        namespace: template.namespace.clone(),
        replicas: spec.replicas,
        selector: spec.selector.unwrap_or_else(|| template.labels.clone()),
        template,
        update: spec.update,
    })
}

/// Name and namespace, whatever else the document says.
pub(super) fn identity(object: &mut Object<'_>) -> Result<(String, String)> {
    let identity = |field: &Field<'_>| field.object(pod::identity);
    let own = object.get("metadata", identity)?;
    let template = object.get("spec", |field| {
        field.object(|spec| spec.get("template", |field| field.object(|t| t.get("metadata", identity))))
    })?;
    let first = |a: String, b: String| if a.is_empty() { b } else { a };
    Ok((first(own.0, template.0), first(template.1, own.1)))
}

struct Spec {
    replicas: u32,
    selector: Option<BTreeMap<String, String>>,
    template: PodManifest,
    update: UpdateStrategy,
}

fn read_spec(spec: &mut Object<'_>, deployment: bool) -> Result<Spec> {
    let replicas = spec.optional("replicas", |field| field.integer(0..=i64::from(MAX_REPLICAS)))?;
    let template = spec.get("template", |field| {
        let template = field.object(pod::read_template)?;
        if template.spec.restart != RestartPolicy::Always {
            let mut error = field.error("the pods of a set are kept alive: restartPolicy must be Always");
            error.field += ".spec.restartPolicy";
            return Err(error);
        }
        Ok(template)
    })?;
    let selector = match spec.field("selector") {
        None => None,
        Some(field) => {
            let selector = field.object(|selector| {
                selector.refuse(&["matchExpressions"])?;
                selector.optional("matchLabels", Field::string_map)
            })?;
            let matches = |(key, value): (&String, &String)| template.labels.get(key) == Some(value);
            if !selector.iter().flatten().all(matches) {
                return Err(field.error("the selector does not match the labels of the template"));
            }
            selector
        }
    };
    let update = if deployment {
        strategy(spec)?
    } else {
        UpdateStrategy::Replace
    };
    Ok(Spec {
        replicas: replicas.unwrap_or(1) as u32,
        selector,
        template,
        update,
    })
}

fn strategy(spec: &mut Object<'_>) -> Result<UpdateStrategy> {
    spec.refuse(&["paused"])?;
    let strategy = spec.optional("strategy", |field| {
        field.object(|strategy| {
            if let Some(rolling) = strategy.field("rollingUpdate") {
                rolling.warn("has no effect: at most one pod is unavailable, and none is made in advance");
            }
            strategy.optional("type", |field| match &field.string()?[..] {
                "" | "RollingUpdate" => Ok(UpdateStrategy::Rolling),
                "Recreate" => Ok(UpdateStrategy::Replace),
                other => Err(field.error(format!("{other:?} is not RollingUpdate or Recreate"))),
            })
        })
    })?;
    Ok(strategy.flatten().unwrap_or(UpdateStrategy::Rolling))
}
