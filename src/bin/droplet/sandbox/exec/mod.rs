//! Starts further processes in a running container.
//!
//! A process gets everything from the container's configuration and nothing from the caller: environment, working
//! directory, user, capabilities, limits, seccomp filters, AppArmor profile. [`ExecPlan`] collects it beforehand, through
//! descriptors of the container's init, which cannot refer to another process later.
//!
//! The container must not attack this runtime. So the executable is sealed
//! ([`sealed`](crate::sandbox::process::sealed)), and the process leaves all namespaces of the host before it becomes
//! visible in the container's pid namespace. It cannot be traced or inspected before it executes the program, and by then
//! it has closed every descriptor of the host except its stdio.

mod joiner;
mod restricted;
mod start;
pub mod target;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use condenser::runtime::refusal::FAILED;

use rustix::process::{Gid, Pid, Uid};

use super::apparmor::{self, Confinement};
use super::cgroup::Cgroup;
use super::process::credentials::Credentials;
use super::process::program::Program;
use super::process::rlimits::Limits;
use super::seccomp::Filters;
use crate::config::Config;
use crate::config::id_mapping::host_id;
use crate::report::failure::HasExitStatus;
pub use start::start;
use target::Target;

/// `TERM` of a program with a terminal, if the container does not set it.
const TERM: &str = "TERM=xterm-256color";

/// How to run a process: in which container, and with which restrictions.
#[derive(Debug)]
pub struct ExecPlan {
    /// The container.
    pub target: Target,
    program: Program,
    cwd: PathBuf,
    umask: u32,
    credentials: Credentials,
    /// The user and group as the host sees them. They own the terminal or pipe, so that the process can open it again.
    pub owner: (Uid, Gid),
    /// The container's cgroup.
    pub cgroup: Cgroup,
    limits: Limits,
    oom_score_adj: i32,
    apparmor: Option<Confinement>,
    filters: Filters,
    /// Whether the process is killed when its parent ends.
    ends_with_parent: bool,
}

/// Stdio of the process.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub input: OwnedFd,
    /// Standard output.
    pub output: OwnedFd,
    /// Standard error: the same file as `output`, or another one.
    pub errors: OwnedFd,
    /// Whether `input` becomes the controlling terminal.
    pub terminal: bool,
}

/// A process that executes its program. It is a child of this process.
#[derive(Debug)]
pub struct Process {
    /// Pid in the host's pid namespace.
    pub pid: Pid,
    /// Readable when the process has ended.
    pub pidfd: OwnedFd,
}

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotStarted {
    /// Exit status if the request is at fault: the status of shells for a program that cannot be executed, or
    /// [`REFUSED`](condenser::runtime::refusal::REFUSED) if the container cannot run any program.
    pub refused: Option<i32>,
    /// The message.
    pub message: String,
}

impl HasExitStatus for NotStarted {
    fn exit_status(&self) -> i32 {
        self.refused.unwrap_or(FAILED)
    }
}

impl From<String> for NotStarted {
    fn from(message: String) -> Self {
        let refused = None;
        Self { refused, message }
    }
}

/// The command to run.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// Program and arguments.
    pub arguments: &'a [String],
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether it is killed when its parent ends.
    pub ends_with_parent: bool,
}

impl ExecPlan {
    /// Makes the plan for a command in the container with this id and configuration.
    pub fn new(
        container_id: &str,
        config: &Config,
        target: Target,
        command: Command<'_>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let process = &config.process;
        let user = &process.user;
        let unmapped = |what, id| format!("{what} {id} does not exist in the container's user namespace");
        let uid = host_id(&config.linux.uid_mappings, user.uid).ok_or_else(|| unmapped("user", user.uid))?;
        let gid = host_id(&config.linux.gid_mappings, user.gid).ok_or_else(|| unmapped("group", user.gid))?;
        Ok(Self {
            program: Program::new(command.arguments, &environment(config, &target, command.tty))?,
            cwd: if process.cwd.as_os_str().is_empty() {
                PathBuf::from("/")
            } else {
                process.cwd.clone()
            },
            umask: user.umask.unwrap_or(0o022),
            credentials: Credentials::new(user, &process.capabilities),
            owner: (Uid::from_raw(uid), Gid::from_raw(gid)),
            cgroup: Cgroup::new(config, container_id)?,
            limits: Limits::from_config(config)?,
            oom_score_adj: process.oom_score_adj,
            apparmor: apparmor::profile(config)?
                .map(|profile| Confinement::new(profile, config.requires_apparmor()))
                .transpose()?,
            filters: Filters::from_config(config)?,
            ends_with_parent: command.ends_with_parent,
            target,
        })
    }
}

/// Returns the configured environment, completed with `HOME` and `TERM`.
fn environment(config: &Config, target: &Target, tty: bool) -> Vec<String> {
    let mut env = config.process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", target.home(config.process.user.uid)));
    }
    if tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push(TERM.to_owned());
    }
    env
}
