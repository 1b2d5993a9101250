//! Runs one hook: starts its process, waits for it and reads its stderr.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces};

use crate::config::Hook;

/// Maximum length of the stderr that is kept.
const STDERR_TAIL: usize = 1024;
/// `PATH` of a hook that configures no environment (S8).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The result of a hook.
pub struct Outcome {
    /// Exit status; -1 if the hook could not be run or was killed.
    pub exit_code: i32,
    /// The last bytes of its stderr.
    pub stderr_tail: String,
    /// Why it failed.
    pub result: Result<(), String>,
}

/// Runs a hook with `state` on stdin. `has_argv0` tells whether its arguments include argv\[0\]. `init` is a pidfd of the
/// container's init; if given, the hook runs in its namespaces.
pub fn run(
    hook: &Hook,
    has_argv0: bool,
    state: &str,
    init: Option<&OwnedFd>,
    limit: Duration,
) -> std::io::Result<Outcome> {
    let command = command(hook, has_argv0, state, init)?;
    wait(spawn(command, init)?, limit)
}

fn command(hook: &Hook, has_argv0: bool, state: &str, init: Option<&OwnedFd>) -> std::io::Result<Command> {
    let mut command = Command::new(&hook.path);
    match hook.args.split_first() {
        Some((argv0, rest)) if has_argv0 => {
            command.arg0(argv0).args(rest);
        }
        _ => {
            command.args(&hook.args);
        }
    }
    command.env_clear();
    match hook.env.is_empty() {
        true => command.env("PATH", DEFAULT_PATH),
        false => command.envs(hook.env.iter().filter_map(|entry| entry.split_once('='))),
    };
    // Use a file instead of a pipe: a hook that does not read must not block this process.
    let mut stdin = File::from(rustix::fs::memfd_create("state.json", MemfdFlags::CLOEXEC)?);
    stdin.write_all(state.as_bytes())?;
    stdin.rewind()?;
    // On success this process prints nothing, so the stdout of a hook goes to our stderr.
    let stdout = std::io::stderr().as_fd().try_clone_to_owned()?;
    command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
    prepare_in_child(&mut command, init.map(OwnedFd::try_clone).transpose()?);
    Ok(command)
}

/// Lets the child reset its signals and enter the namespaces of `init`, if given.
fn prepare_in_child(command: &mut Command, init: Option<OwnedFd>) {
    let inside = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            // The monitor ignores these signals, and `execve` keeps an ignored signal ignored.
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            match &init {
                Some(init) => Ok(move_into_thread_name_spaces(init.as_fd(), inside)?),
                None => Ok(()),
            }
        });
    }
}

/// Starts a hook, in the pid namespace of `init` if given. A process can only put its children into a pid namespace.
fn spawn(mut command: Command, init: Option<&OwnedFd>) -> std::io::Result<Child> {
    let Some(init) = init else {
        return command.spawn();
    };
    let own = fs_err::File::open("/proc/self/ns/pid")?;
    let return_to_own = || move_into_link_name_space(own.file().as_fd(), Some(LinkNameSpaceType::ProcessID));
    if return_to_own().is_err() {
        // Inside a foreign user namespace (14.4) this process could not return to its own pid namespace.
        return command.spawn();
    }
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    let child = command.spawn();
    match (child, return_to_own()) {
        (Ok(mut child), Err(error)) => {
            // A pid namespace cannot end while it has a process that is not reaped.
            child.kill()?;
            child.wait()?;
            Err(error.into())
        }
        (child, _) => child,
    }
}

/// Waits for the hook to end, or kills it after the time limit.
fn wait(mut child: Child, limit: Duration) -> std::io::Result<Outcome> {
    let deadline = Instant::now() + limit;
    let mut tail = Vec::new();
    let ended = read_stderr_until_exit(&mut child, deadline, &mut tail);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    let result = match ended? {
        false => Err(format!("it did not end within {} s", limit.as_secs())),
        true if status.success() => Ok(()),
        true => Err(exit_reason(status)),
    };
    Ok(Outcome {
        exit_code: status.code().unwrap_or(-1),
        stderr_tail: String::from_utf8_lossy(&tail).into_owned(),
        result,
    })
}

/// Reads stderr until the hook ends. Returns `false` if it does not end in time.
fn read_stderr_until_exit(child: &mut Child, deadline: Instant, tail: &mut Vec<u8>) -> std::io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or_else(|| std::io::Error::other("no pid"))?, PidfdFlags::empty())?;
    let mut stderr = child.stderr.take();
    if let Some(stderr) = &stderr {
        rustix::io::ioctl_fionbio(stderr, true)?;
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        fds.extend(stderr.as_ref().map(|stderr| PollFd::new(stderr, PollFlags::IN)));
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))?;
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        if let Some(open) = stderr.as_mut().map(|stderr| read_tail(stderr, tail)).transpose()?
            && !open
        {
            stderr = None;
        }
        match (ended, ready) {
            (true, _) => return Ok(true),
            (false, 0) => return Ok(false),
            _ => {}
        }
    }
}

/// Reads what is available and keeps the last bytes. Returns `false` at the end of the stream.
fn read_tail(stream: &mut impl Read, tail: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => {
                tail.extend_from_slice(&buffer[..n]);
                let surplus = tail.len().saturating_sub(STDERR_TAIL);
                tail.drain(..surplus);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn exit_reason(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
