//! The state machine: how events change a row, and in which states they are valid (`docs/spec/api.md` 16).
//!
//! Pure. The new state depends on the event and never on the text of a report; within one run it never moves backward,
//! so duplicate or late reports are harmless.

use jiff::Timestamp;

use super::ContainerError;
use crate::model::{Container, ContainerState, Exit, Health, Operation, ProcessId};
use crate::runtime::hook::HookEvent;

/// The exit of a run whose end was not seen.
pub fn unseen_exit() -> Exit {
    Exit {
        code: -1,
        reason: "Error".into(),
        message: "process down detected.".into(),
    }
}

/// Applies a report of the runtime. `process` comes from `state.json`, `exit` from the report.
pub fn apply_event(
    c: &mut Container,
    event: HookEvent,
    process: Option<ProcessId>,
    exit: Exit,
    now: Timestamp,
) -> Result<(), ContainerError> {
    use ContainerState::{Created, Creating, Running, Stopped};
    match (event, c.status.state) {
        (HookEvent::CreateRuntime, Creating | Stopped) => {
            c.status.creating_at.get_or_insert(now);
        }
        (HookEvent::CreateContainer, Creating) => created(c, process, now),
        (HookEvent::Poststart, Created) => running(c, process, now),
        // The process ended before this report arrived.
        (HookEvent::Poststart, Stopped) => c.status.started_at = Some(now),
        (HookEvent::StopContainer, Created | Running | Stopped) => stopped(c, exit, now),
        // A late report of the previous run, while the container is being created again.
        (HookEvent::StopContainer, Creating) if c.journal.operation == Some(Operation::Restart) => {}
        // The removal in progress deletes the row itself, as its last step.
        (HookEvent::Poststop, Creating | Created | Stopped) => {}
        (event, state) => return Err(ContainerError::UnexpectedEvent { event, state }),
    }
    Ok(())
}

/// The runtime has created the container. Clears the exit of the previous run.
pub fn created(c: &mut Container, process: Option<ProcessId>, now: Timestamp) {
    if c.status.state != ContainerState::Creating {
        return;
    }
    c.status.state = ContainerState::Created;
    c.status.process = process;
    c.status.exit = None;
    if c.journal.operation == Some(Operation::Create) {
        c.status.created_at = Some(now);
    }
}

/// The process was released.
pub fn running(c: &mut Container, process: Option<ProcessId>, now: Timestamp) {
    if c.status.state != ContainerState::Created {
        return;
    }
    c.status.state = ContainerState::Running;
    c.journal.starting = false;
    c.status.process = process.or_else(|| c.status.process.take());
    c.status.started_at = Some(now);
    c.status.health = c.spec.options.health_check.as_ref().map(|_| Health::Starting);
    c.status.readiness = c.spec.options.readiness_check.as_ref().map(|_| Health::Starting);
    (c.status.health_failure, c.status.readiness_failure, c.status.ready_at) = (None, None, None);
}

/// The process ended. A second report of the same end replaces an assumed exit, never a known one.
pub fn stopped(c: &mut Container, exit: Exit, now: Timestamp) {
    let known = c.status.exit.as_ref().is_some_and(|e| e.code != -1);
    if c.status.state == ContainerState::Stopped && (known || exit.code == -1) {
        return;
    }
    if c.status.state != ContainerState::Stopped {
        c.status.stopped_at = Some(now);
    }
    c.status.state = ContainerState::Stopped;
    c.journal.starting = false;
    c.status.process = None;
    (c.status.health, c.status.readiness, c.status.ready_at) = (None, None, None);
    c.status.exit = Some(exit);
}

/// That process ended, reported without the lock: a row that has a newer run stays unchanged.
pub fn ended(c: &mut Container, process: &ProcessId, exit: Exit, now: Timestamp) {
    if c.status.process.as_ref() == Some(process) && c.status.state != ContainerState::Creating {
        stopped(c, exit, now);
    }
}

/// Whether the operation may begin in that state (`docs/spec/api.md` 5.1).
pub fn check_allowed(operation: &'static str, c: &Container) -> Result<(), ContainerError> {
    use ContainerState::{Created, Creating, Running, Stopped};
    let allowed = match operation {
        "start" if c.status.state == Running => return Err(ContainerError::AlreadyStarted(c.id.clone())),
        // Only the build itself starts it, once.
        "start" if c.is_build() => false,
        "start" => matches!(c.status.state, Created | Stopped) && c.journal.operation.is_none(),
        "stop" => c.status.state == Running,
        _ => matches!(c.status.state, Creating | Created | Stopped),
    };
    if allowed {
        Ok(())
    } else {
        Err(ContainerError::WrongState {
            operation,
            state: c.status.state,
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::Role;
    use crate::model::fixtures::{container, tcp_check};
    use ContainerState::{Created, Creating, Running, Stopped};
    use HookEvent::{CreateContainer, CreateRuntime, Poststart, Poststop, StopContainer};

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            reason: "Error".into(),
            message: String::new(),
        }
    }

    fn process() -> Option<ProcessId> {
        Some(ProcessId {
            pid: 7,
            start_time: 1,
            boot_id: "b".into(),
        })
    }

    #[rstest]
    #[case(CreateRuntime, [Some(Creating), None, None, Some(Stopped)])]
    #[case(CreateContainer, [Some(Created), None, None, None])]
    #[case(Poststart, [None, Some(Running), None, Some(Stopped)])]
    #[case(StopContainer, [None, Some(Stopped), Some(Stopped), Some(Stopped)])]
    #[case(Poststop, [Some(Creating), Some(Created), None, Some(Stopped)])]
    fn the_table(#[case] event: HookEvent, #[case] after: [Option<ContainerState>; 4]) {
        for (before, after) in [Creating, Created, Running, Stopped].into_iter().zip(after) {
            let mut c = container("a", "web").in_state(before);
            let result = apply_event(&mut c, event, process(), exit(3), Timestamp::now());
            assert_eq!(result.is_ok().then_some(c.status.state), after, "{event} in {before}");
        }
    }

    #[test]
    fn the_end_of_an_earlier_run_does_not_end_this_one() {
        let mut c = container("a", "web").in_state(Running);
        c.status.process = process();
        let earlier = ProcessId {
            pid: 6,
            ..process().unwrap()
        };
        ended(&mut c, &earlier, exit(3), Timestamp::now());
        assert_eq!((c.status.state, c.status.exit.clone()), (Running, None));
        ended(&mut c, &process().unwrap(), exit(3), Timestamp::now());
        assert_eq!((c.status.state, c.status.exit.map(|e| e.code)), (Stopped, Some(3)));
    }

    #[test]
    fn the_container_of_a_build_runs_once() {
        for state in [Creating, Created, Stopped] {
            let mut c = container("build-01kg2cnf0ytv", "x").in_state(state);
            c.role = Role::Build;
            assert!(check_allowed("start", &c).is_err(), "{state}");
            c.role = Role::Alone;
            assert_eq!(check_allowed("start", &c).is_ok(), state != Creating);
        }
    }

    #[test]
    fn an_end_that_is_reported_before_the_start_returns_stays() {
        let mut c = container("a", "web").in_state(Created);
        apply_event(&mut c, StopContainer, None, exit(3), Timestamp::now()).unwrap();
        running(&mut c, process(), Timestamp::now());
        apply_event(&mut c, Poststart, process(), exit(0), Timestamp::now()).unwrap();
        assert_eq!(
            (c.status.state, c.status.exit, c.status.process),
            (Stopped, Some(exit(3)), None)
        );
    }

    #[test]
    fn a_report_replaces_a_guess_and_not_the_other_way_round() {
        let mut c = container("a", "web").in_state(Running);
        stopped(&mut c, unseen_exit(), Timestamp::UNIX_EPOCH);
        stopped(&mut c, exit(137), Timestamp::now());
        assert_eq!(c.status.exit, Some(exit(137)));
        assert_eq!(c.status.stopped_at, Some(Timestamp::UNIX_EPOCH));
        stopped(&mut c, unseen_exit(), Timestamp::now());
        assert_eq!(c.status.exit, Some(exit(137)));
    }

    #[test]
    fn a_late_report_of_the_previous_run_does_not_stop_the_next() {
        let mut c = container("a", "web").in_state(Creating);
        c.journal.operation = Some(Operation::Restart);
        apply_event(&mut c, StopContainer, None, exit(1), Timestamp::now()).unwrap();
        assert_eq!(c.status.state, Creating);
    }

    #[test]
    fn health_is_known_only_of_what_runs() {
        let mut c = container("a", "web").in_state(Created);
        c.spec.options.health_check = Some(tcp_check());
        running(&mut c, process(), Timestamp::now());
        assert_eq!((c.status.health, c.status.readiness), (Some(Health::Starting), None));
        stopped(&mut c, exit(0), Timestamp::now());
        assert_eq!(c.status.health, None);
    }

    #[test]
    fn first_times_are_kept_over_a_restart() {
        let mut c = container("a", "web");
        c.journal.operation = Some(Operation::Restart);
        c.status.creating_at = Some(Timestamp::UNIX_EPOCH);
        c.status.created_at = Some(Timestamp::UNIX_EPOCH);
        let now = Timestamp::now();
        apply_event(&mut c, CreateRuntime, None, exit(0), now).unwrap();
        apply_event(&mut c, CreateContainer, process(), exit(0), now).unwrap();
        assert_eq!(
            (c.status.creating_at, c.status.created_at),
            (Some(Timestamp::UNIX_EPOCH), Some(Timestamp::UNIX_EPOCH))
        );
    }
}
