//! `attach`: this terminal becomes that of a container (`docs/spec/runtime.md` 4.9).
//!
//! Input goes out in frames, output comes in raw. It ends when either side does; there is no detach key, and the container
//! does not notice. The terminal is put back as it was, also after a signal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::net::{SendFlags, send};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::Args;
use crate::container::{Container, Site};
use crate::failure::{Failure, Stage};
use crate::frames::{Size, encode_data, encode_resize};
use crate::socket::connect;

/// Bytes of one data frame.
const CHUNK: usize = 32 << 10;

/// `attach <id>`.
pub fn run(site: &Site, words: &[String]) -> Result<ExitCode, Failure> {
    let args = Args::parse(&[], words)?;
    let container = site.container(args.id()?).stage("attach")?;
    let signal = Attached::connect(&container)?.forward().stage("attach")?;
    Ok(signal.map_or(ExitCode::SUCCESS, |number| ExitCode::from(128 + number)))
}

/// A connection between this terminal and that of a container.
pub struct Attached {
    socket: OwnedFd,
    signals: SignalFd,
    /// Frames that are still to be sent. While there are some, no more input is read.
    pending: Vec<u8>,
    _raw: Option<RawMode>,
}

impl Attached {
    /// Connects. A terminal at stdin is raw from now on, until this is dropped.
    pub fn connect(container: &Container) -> Result<Self, Failure> {
        let socket = connect(container.dir.path(), "tty.sock")
            .map_err(|e| format!("container {} has no terminal to attach to: {e}", container.id))
            .stage("attach")?;
        Self::begin(socket).stage("attach")
    }

    fn begin(socket: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        let signals: SigSet = [Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]
            .into_iter()
            .collect();
        signals.thread_block()?;
        let mut attached = Self {
            socket,
            signals: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            pending: Vec::new(),
            _raw: RawMode::of_stdin()?,
        };
        attached.announce_size();
        Ok(attached)
    }

    /// Forwards in both directions. The number of the signal that ended it, if one did.
    pub fn forward(mut self) -> io::Result<Option<u8>> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let mut buffer = vec![0; CHUNK];
        let mut input_ended = false;
        while !(input_ended && self.pending.is_empty()) {
            let sending = !self.pending.is_empty();
            let mut fds = [
                PollFd::new(
                    &self.socket,
                    if sending {
                        PollFlags::IN | PollFlags::OUT
                    } else {
                        PollFlags::IN
                    },
                ),
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&stdin, PollFlags::IN),
            ];
            // An entry less instead of one without interest, which would report the end of a pipe again and again.
            let watched = if sending || input_ended { 2 } else { 3 };
            rustix::io::retry_on_intr(|| poll(&mut fds[..watched], None))?;
            let [socket, signals, input] = fds.map(|fd| fd.revents());

            if socket.contains(PollFlags::OUT) {
                self.send_pending()?;
            }
            if socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                match read(&self.socket, &mut buffer) {
                    Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
                    Ok(n) => write_all(&stdout, &buffer[..n])?,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            if !signals.is_empty()
                && let Some(number) = self.signal()?
            {
                return Ok(Some(number));
            }
            if watched == 3 && !input.is_empty() {
                // A terminal that is gone is an end as well.
                match read(&stdin, &mut buffer) {
                    Ok(0) | Err(Errno::IO) => input_ended = true,
                    Ok(n) => encode_data(&buffer[..n], &mut self.pending),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(None)
    }

    /// Takes a signal: a new size is passed on, the number of any other returned.
    fn signal(&mut self) -> io::Result<Option<u8>> {
        match self.signals.read_signal()? {
            Some(info) if info.ssi_signo != Signal::SIGWINCH as u32 => Ok(u8::try_from(info.ssi_signo).ok()),
            Some(_) => {
                self.announce_size();
                Ok(None)
            }
            None => Ok(None),
        }
    }

    fn send_pending(&mut self) -> io::Result<()> {
        match send(&self.socket, &self.pending, SendFlags::NOSIGNAL) {
            Ok(n) => drop(self.pending.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // What the container still said comes first; then the read sees the end.
            Err(Errno::PIPE) => self.pending.clear(),
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// Tells the container the size of this terminal, if stdout is one.
    fn announce_size(&mut self) {
        if let Ok(size) = tcgetwinsize(io::stdout()) {
            let size = Size {
                rows: size.ws_row,
                columns: size.ws_col,
            };
            encode_resize(size, &mut self.pending);
        }
    }
}

fn write_all(out: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = rustix::io::retry_on_intr(|| write(&out, bytes))?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// A terminal that passes every key on. Dropping it puts the terminal back.
struct RawMode(Termios);

impl RawMode {
    /// `None` when stdin is not a terminal.
    fn of_stdin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
