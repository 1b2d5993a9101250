//! The answer of `droplet exec --wait` on its standard output: one line of JSON with the exit status and the length
//! of the output, followed by the raw output.
//!
//! ```text
//! {"exit_code":3,"timed_out":false,"truncated":false,"stdout":6,"stderr":4}
//! hello
//! bye
//! ```

use serde::{Deserialize, Serialize};

/// Maximum number of bytes kept of each stream: the end of it.
pub const MAX_STREAM: usize = 1024 * 1024;

/// Outcome of an exec with `--wait`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Exit status, or 128 + signal number. 126 or 127 if the program cannot be executed or does not exist; then
    /// `stderr` has the reason.
    pub exit_code: i32,
    /// Standard output of the process; at most the last [`MAX_STREAM`] bytes.
    pub stdout: Vec<u8>,
    /// Standard error of the process, likewise.
    pub stderr: Vec<u8>,
    /// Whether one of the streams was longer.
    pub truncated: bool,
    /// Whether it was killed because the time limit expired.
    pub timed_out: bool,
}

/// The first line of the answer.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    exit_code: i32,
    timed_out: bool,
    truncated: bool,
    stdout: usize,
    stderr: usize,
}

/// An invalid answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The first line is missing or not understood.
    #[error("unreadable answer: {0}")]
    Head(#[from] serde_json::Error),
    /// The output is not as long as the first line says.
    #[error("unreadable answer: {got} bytes of output instead of {announced}")]
    Length {
        /// Length of the output.
        got: usize,
        /// Length according to the first line.
        announced: usize,
    },
}

impl ExecOutcome {
    /// The answer as bytes.
    pub fn render(&self) -> Result<Vec<u8>, AnswerError> {
        let mut answer = serde_json::to_vec(&Head {
            exit_code: self.exit_code,
            timed_out: self.timed_out,
            truncated: self.truncated,
            stdout: self.stdout.len(),
            stderr: self.stderr.len(),
        })?;
        answer.reserve_exact(1 + self.stdout.len() + self.stderr.len());
        answer.push(b'\n');
        answer.extend_from_slice(&self.stdout);
        answer.extend_from_slice(&self.stderr);
        Ok(answer)
    }

    /// Parses an answer: the inverse of [`ExecOutcome::render`].
    pub fn parse(answer: &[u8]) -> Result<Self, AnswerError> {
        let end = answer.iter().position(|&byte| byte == b'\n').unwrap_or(answer.len());
        let (line, rest) = answer.split_at(end);
        let head: Head = serde_json::from_slice(line)?;
        let output = rest.strip_prefix(b"\n").unwrap_or(rest);
        let announced = head.stdout.saturating_add(head.stderr);
        if output.len() != announced {
            let got = output.len();
            return Err(AnswerError::Length { got, announced });
        }
        let (stdout, stderr) = output.split_at(head.stdout);
        Ok(Self {
            exit_code: head.exit_code,
            stdout: stdout.to_vec(),
            stderr: stderr.to_vec(),
            truncated: head.truncated,
            timed_out: head.timed_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let outcome = ExecOutcome {
            exit_code: 3,
            stdout: b"line\n\n\xff\0".to_vec(),
            stderr: b"\n{}".to_vec(),
            truncated: true,
            timed_out: false,
        };
        assert_eq!(ExecOutcome::parse(&outcome.render().unwrap()).unwrap(), outcome);
        let silent = ExecOutcome::default();
        assert_eq!(ExecOutcome::parse(&silent.render().unwrap()).unwrap(), silent);
    }

    #[test]
    fn half_an_answer_is_none() {
        let whole = ExecOutcome {
            stdout: b"some".to_vec(),
            ..ExecOutcome::default()
        }
        .render()
        .unwrap();
        for length in 0..whole.len() {
            assert!(ExecOutcome::parse(&whole[..length]).is_err(), "{length}");
        }
        assert!(ExecOutcome::parse(&[&whole[..], b"x"].concat()).is_err());
        let huge = br#"{"exit_code":0,"timed_out":false,"truncated":false,"stdout":18446744073709551615,"stderr":1}"#;
        assert!(ExecOutcome::parse(huge).is_err());
    }
}
