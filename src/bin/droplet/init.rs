//! Having libcontainer set up init, in the monitor (`docs/spec/runtime.md` 15.4).
//!
//! The root file system is put together first, in a mount namespace that only init inherits. What libcontainer says in
//! its log goes into the error: its error values leave out paths and reasons.

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use condenser::runtime::refusal::{FAILED, REFUSED};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::notify_socket::NOTIFY_FILE;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{MemfdFlags, Mode, memfd_create};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::pty::OpenptFlags;

use crate::apparmor::Confinement;
use crate::bundle::{self, Bind, Host};
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::cgroup_view;
use crate::container::{Container, replace};
use crate::executor::{Entrypoint, Restrictions};
use crate::failure::Blame;
use crate::limits::LimitError;
use crate::made;
use crate::namespaces;
use crate::place;
use crate::plan::Plan;
use crate::program::{ExecError, Program};
use crate::report::{self, Bad, Listener, Speaker};
use crate::rootfs::{self, RootfsError, Stage};
use crate::scratch::{self, Scratch, ScratchError};
use crate::shm::SharedMemory;
use crate::socket::Socket;
use crate::supervisor::Supervisor;

/// File in the volatile directory that `start` waits on.
pub const EXEC_FIFO: &str = "exec.fifo";

/// Directory of libcontainer in the volatile directory; it makes one of the container's id in it.
const LIBCONTAINER_ROOT: &str = "lc";

/// The socket on which init waits for the start signal.
pub fn notify_socket(container: &Container) -> PathBuf {
    let root = container.run_dir().join(LIBCONTAINER_ROOT);
    root.join(&container.id).join(NOTIFY_FILE)
}

/// Why init could not be set up. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A file system in memory.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// Files, pipes, sockets.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The program's arguments.
    #[error(transparent)]
    Program(#[from] ExecError),
    /// Limits of all processes together.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Limits of each process.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// What init said before it ended: what was asked for cannot be.
    #[error("{0}")]
    Refused(String),
    /// What libcontainer said.
    #[error("{0}")]
    Container(String),
}

impl Blame for InitError {
    fn status(&self) -> i32 {
        match self {
            Self::Rootfs(error) => error.status(),
            Self::Scratch(ScratchError::Refused(_) | ScratchError::Full(_)) | Self::Refused(_) | Self::Program(_) => {
                REFUSED
            }
            Self::Scratch(_) | Self::Io(_) | Self::Cgroup(_) | Self::Limit(_) | Self::Container(_) => FAILED,
        }
    }
}

/// An init that waits for the start signal.
#[derive(Debug)]
pub struct Init {
    /// Child of this process.
    pub pid: Pid,
    /// Where its output arrives.
    pub output: Output,
    /// Hears whether it has executed the program.
    pub executed: Listener,
}

/// Output of a container.
#[derive(Debug)]
pub enum Output {
    /// Read end of the pipe that is both stdout and stderr.
    Pipe(OwnedFd),
    /// The master of its pseudo-terminal, and the socket for viewers, which is already listening.
    Terminal {
        /// Belongs to the container's devpts.
        master: OwnedFd,
        /// `tty.sock`.
        socket: Socket,
    },
}

/// Sets init up.
pub fn set_up(plan: &Plan) -> Result<Init, InitError> {
    plan.limits.make_room()?;
    let shared = SharedMemory::of_joined(&plan.config, &plan.joined)?;
    let stage = Stage::enter()?;
    let (program, entered) = prepare_root(plan, shared.as_ref())?;
    let to_start = open_fifo(plan)?;
    let (to_monitor, executed) = report::pair()?;
    let required = plan.config.must_be_confined();
    let confinement = plan.apparmor.clone().map(|profile| Confinement::new(profile, required));
    let entrypoint = Entrypoint::new(
        program,
        &plan.config.process.cwd,
        entered,
        Restrictions {
            filters: Rc::clone(&plan.filters),
            apparmor: confinement.transpose()?,
        },
        plan.config.wants_init().then(Supervisor::new).transpose()?,
        [to_monitor, to_start],
    );
    let streams = Streams::open(plan)?;
    let built = build(plan, entrypoint, &streams);
    let left = stage.leave(&plan.config.root.path);
    let pid = built.map_err(|error| match executed.heard() {
        Some(Bad::Refused { message, .. }) => InitError::Refused(message),
        _ => error,
    })?;
    let finish = || {
        left?;
        if limits_are_ours() {
            Cgroup::new(&plan.config, &plan.container.id)?.limit(&plan.config.linux.resources)?;
        }
        let output = streams.output(plan)?;
        Ok(Init { pid, output, executed })
    };
    finish().inspect_err(|_: &InitError| kill_children())
}

/// Mounts what there is to mount and writes libcontainer's bundle. Returns the program with its whole environment, and
/// whether libcontainer goes to the working directory.
fn prepare_root(plan: &Plan, shared: Option<&SharedMemory>) -> Result<(Program, bool), InitError> {
    let root = &plan.config.root.path;
    if let Some(image) = &plan.image {
        rootfs::mount_overlay(image, root, namespaces::in_user_namespace())?;
        rootfs::make_shared_directories(root)?;
        made::mtab(root)?;
    }
    // Before the copies of what the image has: these files belong to it.
    let etc = etc_files(plan)?;
    let run = plan.container.run_dir();
    let staged = run.join("mounts");
    let memory = plan.config.linux.resources.memory.limit.filter(|limit| *limit > 0);
    let memory = memory.map_or(u64::MAX, |limit| limit as u64);
    let scratch = scratch::stage(&plan.scratch, &staged, root, memory)?;
    let binds = rootfs::stage_mounts(plan, &staged)?;
    let shm = shared.map(|shared| shared.stage(&run.join("shm"))).transpose()?;
    let cgroup_view = cgroup_view::stage(&Cgroup::new(&plan.config, &plan.container.id)?, &run.join("cgroup"))?;
    let in_memory: Vec<Bind> = scratch.iter().map(Scratch::to_bind).collect();
    let mut chosen: Vec<&Bind> = in_memory.iter().chain(&binds).collect();
    // In the order in which they are mounted.
    chosen.sort_by_key(|bind| bind.destination.components().count());
    place::check(root, etc.iter().chain(chosen)).map_err(RootfsError::Place)?;
    let mounted: Vec<(&Path, &Path)> = binds
        .iter()
        .chain(&in_memory)
        .map(|bind| (&*bind.destination, &*bind.source))
        .collect();
    let cwd = &plan.config.process.cwd;
    let entered = cwd.is_absolute() && made::directory(root, cwd, &mounted, plan.image.is_some());
    let spec = bundle::spec(
        &plan.config,
        &Host {
            unified_cgroups: cgroup::unified(),
            limits: !limits_are_ours(),
            cgroup: &plan.cgroup,
            terminal: plan.tty,
            cwd: if entered { cwd } else { Path::new("/") },
            joined: &plan.joined,
            binds: &binds,
            scratch: &scratch,
            etc: &etc,
            cgroup_view: cgroup_view.as_ref(),
            shm: shm.as_ref(),
        },
    );
    fs_err::create_dir_all(run.join("bundle"))?;
    replace(&run.join("bundle/config.json"), spec.to_string().as_bytes(), 0o600)?;

    let process = &plan.config.process;
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", rootfs::home(root, process.user.uid)));
    }
    Ok((Program::new(&process.args, &env)?, entered))
}

/// The files of the container's directory that exist, and where the image has them.
fn etc_files(plan: &Plan) -> std::io::Result<Vec<Bind>> {
    let root = &plan.config.root.path;
    bundle::etc_files(&plan.container.dir)
        .into_iter()
        .filter(|(source, _)| source.exists())
        .map(|(source, destination)| {
            Ok(Bind {
                source,
                destination: match plan.image {
                    Some(_) => made::file(root, destination.as_ref())?,
                    None => rootfs::resolve(root, destination.as_ref())?,
                },
            })
        })
        .collect()
}

/// Inside a foreign user namespace, libcontainer cannot set up cgroups of v1.
fn limits_are_ours() -> bool {
    namespaces::in_user_namespace() && !cgroup::unified()
}

/// The FIFO that `start` listens to. Opened for reading too: with a reader, opening it for writing does not block.
fn open_fifo(plan: &Plan) -> std::io::Result<Speaker> {
    let path = plan.container.run_dir().join(EXEC_FIFO);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)?;
    Ok(OwnedFd::from(file).into())
}

/// Standard streams of init, as far as they must exist before it does.
enum Streams {
    Pipe { read: OwnedFd, write: OwnedFd },
    Terminal { listener: UnixListener, path: PathBuf },
}

impl Streams {
    fn open(plan: &Plan) -> std::io::Result<Self> {
        if plan.tty {
            let path = plan.container.run_dir().join("console.sock");
            return Ok(Self::Terminal {
                listener: UnixListener::bind(&path)?,
                path,
            });
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // So that the container can open /dev/stdout.
        give_to_user(plan, &write)?;
        Ok(Self::Pipe { read, write })
    }

    /// Once init is there.
    fn output(self, plan: &Plan) -> std::io::Result<Output> {
        match self {
            Self::Pipe { read, .. } => Ok(Output::Pipe(read)),
            Self::Terminal { listener, path } => {
                let master = receive_master(&listener)?;
                fs_err::remove_file(path)?;
                let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
                give_to_user(plan, &slave)?;
                let socket = Socket::listen(plan.container.dir.path(), "tty.sock")?;
                Ok(Output::Terminal { master, socket })
            }
        }
    }
}

/// Makes the container's user the owner of a pipe or terminal, where that user exists on the host.
fn give_to_user(plan: &Plan, fd: &OwnedFd) -> std::io::Result<()> {
    let (linux, user) = (&plan.config.linux, &plan.config.process.user);
    let uid = bundle::host_id(&linux.uid_mappings, user.uid).map(rustix::process::Uid::from_raw);
    let gid = bundle::host_id(&linux.gid_mappings, user.gid).map(rustix::process::Gid::from_raw);
    Ok(rustix::fs::fchown(fd, uid, gid)?)
}

/// libcontainer connects before it sets init up, and init sends the master of its terminal.
fn receive_master(listener: &UnixListener) -> std::io::Result<OwnedFd> {
    let (connection, _) = listener.accept()?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut buffers = [std::io::IoSliceMut::new(&mut name)];
    recvmsg(&connection, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let received = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.ok_or_else(|| std::io::Error::other("libcontainer sent no terminal"))
}

/// Runs libcontainer. On failure everything that it started is gone.
fn build(plan: &Plan, entrypoint: Entrypoint, streams: &Streams) -> Result<Pid, InitError> {
    let mut said = Said::listen()?;
    let adjustment = fs_err::read_to_string("/proc/self/oom_score_adj")?;
    let built = try_build(plan, entrypoint, streams);
    // libcontainer sets init's through ours.
    let _ = std::fs::write("/proc/self/oom_score_adj", adjustment);
    match built {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => {
            kill_children();
            Err(InitError::Container("libcontainer reports no pid".into()))
        }
        Err(error) => {
            kill_children();
            Err(InitError::Container(said.explain(&error)))
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

/// Kills and reaps all children, also those that come to this process meanwhile. libcontainer leaves up to two behind when
/// it fails.
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

/// What libcontainer logs in this process and its children.
struct Said(std::fs::File);

impl Said {
    fn listen() -> std::io::Result<Self> {
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

    /// The error and the line that was logged first, which is the closest to the cause.
    fn explain(&mut self, error: &LibcontainerError) -> String {
        let mut text = String::new();
        let _ = self.0.rewind().and_then(|()| self.0.read_to_string(&mut text));
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !reason.contains(&cause_text) {
                reason = format!("{reason}: {cause_text}");
            }
            source = cause.source();
        }
        if let Some(first) = text.lines().next().filter(|first| !reason.contains(*first)) {
            reason = format!("{reason} ({first})");
        }
        // One line, for logs.
        reason.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
