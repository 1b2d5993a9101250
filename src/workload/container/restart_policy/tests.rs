use ContainerState::{Created, Creating, Running, Stopped};
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::model::fixtures::{container, pod};
use crate::model::retries::count;
use crate::model::{Exit, Operation, ProcessId};

const ON_FAILURE: RestartPolicy = RestartPolicy::OnFailure { max_retries: 0 };

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
}

/// A container with that policy, started at 0 and ended at 1,000.
fn ended(policy: RestartPolicy, code: i32) -> Container {
    let mut c = container("a", "web").in_state(Stopped);
    c.spec.options.restart = policy;
    c.status.started_at = Some(at(0));
    c.status.stopped_at = Some(at(1000));
    c.status.exit = Some(Exit {
        code,
        reason: "Error".into(),
        message: String::new(),
    });
    c
}

fn due_at(c: &Container) -> Option<i64> {
    let now = at(100_000);
    due(c, &Snapshot::default(), now).map(|due| due.as_millisecond() - at(0).as_millisecond())
}

#[rstest]
#[case(RestartPolicy::No, 1, None)]
#[case(RestartPolicy::Always, 0, Some(1100))]
#[case(RestartPolicy::Always, 137, Some(1100))]
#[case(ON_FAILURE, 0, None)]
#[case(ON_FAILURE, 1, Some(1100))]
// An unseen end, as after a crash of the machine.
#[case(ON_FAILURE, -1, Some(1100))]
fn the_policies(#[case] policy: RestartPolicy, #[case] code: i32, #[case] due: Option<i64>) {
    assert_eq!(due_at(&ended(policy, code)), due);
}

#[test]
fn only_what_ended_by_itself_comes_back() {
    let always = || ended(RestartPolicy::Always, 1);
    let mut stopped_by_user = always();
    stopped_by_user.journal.stopped_by_user = true;
    let mut being_deleted = always();
    being_deleted.journal.operation = Some(Operation::Delete);
    let mut never_started = always();
    never_started.status.started_at = None;
    let mut infra = always();
    infra = infra.infra_of("p");
    for c in [
        stopped_by_user,
        being_deleted,
        never_started,
        infra,
        always().in_state(Running),
        always().in_state(Creating),
    ] {
        assert_eq!(due_at(&c), None, "{c:?}");
    }
}

#[test]
fn a_start_that_was_cut_off_is_finished() {
    let mut c = ended(RestartPolicy::Always, 1).in_state(Created);
    assert!(due_at(&c).is_some());
    c.status.started_at = None;
    assert_eq!(due_at(&c), None, "nobody has started it yet");
}

#[test]
fn a_maximum_is_for_restarts_in_a_row() {
    let mut c = ended(RestartPolicy::OnFailure { max_retries: 2 }, 1);
    for _ in 0..2 {
        assert!(due_at(&c).is_some());
        count(&mut c, at(1200));
        c.status.started_at = Some(at(1300));
        c.status.stopped_at = Some(at(1400));
    }
    assert_eq!(due_at(&c), None);
    c.status.stopped_at = Some(at(11_300));
    assert_eq!(due_at(&c), Some(11_400), "ten seconds of running are a new beginning");
    count(&mut c, at(11_400));
    assert_eq!((c.status.restarts, c.journal.retries.in_a_row), (3, 1));
}

#[test]
fn tries_that_fail_are_further_and_further_apart() {
    // It ran for an hour; then its program disappeared, and every try failed.
    let mut c = ended(RestartPolicy::Always, 1);
    c.status.stopped_at = Some(at(3_600_000));
    let mut now = at(3_600_000);
    let mut waited = Vec::new();
    for _ in 0..12 {
        let due = due(&c, &Snapshot::default(), now).unwrap();
        waited.push(due.duration_since(now).as_millis());
        now = due;
        count(&mut c, now);
    }
    assert_eq!(
        waited,
        [
            100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000
        ]
    );
}

#[test]
fn a_clock_that_was_set_back_delays_nothing() {
    let c = ended(RestartPolicy::Always, 1);
    assert_eq!(due(&c, &Snapshot::default(), at(-3_600_000)), Some(at(-3_600_000)));
}

#[test]
fn members_follow_their_pod() {
    let process = |pid| {
        Some(ProcessId {
            pid,
            start_time: 1,
            boot_id: "b".into(),
        })
    };
    let mut member = ended(RestartPolicy::No, 0).member_of("p");
    member.journal.joined = process(7);
    let with_pod = |goal, policy, infra_process| {
        let mut pod = pod("p", "web", &["web"]);
        pod.goal = goal;
        pod.template.spec.restart = policy;
        let mut infra = container("i", "infra").infra_of("p");
        infra.status.process = infra_process;
        let snapshot = Snapshot::build(|t| {
            t.put(pod).unwrap();
            t.put(infra).unwrap();
        });
        due(&member, &snapshot, at(100_000)).is_some()
    };
    assert!(with_pod(PodGoal::Running, RestartPolicy::Always, process(7)));
    assert!(!with_pod(PodGoal::Running, RestartPolicy::No, process(7)));
    for other in [None, process(8)] {
        assert!(
            !with_pod(PodGoal::Running, RestartPolicy::Always, other),
            "its namespaces are gone"
        );
    }
    for goal in [PodGoal::Created, PodGoal::Stopped, PodGoal::Removed] {
        assert!(!with_pod(goal, RestartPolicy::Always, process(7)), "{goal}");
    }
    assert_eq!(due_at(&member), None, "its pod is gone");
}

proptest! {
    /// A series of runs: whatever their lengths and exit codes, `always` restarts after a delay within the bounds, each
    /// at most twice the previous one, and a run of ten seconds resets it.
    #[test]
    fn delays_stay_within_their_bounds(runs in proptest::collection::vec((0i64..30_000, -1i32..256, any::<bool>()), 1..40)) {
        let mut c = ended(RestartPolicy::Always, 0);
        let mut now = at(1000);
        let mut short_runs = 0;
        for (length, code, starts) in runs {
            let due = due(&c, &Snapshot::default(), now).unwrap();
            let delay = due.duration_since(now);
            prop_assert_eq!(Duration::try_from(delay).unwrap(), DELAYS.delay(short_runs + 1));
            count(&mut c, due);
            prop_assert_eq!(c.journal.retries.in_a_row, short_runs + 1);
            now = due;
            if starts {
                c.status.started_at = Some(now);
                now += Duration::from_millis(length as u64);
                c.status.stopped_at = Some(now);
                c.status.exit.as_mut().unwrap().code = code;
            }
            short_runs = if starts && length >= 10_000 { 0 } else { short_runs + 1 };
        }
    }

    /// Only a user can revert a user's stop.
    #[test]
    fn a_stop_wins(state in prop_oneof![Just(Creating), Just(Created), Just(Running), Just(Stopped)], code in -1i32..256,
            millis in -100_000i64..100_000) {
        for policy in [RestartPolicy::No, ON_FAILURE, RestartPolicy::Always] {
            let mut c = ended(policy, code).in_state(state);
            c.journal.stopped_by_user = true;
            prop_assert_eq!(due(&c, &Snapshot::default(), at(millis)), None);
        }
    }
}
