//! `kind: ReplicaSet` and `kind: Deployment` (`docs/spec/api.md` 11.3).

use std::collections::BTreeMap;

use super::error::ManifestError;
use super::metadata::or_default;
use super::reader::{Field, Object};
use super::{PodManifest, metadata, pod};
use crate::model::{RestartPolicy, Rollout, Share, UpdateStrategy};
use crate::workload::replica_set::MAX_REPLICAS;

/// The desired replica set.
#[derive(Debug, Clone, PartialEq)]
pub struct SetManifest {
    /// Identity for re-apply and delete: `metadata.name`, or the display name if there is none.
    pub manifest_name: String,
    /// The display name, which is also the prefix of its pods' names: the template's, or the set's.
    pub name: String,
    /// Namespace of the set and of its pods: the template's, or the set's.
    pub namespace: String,
    /// Desired number of pods.
    pub replicas: u32,
    /// Labels that an unowned pod must have to be adopted; empty matches none.
    pub selector: BTreeMap<String, String>,
    /// The pod template. Its own name and namespace are the set's.
    pub template: PodManifest,
    /// How to replace pods of an old template.
    pub update: UpdateStrategy,
    /// The limits of a rolling update.
    pub rollout: Rollout,
}

/// Maximum `minReadySeconds`: one day.
const MAX_MIN_READY: i64 = 86_400;

type Result<T> = std::result::Result<T, ManifestError>;

pub(super) fn read(object: &mut Object<'_>, deployment: bool) -> Result<SetManifest> {
    let (own_name, own_namespace) = object.get("metadata", |field| field.object(metadata::identity))?;
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
        rollout: spec.rollout,
    })
}

/// Name and namespace; the rest of the document is ignored.
pub(super) fn identity(object: &mut Object<'_>) -> Result<(String, String)> {
    let identity = |field: &Field<'_>| field.object(metadata::identity);
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
    rollout: Rollout,
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
    let (update, rollout) = if deployment {
        strategy(spec)?
    } else {
        (UpdateStrategy::Replace, None)
    };
    let mut rollout = rollout.unwrap_or_else(|| default_rollout(&template));
    let min_ready = spec.optional("minReadySeconds", |field| field.integer(0..=MAX_MIN_READY))?;
    rollout.min_ready_seconds = min_ready.unwrap_or_default() as u32;
    // A deadline for waiting clients; the daemon does nothing when it passes.
    if let Some(field) = spec.field("progressDeadlineSeconds") {
        field.warn("has no effect: a rollout goes on until it is done or changed");
    }
    Ok(Spec {
        replicas: replicas.unwrap_or(1) as u32,
        selector,
        template,
        update,
        rollout,
    })
}

/// Two pods cannot publish the same host port, so the old one must go first.
fn default_rollout(template: &PodManifest) -> Rollout {
    match template
        .spec
        .containers
        .iter()
        .all(|container| container.request.ports.is_empty())
    {
        true => Rollout::default(),
        false => Rollout {
            max_unavailable: Share::Count(1),
            max_surge: Share::Count(0),
            min_ready_seconds: 0,
        },
    }
}

fn strategy(spec: &mut Object<'_>) -> Result<(UpdateStrategy, Option<Rollout>)> {
    spec.refuse(&["paused"])?;
    let strategy = spec.optional("strategy", |field| {
        field.object(|strategy| {
            let update = match strategy.field("type") {
                None => UpdateStrategy::Rolling,
                Some(field) => match &field.string()?[..] {
                    "" | "RollingUpdate" => UpdateStrategy::Rolling,
                    "Recreate" => UpdateStrategy::Replace,
                    other => return Err(field.error(format!("{other:?} is not RollingUpdate or Recreate"))),
                },
            };
            match strategy.field("rollingUpdate").filter(|field| !field.is_nothing()) {
                Some(field) if update == UpdateStrategy::Replace => {
                    Err(field.error("rollingUpdate does not go with the type Recreate"))
                }
                Some(field) => Ok((update, Some(rolling(&field)?))),
                None => Ok((update, None)),
            }
        })
    })?;
    Ok(strategy.unwrap_or((UpdateStrategy::Rolling, None)))
}

fn rolling(field: &Field<'_>) -> Result<Rollout> {
    field.object(|rolling| {
        let default = Rollout::default();
        let max_unavailable = rolling.optional("maxUnavailable", share)?;
        let max_surge = rolling.optional("maxSurge", share)?;
        let none = [Share::Count(0), Share::Percent(0)];
        if let (Some(unavailable), Some(surge)) = (max_unavailable, max_surge)
            && none.contains(&unavailable)
            && none.contains(&surge)
        {
            let problem = "maxUnavailable and maxSurge cannot both be 0: nothing could be replaced";
            return Err(rolling.whole().error(problem));
        }
        Ok(Rollout {
            max_unavailable: max_unavailable.unwrap_or(default.max_unavailable),
            max_surge: max_surge.unwrap_or(default.max_surge),
            min_ready_seconds: 0,
        })
    })
}

/// A number of pods, or a percentage of the desired number.
fn share(field: &Field<'_>) -> Result<Share> {
    let text = field.string()?;
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse::<u32>() {
            Ok(percent) if percent <= 100 && text.as_bytes()[0].is_ascii_digit() => Ok(Share::Percent(percent)),
            _ => Err(field.error(format!("{text:?} is not a part from 0% to 100%"))),
        },
        None => Ok(Share::Count(field.integer(0..=i64::from(MAX_REPLICAS))? as u32)),
    }
}
