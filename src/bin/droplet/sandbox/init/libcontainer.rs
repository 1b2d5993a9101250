//! Runs libcontainer.
//!
//! The errors of libcontainer leave out paths and reasons, so the errors that it logs are added to them.

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::notify_socket::NOTIFY_FILE;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, WaitOptions};

use super::entrypoint::Entrypoint;
use super::error::InitError;
use super::streams::Streams;
use crate::container::Container;
use crate::sandbox::plan::Plan;

/// Directory of libcontainer in the run directory. libcontainer makes a directory per container id in it.
const LIBCONTAINER_ROOT: &str = "lc";

/// Returns the socket on which init waits for the start signal.
pub fn notify_socket(container: &Container) -> PathBuf {
    let root = container.run_dir().join(LIBCONTAINER_ROOT);
    root.join(&container.id).join(NOTIFY_FILE)
}

/// Runs libcontainer. If it fails, all processes that it started are killed.
pub fn build(plan: &Plan, entrypoint: Entrypoint, streams: &Streams) -> Result<Pid, InitError> {
    let mut log = ErrorLog::start()?;
    let own_score = fs_err::read_to_string("/proc/self/oom_score_adj")?;
    let built = try_build(plan, entrypoint, streams);
    // libcontainer sets the value of init through this process.
    let _ = std::fs::write("/proc/self/oom_score_adj", own_score);
    match built {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => {
            kill_children();
            Err(InitError::Container("libcontainer reports no pid".into()))
        }
        Err(error) => {
            kill_children();
            Err(InitError::Container(log.explain(&error)))
        }
    }
}

fn try_build(plan: &Plan, entrypoint: Entrypoint, streams: &Streams) -> Result<Option<Pid>, LibcontainerError> {
    let run = plan.container.run_dir();
    let root = run.join(LIBCONTAINER_ROOT);
    fs_err::create_dir_all(&root).map_err(LibcontainerError::OtherIO)?;
    let clone = |fd: &OwnedFd| fd.try_clone().map_err(LibcontainerError::OtherIO);
    let mut builder = ContainerBuilder::new(plan.container.id.clone(), SyscallType::default())
        .with_root_path(root)?
        .with_executor(entrypoint);
    match streams {
        Streams::Pipe { write, .. } => {
            let null = fs_err::File::open("/dev/null").map_err(LibcontainerError::OtherIO)?;
            let null: std::fs::File = null.into();
            builder = builder
                .with_stdin(null)
                .with_stdout(clone(write)?)
                .with_stderr(clone(write)?);
        }
        Streams::Terminal { path, .. } => builder = builder.with_console_socket(Some(path)),
    }
    let container = builder
        .as_init(run.join("bundle"))
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    Ok(container.pid().and_then(|pid| Pid::from_raw(pid.as_raw())))
}

/// Kills and reaps all children, including those that this process inherits meanwhile. libcontainer leaves up to two
/// behind when it fails. it fails.
pub fn kill_children() {
    loop {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let children = children.split_ascii_whitespace();
        for pid in children.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if !matches!(rustix::process::wait(WaitOptions::empty()), Ok(Some(_))) {
            return;
        }
    }
}

/// Collects the errors that libcontainer logs in this process and its children.
struct ErrorLog(std::fs::File);

impl ErrorLog {
    fn start() -> std::io::Result<Self> {
        let file = std::fs::File::from(memfd_create("errors", MemfdFlags::CLOEXEC)?);
        let writer = file.try_clone()?;
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::ERROR)
            .with_ansi(false)
            .with_target(false)
            .with_level(false)
            .without_time()
            .with_writer(writer)
            .finish();
        tracing::subscriber::set_global_default(subscriber).map_err(std::io::Error::other)?;
        Ok(Self(file))
    }

    /// Returns the error with its causes and the first logged line, which is closest to the cause.
    fn explain(&mut self, error: &LibcontainerError) -> String {
        let mut logged = String::new();
        let _ = self.0.rewind().and_then(|()| self.0.read_to_string(&mut logged));
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !reason.contains(&cause_text) {
                reason = format!("{reason}: {cause_text}");
            }
            source = cause.source();
        }
        if let Some(first) = logged.lines().next().filter(|first| !reason.contains(*first)) {
            reason = format!("{reason} ({first})");
        }
        // Logs need one line.
        reason.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
