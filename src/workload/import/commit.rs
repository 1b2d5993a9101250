//! The single transaction. The original checked uniqueness outside its locks or not at all, so its stores can hold
//! conflicts that ours cannot: two containers with the same name, two publishers of a port. The first one keeps the
//! claim; the other one is imported without it, with a warning.

use std::collections::BTreeSet;

use super::{Rows, tail};
use crate::model::{Attachment, Bottle, Claim, Container, Import, Record, Service, Taken, Txn};
use crate::store::StoreError;

/// More than the number of claims that any record can have to give up: each host port of both protocols, and some.
const TRIES: usize = 200_000;

/// Inserts all rows, and last the import record with all warnings.
pub(super) fn write(t: &mut Txn, rows: Rows, mut record: Import) -> Result<Import, StoreError> {
    let warnings = &mut record.warnings;
    for network in rows.networks {
        let name = network.name.clone();
        if let Err(taken) = t.put(network) {
            warnings.push(format!("network {name} is left out: {taken}"));
        }
    }
    for image in rows.images {
        fit(t, image, warnings, |_, _| None);
    }
    put_containers(t, rows.containers, warnings);
    for pod in rows.pods {
        fit(t, pod, warnings, |pod, _| {
            pod.name = format!("{}-{}", pod.name, tail(&pod.id));
            Some(format!("it is now called {}", pod.name))
        });
    }
    for set in rows.sets {
        fit(t, set, warnings, |set, _| {
            set.manifest_name = format!("{}-{}", set.manifest_name, tail(&set.id));
            Some(format!("its manifest is now called {}", set.manifest_name))
        });
    }
    for service in rows.services {
        fit(t, service, warnings, settle_service);
    }
    for bottle in rows.bottles {
        fit(t, bottle, warnings, settle_bottle);
    }
    for policy in rows.policies {
        fit(t, policy, warnings, |_, _| None);
    }
    if let Some(settings) = rows.settings {
        fit(t, settings, warnings, |_, _| None);
    }
    // The only record of its kind, and it has no claims.
    t.put(record.clone())
        .map_err(|taken| StoreError::Commit(taken.into()))?;
    Ok(record)
}

fn put_containers(t: &mut Txn, rows: Vec<Container>, warnings: &mut Vec<String>) {
    let ids: BTreeSet<String> = rows.iter().map(|c| c.id.clone()).collect();
    for mut container in rows {
        // An id cannot be given up, so the record whose name equals it gives up the name.
        if ids.contains(&container.name) && container.name != container.id {
            let said = format!("the name {} is another container's id", container.name);
            container.name = format!("{}-{}", container.name, container.id);
            warnings.push(format!("{said}; its owner is now called {}", container.name));
        }
        let is_out = |a: &Attachment| t.snapshot().networks().get(&a.network).is_none();
        if container.status.attachment.as_ref().is_some_and(is_out) {
            container.status.attachment = None;
        }
        fit(t, container, warnings, settle_container);
    }
}

fn settle_container(container: &mut Container, claim: &Claim) -> Option<String> {
    match claim {
        Claim::ContainerName(_) => {
            container.name = format!("{}-{}", container.name, container.id);
            Some(format!("it is now called {}", container.name))
        }
        Claim::Address(_) => {
            container.status.attachment = None;
            Some("it has no address".to_owned())
        }
        Claim::HostPort(protocol, port, _) => {
            container
                .spec
                .forwards
                .retain(|f| (f.protocol, f.host_port) != (*protocol, *port));
            Some(format!("it does not publish port {port}/{protocol}"))
        }
        _ => None,
    }
}

fn settle_bottle(bottle: &mut Bottle, claim: &Claim) -> Option<String> {
    match claim {
        // Another object has the name of a container that this bottle never got.
        Claim::ContainerName(name) => {
            let service = name.strip_prefix(&format!("{}-", bottle.name))?.to_owned();
            bottle.containers.insert(service.clone(), String::new());
            Some(format!("its service {service} has no container"))
        }
        // An id cannot be given up.
        Claim::Name(_, _, word) if *word == bottle.id => None,
        _ => {
            bottle.name = format!("{}-{}", bottle.name, bottle.id);
            Some(format!("it is now called {}", bottle.name))
        }
    }
}

fn settle_service(service: &mut Service, claim: &Claim) -> Option<String> {
    match claim {
        Claim::HostPort(protocol, port, _) => {
            service.ports.retain(|p| (p.protocol, p.port) != (*protocol, *port));
            Some(format!("it is left without port {port}/{protocol}"))
        }
        _ => {
            service.name = format!("{}-{}", service.name, tail(&service.id));
            Some(format!("it is now called {}", service.name))
        }
    }
}

/// Inserts a record and gives up, one by one, claims that other records hold. `give_up` describes the consequence.
fn fit<R: Record>(
    t: &mut Txn,
    mut record: R,
    warnings: &mut Vec<String>,
    give_up: impl Fn(&mut R, &Claim) -> Option<String>,
) {
    let kind = R::KIND.table_name().trim_end_matches('s');
    let called = format!("{kind} {}", record.name());
    for _ in 0..TRIES {
        let Err(Taken { claim, holder }) = t.put(record.clone()) else {
            return;
        };
        let reason = t.snapshot().describe(&holder);
        match give_up(&mut record, &claim) {
            Some(outcome) => warnings.push(format!("{called}: {reason} has the same ({claim:?}); {outcome}")),
            None => break,
        }
    }
    warnings.push(format!("{called} is left out: another one has what it needs"));
}
