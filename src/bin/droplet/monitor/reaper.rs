//! Reaps the monitored process and describes its exit.

use std::os::fd::BorrowedFd;

use condenser::model::Exit;
use condenser::runtime::state::{REASON_COMPLETED, REASON_ERROR, REASON_OOM};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::report::outcome_pipe::StartError;

/// Waits for a child and reaps it. Returns its exit status or 128 + signal number; -1 if the status is unknown.
pub fn reap(process: BorrowedFd<'_>) -> i32 {
    let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(process), WaitIdOptions::EXITED));
    status.ok().flatten().map_or(-1, |status| exit_code(&status))
}

fn exit_code(status: &WaitIdStatus) -> i32 {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// Returns the exit to record. `oom_killed` tells whether the OOM killer has killed a process of the container, and
/// `start_error` why its program was not executed.
pub fn exit(code: i32, oom_killed: bool, start_error: Option<StartError>) -> Exit {
    let reason = match code {
        0 => REASON_COMPLETED,
        code if code == 128 + libc::SIGKILL && oom_killed => REASON_OOM,
        _ => REASON_ERROR,
    };
    // If the program ran, only its status is known, even if that is 127.
    let message = match start_error {
        Some(StartError::Failed(message) | StartError::Refused { message, .. }) => message,
        _ => String::new(),
    };
    Exit {
        code,
        reason: reason.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_has_a_reason() {
        let reason = |code, oom_killed| exit(code, oom_killed, None).reason;
        assert_eq!(reason(0, true), "Completed");
        assert_eq!(reason(3, true), "Error");
        assert_eq!(reason(137, true), "OOMKilled");
        assert_eq!(reason(137, false), "Error");
        assert_eq!(reason(143, true), "Error");
    }

    #[test]
    fn only_a_program_that_could_not_be_executed_has_a_message() {
        let refused = StartError::Refused {
            status: 127,
            message: "x: not found in PATH".into(),
        };
        assert_eq!(exit(127, false, Some(refused)).message, "x: not found in PATH");
        assert_eq!(exit(127, false, None).message, "");
        assert_eq!(exit(137, false, Some(StartError::Died)).message, "");
    }
}
