//! One process tells another whether it did what it was started for.
//!
//! A pipe whose write end is close-on-exec: a `+` says that all went well so far, a text says what went wrong, and the
//! end of the pipe that there is no more to come. So the last word before an `execve` is `+`, and success is a `+` with
//! nothing after it. An end without a word means that the other process died. A text that begins with `?` and a status
//! ([`condenser::runtime::refusal`]) is a refusal: nothing broke, but what was asked for cannot be.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

const DONE: &[u8] = b"+";
const REFUSAL: char = '?';
/// More of a text is cut off.
const MAX_TEXT: usize = 4096;

/// The end that speaks.
#[derive(Debug)]
pub struct Speaker(OwnedFd);

/// The end that waits.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// Anything but success.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// What the other process said.
    #[error("{0}")]
    Said(String),
    /// What the other process said: the caller is to blame.
    #[error("{message}")]
    Refused {
        /// How a verb ends for that reason.
        status: i32,
        /// For the caller.
        message: String,
    },
    /// It ended, or was ended, without a word.
    #[error("killed before it could do anything")]
    Died,
    /// Not in time.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// A new pair.
pub fn pair() -> std::io::Result<(Speaker, Listener)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Speaker(write), Listener(read)))
}

impl Speaker {
    /// All went well so far.
    pub fn done(&self) {
        self.say(DONE);
    }

    /// Something went wrong.
    pub fn failed(&self, reason: &str) {
        let bytes = reason.as_bytes();
        self.say(&bytes[..bytes.len().min(MAX_TEXT)]);
    }

    /// What was asked for cannot be.
    pub fn refused(&self, status: i32, reason: &str) {
        self.failed(&format!("{REFUSAL}{status} {reason}"));
    }

    /// A text fits an empty pipe. If nobody listens any more there is nobody to tell that either.
    fn say(&self, words: &[u8]) {
        let _ = rustix::io::write(&self.0, words);
    }
}

impl From<OwnedFd> for Speaker {
    /// The write end of a pipe or FIFO.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<OwnedFd> for Listener {
    /// The read end of a pipe or FIFO.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Speaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    /// Waits until the other side has nothing more to say. Every copy of its end must be closed by then, also the one of
    /// this process.
    pub fn hear(self, limit: Duration) -> Result<(), Bad> {
        let deadline = Instant::now() + limit;
        let (mut words, mut buffer) = (Vec::new(), [0; MAX_TEXT]);
        loop {
            if !self.readable(deadline) {
                return Err(Bad::Late(limit));
            }
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => words.extend(&buffer[..n]),
            }
        }
        match words.strip_prefix(DONE) {
            Some([]) => Ok(()),
            None if words.is_empty() => Err(Bad::Died),
            text => Err(said(&String::from_utf8_lossy(text.unwrap_or(&words)))),
        }
    }

    /// What was said until now; `None` when it is nothing, or no more than that all went well so far.
    pub fn heard(&self) -> Option<Bad> {
        let (mut words, mut buffer) = (Vec::new(), [0; MAX_TEXT]);
        while self.readable(Instant::now()) {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => words.extend(&buffer[..n]),
            }
        }
        let text = words.strip_prefix(DONE).unwrap_or(&words);
        (!text.is_empty()).then(|| said(&String::from_utf8_lossy(text)))
    }

    fn readable(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                polled => return polled.is_ok_and(|n| n > 0),
            }
        }
    }
}

fn said(text: &str) -> Bad {
    let refusal = text.strip_prefix(REFUSAL).and_then(|rest| rest.split_once(' '));
    match refusal.and_then(|(status, message)| Some((status.parse().ok()?, message))) {
        Some((status, message)) => Bad::Refused {
            status,
            message: message.to_owned(),
        },
        None => Bad::Said(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn heard(speak: impl FnOnce(&Speaker)) -> Result<(), Bad> {
        let (speaker, listener) = pair().unwrap();
        speak(&speaker);
        drop(speaker);
        listener.hear(SOON)
    }

    #[test]
    fn words_and_silence() {
        assert_eq!(heard(Speaker::done), Ok(()));
        assert_eq!(heard(|_| ()), Err(Bad::Died));
        assert_eq!(heard(|s| s.failed("no")), Err(Bad::Said("no".into())));
        let changed_its_mind = heard(|s| {
            s.done();
            s.failed("sh: not found");
        });
        assert_eq!(changed_its_mind, Err(Bad::Said("sh: not found".into())));
        let long = heard(|s| s.failed(&"x".repeat(2 * MAX_TEXT)));
        assert_eq!(long, Err(Bad::Said("x".repeat(MAX_TEXT))));
    }

    #[test]
    fn a_refusal_has_a_status() {
        let refusal = |status, message: &str| Bad::Refused {
            status,
            message: message.into(),
        };
        let heard = heard(|s| {
            s.done();
            s.refused(127, "? sh: not found");
        });
        assert_eq!(heard, Err(refusal(127, "? sh: not found")));
        assert_eq!(said("?x y"), Bad::Said("?x y".into()));
        let (speaker, listener) = pair().unwrap();
        assert_eq!(listener.heard(), None);
        speaker.refused(125, "no");
        assert_eq!(
            listener.heard(),
            Some(refusal(125, "no")),
            "nobody has closed the other end"
        );
    }

    #[test]
    fn an_open_end_is_late() {
        let (_speaker, listener) = pair().unwrap();
        let limit = Duration::from_millis(1);
        assert_eq!(listener.hear(limit), Err(Bad::Late(limit)));
    }
}
