//! `attach`: connects this terminal to the terminal of a container (`docs/spec/runtime.md` 4.9).
//!
//! Input is sent in frames; output arrives as raw bytes. The session ends when either side closes it. There is no
//! detach key, and detaching does not affect the container. The terminal settings are restored at the end, also after a
//! signal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::net::{SendFlags, send};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::arguments::Args;
use crate::container::{Container, RuntimePaths};
use crate::monitor::console::frames::{Size, encode_data, encode_resize};
use crate::monitor::console::socket::connect;
use crate::report::failure::{Failure, Stage};

/// Maximum payload of one data frame, in bytes.
const CHUNK: usize = 32 << 10;

/// `attach <id>`.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<ExitCode, Failure> {
    let args = Args::parse(&[], arguments)?;
    let container = paths.container(args.id()?).stage("attach")?;
    let signal = AttachSession::connect(&container)?.forward().stage("attach")?;
    Ok(signal.map_or(ExitCode::SUCCESS, |number| ExitCode::from(128 + number)))
}

/// A connection between this terminal and the terminal of a container.
pub struct AttachSession {
    socket: OwnedFd,
    signals: SignalFd,
    /// Frames that still have to be sent. While there are any, no more input is read.
    pending: Vec<u8>,
    _raw_mode: Option<RawMode>,
}

impl AttachSession {
    /// Connects to the container. If stdin is a terminal, it stays in raw mode until this value is dropped.
    pub fn connect(container: &Container) -> Result<Self, Failure> {
        let socket = connect(container.dir.path(), "tty.sock")
            .map_err(|e| format!("container {} has no terminal to attach to: {e}", container.id))
            .stage("attach")?;
        Self::new(socket).stage("attach")
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        let signals: SigSet = [Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]
            .into_iter()
            .collect();
        signals.thread_block()?;
        let mut session = Self {
            socket,
            signals: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            pending: Vec::new(),
            _raw_mode: RawMode::enable_on_stdin()?,
        };
        session.announce_size();
        Ok(session)
    }

    /// Forwards data in both directions. Returns the number of the signal that ended the session, if a signal did.
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
            // Without interest in stdin, leave its entry out: poll would report the end of a pipe again and again.
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
                && let Some(number) = self.read_signal()?
            {
                return Ok(Some(number));
            }
            if watched == 3 && !input.is_empty() {
                // EIO: the terminal is gone, which is the end of the input too.
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

    /// Reads a signal. SIGWINCH announces the new size; for any other signal, returns its number.
    fn read_signal(&mut self) -> io::Result<Option<u8>> {
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
            // The container may have written something before it closed the connection. The next read returns it, then
            // the end.
            Err(Errno::PIPE) => self.pending.clear(),
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// Sends the size of this terminal to the container, if stdout is a terminal.
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

/// Puts the terminal at stdin into raw mode. Dropping it restores the settings.
struct RawMode(Termios);

impl RawMode {
    /// Returns `None` if stdin is not a terminal.
    fn enable_on_stdin() -> io::Result<Option<Self>> {
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
