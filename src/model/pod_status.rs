//! The current status of a pod, computed from the rows of its containers. Pure.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::retries::steady_from;
use crate::model::{
    Container, ContainerState, Health, Pod, PodContainer, PodGoal, PodProblem, RestartPolicy, Snapshot, by_creation,
};

/// The pod state that clients see (`docs/spec/api.md` 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Never started.
    Created,
    /// Infra and all members run.
    Running,
    /// A user stopped it, or it is being removed.
    Stopped,
    /// It should run, but one of its containers does not.
    Degraded,
    /// All its containers exited with 0 and its restart policy does not restart them.
    Succeeded,
    /// All its containers exited, not all with 0, and its restart policy does not restart them.
    Failed,
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Degraded => "degraded",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        })
    }
}

/// A pod at one revision of the store.
#[derive(Debug, Clone)]
pub struct PodStatus {
    /// Its state.
    pub state: PodState,
    /// The infra container.
    pub infra: Option<Arc<Container>>,
    /// The other containers, by creation time, then id.
    pub members: Vec<Arc<Container>>,
    /// Number of containers in the template; if it has none, of existing members.
    pub desired: usize,
    /// Number of running members, without infra.
    pub running: usize,
    /// Whether all of `desired`, at least one, run and pass their readiness checks, so that services may send it
    /// clients.
    pub ready: bool,
    /// Why it is not in its desired state, or how it ended.
    pub problem: Option<PodProblem>,
}

/// How long a container without a readiness check must run before another pod is removed in its favour. Running is the
/// only sign of readiness it gives, and a container that fails at its start runs for a moment too.
const SETTLING: Duration = Duration::from_secs(2);

impl PodStatus {
    /// When a ready pod stops counting as recently restarted; `None` if it is not ready.
    pub fn steady_from(&self) -> Option<Timestamp> {
        let starts = self
            .members
            .iter()
            .map(|member| steady_from(member).or(member.status.started_at));
        starts.max().flatten().filter(|_| self.ready)
    }

    /// When a ready pod that must be ready for that many seconds can replace another one; `None` if it is not ready.
    pub fn available_from(&self, min_ready_seconds: u32) -> Option<Timestamp> {
        let min_ready = Duration::from_secs(min_ready_seconds.into());
        let of = |member: &Arc<Container>| {
            let (since, pause) = match &member.spec.options.readiness_check {
                Some(_) => (member.status.ready_at.or(member.status.started_at)?, min_ready),
                None => (member.status.started_at?, min_ready.max(SETTLING)),
            };
            since.checked_add(pause).ok()
        };
        let available = self.members.iter().map(of).max().flatten();
        available.max(self.steady_from()).filter(|_| self.ready)
    }

    /// Its address, once it has an infra container.
    pub fn address(&self) -> Option<Ipv4Addr> {
        Some(self.infra.as_ref()?.status.attachment.as_ref()?.address)
    }

    /// The member that was created from a template entry.
    pub fn member(&self, pod: &Pod, entry: &PodContainer) -> Option<&Arc<Container>> {
        let name = member_name(&pod.id, &entry.name);
        self.members.iter().find(|member| member.name == name)
    }
}

/// Name of the container for an entry of a pod's template: the entry's name and the last 8 characters of the pod's id
/// (`docs/spec/api.md` 4.2).
pub fn member_name(pod_id: &str, entry: &str) -> String {
    let tail = pod_id.get(pod_id.len().saturating_sub(8)..).unwrap_or(pod_id);
    format!("{entry}-{tail}")
}

/// One pod. For many, [`statuses`] scans the containers only once.
pub fn pod_status(snapshot: &Snapshot, pod: &Pod) -> PodStatus {
    let containers = snapshot.containers().iter();
    of(
        pod,
        containers.filter(|c| c.role.pod() == Some(&pod.id)).cloned().collect(),
    )
}

/// All pods, by creation time, then id.
pub fn pod_statuses(snapshot: &Snapshot) -> Vec<(Arc<Pod>, PodStatus)> {
    let mut by_pod: HashMap<&str, Vec<Arc<Container>>> = HashMap::new();
    for container in snapshot.containers().iter() {
        if let Some(pod) = container.role.pod() {
            by_pod.entry(pod).or_default().push(container.clone());
        }
    }
    let with_status = |pod: Arc<Pod>| {
        let status = of(&pod, by_pod.remove(&pod.id[..]).unwrap_or_default());
        (pod, status)
    };
    by_creation(snapshot.pods().iter().cloned())
        .into_iter()
        .map(with_status)
        .collect()
}

fn of(pod: &Pod, containers: Vec<Arc<Container>>) -> PodStatus {
    let (infra, members): (Vec<_>, Vec<_>) = by_creation(containers)
        .into_iter()
        .partition(|container| container.is_infra());
    let infra = infra.into_iter().next();
    let runs = |container: &Container| container.status.state == ContainerState::Running;
    let entries = pod.template.spec.containers.len();
    let desired = if entries > 0 { entries } else { members.len() };
    let running = members.iter().filter(|member| runs(member)).count();
    let whole = infra.as_deref().is_some_and(runs) && running >= desired;
    let passes = |member: &Arc<Container>| {
        member.spec.options.readiness_check.is_none() || member.status.readiness == Some(Health::Healthy)
    };
    let over: Vec<i32> = members.iter().filter_map(|member| final_code(pod, member)).collect();
    let all_over = desired > 0 && over.len() >= desired.max(members.len());
    // A member that has completed is not missing.
    let done = over.iter().filter(|code| **code == 0).count();
    let state = match pod.goal {
        PodGoal::Created => PodState::Created,
        PodGoal::Stopped | PodGoal::Removed => PodState::Stopped,
        PodGoal::Running if all_over && done == over.len() => PodState::Succeeded,
        PodGoal::Running if all_over => PodState::Failed,
        PodGoal::Running if whole => PodState::Running,
        PodGoal::Running if infra.as_deref().is_some_and(runs) && running + done >= desired => PodState::Running,
        PodGoal::Running => PodState::Degraded,
    };
    let problem = problem(pod, state, &members);
    let ready = whole && state == PodState::Running && desired > 0 && members.iter().all(passes);
    PodStatus {
        state,
        infra,
        members,
        desired,
        running,
        ready,
        problem,
    }
}

/// The exit status of a member that has exited and that the pod's restart policy does not restart.
fn final_code(pod: &Pod, member: &Container) -> Option<i32> {
    let exit = member.status.exit.as_ref()?;
    let ended = member.status.state == ContainerState::Stopped
        && !member.journal.stopped_by_user
        && member.journal.operation.is_none();
    let stays = match pod.template.spec.restart {
        RestartPolicy::No => true,
        RestartPolicy::OnFailure { .. } => exit.code == 0,
        RestartPolicy::Always => false,
    };
    (ended && stays).then_some(exit.code)
}

/// What to tell clients about a pod that is not in its desired state: why the last reconciliation failed, else how its
/// members exited.
fn problem(pod: &Pod, state: PodState, members: &[Arc<Container>]) -> Option<PodProblem> {
    match state {
        PodState::Degraded | PodState::Failed => {}
        PodState::Created | PodState::Running | PodState::Stopped | PodState::Succeeded => return None,
    }
    let ended = |member: &&Arc<Container>| {
        member.status.state == ContainerState::Stopped && member.status.exit.as_ref().is_some_and(|exit| exit.code != 0)
    };
    let of_member = || {
        let member = members.iter().find(ended)?;
        let exit = member.status.exit.as_ref()?;
        let reason = match state {
            PodState::Failed => exit.reason.clone(),
            _ if member.journal.retries.in_a_row > 0 => "CrashLoopBackOff".to_owned(),
            _ => exit.reason.clone(),
        };
        let restarts = match member.status.restarts {
            0 => String::new(),
            times => format!(", restarts: {times}"),
        };
        let words = match &exit.message[..] {
            "" => String::new(),
            words => format!(": {words}"),
        };
        let message = format!(
            "container {} ended with exit status {} ({}){restarts}{words}",
            member.name, exit.code, exit.reason
        );
        Some(PodProblem { reason, message })
    };
    pod.problem.clone().or_else(of_member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{container, pod, tcp_check};

    fn seen(pod: &Pod, containers: Vec<Container>) -> (String, usize, usize, bool) {
        let snapshot = Snapshot::build(|t| {
            t.put(pod.clone()).unwrap();
            for container in containers {
                t.put(container).unwrap();
            }
        });
        let status = pod_status(&snapshot, pod);
        (status.state.to_string(), status.desired, status.running, status.ready)
    }

    fn part(id: &str, name: &str, state: ContainerState) -> Container {
        let (container, pod) = (container(id, name).in_state(state), "01kh3v8q2m6r4t0x9e5w7yabcd");
        match id {
            "i" => container.infra_of(pod),
            _ => container.member_of(pod),
        }
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
        unready.spec.options.readiness_check = Some(tcp_check());
        assert_eq!(seen(&shop, vec![infra(), unready]), ("running".into(), 1, 1, false));
        shop.goal = PodGoal::Stopped;
        assert_eq!(seen(&shop, vec![infra(), web(Running)]).0, "stopped");
    }

    /// A pod of one or two containers, one character each: `r` runs, `0` or `1` is its exit status, `u` was stopped by
    /// a user.
    fn ended(restart: RestartPolicy, word: &str) -> PodStatus {
        let mut shop = pod("01kh3v8q2m6r4t0x9e5w7yabcd", "shop", &["a", "b"][..word.len()]);
        shop.goal = PodGoal::Running;
        shop.template.spec.restart = restart;
        let infra = part("i", "condenser-pod-infra-01kh3v8q2m6r", ContainerState::Running);
        let member = |(n, letter): (usize, char)| {
            let name = ["a", "b"][n];
            if letter == 'r' {
                return part(name, &member_name(&shop.id, name), ContainerState::Running);
            }
            let mut member = part(name, &member_name(&shop.id, name), ContainerState::Stopped);
            let code = letter.to_digit(10).unwrap_or(0) as i32;
            member.journal.stopped_by_user = letter == 'u';
            member.status.exit = Some(crate::model::Exit {
                code,
                reason: if code == 0 { "Completed" } else { "Error" }.into(),
                message: String::new(),
            });
            member
        };
        let snapshot = Snapshot::build(|t| {
            t.put(shop.clone()).unwrap();
            t.put(infra).unwrap();
            for member in word.chars().enumerate().map(member) {
                t.put(member).unwrap();
            }
        });
        pod_status(&snapshot, &shop)
    }

    #[test]
    fn a_pod_ends_when_its_policy_leaves_it_ended() {
        let (never, failure, always) = (
            RestartPolicy::No,
            RestartPolicy::OnFailure { max_retries: 0 },
            RestartPolicy::Always,
        );
        for (policy, word, state) in [
            (never, "0", "succeeded"),
            (never, "00", "succeeded"),
            (never, "1", "failed"),
            (never, "01", "failed"),
            (never, "0r", "running"),
            (never, "1r", "degraded"),
            (never, "u", "degraded"),
            (failure, "00", "succeeded"),
            (failure, "01", "degraded"),
            (failure, "0r", "running"),
            (always, "0", "degraded"),
            (always, "1", "degraded"),
        ] {
            let status = ended(policy, word);
            assert_eq!(status.state.to_string(), state, "{policy:?} {word}");
            assert!(!status.ready, "{policy:?} {word}");
        }
        let problem = ended(never, "01").problem.unwrap();
        assert_eq!(problem.reason, "Error");
        assert_eq!(problem.message, "container b-5w7yabcd ended with exit status 1 (Error)");
        assert_eq!(ended(never, "00").problem, None);
    }

    #[test]
    fn one_that_ended_by_itself_has_to_run_for_a_while() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let mut running = ended(RestartPolicy::Always, "r");
        running.ready = true;
        let with = |edit: &dyn Fn(&mut Container)| {
            let mut member = Container::clone(&running.members[0]);
            member.status.started_at = at(100);
            edit(&mut member);
            PodStatus {
                members: vec![Arc::new(member)],
                ..running.clone()
            }
        };
        let plain = with(&|_| {});
        assert_eq!((plain.steady_from(), plain.available_from(0)), (at(100), at(102)));
        assert_eq!(plain.available_from(30), at(130));
        let crashed = with(&|c| c.journal.retries.in_a_row = 1);
        assert_eq!((crashed.steady_from(), crashed.available_from(0)), (at(110), at(110)));
        let probed = with(&|c| {
            c.spec.options.readiness_check = Some(tcp_check());
            c.status.ready_at = at(150);
        });
        assert_eq!((probed.available_from(0), probed.available_from(5)), (at(150), at(155)));
        let unready = PodStatus { ready: false, ..plain };
        assert_eq!((unready.steady_from(), unready.available_from(0)), (None, None));
    }

    #[test]
    fn without_a_template_its_members_are_what_is_desired() {
        let mut empty = pod("01kh3v8q2m6r4t0x9e5w7yabcd", "shop", &[]);
        empty.goal = PodGoal::Running;
        let infra = part("i", "condenser-pod-infra-01kh3v8q2m6r", ContainerState::Running);
        assert_eq!(seen(&empty, vec![infra]), ("running".into(), 0, 0, false));
    }
}
