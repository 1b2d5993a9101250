//! From a process of the host to one of the container: entering it, and becoming the program.
//!
//! Everything here runs in forked processes of a program with one thread, and ends in `execve` or `_exit`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use condenser::runtime::refusal::{FAILED, REFUSED};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Gid, Pid, PidfdFlags, Signal, Uid, WaitOptions, chdir, getcwd, ioctl_tiocsctty, kill_process,
    pidfd_open, set_dumpable_behavior, set_parent_process_death_signal, setsid, umask, waitpid,
};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::Job;
use crate::failure::{Blame, plain};
use crate::report::{self, Bad, Speaker};
use crate::signals;

/// How long it may take until the program is executed. In a frozen container it would be for ever.
const LIMIT: Duration = Duration::from_secs(20);

/// Stdio of the process.
#[derive(Debug)]
pub struct Stdio {
    /// What it reads.
    pub input: OwnedFd,
    /// What it writes.
    pub output: OwnedFd,
    /// Where its errors go: the same, or a stream of their own.
    pub errors: OwnedFd,
    /// Whether `input` becomes its controlling terminal.
    pub terminal: bool,
}

/// A process that executes its program: a child of this one.
#[derive(Debug)]
pub struct Process {
    /// In the host's pid namespace.
    pub pid: Pid,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
}

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotStarted {
    /// The status that says so, if nothing broke: that of shells for a program that cannot be executed, or
    /// [`REFUSED`] where the container is not fit for any.
    pub refused: Option<i32>,
    /// What went wrong.
    pub message: String,
}

impl Blame for NotStarted {
    fn status(&self) -> i32 {
        self.refused.unwrap_or(FAILED)
    }
}

impl From<String> for NotStarted {
    fn from(message: String) -> Self {
        let refused = None;
        Self { refused, message }
    }
}

/// Makes a child: `None` in the child, its pid in the parent.
pub fn fork() -> rustix::io::Result<Option<Pid>> {
    // SAFETY: `droplet` has one thread, so the child is as complete as the parent.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Child) => Ok(None),
        Ok(nix::unistd::ForkResult::Parent { child }) => Ok(Pid::from_raw(child.as_raw())),
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
    }
}

/// Makes a child of this process's parent: `None` in the child, its pid in this process.
fn fork_sibling() -> rustix::io::Result<Option<Pid>> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: with no stack given and no memory shared this is a `fork`, which is safe with one thread (see above).
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Pid::from_raw(pid as i32)),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
    }
}

/// Starts the program of `job` in its container. Returns when it was executed, or could not be.
pub fn start(job: &Job, stdio: Stdio) -> Result<Process, NotStarted> {
    let system = |e: Errno| format!("cannot start a process: {e}");
    let (speaker, listener) = report::pair().map_err(|e| e.to_string())?;
    let (pid_reader, pid_writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(system)?;
    let Some(entrant) = fork().map_err(system)? else {
        enter(job, &stdio, &speaker, &pid_writer)
    };
    drop((speaker, pid_writer, stdio));
    let heard = listener.hear(LIMIT);
    let pid = read_pid(&pid_reader);
    if let Err(bad) = heard {
        abandon(entrant, pid, &bad);
        return Err(match bad {
            Bad::Late(_) => format!("{bad}; is the container frozen?").into(),
            Bad::Said(_) | Bad::Died => bad.to_string().into(),
            Bad::Refused { status, message } => NotStarted {
                refused: Some(status),
                message,
            },
        });
    }
    let _ = waitpid(Some(entrant), WaitOptions::empty());
    let pid = pid.ok_or_else(|| "the process did not report its pid".to_owned())?;
    // It is our child and has not been reaped: the number still means it.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(system)?;
    Ok(Process { pid, pidfd })
}

/// Ends and reaps what a failed start left. What hangs in the kernel is not waited for.
fn abandon(entrant: Pid, process: Option<Pid>, bad: &Bad) {
    let patience = match bad {
        Bad::Late(_) => WaitOptions::NOHANG,
        _ => WaitOptions::empty(),
    };
    for pid in [Some(entrant), process].into_iter().flatten() {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), patience);
    }
}

fn read_pid(reader: &OwnedFd) -> Option<Pid> {
    let mut bytes = [0; size_of::<i32>()];
    match rustix::io::read(reader, &mut bytes) {
        Ok(n) if n == bytes.len() => Pid::from_raw(i32::from_ne_bytes(bytes)),
        _ => None,
    }
}

/// The entrant: joins the container, makes the process, tells its pid, ends.
fn enter(job: &Job, stdio: &Stdio, speaker: &Speaker, pid_writer: &OwnedFd) -> ! {
    // Not least the monitor's own way to report: if this process hangs, the monitor must still be heard.
    let needed = [
        speaker.as_fd(),
        pid_writer.as_fd(),
        stdio.input.as_fd(),
        stdio.output.as_fd(),
        stdio.errors.as_fd(),
        job.target.as_fd(),
        // Of the last one there may be none.
        job.apparmor.as_ref().map_or(speaker.as_fd(), AsFd::as_fd),
    ];
    let closed = close_others(needed).map_err(|e| format!("cannot close what is not needed: {e}"));
    let made = closed.and_then(|()| join(job)).and_then(|()| match fork_sibling() {
        Ok(None) => become_program(job, stdio, speaker),
        Ok(Some(pid)) => {
            let _ = rustix::io::write(pid_writer, &pid.as_raw_nonzero().get().to_ne_bytes());
            Ok(())
        }
        Err(errno) => Err(format!("cannot make a process in the container: {errno}")),
    });
    if let Err(reason) = made {
        speaker.failed(&reason);
    }
    // SAFETY: ends this process and nothing else. Destructors are the monitor's: they would remove its socket.
    unsafe { libc::_exit(1) }
}

/// Moves this process into the container, as its root and with all capabilities there.
fn join(job: &Job) -> Result<(), String> {
    hide()?;
    let score = job.oom_score_adj.to_string();
    fs_err::write("/proc/self/oom_score_adj", score).map_err(|e| e.to_string())?;
    job.cgroup
        .join()
        .map_err(|e| format!("cannot join the container's cgroup: {e}"))?;
    job.limits.set().map_err(|e| e.to_string())?;
    job.target
        .enter()
        .map_err(|e| format!("cannot enter the container's namespaces: {e}"))?;
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))
        .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
        .map_err(|e| format!("cannot become root of the container: {e}"))?;
    hide()
}

/// Lets nobody without rights over the host look into this process or trace it. A change of credentials undoes that.
fn hide() -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| format!("cannot hide from the container: {e}"))
}

/// The process: restricts itself and becomes the program, or says why it could not.
fn become_program(job: &Job, stdio: &Stdio, speaker: &Speaker) -> ! {
    let status = match restrict(job, stdio, speaker) {
        Ok(()) => {
            speaker.done();
            let error = job.program.execute();
            speaker.refused(error.status, &error.message);
            error.status
        }
        Err(NotStarted { refused, message }) => {
            match refused {
                Some(status) => speaker.refused(status, &message),
                None => speaker.failed(&message),
            }
            refused.unwrap_or(1)
        }
    };
    // SAFETY: as in `enter`. The end of the process is the end of what it says.
    unsafe { libc::_exit(status) }
}

fn restrict(job: &Job, stdio: &Stdio, speaker: &Speaker) -> Result<(), NotStarted> {
    setsid().map_err(|e| format!("cannot start a session: {e}"))?;
    if stdio.terminal {
        ioctl_tiocsctty(&stdio.input).map_err(|e| format!("cannot take the terminal: {e}"))?;
    }
    if let Some(confinement) = &job.apparmor {
        confinement.on_exec()?;
    }
    keep_only(stdio, speaker).map_err(|e| format!("cannot set up stdio: {e}"))?;
    signals::reset();
    umask(Mode::from_raw_mode(job.umask));

    // As init does: the directory may be one that the user could not enter.
    let entered = chdir(&job.cwd).is_ok();
    job.credentials.assume().map_err(|e| e.to_string())?;
    hide()?;
    if job.ends_with_parent {
        // A change of credentials, such as the one above, would undo this; there is none any more, not even by `execve`.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| format!("cannot end with the caller: {e}"))?;
    }
    go_to(&job.cwd, entered).map_err(|message| NotStarted {
        refused: Some(REFUSED),
        message,
    })?;
    set_no_new_privs(true).map_err(|e| format!("cannot set no-new-privileges: {e}"))?;
    job.filters
        .install()
        .map_err(|e| format!("cannot install the system call filters: {e}").into())
}

/// Enters the working directory, as the container has it now, unless this process is there already.
fn go_to(cwd: &Path, entered: bool) -> Result<(), String> {
    let failed = |e: Errno| format!("working directory {}: {}", cwd.display(), plain(&e));
    if !entered {
        chdir(cwd).map_err(failed)?;
    }
    // For a directory outside of this root the kernel's answer does not begin with a slash.
    if !getcwd(Vec::new()).map_err(failed)?.as_bytes().starts_with(b"/") {
        return Err(format!("working directory {} is not in the container", cwd.display()));
    }
    Ok(())
}

/// Puts stdio in its place and closes every other descriptor but that of `speaker`. A working directory such as
/// `/proc/self/fd/7` would lead to the host otherwise (CVE-2024-21626).
fn keep_only(stdio: &Stdio, speaker: &Speaker) -> std::io::Result<()> {
    dup2_stdin(&stdio.input)?;
    dup2_stdout(&stdio.output)?;
    dup2_stderr(&stdio.errors)?;
    close_others([speaker.as_fd()])
}

/// Closes every descriptor but stdio and those given. Who owned one never uses it again: this process ends in `execve`
/// or `_exit`.
fn close_others<const N: usize>(kept: [BorrowedFd<'_>; N]) -> std::io::Result<()> {
    let mut kept = kept.map(|fd| fd.as_raw_fd().cast_unsigned());
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().chain([libc::c_uint::MAX]) {
        // SAFETY: see above.
        if first < end && unsafe { libc::close_range(first, end - 1, 0) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        first = end.saturating_add(1).max(3);
    }
    Ok(())
}
