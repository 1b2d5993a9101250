//! The state of a container on the machine, and its meaning for the row. Pure, except for checking whether a process
//! exists.

use jiff::Timestamp;

use crate::model::{Container, ContainerState, Exit, ProcessId};
use crate::runtime::state::{RuntimeState, Status};
use crate::workload::container::transitions;
use crate::workload::container::transitions::unseen_exit;

/// The state of a container without an operation in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Its row says stopped, which is final without an operation.
    Stopped,
    /// Its process exists.
    Lives {
        /// Its identity, as complete as known.
        process: ProcessId,
        /// Whether it was started.
        released: bool,
    },
    /// Its process is gone, or its pid has been reused.
    Ended(Exit),
}

/// Compares a row with the runtime's record and the processes of this boot.
pub fn of(row: &Container, state: Option<&RuntimeState>, boot: &str) -> Finding {
    if row.status.state == ContainerState::Stopped {
        return Finding::Stopped;
    }
    if let Some(exit) = state
        .filter(|s| s.status == Status::Stopped)
        .and_then(RuntimeState::exit)
    {
        return Finding::Ended(exit);
    }
    match identity(state.and_then(RuntimeState::process), row.status.process.as_ref()) {
        Some(process) if process.is_alive() => Finding::Lives {
            process,
            released: state.is_some_and(|s| s.status == Status::Running),
        },
        process => Finding::Ended(unrecorded_exit(process.as_ref(), boot)),
    }
}

/// The recorded process, completed from the row: with only a pid from the runtime we could adopt an unrelated process
/// that has reused it.
fn identity(on_file: Option<ProcessId>, in_row: Option<&ProcessId>) -> Option<ProcessId> {
    let Some(mut process) = on_file else {
        return in_row.cloned();
    };
    if let Some(row) = in_row.filter(|row| row.pid == process.pid) {
        if process.start_time == 0 {
            process.start_time = row.start_time;
        }
        if process.boot_id.is_empty() {
            process.boot_id.clone_from(&row.boot_id);
        }
    }
    Some(process)
}

/// The exit of a process whose monitor died before it recorded one.
fn unrecorded_exit(process: Option<&ProcessId>, boot: &str) -> Exit {
    let is_of_another_boot = |process: &ProcessId| !process.boot_id.is_empty() && process.boot_id != boot;
    let mut exit = unseen_exit();
    if process.is_some_and(is_of_another_boot) {
        exit.message = "process down detected: the host was restarted.".into();
    }
    exit
}

impl Finding {
    /// Applies the finding to the row.
    pub fn apply(self, row: &mut Container, now: Timestamp) {
        match self {
            Self::Stopped => {}
            Self::Lives { process, released } => {
                if released {
                    transitions::running(row, Some(process.clone()), now);
                }
                row.status.process = Some(process);
                row.journal.starting = false;
            }
            Self::Ended(exit) => transitions::stopped(row, exit, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;
    use ContainerState::{Created, Running, Stopped};

    fn me() -> ProcessId {
        ProcessId::of(std::process::id() as i32).unwrap()
    }

    fn row(state: ContainerState, process: Option<ProcessId>) -> Container {
        let mut row = container("a", "web").in_state(state);
        (row.journal.operation, row.status.process) = (None, process);
        row
    }

    fn on_file(status: Status, process: Option<&ProcessId>, exit_code: Option<i32>) -> RuntimeState {
        let text = serde_json::json!({
            "ociVersion": "1.3.0", "id": "a", "status": status, "pid": process.map_or(0, |p| p.pid),
            "pidStartTime": process.map(|p| p.start_time), "bootId": process.map(|p| &p.boot_id),
            "exit_code": exit_code, "reason": exit_code.map(|_| "Error"),
        });
        serde_json::from_value(text).unwrap()
    }

    fn found(row: &Container, state: Option<RuntimeState>) -> Finding {
        of(row, state.as_ref(), &me().boot_id)
    }

    #[test]
    fn a_living_process_is_adopted_in_its_state() {
        let lives = |released| Finding::Lives {
            process: me(),
            released,
        };
        let running = on_file(Status::Running, Some(&me()), None);
        assert_eq!(found(&row(Running, Some(me())), Some(running.clone())), lives(true));
        let created = on_file(Status::Created, Some(&me()), None);
        assert_eq!(found(&row(Created, Some(me())), Some(created)), lives(false));
        assert_eq!(
            found(&row(Running, Some(me())), None),
            lives(false),
            "the row is believed"
        );
        // Started just before the daemon ended.
        let mut released = row(Created, None);
        found(&released, Some(running)).apply(&mut released, Timestamp::now());
        assert_eq!((released.status.state, released.status.process), (Running, Some(me())));
    }

    #[test]
    fn an_exit_on_file_is_kept() {
        let Finding::Ended(exit) = found(&row(Running, Some(me())), Some(on_file(Status::Stopped, None, Some(7))))
        else {
            panic!("stopped on file");
        };
        assert_eq!((exit.code, exit.reason.as_str()), (7, "Error"));
    }

    #[test]
    fn an_end_that_nobody_wrote_down_says_so() {
        let impostor = ProcessId {
            start_time: me().start_time + 1,
            ..me()
        };
        let state = on_file(Status::Running, Some(&impostor), None);
        assert_eq!(
            found(&row(Running, Some(impostor)), Some(state)),
            Finding::Ended(unseen_exit())
        );
        assert_eq!(found(&row(Running, None), None), Finding::Ended(unseen_exit()));
    }

    #[test]
    fn after_a_restart_of_the_host_a_number_means_nobody() {
        let before = ProcessId {
            boot_id: "another boot".into(),
            ..me()
        };
        let Finding::Ended(exit) = found(
            &row(Running, Some(before.clone())),
            Some(on_file(Status::Running, Some(&before), None)),
        ) else {
            panic!("of another boot");
        };
        assert_eq!((exit.code, exit.message.contains("restarted")), (-1, true));
        // A runtime that records only the pid: the row knows its boot.
        let bare = on_file(
            Status::Running,
            Some(&ProcessId {
                pid: me().pid,
                start_time: 0,
                boot_id: String::new(),
            }),
            None,
        );
        let Finding::Ended(exit) = found(&row(Running, Some(before)), Some(bare)) else {
            panic!("of another boot");
        };
        assert!(exit.message.contains("restarted"));
    }

    #[test]
    fn what_has_stopped_stays_so() {
        let state = on_file(Status::Running, Some(&me()), None);
        assert_eq!(found(&row(Stopped, None), Some(state)), Finding::Stopped);
    }
}
