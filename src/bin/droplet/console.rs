//! Forwards what a process writes, and, for a terminal, what its viewers type (`docs/spec/runtime.md` 12.2 to 12.6).
//!
//! A [`Pump`] reads one descriptor, the read end of a pipe or the master of a pseudo-terminal. Every piece goes to the
//! log first. A terminal has in addition a listening socket: every connected viewer gets every piece raw, and sends
//! frames of input and sizes.
//!
//! One thread, one `poll` loop, and no viewer can hold it up: output for a viewer that does not read waits in a queue
//! of its own, and when that is full the viewer is disconnected. Input that the process does not read is held back in
//! the viewers' sockets. Only the log is waited for; when it cannot be written, output goes on without it.
//!
//! States: *running* ([`Pump::run`], as often as needed, until the process ends), *finished* ([`Pump::finish`]: what is
//! still in the pipe or terminal is read, viewers get the rest, then sockets are closed and removed). The pump neither
//! starts nor reaps processes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::frames::{Decoder, Event, Size};
use crate::logfile::{EventLog, LogFile};
use crate::socket::Socket;

/// Viewers at one time; one more is turned away.
const MAX_VIEWERS: usize = 16;
/// Bytes that may wait for one viewer.
const MAX_QUEUE: usize = 256 << 10;
/// Bytes of input that may wait for the process before viewers are not read any more.
const MAX_INPUT: usize = 64 << 10;
/// One read.
const CHUNK: usize = 32 << 10;
/// How long a finished terminal is read and its viewers are served, at most, and without anything happening.
const FINISH: Duration = Duration::from_secs(2);
const FINISH_IDLE: Duration = Duration::from_millis(250);
/// Pause after a connection that could not be accepted (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Output of one process on its way to the log and the viewers.
#[derive(Debug)]
pub struct Pump {
    output: OwnedFd,
    /// Nothing more will come.
    ended: bool,
    log: LogFile,
    terminal: Option<Terminal>,
    buffer: Box<[u8; CHUNK]>,
}

/// What a pseudo-terminal has in addition.
#[derive(Debug)]
struct Terminal {
    /// Held open, so that the master does not report an end whenever no process happens to have the terminal open.
    slave: Option<OwnedFd>,
    socket: Socket,
    viewers: Vec<Viewer>,
    input: VecDeque<u8>,
    events: EventLog,
}

/// A connected client.
#[derive(Debug)]
struct Viewer {
    connection: OwnedFd,
    decoder: Decoder,
    queue: VecDeque<u8>,
    /// It takes no more output. What it has sent before still counts; its end is seen when all of that was read.
    deaf: bool,
}

/// What `poll` said; the order of `viewers` is that of [`Terminal::viewers`].
#[derive(Debug)]
struct Ready {
    until: bool,
    output: PollFlags,
    socket: bool,
    viewers: Vec<PollFlags>,
}

impl Pump {
    /// A pump for the read end of a pipe.
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

    /// A pump for the master of a pseudo-terminal. Viewers connect to `socket`; their comings and goings are noted in
    /// `events`.
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

    /// Forwards until `until` (a pidfd, say) becomes readable.
    pub fn run(&mut self, until: BorrowedFd<'_>) -> io::Result<()> {
        while !self.step(Some(until), None)?.until {}
        Ok(())
    }

    /// Forwards until nobody can write to the pipe any more, however long that takes.
    pub fn run_to_end(&mut self) -> io::Result<()> {
        while !self.ended {
            self.step(None, None)?;
        }
        Ok(())
    }

    /// Forwards what is left after the end of the process, for at most two seconds; then disconnects the viewers and
    /// removes the socket.
    pub fn finish(mut self) -> io::Result<()> {
        let deadline = Instant::now() + FINISH;
        if let Some(terminal) = &mut self.terminal {
            terminal.slave = None;
        }
        while !self.ended && self.step_before(deadline)? {}
        self.ended = true;
        if let Some(terminal) = &mut self.terminal {
            terminal.events.line("pty end");
            terminal.input.clear();
        }
        while self.viewers_wait() && self.step_before(deadline)? {}
        for viewer in self.terminal.iter().flat_map(|terminal| &terminal.viewers) {
            viewer.discard_input(&mut self.buffer[..]);
        }
        Ok(())
    }

    /// Whether a viewer has not got everything yet.
    fn viewers_wait(&self) -> bool {
        let terminal = self.terminal.as_ref();
        terminal.is_some_and(|terminal| terminal.viewers.iter().any(|viewer| !viewer.queue.is_empty()))
    }

    /// A step that waits a little; false when nothing happened or the time is up.
    fn step_before(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = self.step(None, Some(left.min(FINISH_IDLE)))?;
        let happened = !ready.output.is_empty() || ready.socket || ready.viewers.iter().any(|flags| !flags.is_empty());
        Ok(happened && !left.is_zero())
    }

    /// Waits until something can be done, and does it.
    fn step(&mut self, until: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> io::Result<Ready> {
        let ready = self.wait(until, limit)?;
        // Viewers first: the answer counts them as they were when it was asked for, and both may remove some.
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
        // An entry without interest still reports an end, and would be reported again and again: it is left out.
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
                each.map(|v| watch(v.connection.as_fd(), terminal.interest_in(v)))
                    .collect()
            }
            None => Vec::new(),
        };
        let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or_default());
        rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref()))?;
        let said = |index: Option<usize>| index.map_or(PollFlags::empty(), |index| fds[index].revents());
        Ok(Ready {
            until: !said(until).is_empty(),
            output: said(output),
            socket: !said(socket).is_empty(),
            viewers: viewers.into_iter().map(said).collect(),
        })
    }

    fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !self.ended);
        let input = self.terminal.as_ref().is_some_and(|t| !t.input.is_empty());
        interest.set(PollFlags::OUT, input && !self.ended);
        interest
    }

    /// One read: to the log, then to the viewers.
    fn forward_output(&mut self) {
        let piece = match read(&self.output, &mut self.buffer[..]) {
            Ok(n) if n > 0 => &self.buffer[..n],
            Err(Errno::AGAIN | Errno::INTR) => return,
            // The end of a pipe, or (EIO) of a terminal that nobody has open.
            Ok(_) | Err(_) => {
                self.ended = true;
                return;
            }
        };
        // A full disk must not stop the container.
        let _ = self.log.write(piece);
        if let Some(terminal) = &mut self.terminal {
            terminal.keep_viewers(|_, viewer| viewer.send(piece));
        }
    }
}

impl Terminal {
    /// What can be done for a viewer.
    fn interest_in(&self, viewer: &Viewer) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.input.len() < MAX_INPUT);
        interest.set(PollFlags::OUT, !viewer.queue.is_empty());
        interest
    }

    fn serve(&mut self, ready: &Ready, master: &OwnedFd, buffer: &mut [u8]) {
        if ready.output.contains(PollFlags::OUT) {
            self.write_input(master);
        }
        let mut input = std::mem::take(&mut self.input);
        self.keep_viewers(|index, viewer| {
            let flags = ready.viewers[index];
            if flags.contains(PollFlags::OUT) {
                viewer.flush();
            }
            if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && input.len() < MAX_INPUT {
                viewer.receive(buffer, &mut input, master)?;
            }
            Ok(())
        });
        self.input = input;
        if ready.socket {
            self.accept();
        }
    }

    /// Calls `action` for each viewer with its number, and disconnects those for whom it fails.
    fn keep_viewers(&mut self, mut action: impl FnMut(usize, &mut Viewer) -> Result<(), Gone>) {
        let mut index = 0;
        self.viewers.retain_mut(|viewer| {
            let kept = action(index, viewer);
            index += 1;
            if let Err(why) = &kept {
                self.events.line(format_args!("attach disconnected: {why}"));
            }
            kept.is_ok()
        });
    }

    fn write_input(&mut self, master: &OwnedFd) {
        let (first, _) = self.input.as_slices();
        match write(master, first) {
            Ok(n) => drop(self.input.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The terminal is gone, which the next read will say.
            Err(_) => self.input.clear(),
        }
    }

    fn accept(&mut self) {
        match self.socket.accept() {
            Ok(Some(_)) if self.viewers.len() == MAX_VIEWERS => {
                self.events.line("attach refused: too many viewers");
            }
            Ok(Some(connection)) => {
                self.events.line("attach connected");
                self.viewers.push(Viewer {
                    connection,
                    decoder: Decoder::default(),
                    queue: VecDeque::new(),
                    deaf: false,
                });
            }
            Ok(None) => {}
            Err(error) => {
                self.events.line(format_args!("attach failed: {error}"));
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// A viewer that is to be disconnected, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct Gone(String);

impl Viewer {
    /// Sends now what can be sent now, and keeps the rest for later.
    fn send(&mut self, mut piece: &[u8]) -> Result<(), Gone> {
        if self.queue.is_empty() {
            piece = &piece[self.send_some(piece)..];
        }
        if self.queue.len() + piece.len() > MAX_QUEUE {
            return Err(Gone("it does not read".into()));
        }
        self.queue.extend(piece);
        Ok(())
    }

    fn flush(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        let sent = self.send_some(queue.as_slices().0);
        queue.drain(..sent);
        if !self.deaf {
            self.queue = queue;
        }
    }

    fn send_some(&mut self, piece: &[u8]) -> usize {
        if self.deaf {
            return piece.len();
        }
        match send(&self.connection, piece, SendFlags::NOSIGNAL) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.deaf = true;
                self.queue.clear();
                piece.len()
            }
        }
    }

    /// One read: input is queued, a size is set.
    fn receive(&mut self, buffer: &mut [u8], input: &mut VecDeque<u8>, master: &OwnedFd) -> Result<(), Gone> {
        let received = match read(&self.connection, &mut *buffer) {
            Ok(0) => return Err(Gone("closed".into())),
            Ok(n) => &buffer[..n],
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(Gone(error.to_string())),
        };
        let events = |event: Event<'_>| match event {
            Event::Data(data) => input.extend(data),
            Event::Resize(size) => resize(master, size),
        };
        self.decoder.feed(received, events).map_err(|e| Gone(e.to_string()))
    }

    /// Before the connection is closed: with input unread, the viewer would see a reset instead of an end.
    fn discard_input(&self, buffer: &mut [u8]) {
        let _ = shutdown(&self.connection, Shutdown::Read);
        while read(&self.connection, &mut *buffer).is_ok_and(|n| n > 0) {}
    }
}

fn resize(master: &OwnedFd, size: Size) {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // Any size is valid, and the terminal may be gone.
    let _ = tcsetwinsize(master, size);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::thread::JoinHandle;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::frames::{encode_data, encode_resize};
    use crate::socket::connect;

    /// A shell script on a terminal, with a pump that serves it as a monitor would.
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

        fn view(&self) -> View {
            let stream = UnixStream::from(connect(self.dir.path(), "tty.sock").unwrap());
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            View {
                stream,
                seen: String::new(),
            }
        }

        /// Waits for the end of process and pump; what the log says then.
        fn end(mut self) -> String {
            self.child.wait().unwrap();
            self.pump.join().unwrap().unwrap();
            assert!(!self.dir.path().join("tty.sock").exists());
            std::fs::read_to_string(self.dir.path().join("console.log")).unwrap()
        }
    }

    struct View {
        stream: UnixStream,
        seen: String,
    }

    impl View {
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

        /// The rest of the stream.
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
    fn two_viewers_type_and_see_the_same() {
        let session = Session::start("while read line; do echo got $line; done");
        let (mut one, mut two) = (session.view(), session.view());
        one.type_in("from one\n");
        one.expect("got from one\r\n");
        two.expect("got from one\r\n");
        two.type_in("from two\n\x04");
        one.expect("got from two\r\n");
        assert!(two.rest().contains("got from two\r\n"));
        assert!(session.end().contains("got from one\r\n"));
    }

    #[test]
    fn the_last_size_counts() {
        let session = Session::start("while read line; do stty size; done");
        let mut view = session.view();
        view.type_in("\n");
        view.expect("0 0\r\n");
        view.resize(40, 100);
        view.resize(7, 9);
        view.type_in("\n\x04");
        view.expect("7 9\r\n");
        session.end();
    }

    #[test]
    fn what_is_written_right_before_the_end_arrives_everywhere() {
        let session = Session::start("read line; seq 1 20000");
        let mut view = session.view();
        view.type_in("go\n");
        let seen = view.rest();
        let log = session.end();
        assert!(seen.ends_with("\r\n19999\r\n20000\r\n"));
        assert!(log.ends_with(&seen), "viewer and log differ");
        assert_eq!(log.lines().filter(|line| line.parse::<u32>().is_ok()).count(), 20000);
    }

    #[test]
    fn who_detaches_does_not_disturb() {
        let session = Session::start("while read line; do echo got $line; done");
        let (gone, mut view) = (session.view(), session.view());
        drop(gone);
        view.type_in("a\n");
        view.expect("got a");
        let mut later = session.view();
        later.type_in("b\n\x04");
        later.expect("got b");
        session.end();
    }

    #[test]
    fn a_viewer_that_never_reads_is_disconnected_and_holds_nobody_up() {
        let session =
            Session::start("stty -echo; read line; yes 0123456789 | head -n 200000; read line; echo got $line");
        let mut sleeper = session.view();
        sleeper.type_in("go\n");
        let events = session.dir.path().join("shim.log");
        let end = Instant::now() + Duration::from_secs(10);
        while !std::fs::read_to_string(&events).unwrap().contains("it does not read") {
            assert!(Instant::now() < end, "it is still connected");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut view = session.view();
        view.type_in("stop\n");
        let log = session.end();
        assert_eq!(log.matches("0123456789\r\n").count(), 200_000);
        assert!(log.ends_with("got stop\r\n"));
        let what_fitted = sleeper.rest().len();
        assert!(what_fitted < log.len() / 2, "{what_fitted}");
    }

    #[test]
    fn input_that_is_not_read_does_not_hold_output_up() {
        // An echo would be output, of which the other viewer reads nothing for a while.
        let session = Session::start("stty raw -echo; echo ready; while [ ! -e go ]; do sleep 0.01; done; seq 1 5");
        let (mut flooder, mut view) = (session.view(), session.view());
        view.expect("ready\n");
        flooder.stream.set_nonblocking(true).unwrap();
        let mut frame = Vec::new();
        encode_data(&[b'x'; 1000], &mut frame);
        let end = Instant::now() + Duration::from_secs(10);
        // A full socket means that the pump holds the input back.
        while flooder.stream.write(&frame).is_ok() {
            assert!(Instant::now() < end, "input is not held back");
        }
        std::fs::write(session.dir.path().join("go"), "").unwrap();
        view.expect("1\n2\n3\n4\n5\n");
        session.end();
    }

    #[test]
    fn input_of_a_viewer_that_is_gone_arrives_all_the_same() {
        let session = Session::start("stty -echo; while read line; do n=$((n+1)); echo got $line; done; echo total $n");
        let mut view = session.view();
        for _ in 0..100 {
            view.type_in(&"a line\n".repeat(30));
        }
        view.type_in("\x04");
        drop(view);
        assert!(session.end().ends_with("total 3000\r\n"));
    }

    #[test]
    fn bad_frames_end_only_their_connection() {
        let session = Session::start("while read line; do echo got $line; done");
        let (mut bad, mut view) = (session.view(), session.view());
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
    fn one_viewer_too_many_is_turned_away() {
        let session = Session::start("while read line; do echo got $line; done");
        let mut views: Vec<_> = (0..MAX_VIEWERS).map(|_| session.view()).collect();
        assert_eq!(session.view().rest(), "");
        for view in &mut views {
            view.type_in("hello\n");
            view.expect("got hello");
        }
        views.pop();
        views[0].type_in("\x04");
        session.end();
    }

    #[test]
    fn a_terminal_that_others_still_hold_is_left_behind() {
        let session = Session::start("trap '' HUP; sleep 30 & echo $!");
        let started = Instant::now();
        let log = session.end();
        assert!(started.elapsed() < FINISH);
        let background = Pid::from_raw(log.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(background, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn a_pipe_is_read_until_its_last_writer_is_gone() {
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
