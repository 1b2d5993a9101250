//! The plan for a pod. Pure: takes one snapshot and returns the next steps.
//!
//! The steps of one plan do not depend on each other's outcome. After them a new plan is made, until it is
//! [`NextSteps::Done`]; so each plan takes account of concurrent changes and crashes.

use std::time::Duration;

use jiff::Timestamp;

use super::template::ports;
use crate::model::{Container, ContainerState, Operation, Pod, PodGoal, PodStatus, RestartPolicy};
use crate::ops::controller::Backoff;
use crate::workload::container::{are_published, parse_ports};

/// How long to wait before rebuilding a pod whose infra container keeps dying.
const REBUILD: Backoff = Backoff {
    first: Duration::from_millis(250),
    most: Duration::from_secs(15),
};
/// An infra container that ran this long resets the delay.
const STEADY: Duration = Duration::from_secs(10);
/// How long to leave a container alone that another operation holds.
const PAUSE: Duration = Duration::from_millis(200);

/// The caller's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// A user: the containers shall exist.
    Made,
    /// A user: all of them shall run.
    Started,
    /// The controller: the pod shall meet its goal. The restart policy handles members that ended.
    Kept,
}

/// The next actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NextSteps {
    /// Nothing.
    Done,
    /// Nothing until this time has passed.
    Wait(Duration),
    /// These, in this order.
    Steps(Vec<Step>),
}

/// One step. Doing it again is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Creates the infra container.
    MakeInfra,
    /// Starts the infra container of that id.
    StartInfra(String),
    /// Has the infra container of that id publish the ports of the template.
    Publish(String),
    /// Creates the member of the entry with that index.
    Make(usize),
    /// Starts the member of that id.
    Start(String),
    /// Ends the process of the container with that id; the container stays.
    End(String),
    /// Deletes the container with that id.
    Delete(String),
    /// Deletes the pod, which has no containers any more.
    Forget,
}

/// The next steps of a pod.
pub(super) fn plan(pod: &Pod, status: &PodStatus, want: Want, now: Timestamp) -> NextSteps {
    let steps = match pod.goal {
        PodGoal::Removed => removal(status),
        PodGoal::Stopped => ends(status, |member| member.status.state == ContainerState::Running),
        PodGoal::Created if want == Want::Kept => Vec::new(),
        PodGoal::Created | PodGoal::Running => return towards(pod, status, want, now),
    };
    steps_or_done(steps)
}

fn steps_or_done(steps: Vec<Step>) -> NextSteps {
    if steps.is_empty() {
        NextSteps::Done
    } else {
        NextSteps::Steps(steps)
    }
}

fn removal(status: &PodStatus) -> Vec<Step> {
    let delete = |container: &Container| Step::Delete(container.id.clone());
    match (&status.members[..], &status.infra) {
        ([], None) => vec![Step::Forget],
        ([], Some(infra)) => vec![delete(infra)],
        (members, _) => members.iter().map(|member| delete(member)).collect(),
    }
}

fn ends(status: &PodStatus, of: impl Fn(&Container) -> bool) -> Vec<Step> {
    let members = status.members.iter().filter(|member| of(member));
    members.map(|member| Step::End(member.id.clone())).collect()
}

/// Whether it uses namespaces, running or about to. A container that is just being created again does not count: until
/// that is done its row still names the namespaces of its last run.
fn lives(container: &Container) -> bool {
    container.journal.operation.is_none()
        && matches!(
            container.status.state,
            ContainerState::Created | ContainerState::Running
        )
}

/// First removes obstacles, then brings up infra, then the members.
fn towards(pod: &Pod, status: &PodStatus, want: Want, now: Timestamp) -> NextSteps {
    let half_gone = |c: &&std::sync::Arc<Container>| c.journal.operation == Some(Operation::Delete);
    let containers = || status.infra.iter().chain(&status.members);
    let rests: Vec<_> = containers()
        .filter(half_gone)
        .map(|c| Step::Delete(c.id.clone()))
        .collect();
    if !rests.is_empty() {
        return NextSteps::Steps(rests);
    }
    let host = status.infra.as_ref().and_then(|infra| infra.status.process.as_ref());
    let strays = ends(status, |member| {
        lives(member) && (host.is_none() || member.journal.joined.as_ref() != host)
    });
    if !strays.is_empty() {
        return NextSteps::Steps(strays);
    }
    let Some(infra) = &status.infra else {
        return NextSteps::Steps(vec![Step::MakeInfra]);
    };
    match infra.status.state {
        ContainerState::Creating => NextSteps::Wait(PAUSE),
        ContainerState::Created => NextSteps::Steps(vec![Step::StartInfra(infra.id.clone())]),
        ContainerState::Stopped => match rebuild_delay(infra, now) {
            Some(delay) if want == Want::Kept => NextSteps::Wait(delay),
            _ => NextSteps::Steps(vec![Step::StartInfra(infra.id.clone())]),
        },
        ContainerState::Running => steps_or_done(members(pod, status, infra, want)),
    }
}

/// The remaining steps once infra runs and no member is in other namespaces.
fn members(pod: &Pod, status: &PodStatus, infra: &Container, want: Want) -> Vec<Step> {
    let entries = &pod.template.spec.containers;
    // Ports of a stored template were parsed before it was stored.
    let wanted = parse_ports(&ports(&pod.template.spec)).unwrap_or_default();
    let publish = (!are_published(&wanted, &infra.spec.forwards)).then(|| Step::Publish(infra.id.clone()));
    let missing = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| status.member(pod, entry).is_none());
    let mut steps: Vec<Step> = publish.into_iter().chain(missing.map(|(n, _)| Step::Make(n))).collect();
    if want != Want::Made {
        let waiting = status.members.iter().filter(|member| is_due(pod, member, infra, want));
        steps.extend(waiting.map(|member| Step::Start(member.id.clone())));
    }
    steps
}

/// Whether a member has to be started.
fn is_due(pod: &Pod, member: &Container, infra: &Container, want: Want) -> bool {
    // A member that a client created in a running pod waits for its client, even if infra died in the meantime.
    let waits = member.journal.stopped_by_user && member.status.started_at.is_none();
    // Do not start a member twice for one request if it ended quickly.
    let had_its_run = member.status.state == ContainerState::Stopped
        && !member.journal.stopped_by_user
        && pod.started_at.is_some()
        && member.status.stopped_at > pod.started_at;
    match member.status.state {
        ContainerState::Creating | ContainerState::Running => false,
        _ if member.journal.operation.is_some() => false,
        _ if want == Want::Started && !had_its_run => true,
        _ if waits => false,
        ContainerState::Created => true,
        // Undo the stop of a single member (`docs/spec/api.md` 19).
        ContainerState::Stopped if member.journal.stopped_by_user => true,
        ContainerState::Stopped => member.journal.joined != infra.status.process && !is_over(member, infra),
    }
}

/// Whether a member ended before the infra container did, and its restart policy did not require a restart.
fn is_over(member: &Container, infra: &Container) -> bool {
    let before =
        matches!((member.status.stopped_at, infra.status.stopped_at), (Some(member), Some(infra)) if member < infra);
    let code = member.status.exit.as_ref().map(|exit| exit.code);
    before
        && match member.spec.options.restart {
            RestartPolicy::No => true,
            RestartPolicy::OnFailure { .. } => code == Some(0),
            RestartPolicy::Always => false,
        }
}

/// The number of consecutive starts of an infra container when it starts now, not counting the first one.
pub(super) fn rebuilds(infra: &Container) -> u32 {
    match (infra.status.started_at, infra.status.stopped_at) {
        (Some(started), Some(stopped)) if elapsed(started, stopped) >= STEADY => 1,
        _ => infra.status.restarts.saturating_add(1),
    }
}

fn rebuild_delay(infra: &Container, now: Timestamp) -> Option<Duration> {
    let delay = match rebuilds(infra) {
        1 => return None,
        again => REBUILD.delay(again - 1),
    };
    let waited = infra.status.stopped_at.map_or(delay, |stopped| elapsed(stopped, now));
    delay.checked_sub(waited).filter(|rest| !rest.is_zero())
}

/// The time between both; zero if the clock was set back.
fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests;
