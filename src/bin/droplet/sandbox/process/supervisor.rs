//! A small init process before the program (`condenser::runtime::reaper`). The first process of the container executes
//! it, and the program is its child.
//!
//! The child waits until the first process has executed the small init. Until then the first process is a copy of the
//! runtime, which a program of the same user could inspect.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use condenser::runtime::reaper;
use nix::fcntl::AtFlags;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid, execveat, fork, getpid, setpgid, tcsetpgrp};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};

use super::program::{ExecError, NOT_EXECUTABLE, Program};
use super::{sealed, signals};

/// The small init, ready to be executed.
#[derive(Debug)]
pub struct Supervisor(OwnedFd);

impl Supervisor {
    /// Makes a sealed file in memory, which the container cannot change.
    pub fn new() -> std::io::Result<Self> {
        sealed::sealed_file(c"init", reaper::program()).map(Self)
    }

    /// Executes the small init, with a child that executes the program. Returns only on failure, in the process that
    /// failed.
    pub fn execute(&self, program: &Program) -> ExecError {
        match self.fork_and_execute(program) {
            Ok(error) => error,
            Err(error) => ExecError {
                status: NOT_EXECUTABLE,
                message: format!("cannot start an init: {error}"),
            },
        }
    }

    fn fork_and_execute(&self, program: &Program) -> std::io::Result<ExecError> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        // Block all signals until the small init reads them.
        SigSet::all().thread_block()?;
        let (wait, hold) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread, so the child may do everything that this process may do.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(hold);
                // Wait for the end of the pipe: the parent's `execve` closes the other end.
                let _ = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0u8]));
                become_foreground_group();
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

/// Makes this process the leader of its own process group, in the foreground of the terminal. So a key like ^C signals
/// only the program, and not the init too, which would forward the signal once more.
fn become_foreground_group() {
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // Without a terminal this fails, which does not matter. SIGTTOU is blocked here.
    let _ = tcsetpgrp(std::io::stdin(), getpid());
}
