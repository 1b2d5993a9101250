//! The conditions of every object at one revision of the store: derived from its rows and the recorded failures.

use std::sync::Arc;

use jiff::Timestamp;

use crate::model::{
    Bottle, CheckFailure, Container, ContainerState, Endpoint, Health, Kind, Network, Pod, PodGoal, PodState,
    PodStatus, ReplicaSet, Service, Snapshot, endpoints, pod_statuses, selects,
};
use crate::ops::conditions::ConditionType::{Ready, Reconciled, Started};
use crate::ops::conditions::{Condition, Conditions, Observed, RULES, Status};
use crate::workload::container::{OOM_KILLED, next_start};
use crate::workload::replica_set::{SetStatus, set_statuses};

/// The conditions of a container.
pub fn of_container(c: &Container, known: &Conditions) -> Vec<Condition> {
    ready(c).into_iter().chain(known.of(Kind::Container, &c.id)).collect()
}

/// The conditions of a pod. It is ready when its containers are; otherwise it reports the first problem among them.
pub fn of_pod(pod: &Pod, status: &PodStatus, known: &Conditions) -> Vec<Condition> {
    let own = pod_ready(pod, status, known);
    own.into_iter().chain(known.of(Kind::Pod, &pod.id)).collect()
}

/// The conditions of a replica set.
pub fn of_set(set: &ReplicaSet, status: &SetStatus, known: &Conditions) -> Vec<Condition> {
    let (kind, id) = (Kind::ReplicaSet, &set.id);
    let counted = || format!("{} of {} pods are ready", status.ready, set.replicas);
    let (state, reason, message) = match &status.problem {
        Some(problem) => (Status::False, &problem.reason[..], problem.message.clone()),
        None if status.ready >= set.replicas as usize => (Status::True, "PodsReady", counted()),
        None => (Status::Unknown, "PodsNotReady", counted()),
    };
    let own = (!set.removing).then(|| known.dated(kind, id, state, reason, &message));
    own.into_iter().chain(known.of(kind, id)).collect()
}

/// The conditions of a service, given its endpoints and all pods.
pub fn of_service(
    service: &Service,
    endpoints: &[Endpoint],
    pods: &[(Arc<Pod>, PodStatus)],
    known: &Conditions,
) -> Vec<Condition> {
    let (kind, id) = (Kind::Service, &service.id);
    let (status, reason) = match endpoints {
        [] => (Status::False, "NoEndpoints"),
        _ => (Status::True, "EndpointsReady"),
    };
    let message = match endpoints {
        [] => without_endpoints(service, pods, known),
        some => format!("{} pods take its clients", some.len()),
    };
    let own = known.dated(kind, id, status, reason, &message);
    [own].into_iter().chain(known.of(kind, id)).collect()
}

fn without_endpoints(service: &Service, pods: &[(Arc<Pod>, PodStatus)], known: &Conditions) -> String {
    if service.selector.is_empty() {
        return "its selector is empty and finds no pods".to_owned();
    }
    let found: Vec<_> = pods.iter().filter(|(pod, _)| selects(service, pod)).collect();
    let Some((pod, status)) = found.first() else {
        let labels: Vec<String> = service.selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let (namespace, labels) = (&service.namespace, labels.join(","));
        return format!("no pod of namespace {namespace} has the labels {labels}");
    };
    let why = match pod_ready(pod, status, known) {
        Some(condition) if !condition.message.is_empty() => format!("{}: {}", condition.reason, condition.message),
        Some(condition) => condition.reason,
        None => format!("it is {}", status.state),
    };
    format!("none of {} pods is ready; pod {}: {why}", found.len(), pod.name)
}

/// All conditions of all objects.
pub fn all(snapshot: &Snapshot, known: &Conditions) -> Vec<Observed> {
    let pods = pod_statuses(snapshot);
    let mut all = Vec::new();
    let mut add = |kind, id: &str, name: &str, conditions: Vec<Condition>| {
        all.extend(conditions.into_iter().map(|condition| Observed {
            kind,
            id: id.to_owned(),
            name: name.to_owned(),
            condition,
        }));
    };
    for c in snapshot.containers().iter() {
        add(Kind::Container, &c.id, &c.name, of_container(c, known));
    }
    for (pod, status) in &pods {
        add(Kind::Pod, &pod.id, &pod.name, of_pod(pod, status, known));
    }
    for (set, status) in set_statuses(snapshot, &pods, Timestamp::now()) {
        add(Kind::ReplicaSet, &set.id, &set.name, of_set(&set, &status, known));
    }
    for service in snapshot.services().iter() {
        let conditions = of_service(service, &endpoints(service, &pods), &pods, known);
        add(Kind::Service, &service.id, &service.name, conditions);
    }
    for bottle in snapshot.bottles().iter() {
        add(
            Kind::Bottle,
            &bottle.id,
            &bottle.name,
            known.of(Kind::Bottle, &bottle.id),
        );
    }
    for network in snapshot.networks().iter() {
        let name = &network.name;
        add(Kind::Network, name, name, known.of(Kind::Network, name));
    }
    let (kind, id) = RULES;
    add(kind, id, id, known.of(kind, id));
    all
}

/// Whether that object exists.
pub(super) fn exists(snapshot: &Snapshot, kind: Kind, id: &str) -> bool {
    match kind {
        Kind::Container => snapshot.get::<Container>(id).is_some(),
        Kind::Pod => snapshot.get::<Pod>(id).is_some(),
        Kind::ReplicaSet => snapshot.get::<ReplicaSet>(id).is_some(),
        Kind::Service => snapshot.get::<Service>(id).is_some(),
        Kind::Bottle => snapshot.get::<Bottle>(id).is_some(),
        Kind::Network => snapshot.get::<Network>(id).is_some(),
        _ => (kind, id) == RULES,
    }
}

/// The Ready condition of a container that runs or should run; `None` for others.
fn ready(c: &Container) -> Option<Condition> {
    match c.status.state {
        _ if c.is_build() => None,
        ContainerState::Running => Some(running(c)),
        ContainerState::Stopped if !c.journal.stopped_by_user && c.journal.operation.is_none() => ended(c),
        ContainerState::Creating | ContainerState::Created | ContainerState::Stopped => None,
    }
}

fn running(c: &Container) -> Condition {
    let checks = [
        ("health", c.status.health, &c.status.health_failure),
        ("readiness", c.status.readiness, &c.status.readiness_failure),
    ];
    let started_at = c.status.started_at.unwrap_or_default();
    let of = |wanted: Health| checks.iter().find(|(_, health, _)| *health == Some(wanted));
    let since = |failure: &Option<CheckFailure>| failure.as_ref().map_or(started_at, |failure| failure.since);
    let words = |failure: &Option<CheckFailure>| failure.as_ref().map_or(String::new(), |f| format!(": {}", f.output));
    if let Some((check, _, failure)) = of(Health::Unhealthy) {
        let message = format!("the {check} check fails{}", words(failure));
        return Condition::new(Ready, Status::False, "Unhealthy", &message, since(failure));
    }
    if let Some((check, _, failure)) = of(Health::Starting) {
        let message = format!("the {check} check has not succeeded yet{}", words(failure));
        return Condition::new(Ready, Status::Unknown, "Starting", &message, since(failure));
    }
    let since = c.status.ready_at.unwrap_or(started_at);
    Condition::new(Ready, Status::True, "Running", "", since)
}

fn ended(c: &Container) -> Option<Condition> {
    let exit = c.status.exit.as_ref()?;
    let next = next_start(c);
    if exit.code == 0 && next.is_none() {
        return None;
    }
    let reason = match &exit.reason[..] {
        OOM_KILLED => OOM_KILLED,
        // Only an exit of a program that could not be executed has a message.
        _ if !exit.message.is_empty() => "StartError",
        _ if next.is_some() && c.journal.retries.in_a_row > 0 => "CrashLoopBackOff",
        other => other,
    };
    let mut message = format!("ended with exit status {} ({})", exit.code, exit.reason);
    if !exit.message.is_empty() {
        message += &format!(": {}", exit.message);
    }
    if c.status.restarts > 0 {
        message += &format!(", restarts: {}", c.status.restarts);
    }
    if let Some(failure) = &c.status.health_failure {
        message += &format!("; its health check failed: {}", failure.output);
    }
    Some(Condition {
        tries: c.journal.retries.in_a_row,
        next_try_at: next,
        ..Condition::new(
            Ready,
            Status::False,
            reason,
            &message,
            c.status.stopped_at.unwrap_or_default(),
        )
    })
}

fn pod_ready(pod: &Pod, status: &PodStatus, known: &Conditions) -> Option<Condition> {
    if pod.goal != PodGoal::Running || status.state == PodState::Succeeded {
        return None;
    }
    if status.ready {
        let since = status
            .members
            .iter()
            .filter_map(|member| member.status.ready_at.or(member.status.started_at));
        let since = since.max().unwrap_or(pod.created_at);
        return Some(Condition::new(Ready, Status::True, "ContainersReady", "", since));
    }
    let is_wrong = |condition: &Condition| condition.status == Status::False;
    if let Some(tried) = known.get(Kind::Pod, &pod.id, Reconciled).filter(is_wrong) {
        return Some(Condition { kind: Ready, ..tried });
    }
    let parts = status.infra.iter().chain(&status.members);
    let of_part = |c: &Arc<Container>| {
        let started = known.get(Kind::Container, &c.id, Started);
        let condition = started
            .or_else(|| ready(c))
            .filter(|condition| condition.status != Status::True)?;
        let message = format!("container {}: {}", c.name, condition.message);
        Some(Condition {
            kind: Ready,
            message,
            ..condition
        })
    };
    let causes: Vec<_> = parts.filter_map(of_part).collect();
    let cause = causes.iter().find(|cause| is_wrong(cause)).or(causes.first()).cloned();
    cause.or_else(|| {
        let message = format!("{} of {} containers run", status.running, status.desired);
        let since = pod.started_at.unwrap_or(pod.created_at);
        Some(Condition::new(
            Ready,
            Status::Unknown,
            "ContainersNotReady",
            &message,
            since,
        ))
    })
}

#[cfg(test)]
mod tests;
