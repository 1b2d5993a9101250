//! Tells one process whether another one could start its program.
//!
//! This is a pipe (or FIFO) whose write end is close-on-exec. The writer writes `+` before `execve`: success so far. If
//! a step fails, the writer writes the error text. The end of the pipe means that nothing more comes. So `+` alone is
//! success, and an empty pipe means that the writer died. A text that begins with `?` and an exit status
//! ([`condenser::runtime::refusal`]) is a refusal: nothing broke, but the request cannot be carried out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use condenser::runtime::refusal::FAILED;
use rustix::pipe::{PipeFlags, pipe_with};

use super::failure::HasExitStatus;
use crate::wait::readable;

const SUCCESS: &[u8] = b"+";
const REFUSAL: char = '?';
/// Maximum length of an error text. The rest is cut off.
const MAX_TEXT: usize = 4096;

/// The write end.
#[derive(Debug)]
pub struct OutcomeReporter(OwnedFd);

/// The read end.
#[derive(Debug)]
pub struct OutcomeReader(OwnedFd);

/// Why the program was not started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The writer reported an error.
    #[error("{0}")]
    Failed(String),
    /// The writer reported a refusal: the request is at fault.
    #[error("{message}")]
    Refused {
        /// Exit status for the verb.
        status: i32,
        /// The message for the caller.
        message: String,
    },
    /// The writer ended without a report.
    #[error("the process ended without a report")]
    Died,
    /// The pipe was not closed in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl HasExitStatus for StartError {
    fn exit_status(&self) -> i32 {
        match self {
            Self::Refused { status, .. } => *status,
            Self::Failed(_) | Self::Died | Self::TimedOut(_) => FAILED,
        }
    }
}

/// Makes a pipe.
pub fn outcome_pipe() -> std::io::Result<(OutcomeReporter, OutcomeReader)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((OutcomeReporter(write), OutcomeReader(read)))
}

impl OutcomeReporter {
    /// Reports success so far.
    pub fn success(&self) {
        self.write(SUCCESS);
    }

    /// Reports an error.
    pub fn failure(&self, message: &str) {
        let bytes = message.as_bytes();
        self.write(&bytes[..bytes.len().min(MAX_TEXT)]);
    }

    /// Reports a refusal.
    pub fn refusal(&self, status: i32, message: &str) {
        self.failure(&format!("{REFUSAL}{status} {message}"));
    }

    /// A text fits into an empty pipe. If the reader is gone, nobody needs the report.
    fn write(&self, bytes: &[u8]) {
        let _ = rustix::io::write(&self.0, bytes);
    }
}

impl From<OwnedFd> for OutcomeReporter {
    /// Converts the write end of a pipe or FIFO.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<OwnedFd> for OutcomeReader {
    /// Converts the read end of a pipe or FIFO.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for OutcomeReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for OutcomeReporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl OutcomeReader {
    /// Waits until the write end is closed. By then every copy of it must be closed, also the one of this process.
    pub fn wait(self, limit: Duration) -> Result<(), StartError> {
        let deadline = Instant::now() + limit;
        let mut received = Vec::new();
        loop {
            if !readable(&self.0, deadline) {
                return Err(StartError::TimedOut(limit));
            }
            if !self.read(&mut received) {
                break;
            }
        }
        match received.strip_prefix(SUCCESS) {
            Some([]) => Ok(()),
            None if received.is_empty() => Err(StartError::Died),
            text => Err(parse_error(text.unwrap_or(&received))),
        }
    }

    /// Returns the error that was reported until now. Returns `None` if there is no report, or only success.
    pub fn error_so_far(&self) -> Option<StartError> {
        let mut received = Vec::new();
        while readable(&self.0, Instant::now()) && self.read(&mut received) {}
        let text = received.strip_prefix(SUCCESS).unwrap_or(&received);
        (!text.is_empty()).then(|| parse_error(text))
    }

    /// Reads once. Returns `false` at the end of the pipe.
    fn read(&self, received: &mut Vec<u8>) -> bool {
        let mut buffer = [0; MAX_TEXT];
        match rustix::io::read(&self.0, &mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                received.extend(&buffer[..n]);
                true
            }
        }
    }
}

fn parse_error(text: &[u8]) -> StartError {
    let text = String::from_utf8_lossy(text);
    let refusal = text.strip_prefix(REFUSAL).and_then(|rest| rest.split_once(' '));
    match refusal.and_then(|(status, message)| Some((status.parse().ok()?, message))) {
        Some((status, message)) => StartError::Refused {
            status,
            message: message.to_owned(),
        },
        None => StartError::Failed(text.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn outcome(report: impl FnOnce(&OutcomeReporter)) -> Result<(), StartError> {
        let (reporter, reader) = outcome_pipe().unwrap();
        report(&reporter);
        drop(reporter);
        reader.wait(SOON)
    }

    #[test]
    fn success_failure_and_death_are_reported() {
        assert_eq!(outcome(OutcomeReporter::success), Ok(()));
        assert_eq!(outcome(|_| ()), Err(StartError::Died));
        assert_eq!(
            outcome(|reporter| reporter.failure("no")),
            Err(StartError::Failed("no".into()))
        );
        let failure_after_success = outcome(|reporter| {
            reporter.success();
            reporter.failure("sh: not found");
        });
        assert_eq!(failure_after_success, Err(StartError::Failed("sh: not found".into())));
        let long = outcome(|reporter| reporter.failure(&"x".repeat(2 * MAX_TEXT)));
        assert_eq!(long, Err(StartError::Failed("x".repeat(MAX_TEXT))));
    }

    #[test]
    fn a_refusal_has_an_exit_status() {
        let refusal = |status, message: &str| StartError::Refused {
            status,
            message: message.into(),
        };
        let refused = outcome(|reporter| {
            reporter.success();
            reporter.refusal(127, "? sh: not found");
        });
        assert_eq!(refused, Err(refusal(127, "? sh: not found")));
        assert_eq!(parse_error(b"?x y"), StartError::Failed("?x y".into()));
        let (reporter, reader) = outcome_pipe().unwrap();
        assert_eq!(reader.error_so_far(), None);
        reporter.refusal(125, "no");
        assert_eq!(
            reader.error_so_far(),
            Some(refusal(125, "no")),
            "the write end is still open"
        );
    }

    #[test]
    fn an_open_write_end_times_out() {
        let (_reporter, reader) = outcome_pipe().unwrap();
        let limit = Duration::from_millis(1);
        assert_eq!(reader.wait(limit), Err(StartError::TimedOut(limit)));
    }
}
