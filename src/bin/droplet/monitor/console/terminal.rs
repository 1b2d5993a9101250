//! A pseudo-terminal with its viewers.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::{Errno, write};

use super::socket::Socket;
use super::viewer::{Disconnect, Viewer};
use crate::monitor::log_file::EventLog;

/// Maximum number of viewers. Another one is turned away.
pub const MAX_VIEWERS: usize = 16;
/// Maximum number of input bytes that wait for the process. Then the viewers are not read any more.
const MAX_INPUT: usize = 64 << 10;
/// Pause after a connection could not be accepted, for example without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The parts that only a pseudo-terminal has.
#[derive(Debug)]
pub struct Terminal {
    /// Keeps the terminal open. Otherwise the master would report an end whenever no process has the terminal open.
    pub slave: Option<OwnedFd>,
    pub socket: Socket,
    pub viewers: Vec<Viewer>,
    pub input: VecDeque<u8>,
    pub events: EventLog,
}

/// The result of `poll`. `viewers` has the order of [`Terminal::viewers`].
#[derive(Debug)]
pub struct Ready {
    pub until: bool,
    pub output: PollFlags,
    pub socket: bool,
    pub viewers: Vec<PollFlags>,
}

impl Terminal {
    /// Returns the events to poll for a viewer.
    pub fn interest_in(&self, viewer: &Viewer) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.input.len() < MAX_INPUT);
        interest.set(PollFlags::OUT, viewer.has_queued_output());
        interest
    }

    /// Handles the events of the viewers, of the listening socket and of the input.
    pub fn serve(&mut self, ready: &Ready, master: &OwnedFd, buffer: &mut [u8]) {
        if ready.output.contains(PollFlags::OUT) {
            self.write_input(master);
        }
        let mut input = std::mem::take(&mut self.input);
        self.retain_viewers(|index, viewer| {
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

    /// Calls `action` for each viewer with its index. Disconnects a viewer if `action` fails.
    pub fn retain_viewers(&mut self, mut action: impl FnMut(usize, &mut Viewer) -> Result<(), Disconnect>) {
        let mut index = 0;
        self.viewers.retain_mut(|viewer| {
            let result = action(index, viewer);
            index += 1;
            if let Err(reason) = &result {
                self.events.line(format_args!("attach disconnected: {reason}"));
            }
            result.is_ok()
        });
    }

    fn write_input(&mut self, master: &OwnedFd) {
        let (first, _) = self.input.as_slices();
        match write(master, first) {
            Ok(n) => drop(self.input.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The terminal is gone; the next read will report it.
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
                self.viewers.push(Viewer::new(connection));
            }
            Ok(None) => {}
            Err(error) => {
                self.events.line(format_args!("attach failed: {error}"));
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}
