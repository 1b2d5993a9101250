//! A small init before the program (`condenser::runtime::reaper`): the first process of the container becomes it, and the
//! program is its child.
//!
//! The child waits until the first process is the small init: until then that is a copy of the runtime, which a program of
//! the same user could look into.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use condenser::runtime::reaper;
use nix::fcntl::AtFlags;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid, execveat, fork, getpid, setpgid, tcsetpgrp};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};

use crate::program::{ExecError, NOT_EXECUTABLE, Program};
use crate::{sealed, signals};

/// The small init, ready to be executed.
#[derive(Debug)]
pub struct Supervisor(OwnedFd);

impl Supervisor {
    /// A sealed file in memory, which the container cannot change.
    pub fn new() -> std::io::Result<Self> {
        sealed::file(c"init", reaper::program()).map(Self)
    }

    /// Becomes the small init, with a child that becomes the program. Returns only on failure, in the process that failed.
    pub fn execute(&self, program: &Program) -> ExecError {
        match self.split(program) {
            Ok(error) => error,
            Err(error) => ExecError {
                status: NOT_EXECUTABLE,
                message: format!("cannot start an init: {error}"),
            },
        }
    }

    fn split(&self, program: &Program) -> std::io::Result<ExecError> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        // They wait for the small init, which takes them up one by one.
        SigSet::all().thread_block()?;
        let (wait, hold) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread, so the child is as complete as the parent.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(hold);
                // The end of the pipe: the other end was closed by `execve`.
                let _ = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0u8]));
                lead_the_terminal();
                signals::reset();
                Ok(program.execute())
            }
            ForkResult::Parent { child } => {
                drop(wait);
                let failed = self.become_init(child, program);
                if let Some(child) = rustix::process::Pid::from_raw(child.as_raw()) {
                    let _ = rustix::process::kill_process(child, Signal::KILL);
                }
                drop(hold);
                Err(failed)
            }
        }
    }

    fn become_init(&self, child: Pid, program: &Program) -> std::io::Error {
        let Ok(pid) = CString::new(child.to_string()) else {
            return std::io::ErrorKind::InvalidInput.into();
        };
        let arguments = [c"init".to_owned(), pid];
        match execveat(&self.0, c"", &arguments, program.environment(), AtFlags::AT_EMPTY_PATH) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        }
    }
}

/// A process group of its own, which is the one in the foreground if there is a terminal: what is typed there, as ^C, goes
/// to the program and not to the init as well, which would pass it on once more.
fn lead_the_terminal() {
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // Without a terminal there is nothing to do. SIGTTOU is blocked here.
    let _ = tcsetpgrp(std::io::stdin(), getpid());
}
