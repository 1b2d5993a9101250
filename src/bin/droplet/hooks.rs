//! Running hooks (`docs/spec/runtime.md` 6).
//!
//! A hook gets the text of state.json on stdin, has a time-out, and one audit record. `createContainer` and
//! `startContainer` run in the container's network, uts, ipc and pid namespaces, with the host's file system and
//! credentials; all others on the host. Whether a failure matters is decided by the caller.

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

use crate::audit::{AuditLog, Event, HookRecord, Record, sha256};
use crate::config::{Config, Hook};
use crate::failure::Failure;

/// Limit for a hook that has none of its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a hook's stderr is kept.
const STDERR_TAIL: usize = 1024;
/// Environment of a hook that has none of its own (S8).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// When hooks run. The names are those of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "section 6.3 says when each runs")]
pub enum Phase {
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    StopContainer,
    Poststop,
}

/// A hook that failed; the others of its phase did not run.
#[derive(Debug, thiserror::Error)]
#[error("hook {phase}[{index}] failed: {reason}")]
pub struct HookError {
    phase: &'static str,
    index: usize,
    reason: String,
}

/// What all hooks of a container have in common.
#[derive(Debug)]
pub struct Hooks<'a> {
    /// Container id, for the audit log.
    pub id: &'a str,
    /// Where they are configured.
    pub config: &'a Config,
    /// Gets a record of each.
    pub audit: &'a AuditLog,
}

/// What became of a hook.
struct Outcome {
    exit_code: i32,
    stderr_tail: String,
    result: Result<(), String>,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::StopContainer => "stopContainer",
            Self::Poststop => "poststop",
        }
    }

    fn hooks(self, config: &Config) -> &[Hook] {
        match self {
            Self::CreateRuntime => &config.hooks.create_runtime,
            Self::CreateContainer => &config.hooks.create_container,
            Self::StartContainer => &config.hooks.start_container,
            Self::Poststart => &config.hooks.poststart,
            Self::StopContainer => &config.hooks.stop_container,
            Self::Poststop => &config.hooks.poststop,
        }
    }

    /// The longest that the hooks of this phase can take together.
    pub fn limit(self, config: &Config) -> Duration {
        self.hooks(config).iter().map(timeout).sum()
    }
}

impl Hooks<'_> {
    /// Runs the hooks of a phase in order until one fails. `state` is the text of state.json; `init` a pidfd of the
    /// container's init, whose namespaces the hooks run in.
    pub fn run(&self, phase: Phase, state: &str, init: Option<&OwnedFd>) -> Result<(), HookError> {
        for (index, hook) in phase.hooks(self.config).iter().enumerate() {
            let started = Instant::now();
            let outcome = self.run_one(hook, state, init);
            let error = outcome.result.err().map(|reason| HookError {
                phase: phase.name(),
                index,
                reason: with_words(reason, &outcome.stderr_tail),
            });
            let failure = error.as_ref().map(|error| Failure::new("hook", error.to_string()));
            let record = HookRecord {
                phase: phase.name(),
                path: hook.path.clone(),
                args_sha256: sha256(hook.args.join(",").as_bytes()),
                stdin_sha256: sha256(state.as_bytes()),
                stdin_bytes: state.len(),
                exit_code: outcome.exit_code,
                duration_ms: started.elapsed().as_millis(),
                stderr_tail: outcome.stderr_tail,
            };
            self.audit
                .write(&Record::new(Event::Hook, self.id).hook(record).result(failure.as_ref()));
            if let Some(error) = error {
                return Err(error);
            }
        }
        Ok(())
    }

    fn run_one(&self, hook: &Hook, state: &str, init: Option<&OwnedFd>) -> Outcome {
        let spawned = self.command(hook, state, init).and_then(|command| spawn(command, init));
        match spawned.and_then(|child| wait(child, timeout(hook))) {
            Ok(outcome) => outcome,
            Err(error) => Outcome {
                exit_code: -1,
                stderr_tail: String::new(),
                result: Err(format!("{}: {error}", hook.path.display())),
            },
        }
    }

    fn command(&self, hook: &Hook, state: &str, init: Option<&OwnedFd>) -> std::io::Result<Command> {
        let mut command = Command::new(&hook.path);
        match hook.args.split_first() {
            Some((argv0, rest)) if self.config.hook_argv0() => {
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
        // A file instead of a pipe: a hook that does not read cannot block us.
        let mut stdin = File::from(rustix::fs::memfd_create("state.json", MemfdFlags::CLOEXEC)?);
        stdin.write_all(state.as_bytes())?;
        stdin.rewind()?;
        // Its output belongs to our errors: on success, nothing of ours goes to stdout.
        let stdout = std::io::stderr().as_fd().try_clone_to_owned()?;
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let init = init.map(OwnedFd::try_clone).transpose()?;
        let inside = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
        // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || {
                // The monitor ignores these, and what is ignored stays so across execve.
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                match &init {
                    Some(init) => Ok(move_into_thread_name_spaces(init.as_fd(), inside)?),
                    None => Ok(()),
                }
            });
        }
        Ok(command)
    }
}

/// Starts a hook, in the pid namespace of `init` if there is one: that takes effect for children only.
fn spawn(mut command: Command, init: Option<&OwnedFd>) -> std::io::Result<Child> {
    let Some(init) = init else {
        return command.spawn();
    };
    let own = fs_err::File::open("/proc/self/ns/pid")?;
    let go_home = || move_into_link_name_space(own.file().as_fd(), Some(LinkNameSpaceType::ProcessID));
    if go_home().is_err() {
        // From inside a foreign user namespace (14.4) there would be no way back.
        return command.spawn();
    }
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    let child = command.spawn();
    match (child, go_home()) {
        (Ok(mut child), Err(error)) => {
            // The namespace cannot end while a process in it is not reaped.
            child.kill()?;
            child.wait()?;
            Err(error.into())
        }
        (child, _) => child,
    }
}

fn wait(mut child: Child, limit: Duration) -> std::io::Result<Outcome> {
    let deadline = Instant::now() + limit;
    let mut tail = Vec::new();
    let ended = wait_until(&mut child, deadline, &mut tail);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    let result = match ended? {
        false => Err(format!("no end within {} s", limit.as_secs())),
        true if status.success() => Ok(()),
        true => Err(describe(status)),
    };
    Ok(Outcome {
        exit_code: status.code().unwrap_or(-1),
        stderr_tail: String::from_utf8_lossy(&tail).into_owned(),
        result,
    })
}

/// Reads stderr until the hook ends. `false` when it does not in time.
fn wait_until(child: &mut Child, deadline: Instant, tail: &mut Vec<u8>) -> std::io::Result<bool> {
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

/// Reads what is there and keeps the last of it. `false` at the end of the stream.
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

/// A reason with what the hook said about it, on one line.
fn with_words(reason: String, stderr: &str) -> String {
    let words: Vec<&str> = stderr.split_whitespace().collect();
    match words[..] {
        [] => reason,
        _ => format!("{reason}: {}", words.join(" ")),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn timeout(hook: &Hook) -> Duration {
    hook.timeout
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        audit: AuditLog,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let audit = AuditLog::open(&dir.path().join("container")).unwrap();
            Self { dir, audit }
        }

        fn run(&self, argv0: bool, hook: serde_json::Value) -> Result<(), String> {
            let annotations = match argv0 {
                true => serde_json::json!({}),
                false => serde_json::json!({ "io.raind.runtime.annotation.version": "0.1.0" }),
            };
            let text = serde_json::json!({ "hooks": { "poststop": [hook] }, "annotations": annotations }).to_string();
            let config = Config::parse(text.as_bytes(), std::path::Path::new("config.json")).unwrap();
            let hooks = Hooks {
                id: "abc",
                config: &config,
                audit: &self.audit,
            };
            hooks.run(Phase::Poststop, "the state", None).map_err(|e| e.to_string())
        }

        fn record(&self) -> serde_json::Value {
            let text = std::fs::read_to_string(self.dir.path().join("log/droplet_audit.log")).unwrap();
            serde_json::from_str(text.lines().last().unwrap()).unwrap()
        }
    }

    #[test]
    fn a_hook_gets_state_arguments_and_exactly_its_environment() {
        let bench = Bench::new();
        let out = bench.dir.path().join("out").display().to_string();
        let script = format!("{{ cat; echo; echo $0; echo $1; env; }} > {out}");
        let args = |argv0: &[&str]| -> Vec<String> {
            argv0
                .iter()
                .copied()
                .chain(["-c", &script, "zero", "one"])
                .map(str::to_owned)
                .collect()
        };
        let with = |args: Vec<String>, env: &[&str]| serde_json::json!({ "path": "/bin/sh", "args": args, "env": env });
        let output = || std::fs::read_to_string(&out).unwrap();
        bench.run(true, with(args(&["/bin/sh"]), &["A-B=1"])).unwrap();
        assert!(output().starts_with("the state\nzero\none\n"), "{}", output());
        bench.run(false, with(args(&[]), &[])).unwrap();
        assert!(output().contains("zero\none\n"), "{}", output());
        assert!(
            !output().contains("CARGO"),
            "the environment of the runtime leaked: {}",
            output()
        );
        assert_eq!(bench.record()["hook"]["stdin_bytes"], 9);
        assert_eq!(bench.record()["result"], "success");
    }

    #[test]
    fn a_failure_names_phase_position_status_and_what_was_said() {
        let bench = Bench::new();
        let shell = |script: &str| serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1 });
        let error = bench.run(true, shell("echo no >&2; exit 3")).unwrap_err();
        assert_eq!(error, "hook poststop[0] failed: exit status 3: no");
        assert_eq!(bench.record()["hook"]["exit_code"], 3);
        assert_eq!(bench.record()["hook"]["stderr_tail"], "no\n");
        let error = bench.run(true, shell("kill -9 $$")).unwrap_err();
        assert_eq!(error, "hook poststop[0] failed: signal 9");
        let error = bench.run(true, serde_json::json!({ "path": "/no/such" })).unwrap_err();
        assert!(error.starts_with("hook poststop[0] failed: /no/such: "), "{error}");
        assert_eq!(bench.record()["hook"]["exit_code"], -1);
    }

    #[test]
    fn a_hook_that_hangs_is_killed_and_one_that_leaves_children_is_not_waited_for() {
        let bench = Bench::new();
        let shell = |script: &str| serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1 });
        let error = bench.run(true, shell("exec sleep 1000")).unwrap_err();
        assert_eq!(error, "hook poststop[0] failed: no end within 1 s");
        // The child inherits stderr and lives on for a moment.
        bench.run(true, shell("sleep 2 >/dev/null & exit 0")).unwrap();
    }
}
