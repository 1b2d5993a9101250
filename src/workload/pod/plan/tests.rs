use ContainerState::{Created, Creating, Running, Stopped};
use proptest::prelude::*;

use super::*;
use crate::model::fixtures::{container, pod};
use crate::model::{Attachment, Exit, Forward, ProcessId, Snapshot, pod_status};

const ID: &str = "01kh3v8q2m6r4t0x9e5w7yabcd";
const ENTRIES: [&str; 2] = ["web", "side"];

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(n).unwrap()
}

fn process(pid: i32) -> Option<ProcessId> {
    Some(ProcessId {
        pid,
        start_time: 1,
        boot_id: "b".into(),
    })
}

/// A simulated pod, on which steps are executed and accidents happen.
#[derive(Debug, Clone)]
struct World {
    pod: Option<Pod>,
    containers: Vec<Container>,
    clock: i64,
}

impl World {
    fn new(goal: PodGoal) -> Self {
        let mut pod = pod(ID, "shop", &ENTRIES);
        pod.goal = goal;
        pod.template.spec.containers[0].request.ports = vec!["8080:80".into()];
        pod.template.spec.restart = RestartPolicy::Always;
        Self {
            pod: Some(pod),
            containers: Vec::new(),
            clock: 100,
        }
    }

    fn next(&self, want: Want) -> NextSteps {
        let Some(pod) = &self.pod else { return NextSteps::Done };
        let snapshot = Snapshot::build(|t| {
            for container in &self.containers {
                t.put(container.clone()).unwrap();
            }
        });
        plan(pod, &pod_status(&snapshot, pod), want, second(self.clock))
    }

    fn steps(&self, want: Want) -> Vec<Step> {
        match self.next(want) {
            NextSteps::Steps(steps) => steps,
            other => panic!("{other:?}"),
        }
    }

    fn infra(&mut self) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.status.attachment.is_some())
    }

    fn member(&mut self, n: usize) -> &mut Container {
        self.containers
            .iter_mut()
            .filter(|c| c.status.attachment.is_none())
            .nth(n)
            .unwrap()
    }

    fn with(&mut self, id: &str) -> &mut Container {
        self.containers.iter_mut().find(|c| c.id == id).unwrap()
    }

    fn host(&self) -> Option<ProcessId> {
        self.containers
            .iter()
            .find(|c| c.status.attachment.is_some())?
            .status
            .process
            .clone()
    }

    fn make(&mut self, name: String) {
        let is_infra = name.starts_with(crate::model::INFRA_PREFIX);
        self.clock += 1;
        let mut made = container(&format!("c{}", self.clock), &name).in_state(Created);
        made.status.process = process(self.clock as i32);
        made.status.created_at = Some(second(self.clock));
        if is_infra {
            made = made.infra_of(ID);
            made.status.attachment = Some(Attachment {
                network: "raind0".into(),
                address: [10, 166, 0, 1].into(),
            });
            made.spec.forwards = vec![Forward {
                host_address: None,
                host_port: 8080,
                container_port: 80,
                protocol: crate::model::Protocol::Tcp,
            }];
        } else {
            made = made.member_of(ID);
            made.journal.joined = self.host();
            assert!(made.journal.joined.is_some(), "a member without namespaces to join");
            made.spec.options.restart = RestartPolicy::Always;
        }
        self.containers.push(made);
    }

    fn start(&mut self, id: &str) {
        self.clock += 1;
        let (now, host) = (self.clock, self.host());
        let container = self.with(id);
        if container.status.state == Stopped {
            container.status.process = process(now as i32);
            if container.status.attachment.is_none() {
                assert!(host.is_some(), "a member without namespaces to join");
                container.journal.joined = host;
            }
        }
        container.status.state = Running;
        container.journal.stopped_by_user = false;
        container.status.started_at = Some(second(now));
    }

    fn end(&mut self, id: &str, code: i32) {
        self.clock += 1;
        let now = second(self.clock);
        let container = self.with(id);
        container.status.state = Stopped;
        container.status.process = None;
        container.status.stopped_at = Some(now);
        container.status.exit = Some(Exit {
            code,
            reason: String::new(),
            message: String::new(),
        });
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::MakeInfra => self.make("condenser-pod-infra-01kh3v8q2m6r".into()),
            Step::StartInfra(id) => {
                let restarts = rebuilds(self.with(&id));
                let state = self.with(&id).status.state;
                if state == Stopped {
                    self.with(&id).status.restarts = restarts;
                }
                self.start(&id);
            }
            Step::Publish(id) => {
                let pod = self.pod.as_ref().unwrap();
                let forwards = parse_ports(&ports(&pod.template.spec)).unwrap();
                self.with(&id).spec.forwards = forwards;
            }
            Step::Make(entry) => self.make(crate::model::member_name(ID, ENTRIES[entry])),
            Step::Start(id) => self.start(&id),
            Step::End(id) => self.end(&id, 143),
            Step::Delete(id) => self.containers.retain(|c| c.id != id),
            Step::Forget => {
                assert!(
                    self.containers.is_empty(),
                    "a pod is forgotten and its containers are there"
                );
                self.pod = None;
            }
        }
    }

    /// Executes plans until none is left and returns the number of rounds.
    fn settle(&mut self, want: Want) -> usize {
        for round in 0..8 {
            match self.next(want) {
                NextSteps::Done => return round,
                NextSteps::Wait(delay) => self.clock += delay.as_secs() as i64 + 1,
                NextSteps::Steps(steps) => steps.into_iter().for_each(|step| self.perform(step)),
            }
        }
        panic!("it does not come to an end: {self:?}");
    }

    /// Whether infra and one member per entry exist and nothing else, all running, all members in infra's namespaces.
    fn is_whole(&self) -> bool {
        let host = self.host();
        let running = self.containers.iter().all(|c| c.status.state == Running);
        let together = self
            .containers
            .iter()
            .filter(|c| c.status.attachment.is_none())
            .all(|c| c.journal.joined == host);
        running && together && host.is_some() && self.containers.len() == 1 + ENTRIES.len()
    }
}

fn running() -> World {
    let mut world = World::new(PodGoal::Running);
    world.settle(Want::Kept);
    assert!(world.is_whole(), "{world:?}");
    world
}

#[test]
fn a_pod_that_nobody_started_is_left_alone() {
    let mut world = World::new(PodGoal::Created);
    assert_eq!(world.next(Want::Kept), NextSteps::Done);
    world.settle(Want::Made);
    let states: Vec<_> = world.containers.iter().map(|c| c.status.state).collect();
    assert_eq!(states, [Running, Created, Created]);
    assert_eq!(world.next(Want::Kept), NextSteps::Done);
    world.settle(Want::Started);
    assert!(world.is_whole());
}

#[test]
fn a_stop_is_respected_and_keeps_infra() {
    let mut world = running();
    world.pod.as_mut().unwrap().goal = PodGoal::Stopped;
    assert_eq!(world.steps(Want::Kept).len(), 2);
    world.settle(Want::Kept);
    let states: Vec<_> = world.containers.iter().map(|c| c.status.state).collect();
    assert_eq!(states, [Running, Stopped, Stopped]);
    let infra = world.infra().unwrap().id.clone();
    world.end(&infra, 137);
    assert_eq!(
        world.next(Want::Kept),
        NextSteps::Done,
        "an infra that dies in a stopped pod stays dead"
    );
    world.pod.as_mut().unwrap().goal = PodGoal::Running;
    world.settle(Want::Started);
    assert!(world.is_whole());
}

#[test]
fn a_dead_infra_takes_its_members_with_it_before_it_comes_back() {
    let mut world = running();
    let ids: Vec<String> = world.containers.iter().map(|c| c.id.clone()).collect();
    world.clock += 100;
    world.end(&ids[0], 137);
    assert_eq!(
        world.steps(Want::Kept),
        [Step::End(ids[1].clone()), Step::End(ids[2].clone())]
    );
    world.settle(Want::Kept);
    assert!(world.is_whole());
    assert!(
        ids.iter().eq(world.containers.iter().map(|c| &c.id)),
        "all are the same containers"
    );
}

#[test]
fn a_member_that_ended_is_its_restart_policys() {
    let mut world = running();
    let id = world.member(0).id.clone();
    world.end(&id, 1);
    assert_eq!(world.next(Want::Kept), NextSteps::Done);
    assert_eq!(world.steps(Want::Started), [Step::Start(id.clone())]);
    world.with(&id).journal.stopped_by_user = true;
    assert_eq!(
        world.steps(Want::Kept),
        [Step::Start(id)],
        "a stop that was not of the pod is undone"
    );
}

#[test]
fn a_start_starts_what_is_quick_only_once() {
    let mut world = running();
    let id = world.member(0).id.clone();
    world.pod.as_mut().unwrap().started_at = Some(second(world.clock));
    world.end(&id, 0);
    assert_eq!(world.next(Want::Started), NextSteps::Done);
    world.clock += 1;
    world.pod.as_mut().unwrap().started_at = Some(second(world.clock));
    assert_eq!(
        world.steps(Want::Started),
        [Step::Start(id)],
        "the next start is another one"
    );
}

#[test]
fn a_member_that_was_done_before_infra_died_stays_done() {
    let done = |policy, code| {
        let mut world = running();
        let id = world.member(0).id.clone();
        world.member(0).spec.options.restart = policy;
        world.end(&id, code);
        let infra = world.infra().unwrap().id.clone();
        world.end(&infra, 137);
        world.settle(Want::Kept);
        world.with(&id).status.state == Stopped
    };
    let on_failure = RestartPolicy::OnFailure { max_retries: 0 };
    assert!(done(RestartPolicy::No, 1) && done(on_failure, 0));
    assert!(!done(on_failure, 1) && !done(RestartPolicy::Always, 0));
}

#[test]
fn a_member_that_is_being_created_again_is_not_in_dead_namespaces() {
    let mut world = running();
    let id = world.member(0).id.clone();
    let member = world.with(&id);
    // The row as the runtime's hook leaves it, before the create returns.
    (member.status.state, member.journal.operation, member.journal.joined) =
        (Created, Some(Operation::Restart), process(1));
    assert_eq!(world.next(Want::Kept), NextSteps::Done);
    world.with(&id).journal.operation = None;
    assert_eq!(world.steps(Want::Kept), [Step::End(id)]);
}

#[test]
fn a_container_that_a_client_made_waits_for_its_client() {
    let mut world = running();
    world.make("extra-5w7yabcd".into());
    let id = world.member(2).id.clone();
    world.with(&id).journal.stopped_by_user = true;
    assert_eq!(world.next(Want::Kept), NextSteps::Done);
    let infra = world.infra().unwrap().id.clone();
    world.end(&infra, 137);
    world.settle(Want::Kept);
    assert_eq!(world.with(&id).status.state, Stopped, "also when infra died meanwhile");
    assert_eq!(world.steps(Want::Started), [Step::Start(id)]);
}

#[test]
fn an_infra_that_keeps_dying_is_waited_for_longer_each_time() {
    let mut world = running();
    let id = world.infra().unwrap().id.clone();
    let mut waits = Vec::new();
    for _ in 0..8 {
        // Infra died in the second in which it started.
        let infra = world.with(&id);
        infra.status.state = Stopped;
        infra.status.process = None;
        infra.status.stopped_at = infra.status.started_at;
        for member in 0..2 {
            let member = world.member(member).id.clone();
            world.end(&member, 143);
        }
        world.clock = world.with(&id).status.stopped_at.unwrap().as_second();
        waits.push(match world.next(Want::Kept) {
            NextSteps::Wait(delay) => delay.as_millis(),
            _ => 0,
        });
        let NextSteps::Steps(steps) = world.next(Want::Started) else {
            panic!("a user's start does not wait")
        };
        steps.into_iter().for_each(|step| world.perform(step));
    }
    assert_eq!(waits, [0, 250, 500, 1000, 2000, 4000, 8000, 15000]);
    world.clock += 60;
    world.end(&id, 137);
    assert_eq!(
        world.steps(Want::Kept),
        [Step::StartInfra(id)],
        "after a steady run it begins anew"
    );
}

#[test]
fn what_others_have_begun_is_finished_or_waited_for() {
    let mut world = running();
    let id = world.member(0).id.clone();
    world.with(&id).journal.operation = Some(Operation::Delete);
    assert_eq!(world.steps(Want::Kept), [Step::Delete(id)]);
    world.settle(Want::Kept);
    assert!(world.is_whole());
    let infra = world.infra().unwrap();
    (infra.status.state, infra.status.process) = (Creating, None);
    for member in 0..2 {
        let member = world.member(member).id.clone();
        world.end(&member, 143);
    }
    assert_eq!(world.next(Want::Kept), NextSteps::Wait(PAUSE));
}

/// An event in a pod while no operation holds it.
#[derive(Debug, Clone)]
enum Event {
    /// The process of a container ends.
    Dies(usize, i32),
    /// A client deletes a container that does not run.
    Vanishes(usize),
    /// A deletion is interrupted.
    HalfGone(usize),
    /// A client starts a stopped container; for a member this is refused without a living infra.
    Starts(usize),
    /// Only some of the next steps are executed, as when the daemon is killed.
    Some(usize),
    Goal(PodGoal),
    Time(i64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0..3usize, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(n, code)| Event::Dies(n, code)),
        (0..3usize).prop_map(Event::Vanishes),
        (0..3usize).prop_map(Event::HalfGone),
        (0..3usize).prop_map(Event::Starts),
        (0..3usize).prop_map(Event::Some),
        prop_oneof![Just(PodGoal::Running), Just(PodGoal::Stopped)].prop_map(Event::Goal),
        (0..60i64).prop_map(Event::Time),
    ];
    proptest::collection::vec(event, 0..30)
}

impl World {
    fn happen(&mut self, event: &Event) {
        let id = |world: &Self, n: usize| world.containers.get(n).map(|c| c.id.clone());
        match *event {
            Event::Dies(n, code) => {
                if let Some(id) = id(self, n)
                    && lives(self.with(&id))
                {
                    self.end(&id, code);
                }
            }
            Event::Vanishes(n) => {
                let gone = id(self, n);
                self.containers
                    .retain(|c| Some(&c.id) != gone.as_ref() || c.status.state == Running);
            }
            Event::HalfGone(n) => {
                if let Some(id) = id(self, n)
                    && self.with(&id).status.state != Running
                {
                    self.with(&id).journal.operation = Some(Operation::Delete);
                }
            }
            Event::Starts(n) => {
                if let Some(id) = id(self, n)
                    && self.with(&id).status.state != Running
                    && self.with(&id).journal.operation.is_none()
                    && (self.with(&id).status.attachment.is_some() || self.host().is_some())
                {
                    self.start(&id);
                }
            }
            Event::Some(count) => {
                if let NextSteps::Steps(steps) = self.next(Want::Kept) {
                    steps.into_iter().take(count).for_each(|step| self.perform(step));
                }
            }
            Event::Goal(goal) => self.pod.as_mut().unwrap().goal = goal,
            Event::Time(seconds) => self.clock += seconds,
        }
    }
}

proptest! {
    /// After any accidents, a start completes the pod and then rests.
    #[test]
    fn a_start_always_ends_with_the_whole_pod(events in events()) {
        let mut world = World::new(PodGoal::Running);
        events.iter().for_each(|event| world.happen(event));
        world.pod.as_mut().unwrap().goal = PodGoal::Running;
        world.settle(Want::Started);
        prop_assert!(world.is_whole(), "{world:?}");
        prop_assert_eq!(world.next(Want::Kept), NextSteps::Done);
    }

    /// The controller alone leaves only restarts of single members to do, and no member in dead namespaces.
    #[test]
    fn the_controller_always_comes_to_rest(events in events()) {
        let mut world = World::new(PodGoal::Running);
        events.iter().for_each(|event| world.happen(event));
        world.settle(Want::Kept);
        let host = world.host();
        let goal = world.pod.as_ref().unwrap().goal;
        for member in world.containers.iter().filter(|c| c.status.attachment.is_none()) {
            let apart = lives(member) && member.journal.joined != host;
            prop_assert!(goal != PodGoal::Running || !apart, "{world:?}");
            let ended_later = member.status.state == Stopped && member.journal.joined == host;
            prop_assert!(goal != PodGoal::Running || member.status.state == Running || ended_later, "{world:?}");
            prop_assert!(goal != PodGoal::Stopped || member.status.state != Running, "{world:?}");
        }
        let settled = format!("{world:?}");
        world.settle(Want::Kept);
        prop_assert_eq!(settled, format!("{:?}", world), "it oscillates");
    }

    /// A removal leaves nothing behind.
    #[test]
    fn a_removal_always_ends_with_nothing(events in events()) {
        let mut world = World::new(PodGoal::Running);
        events.iter().for_each(|event| world.happen(event));
        world.pod.as_mut().unwrap().goal = PodGoal::Removed;
        world.settle(Want::Kept);
        prop_assert!(world.pod.is_none() && world.containers.is_empty());
    }
}

#[test]
fn a_changed_template_is_published() {
    let mut world = running();
    world.pod.as_mut().unwrap().template.spec.containers[1].request.ports = vec!["53:53:udp".into()];
    let infra = world.infra().unwrap().id.clone();
    assert_eq!(world.steps(Want::Kept), [Step::Publish(infra)]);
    world.settle(Want::Kept);
    assert_eq!(world.infra().unwrap().spec.forwards.len(), 2);
}
