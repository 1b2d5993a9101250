use rstest::rstest;

use super::*;
use crate::model::Role;

use crate::model::fixtures::{container, pod, replica_set, service};
use crate::model::{Attachment, Exit, HealthCheck, Probe, RestartPolicy, Retries};
use crate::ops::conditions::Failure;

const POD: &str = "01kh3v8q2m6r4t0x9e5w7yabcd";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn stopped(code: i32, reason: &str, message: &str) -> Container {
    let mut c = container("a", "web").in_state(ContainerState::Stopped);
    c.journal.operation = None;
    (c.status.started_at, c.status.stopped_at) = (Some(at(100)), Some(at(105)));
    c.status.exit = Some(Exit {
        code,
        reason: reason.into(),
        message: message.into(),
    });
    c
}

fn said(c: &Container) -> Option<(Status, String)> {
    ready(c).map(|condition| (condition.status, condition.reason))
}

#[rstest]
#[case(1, "Error", "", "Error")]
#[case(137, "OOMKilled", "", "OOMKilled")]
#[case(127, "Error", "nope: not found in PATH", "StartError")]
#[case(127, "Error", "", "Error")]
fn an_end_says_why(#[case] code: i32, #[case] reason: &str, #[case] message: &str, #[case] word: &str) {
    let c = stopped(code, reason, message);
    let condition = ready(&c).unwrap();
    assert_eq!((condition.status, &condition.reason[..]), (Status::False, word));
    assert_eq!((condition.changed_at, condition.next_try_at), (at(105), None));
    assert!(
        condition
            .message
            .starts_with(&format!("ended with exit status {code} ({reason})"))
    );
    assert!(condition.message.ends_with(message), "{}", condition.message);
}

#[test]
fn a_crash_loop_says_until_when_it_waits() {
    let mut c = stopped(3, "Error", "");
    c.spec.options.restart = RestartPolicy::Always;
    c.status.restarts = 4;
    c.journal.retries = Retries {
        in_a_row: 4,
        last: Some(at(100)),
    };
    let condition = ready(&c).unwrap();
    assert_eq!((&condition.reason[..], condition.tries), ("CrashLoopBackOff", 4));
    assert_eq!(condition.message, "ended with exit status 3 (Error), restarts: 4");
    // 100 ms, doubled four times.
    let wait = condition.next_try_at.unwrap().duration_since(at(105));
    assert_eq!(wait.as_millis(), 1600);
    c.status.exit.as_mut().unwrap().reason = OOM_KILLED.into();
    assert_eq!(said(&c).unwrap().1, "OOMKilled", "the cause, not what it leads to");
    c.journal.stopped_by_user = true;
    assert_eq!(said(&c), None);
}

#[test]
fn what_has_done_its_work_has_no_condition() {
    assert_eq!(said(&stopped(0, "Completed", "")), None);
    let mut restarted = stopped(0, "Completed", "");
    restarted.spec.options.restart = RestartPolicy::Always;
    assert_eq!(said(&restarted).unwrap(), (Status::False, "Completed".into()));
    assert_eq!(said(&container("a", "web").in_state(ContainerState::Created)), None);
}

#[test]
fn a_failing_check_says_what_it_says() {
    let mut c = container("a", "web").in_state(ContainerState::Running);
    c.status.started_at = Some(at(100));
    assert_eq!(said(&c).unwrap(), (Status::True, "Running".into()));
    c.status.readiness = Some(Health::Starting);
    assert_eq!(said(&c).unwrap(), (Status::Unknown, "Starting".into()));
    c.status.readiness_failure = Some(CheckFailure {
        output: "[\"check\"] ended with 1: no database".into(),
        since: at(103),
    });
    let early = ready(&c).unwrap();
    assert_eq!((early.status, early.changed_at), (Status::Unknown, at(103)));
    c.status.readiness = Some(Health::Unhealthy);
    let condition = ready(&c).unwrap();
    assert_eq!((condition.status, &condition.reason[..]), (Status::False, "Unhealthy"));
    let words = "the readiness check fails: [\"check\"] ended with 1: no database";
    assert_eq!((&condition.message[..], condition.changed_at), (words, at(103)));
    c.status.readiness = Some(Health::Healthy);
    (c.status.readiness_failure, c.status.ready_at) = (None, Some(at(110)));
    let condition = ready(&c).unwrap();
    assert_eq!((condition.status, condition.changed_at), (Status::True, at(110)));
}

/// A pod that should run, with its infra container and one member.
fn shop(member: Container) -> (Pod, Vec<Container>) {
    let mut shop = pod(POD, "shop", &["web"]);
    shop.goal = PodGoal::Running;
    let mut infra = container("i", "condenser-pod-infra-01kh3v8q2m6r").in_state(ContainerState::Running);
    infra.status.attachment = Some(Attachment {
        network: "raind0".into(),
        address: [10, 166, 0, 1].into(),
    });
    let mut member = Container {
        name: crate::model::member_name(POD, "web"),
        ..member
    };
    infra.role = Role::Infra { pod: POD.into() };
    member.role = Role::Member { pod: POD.into() };
    (shop, vec![infra, member])
}

fn snapshot(pod: &Pod, containers: Vec<Container>, service: Option<Service>) -> Snapshot {
    Snapshot::build(|t| {
        t.put(pod.clone()).unwrap();
        for container in containers {
            t.put(container).unwrap();
        }
        service.map(|service| t.put(service).unwrap());
    })
}

fn of_shop(member: Container, known: &Conditions) -> Condition {
    let (shop, containers) = shop(member);
    let snapshot = snapshot(&shop, containers, None);
    of_pod(&shop, &crate::model::pod_status(&snapshot, &shop), known).remove(0)
}

#[test]
fn a_pod_says_what_is_wrong_with_its_container() {
    let known = Conditions::default();
    let mut running = container("a", "web").in_state(ContainerState::Running);
    running.status.started_at = Some(at(100));
    let fine = of_shop(running.clone(), &known);
    assert_eq!(
        (fine.status, &fine.reason[..], fine.changed_at),
        (Status::True, "ContainersReady", at(100))
    );

    let broken = of_shop(stopped(127, "Error", "nope: not found in PATH"), &known);
    assert_eq!((broken.status, &broken.reason[..]), (Status::False, "StartError"));
    let words = "container web-5w7yabcd: ended with exit status 127 (Error): nope: not found in PATH";
    assert_eq!(broken.message, words);

    // The failure of a start takes precedence over the exit of the last run.
    let taken = Failure::new("PortTaken", &"port 80 is taken");
    known.fail((Kind::Container, "a"), Started, &taken, Some(at(200)));
    let condition = of_shop(stopped(1, "Error", ""), &known);
    assert_eq!(
        (&condition.reason[..], condition.next_try_at),
        ("PortTaken", Some(at(200)))
    );

    // The failure of the pod's controller takes precedence over both.
    let image = Failure::new("ErrImagePull", &"no such image");
    known.fail((Kind::Pod, POD), Reconciled, &image, None);
    let condition = of_shop(running, &known);
    assert_eq!(condition.status, Status::True, "it is ready all the same");
    let condition = of_shop(stopped(1, "Error", ""), &known);
    assert_eq!((condition.kind, &condition.message[..]), (Ready, "no such image"));
}

#[test]
fn a_pod_that_nobody_wants_to_run_has_no_condition() {
    let (mut shop, containers) = shop(stopped(1, "Error", ""));
    let known = Conditions::default();
    for goal in [PodGoal::Created, PodGoal::Stopped, PodGoal::Removed] {
        shop.goal = goal;
        let snapshot = snapshot(&shop, containers.clone(), None);
        assert_eq!(of_pod(&shop, &crate::model::pod_status(&snapshot, &shop), &known), []);
    }
}

#[test]
fn a_service_says_why_nobody_is_behind_it() {
    let known = Conditions::default();
    let condition = |shop: &(Pod, Vec<Container>), service: &Service| {
        let snapshot = snapshot(&shop.0, shop.1.clone(), None);
        let pods = pod_statuses(&snapshot);
        of_service(service, &endpoints(service, &pods), &pods, &known).remove(0)
    };
    let mut shop_service = service("s", "shop", &[80]);
    let mut waiting = container("a", "web").in_state(ContainerState::Running);
    waiting.spec.options.readiness_check = Some(HealthCheck {
        probe: Probe::Tcp(80),
        interval: 1,
        timeout: 1,
        retries: 1,
        successes: 1,
        start_period: 0,
        start_interval: None,
    });
    waiting.status.readiness = Some(Health::Unhealthy);
    let mut shop = shop(waiting);
    shop.0.template.labels = shop_service.selector.clone();
    let unready = condition(&shop, &shop_service);
    assert_eq!((unready.status, &unready.reason[..]), (Status::False, "NoEndpoints"));
    let words = "none of 1 pods is ready; pod shop: Unhealthy: container web-5w7yabcd: the readiness check fails";
    assert_eq!(unready.message, words);
    shop.1[1].status.readiness = Some(Health::Healthy);
    let ready = condition(&shop, &shop_service);
    assert_eq!((ready.status, &ready.reason[..]), (Status::True, "EndpointsReady"));
    shop_service.selector = [("app".into(), "blog".into())].into();
    let none = condition(&shop, &shop_service);
    assert_eq!(none.message, "no pod of namespace default has the labels app=blog");
    shop_service.selector.clear();
    assert_eq!(
        condition(&shop, &shop_service).message,
        "its selector is empty and finds no pods"
    );
}

#[test]
fn a_set_is_what_its_pods_are() {
    let (set, known) = (replica_set("s", "shop", 2), Conditions::default());
    let told = |ready, problem: Option<(&str, &str)>| {
        let status = SetStatus {
            ready,
            problem: problem.map(|(reason, message)| crate::model::PodProblem {
                reason: reason.into(),
                message: message.into(),
            }),
            ..SetStatus::default()
        };
        let condition = of_set(&set, &status, &known).remove(0);
        (condition.status, condition.reason, condition.message)
    };
    let words = |status, reason: &str, message: &str| (status, reason.to_owned(), message.to_owned());
    assert_eq!(told(2, None), words(Status::True, "PodsReady", "2 of 2 pods are ready"));
    assert_eq!(
        told(1, None),
        words(Status::Unknown, "PodsNotReady", "1 of 2 pods are ready")
    );
    let wrong = Some(("ErrImagePull", "pod shop-x: no such image"));
    assert_eq!(
        told(2, wrong),
        words(Status::False, "ErrImagePull", "pod shop-x: no such image")
    );
}

#[test]
fn all_objects_are_looked_at() {
    let known = Conditions::default();
    known.succeed(RULES, Reconciled);
    known.succeed((Kind::Pod, "gone"), Reconciled);
    let (shop, containers) = shop(stopped(1, "Error", ""));
    let snapshot = snapshot(&shop, containers, Some(service("s", "shop", &[80])));
    let seen: Vec<_> = all(&snapshot, &known)
        .into_iter()
        .map(|o| (o.kind, o.name, o.condition.status))
        .collect();
    for wanted in [
        (Kind::Container, "web-5w7yabcd", Status::False),
        (Kind::Pod, "shop", Status::False),
        (Kind::Service, "shop", Status::False),
        (Kind::PolicySettings, "defaults", Status::True),
    ] {
        assert!(
            seen.contains(&(wanted.0, wanted.1.to_owned(), wanted.2)),
            "{wanted:?} in {seen:?}"
        );
    }
    assert!(seen.iter().all(|(_, name, _)| name != "gone"));
}
