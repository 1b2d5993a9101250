//! An exec that is waited for: this process is the parent, keeps the end of the output, and answers when it is over.
//!
//! ```text
//!                        ┌ the process ended ─────────── answer
//! started ── pump ───────┤ the time is over ──── kill ── answer (137, timed out)
//!                        └ nobody will read it ─ kill ── end
//! ```
//!
//! Whoever asked reads the answer from a pipe; when nobody can read it any more, nobody wants the process either. If this
//! process is killed, the kernel kills the other one. What the process leaves in the background goes on when it ends by
//! itself, with nothing behind its output; when it is killed, so is its session: what has not made a session of its own.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use condenser::runtime::exec::{ExecOutcome, MAX_STREAM};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fchown, fcntl_setfl, open};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::process::{self, NotStarted, Process, Stdio};
use super::{Job, Request, prepare, record};
use crate::cgroup::Cgroup;
use crate::failure::{Failure, Judge, Stage};
use crate::finish::readable;
use crate::monitor::wait;
use crate::program::{NOT_EXECUTABLE, NOT_FOUND};
use crate::signals;

/// From KILL to an answer without an end: what hangs in the kernel, or in a frozen container, is not waited for.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// A process may fork while the others are looked for. After its leader is dead a session gets smaller every time.
const KILL_ROUNDS: usize = 10;
/// What is read at once: as much as a pipe holds.
const PIECE: usize = 64 * 1024;
const STAGE: &str = "exec_nsenter";

/// Runs the command to its end, and answers.
pub fn run(request: Request<'_>, limit: Option<Duration>) -> Result<(), Failure> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    signals::reset();
    // SAFETY: ignoring a signal runs no code. Whether somebody reads the answer is seen when it is written.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let outcome = match start(request)? {
        Ok(attendant) => attendant.attend(deadline)?,
        // What a shell would do: the caller asked how the command went.
        Err((status, message)) => ExecOutcome {
            exit_code: status,
            stderr: format!("droplet: {message}\n").into_bytes(),
            ..ExecOutcome::default()
        },
    };
    let answer = outcome.render().stage(STAGE)?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&answer).and_then(|()| stdout.flush()).stage(STAGE)
}

/// Starts the process; the inner error is status and reason of a program that cannot be executed.
fn start(request: Request<'_>) -> Result<Result<Attendant, (i32, String)>, Failure> {
    let started = prepare(request).and_then(|(lock, job)| {
        let cgroup = job.cgroup.clone();
        let (stdio, streams) = pipes(&job)?;
        let started = process::start(&job, stdio);
        // What is open of the container is closed now, whatever the container does then.
        drop((job, lock));
        match started {
            Ok(process) => Ok(Ok(Attendant {
                process,
                cgroup,
                streams,
            })),
            Err(NotStarted {
                refused: Some(status @ (NOT_FOUND | NOT_EXECUTABLE)),
                message,
            }) => Ok(Err((status, message))),
            Err(error) => Err(error).judge(STAGE),
        }
    });
    let refused = |(_, message): &(i32, String)| Failure::new(STAGE, message.clone());
    match &started {
        Ok(Ok(_)) => record(request, None),
        Ok(Err(refusal)) => record(request, Some(&refused(refusal))),
        Err(failure) => record(request, Some(failure)),
    }
    started
}

/// No input, and a pipe for each output.
fn pipes(job: &Job) -> Result<(Stdio, [Stream; 2]), Failure> {
    let pipe = || -> rustix::io::Result<_> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // A pipe belongs to who made it, and `/dev/stdout` can only be opened by who may.
        fchown(&writer, Some(job.owner.0), Some(job.owner.1))?;
        // Who may open it can also take from it what has been announced to us.
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        let reader = Some(reader);
        Ok((
            Stream {
                reader,
                tail: Tail::default(),
            },
            writer,
        ))
    };
    let (out, output) = pipe().stage(STAGE)?;
    let (err, errors) = pipe().stage(STAGE)?;
    let stdio = Stdio {
        input: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).stage(STAGE)?,
        output,
        errors,
        terminal: false,
    };
    Ok((stdio, [out, err]))
}

/// Looks after a process that runs.
struct Attendant {
    process: Process,
    cgroup: Cgroup,
    /// Output and errors.
    streams: [Stream; 2],
}

/// Why there is nothing more to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Ended,
    TimedOut,
    Abandoned,
}

impl Attendant {
    fn attend(mut self, deadline: Option<Instant>) -> Result<ExecOutcome, Failure> {
        let over = self.pump(deadline).stage(STAGE)?;
        let mut exit_code = 128 + libc::SIGKILL;
        if over != Over::Ended {
            self.kill_session();
        }
        // Its number must mean it, and nobody else, as long as its session is looked for: it is reaped last.
        if over == Over::Ended || readable(&self.process.pidfd, Instant::now() + KILL_LIMIT) {
            let code = wait(self.process.pidfd.as_fd());
            if over == Over::Ended {
                exit_code = code;
            }
        }
        if over == Over::Abandoned {
            return Err(Failure::new(
                STAGE,
                "nobody waits for the process any more; it was killed",
            ));
        }
        let [out, err] = self.streams.map(Stream::finish);
        Ok(ExecOutcome {
            exit_code,
            truncated: out.1 || err.1,
            stdout: out.0,
            stderr: err.0,
            timed_out: over == Over::TimedOut,
        })
    }

    /// Takes what the process writes until it is over.
    fn pump(&mut self, deadline: Option<Instant>) -> rustix::io::Result<Over> {
        let caller = std::io::stdout();
        let mut buffer = vec![0; PIECE];
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Over::TimedOut);
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            // A pipe without a reader is an error, which is always reported.
            let mut fds = vec![
                PollFd::new(&self.process.pidfd, PollFlags::IN),
                PollFd::new(&caller, PollFlags::empty()),
            ];
            let readers = self.streams.iter().filter_map(|stream| stream.reader.as_ref());
            fds.extend(readers.map(|reader| PollFd::new(reader, PollFlags::IN)));
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            let (ended, abandoned) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if ended {
                return Ok(Over::Ended);
            }
            if abandoned {
                return Ok(Over::Abandoned);
            }
            for stream in &mut self.streams {
                stream.take(&mut buffer);
            }
        }
    }

    /// Kills the process and what it started, as far as that has not left its session.
    fn kill_session(&self) {
        let session = self.process.pid;
        let _ = kill_process_group(session, Signal::KILL);
        for _ in 0..KILL_ROUNDS {
            let others = self.cgroup.processes().into_iter().filter(|pid| *pid != session);
            let killed = others.filter(|pid| kill_member(*pid, session)).count();
            if killed == 0 {
                return;
            }
        }
    }
}

/// Kills a process if it belongs to that session.
fn kill_member(pid: Pid, session: Pid) -> bool {
    // Asked after opening: from here on the descriptor cannot come to mean another process.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    session_of(pid) == Some(session) && pidfd_send_signal(&process, Signal::KILL).is_ok()
}

/// The session of a process; `None` when it is gone, or when its session leader is in no PID namespace of ours.
fn session_of(pid: Pid) -> Option<Pid> {
    // Not rustix: it takes for granted that the kernel never answers 0, and 0 is what it answers for such a leader.
    let process = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
    Pid::from_raw(nix::unistd::getsid(Some(process)).ok()?.as_raw())
}

/// One output of the process.
#[derive(Debug)]
struct Stream {
    /// `None` after its end.
    reader: Option<OwnedFd>,
    tail: Tail,
}

impl Stream {
    /// Takes what is there, at most a buffer full, so that nothing else has to wait for long.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let Some(reader) = &self.reader else { return 0 };
        match rustix::io::read(reader, &mut *buffer) {
            Ok(n @ 1..) => {
                self.tail.push(&buffer[..n]);
                return n;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.reader = None,
        }
        0
    }

    /// What came until now, and whether something is missing at its beginning. Others may go on writing for ever.
    fn finish(mut self) -> (Vec<u8>, bool) {
        let announced = self.reader.as_ref().and_then(|reader| ioctl_fionread(reader).ok());
        let mut left = usize::try_from(announced.unwrap_or(0)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; PIECE];
        while left > 0 {
            let most = left.min(PIECE);
            match self.take(&mut buffer[..most]) {
                0 => break,
                n => left -= n,
            }
        }
        self.tail.finish()
    }
}

/// The end of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        // Not every time, so that a byte is moved once at most.
        if self.bytes.len() >= 2 * MAX_STREAM {
            self.cut();
        }
    }

    fn finish(mut self) -> (Vec<u8>, bool) {
        self.cut();
        (self.bytes, self.cut)
    }

    fn cut(&mut self) {
        if let Some(surplus @ 1..) = self.bytes.len().checked_sub(MAX_STREAM) {
            self.bytes.drain(..surplus);
            self.cut = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_stream_is_kept() {
        let mut tail = Tail::default();
        tail.push(&vec![b'a'; MAX_STREAM]);
        assert_eq!(tail.finish(), (vec![b'a'; MAX_STREAM], false));
        let mut tail = Tail::default();
        for n in 0..=255_u8 {
            tail.push(&[n; PIECE]);
            assert!(tail.bytes.len() < 2 * MAX_STREAM);
        }
        let (bytes, cut) = tail.finish();
        assert_eq!(
            (bytes.len(), bytes[0], bytes.last(), cut),
            (MAX_STREAM, 240, Some(&255), true)
        );
    }

    /// A session with a member in another process group, and a stranger.
    #[test]
    fn a_session_is_more_than_its_process_group() {
        use std::io::{BufRead, BufReader};
        use std::os::unix::process::CommandExt;
        let session = |script: &str| {
            let mut command = std::process::Command::new("bash");
            command.args(["-c", script]).stdout(std::process::Stdio::piped());
            // SAFETY: only a system call between fork and execve.
            unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
            command.spawn().unwrap()
        };
        let pid = |child: &std::process::Child| Pid::from_raw(child.id().cast_signed()).unwrap();
        // Job control gives the background job a process group of its own.
        let mut leader = session("set -m; sleep 1000 & echo $!; wait $!; exit 7");
        let mut stranger = session("exec sleep 1000");
        let mut line = String::new();
        BufReader::new(leader.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let member = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        assert_ne!(rustix::process::getpgid(Some(member)).unwrap(), pid(&leader));
        assert!(kill_member(member, pid(&leader)));
        assert_eq!(leader.wait().unwrap().code(), Some(7));
        assert!(!kill_member(pid(&stranger), pid(&leader)));
        assert!(stranger.try_wait().unwrap().is_none());
        assert!(kill_member(pid(&stranger), pid(&stranger)));
        stranger.wait().unwrap();
    }

    #[test]
    fn what_others_go_on_writing_is_not_waited_for() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        rustix::io::write(&writer, b"so far").unwrap();
        let stream = Stream {
            reader: Some(reader),
            tail: Tail::default(),
        };
        assert_eq!(stream.finish(), (b"so far".to_vec(), false));
    }
}
