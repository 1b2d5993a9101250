//! What a pod is like at the moment, computed from the rows of its containers. Pure.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::container::INFRA_PREFIX;
use crate::store::{Container, ContainerState, Health, Pod, PodContainer, PodGoal, Snapshot};

/// What clients see of a pod's life (`contract/api.md` 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Nobody started it yet.
    Created,
    /// Infra and all members run.
    Running,
    /// A user stopped it, or it is being removed.
    Stopped,
    /// It should run, and something of it does not.
    Degraded,
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Degraded => "degraded",
        })
    }
}

/// A pod at one revision of the store.
#[derive(Debug, Clone)]
pub struct PodStatus {
    /// Its state.
    pub state: PodState,
    /// The container that holds its namespaces and its address.
    pub infra: Option<Arc<Container>>,
    /// Its other containers, by creation time, then id.
    pub members: Vec<Arc<Container>>,
    /// Containers in the template; members that exist if there are none.
    pub desired: usize,
    /// Members that run. Infra never counts.
    pub running: usize,
    /// Whether all of `desired`, at least one, run and pass their readiness checks: services may send it clients.
    pub ready: bool,
}

impl PodStatus {
    /// Its address, once it has an infra container.
    pub fn address(&self) -> Option<Ipv4Addr> {
        Some(self.infra.as_ref()?.attachment.as_ref()?.address)
    }

    /// The member that was made from an entry of the template.
    pub fn member(&self, pod: &Pod, entry: &PodContainer) -> Option<&Arc<Container>> {
        let name = member_name(&pod.id, &entry.name);
        self.members.iter().find(|member| member.name == name)
    }
}

/// Name of the container that is made for an entry of a pod's template: the entry's, and the last 8 characters of the
/// pod's id (`contract/api.md` 4.2).
pub fn member_name(pod_id: &str, entry: &str) -> String {
    let tail = pod_id.get(pod_id.len().saturating_sub(8)..).unwrap_or(pod_id);
    format!("{entry}-{tail}")
}

/// One pod. For many, [`statuses`] looks at the containers only once.
pub fn status(snapshot: &Snapshot, pod: &Pod) -> PodStatus {
    let containers = snapshot.containers().iter();
    of(
        pod,
        containers
            .filter(|c| c.pod_id.as_deref() == Some(&pod.id))
            .cloned()
            .collect(),
    )
}

/// All pods, by creation time, then id.
pub fn statuses(snapshot: &Snapshot) -> Vec<(Arc<Pod>, PodStatus)> {
    let mut by_pod: HashMap<&str, Vec<Arc<Container>>> = HashMap::new();
    for container in snapshot.containers().iter() {
        if let Some(pod) = &container.pod_id {
            by_pod.entry(pod).or_default().push(container.clone());
        }
    }
    let mut pods: Vec<_> = snapshot.pods().iter().cloned().collect();
    pods.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    let with_status = |pod: Arc<Pod>| {
        let status = of(&pod, by_pod.remove(&pod.id[..]).unwrap_or_default());
        (pod, status)
    };
    pods.into_iter().map(with_status).collect()
}

fn of(pod: &Pod, containers: Vec<Arc<Container>>) -> PodStatus {
    let (infra, mut members): (Vec<_>, Vec<_>) = containers
        .into_iter()
        .partition(|container| container.name.starts_with(INFRA_PREFIX));
    members.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    let infra = infra.into_iter().next();
    let runs = |container: &Container| container.state == ContainerState::Running;
    let entries = pod.template.spec.containers.len();
    let desired = if entries > 0 { entries } else { members.len() };
    let running = members.iter().filter(|member| runs(member)).count();
    let whole = infra.as_deref().is_some_and(runs) && running >= desired;
    let passes =
        |member: &Arc<Container>| member.options.readiness_check.is_none() || member.readiness == Some(Health::Healthy);
    let state = match pod.goal {
        PodGoal::Created => PodState::Created,
        PodGoal::Stopped | PodGoal::Removed => PodState::Stopped,
        PodGoal::Running if whole => PodState::Running,
        PodGoal::Running => PodState::Degraded,
    };
    let ready = state == PodState::Running && desired > 0 && members.iter().all(passes);
    PodStatus {
        state,
        infra,
        members,
        desired,
        running,
        ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::tests::{container, pod};

    fn seen(pod: &Pod, containers: Vec<Container>) -> (String, usize, usize, bool) {
        let snapshot = Snapshot::build(|t| {
            t.put(pod.clone()).unwrap();
            for container in containers {
                t.put(container).unwrap();
            }
        });
        let status = status(&snapshot, pod);
        (status.state.to_string(), status.desired, status.running, status.ready)
    }

    fn part(id: &str, name: &str, state: ContainerState) -> Container {
        let mut container = container(id, name).in_state(state);
        container.pod_id = Some("01kh3v8q2m6r4t0x9e5w7yabcd".into());
        container
    }

    #[test]
    fn a_pod_is_ready_when_everything_in_it_is() {
        use ContainerState::{Running, Stopped};
        let mut shop = pod("01kh3v8q2m6r4t0x9e5w7yabcd", "shop", &["web"]);
        let infra = || part("i", "condenser-pod-infra-01kh3v8q2m6r", Running);
        let web = |state| part("w", "web-5w7yabcd", state);
        assert_eq!(seen(&shop, vec![]), ("created".into(), 1, 0, false));
        shop.goal = PodGoal::Running;
        assert_eq!(seen(&shop, vec![infra()]), ("degraded".into(), 1, 0, false));
        assert_eq!(seen(&shop, vec![infra(), web(Running)]), ("running".into(), 1, 1, true));
        assert_eq!(seen(&shop, vec![web(Running)]), ("degraded".into(), 1, 1, false));
        assert_eq!(
            seen(&shop, vec![infra(), web(Stopped)]),
            ("degraded".into(), 1, 0, false)
        );
        let mut unready = web(Running);
        unready.options.readiness_check = Some(crate::store::HealthCheck {
            probe: crate::store::Probe::Tcp(80),
            interval: 1,
            timeout: 1,
            retries: 1,
            successes: 1,
            start_period: 0,
            start_interval: None,
        });
        assert_eq!(seen(&shop, vec![infra(), unready]), ("running".into(), 1, 1, false));
        shop.goal = PodGoal::Stopped;
        assert_eq!(seen(&shop, vec![infra(), web(Running)]).0, "stopped");
    }

    #[test]
    fn without_a_template_its_members_are_what_is_desired() {
        let mut empty = pod("01kh3v8q2m6r4t0x9e5w7yabcd", "shop", &[]);
        empty.goal = PodGoal::Running;
        let infra = part("i", "condenser-pod-infra-01kh3v8q2m6r", ContainerState::Running);
        assert_eq!(seen(&empty, vec![infra]), ("running".into(), 0, 0, false));
    }
}
