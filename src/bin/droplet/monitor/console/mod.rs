//! Forwards the output of a process and, for a terminal, the input of its viewers (`docs/spec/runtime.md` 12.2 to
//! 12.6).
//!
//! A [`Pump`] reads one descriptor: the read end of a pipe or the master of a pseudo-terminal. It writes every piece to
//! the log first. A terminal also has a listening socket: every connected viewer gets the raw output, and sends frames
//! with input and window sizes.
//!
//! The pump has one thread and one `poll` loop, and no viewer can block it. Output for a viewer that does not read
//! waits in a queue; when the queue is full, the viewer is disconnected. While the process does not read its input, the
//! pump does not read from the viewers. It waits only for the log; if the log cannot be written, output goes on without
//! it.
//!
//! While the process runs, call [`Pump::run`], as often as necessary. Then call [`Pump::finish`]: it forwards what is
//! left in the pipe or terminal, disconnects the viewers and removes the socket. The pump does not start or reap
//! processes.

pub mod frames;
pub mod socket;
mod terminal;
mod viewer;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use super::log_file::{EventLog, LogFile};
use socket::Socket;
use terminal::{MAX_VIEWERS, Ready, Terminal};
use viewer::Viewer;

/// Maximum number of bytes of one read.
const CHUNK: usize = 32 << 10;
/// Time limit for `finish`: in total, and without any event.
const FINISH: Duration = Duration::from_secs(2);
const FINISH_IDLE: Duration = Duration::from_millis(250);

/// Forwards the output of one process to the log and the viewers.
#[derive(Debug)]
pub struct Pump {
    output: OwnedFd,
    /// Whether the output has ended.
    ended: bool,
    log: LogFile,
    terminal: Option<Terminal>,
    buffer: Box<[u8; CHUNK]>,
}

impl Pump {
    /// Makes a pump for the read end of a pipe.
    pub fn pipe(output: OwnedFd, log: LogFile) -> io::Result<Self> {
        ioctl_fionbio(&output, true)?;
        Ok(Self {
            output,
            ended: false,
            log,
            terminal: None,
            buffer: Box::new([0; CHUNK]),
        })
    }

    /// Makes a pump for the master of a pseudo-terminal. Viewers connect to `socket`. `events` records when they
    /// connect and disconnect.
    pub fn terminal(master: OwnedFd, log: LogFile, socket: Socket, events: EventLog) -> io::Result<Self> {
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let terminal = Terminal {
            slave: Some(slave),
            socket,
            viewers: Vec::new(),
            input: VecDeque::new(),
            events,
        };
        Ok(Self {
            terminal: Some(terminal),
            ..Self::pipe(master, log)?
        })
    }

    /// Forwards until the descriptor `until`, such as a pidfd, is readable.
    pub fn run(&mut self, until: BorrowedFd<'_>) -> io::Result<()> {
        while !self.step(Some(until), None)?.until {}
        Ok(())
    }

    /// Forwards until no process can write to the pipe any more, without a time limit.
    pub fn run_to_end(&mut self) -> io::Result<()> {
        while !self.ended {
            self.step(None, None)?;
        }
        Ok(())
    }

    /// Forwards what is left after the end of the process, for at most two seconds. Then disconnects the viewers and
    /// removes the socket.
    pub fn finish(mut self) -> io::Result<()> {
        let deadline = Instant::now() + FINISH;
        if let Some(terminal) = &mut self.terminal {
            terminal.slave = None;
        }
        while !self.ended && self.step_within(deadline)? {}
        self.ended = true;
        if let Some(terminal) = &mut self.terminal {
            terminal.events.line("pty end");
            terminal.input.clear();
        }
        while self.has_queued_output() && self.step_within(deadline)? {}
        for viewer in self.terminal.iter().flat_map(|terminal| &terminal.viewers) {
            viewer.discard_input(&mut self.buffer[..]);
        }
        Ok(())
    }

    /// Returns whether output waits for a viewer.
    fn has_queued_output(&self) -> bool {
        let terminal = self.terminal.as_ref();
        terminal.is_some_and(|terminal| terminal.viewers.iter().any(Viewer::has_queued_output))
    }

    /// Does one step within a short time. Returns `false` if nothing happened or the time is up.
    fn step_within(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = self.step(None, Some(left.min(FINISH_IDLE)))?;
        let something_happened =
            !ready.output.is_empty() || ready.socket || ready.viewers.iter().any(|flags| !flags.is_empty());
        Ok(something_happened && !left.is_zero())
    }

    /// Waits for events and handles them.
    fn step(&mut self, until: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> io::Result<Ready> {
        let ready = self.wait(until, limit)?;
        // Serve the viewers first: `ready` has their old order, and both steps may remove viewers.
        if let Some(terminal) = &mut self.terminal {
            terminal.serve(&ready, &self.output, &mut self.buffer[..]);
        }
        if ready.output.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.forward_output();
        }
        Ok(ready)
    }

    fn wait(&self, until: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> io::Result<Ready> {
        let mut fds = Vec::with_capacity(3 + MAX_VIEWERS);
        // An entry without interest would still report an end, again and again. Leave it out.
        let mut watch = |fd, interest: PollFlags| {
            (!interest.is_empty()).then(|| {
                fds.push(PollFd::from_borrowed_fd(fd, interest));
                fds.len() - 1
            })
        };
        let until = until.and_then(|fd| watch(fd, PollFlags::IN));
        let output = watch(self.output.as_fd(), self.interest());
        let socket = self
            .terminal
            .as_ref()
            .and_then(|t| watch(t.socket.as_fd(), PollFlags::IN));
        let viewers: Vec<_> = match &self.terminal {
            Some(terminal) => {
                let each = terminal.viewers.iter();
                each.map(|v| watch(v.as_fd(), terminal.interest_in(v))).collect()
            }
            None => Vec::new(),
        };
        let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or_default());
        rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref()))?;
        let events_of = |index: Option<usize>| index.map_or(PollFlags::empty(), |index| fds[index].revents());
        Ok(Ready {
            until: !events_of(until).is_empty(),
            output: events_of(output),
            socket: !events_of(socket).is_empty(),
            viewers: viewers.into_iter().map(events_of).collect(),
        })
    }

    fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !self.ended);
        let input = self.terminal.as_ref().is_some_and(|t| !t.input.is_empty());
        interest.set(PollFlags::OUT, input && !self.ended);
        interest
    }

    /// Reads once, and writes to the log and then to the viewers.
    fn forward_output(&mut self) {
        let piece = match read(&self.output, &mut self.buffer[..]) {
            Ok(n) if n > 0 => &self.buffer[..n],
            Err(Errno::AGAIN | Errno::INTR) => return,
            // The end of a pipe, or (EIO) of a terminal that no process has open.
            Ok(_) | Err(_) => {
                self.ended = true;
                return;
            }
        };
        // A full disk must not stop the container.
        let _ = self.log.write(piece);
        if let Some(terminal) = &mut self.terminal {
            terminal.retain_viewers(|_, viewer| viewer.send(piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::thread::JoinHandle;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::frames::{Size, encode_data, encode_resize};
    use super::socket::connect;
    use super::*;

    /// A shell script on a terminal, with a pump as in a monitor.
    struct Session {
        dir: tempfile::TempDir,
        child: Child,
        pump: JoinHandle<io::Result<()>>,
    }

    impl Session {
        fn start(script: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (master, slave) = pty();
            let log = LogFile::open(dir.path().join("console.log")).unwrap();
            let events = EventLog::open(dir.path().join("shim.log"), "shim");
            let socket = Socket::listen(dir.path(), "tty.sock").unwrap();
            let mut pump = Pump::terminal(master, log, socket, events).unwrap();
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).current_dir(dir.path());
            for stdio in [Command::stdin, Command::stdout, Command::stderr] {
                stdio(&mut command, slave.try_clone().unwrap());
            }
            // SAFETY: only system calls between fork and execve.
            unsafe {
                command.pre_exec(move || {
                    rustix::process::setsid()?;
                    Ok(rustix::process::ioctl_tiocsctty(&slave)?)
                });
            }
            let child = command.spawn().unwrap();
            drop(command);
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
            let pump = std::thread::spawn(move || {
                pump.run(pidfd.as_fd())?;
                pump.finish()
            });
            Self { dir, child, pump }
        }

        fn connect(&self) -> Client {
            let stream = UnixStream::from(connect(self.dir.path(), "tty.sock").unwrap());
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            Client {
                stream,
                seen: String::new(),
            }
        }

        /// Waits until the event log satisfies the condition.
        fn wait_for_event(&self, condition: impl Fn(&str) -> bool) {
            let events = self.dir.path().join("shim.log");
            let deadline = Instant::now() + Duration::from_secs(10);
            while !condition(&std::fs::read_to_string(&events).unwrap()) {
                assert!(Instant::now() < deadline, "the event did not happen");
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        /// Waits for the process and the pump to end. Returns the content of the log.
        fn end(mut self) -> String {
            self.child.wait().unwrap();
            self.pump.join().unwrap().unwrap();
            assert!(!self.dir.path().join("tty.sock").exists());
            std::fs::read_to_string(self.dir.path().join("console.log")).unwrap()
        }
    }

    struct Client {
        stream: UnixStream,
        seen: String,
    }

    impl Client {
        fn type_in(&mut self, text: &str) {
            let mut frame = Vec::new();
            encode_data(text.as_bytes(), &mut frame);
            self.stream.write_all(&frame).unwrap();
        }

        fn resize(&mut self, rows: u16, columns: u16) {
            let mut frame = Vec::new();
            encode_resize(Size { rows, columns }, &mut frame);
            self.stream.write_all(&frame).unwrap();
        }

        /// Reads until `text` was seen since the last call.
        fn expect(&mut self, text: &str) {
            let mut buffer = [0; 4096];
            while !self.seen.contains(text) {
                let n = self.stream.read(&mut buffer).unwrap();
                assert_ne!(n, 0, "end of stream instead of {text:?} after {:?}", self.seen);
                self.seen += &String::from_utf8_lossy(&buffer[..n]);
            }
            self.seen = self.seen.split_once(text).unwrap().1.to_owned();
        }

        /// Reads the rest of the stream.
        fn rest(mut self) -> String {
            self.stream.read_to_string(&mut self.seen).unwrap();
            self.seen
        }
    }

    fn pty() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        (master, slave)
    }

    #[test]
    fn two_viewers_type_and_see_the_same_output() {
        let session = Session::start("while read line; do echo got $line; done");
        let (mut one, mut two) = (session.connect(), session.connect());
        one.type_in("from one\n");
        one.expect("got from one\r\n");
        two.expect("got from one\r\n");
        two.type_in("from two\n\x04");
        one.expect("got from two\r\n");
        assert!(two.rest().contains("got from two\r\n"));
        assert!(session.end().contains("got from one\r\n"));
    }

    #[test]
    fn the_last_size_applies() {
        let session = Session::start("while read line; do stty size; done");
        let mut view = session.connect();
        view.type_in("\n");
        view.expect("0 0\r\n");
        view.resize(40, 100);
        view.resize(7, 9);
        view.type_in("\n\x04");
        view.expect("7 9\r\n");
        session.end();
    }

    #[test]
    fn output_right_before_the_end_reaches_the_log_and_the_viewer() {
        let session = Session::start("read line; seq 1 20000");
        let mut view = session.connect();
        view.type_in("go\n");
        let seen = view.rest();
        let log = session.end();
        assert!(seen.ends_with("\r\n19999\r\n20000\r\n"));
        assert!(log.ends_with(&seen), "viewer and log differ");
        assert_eq!(log.lines().filter(|line| line.parse::<u32>().is_ok()).count(), 20000);
    }

    #[test]
    fn a_viewer_that_detaches_does_not_disturb_others() {
        let session = Session::start("while read line; do echo got $line; done");
        let (gone, mut view) = (session.connect(), session.connect());
        drop(gone);
        view.type_in("a\n");
        view.expect("got a");
        let mut later = session.connect();
        later.type_in("b\n\x04");
        later.expect("got b");
        session.end();
    }

    #[test]
    fn a_viewer_that_never_reads_is_disconnected_and_blocks_nobody() {
        let session =
            Session::start("stty -echo; read line; yes 0123456789 | head -n 200000; read line; echo got $line");
        let mut sleeper = session.connect();
        sleeper.type_in("go\n");
        session.wait_for_event(|events| events.contains("it does not read"));
        let mut view = session.connect();
        view.type_in("stop\n");
        let log = session.end();
        assert_eq!(log.matches("0123456789\r\n").count(), 200_000);
        assert!(log.ends_with("got stop\r\n"));
        let received = sleeper.rest().len();
        assert!(received < log.len() / 2, "{received}");
    }

    #[test]
    fn unread_input_does_not_block_output() {
        // With echo there would be output that the other viewer does not read for a while.
        let wait_for = |file: &str| format!("while [ ! -e {file} ]; do sleep 0.01; done");
        let (connected, go) = (wait_for("connected"), wait_for("go"));
        let session = Session::start(&format!("stty raw -echo; {connected}; echo ready; {go}; seq 1 5"));
        let (mut flooder, mut view) = (session.connect(), session.connect());
        // A viewer gets only the output after it was accepted.
        session.wait_for_event(|events| events.matches("attach connected").count() == 2);
        std::fs::write(session.dir.path().join("connected"), "").unwrap();
        view.expect("ready\n");
        flooder.stream.set_nonblocking(true).unwrap();
        let mut frame = Vec::new();
        encode_data(&[b'x'; 1000], &mut frame);
        let end = Instant::now() + Duration::from_secs(10);
        // The socket is full when the pump does not read the input any more.
        while flooder.stream.write(&frame).is_ok() {
            assert!(Instant::now() < end, "input is not held back");
        }
        std::fs::write(session.dir.path().join("go"), "").unwrap();
        view.expect("1\n2\n3\n4\n5\n");
        session.end();
    }

    #[test]
    fn input_of_a_disconnected_viewer_still_arrives() {
        let session = Session::start("stty -echo; while read line; do n=$((n+1)); echo got $line; done; echo total $n");
        let mut view = session.connect();
        for _ in 0..100 {
            view.type_in(&"a line\n".repeat(30));
        }
        view.type_in("\x04");
        drop(view);
        assert!(session.end().ends_with("total 3000\r\n"));
    }

    #[test]
    fn an_invalid_frame_ends_only_its_connection() {
        let session = Session::start("while read line; do echo got $line; done");
        let (mut bad, mut view) = (session.connect(), session.connect());
        bad.stream.write_all(b"\x07\0\0\0\x02zz").unwrap();
        bad.type_in("skipped that\n");
        view.expect("got skipped that");
        bad.stream.write_all(b"\0\xff\xff\xff\xff").unwrap();
        bad.rest();
        view.type_in("still here\n\x04");
        view.expect("got still here");
        session.end();
    }

    #[test]
    fn a_viewer_beyond_the_maximum_is_turned_away() {
        let session = Session::start("while read line; do echo got $line; done");
        let mut views: Vec<_> = (0..MAX_VIEWERS).map(|_| session.connect()).collect();
        assert_eq!(session.connect().rest(), "");
        for view in &mut views {
            view.type_in("hello\n");
            view.expect("got hello");
        }
        views.pop();
        views[0].type_in("\x04");
        session.end();
    }

    #[test]
    fn finish_does_not_wait_for_background_processes_on_the_terminal() {
        let session = Session::start("trap '' HUP; sleep 30 & echo $!");
        let started = Instant::now();
        let log = session.end();
        assert!(started.elapsed() < FINISH);
        let background = Pid::from_raw(log.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(background, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn a_pipe_is_read_until_its_last_writer_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exec.log");
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut pump = Pump::pipe(reader, LogFile::open(&path).unwrap()).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "echo first; { while kill -0 $$; do sleep 0.01; done; echo last; } 2>/dev/null &",
        ]);
        command.stdout(writer);
        let mut child = command.spawn().unwrap();
        drop(command);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        pump.run(pidfd.as_fd()).unwrap();
        child.wait().unwrap();
        pump.run_to_end().unwrap();
        pump.finish().unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "first\nlast\n");
    }
}
