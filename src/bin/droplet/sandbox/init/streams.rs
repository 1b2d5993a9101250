//! The standard streams of init.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;

use crate::config::id_mapping::host_id;
use crate::sandbox::plan::Plan;

/// The output of a container.
#[derive(Debug)]
pub enum Output {
    /// Read end of the pipe for stdout and stderr.
    Pipe(OwnedFd),
    /// Master of the container's pseudo-terminal, from its own devpts.
    Terminal(OwnedFd),
}

/// Standard streams of init that must exist before it.
pub enum Streams {
    Pipe {
        read: OwnedFd,
        write: OwnedFd,
    },
    /// The socket on which init sends the master of its terminal.
    Terminal {
        listener: UnixListener,
        path: PathBuf,
    },
}

impl Streams {
    /// Makes the streams before init exists.
    pub fn open(plan: &Plan) -> std::io::Result<Self> {
        if plan.tty {
            let path = plan.container.run_dir().join("console.sock");
            return Ok(Self::Terminal {
                listener: UnixListener::bind(&path)?,
                path,
            });
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Let the container open /dev/stdout.
        give_to_user(plan, &write)?;
        Ok(Self::Pipe { read, write })
    }

    /// Returns the output when init exists.
    pub fn output(self, plan: &Plan) -> std::io::Result<Output> {
        match self {
            Self::Pipe { read, .. } => Ok(Output::Pipe(read)),
            Self::Terminal { listener, path } => {
                let master = receive_master(&listener)?;
                fs_err::remove_file(path)?;
                let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
                give_to_user(plan, &slave)?;
                Ok(Output::Terminal(master))
            }
        }
    }
}

/// Makes the container's user the owner of a pipe or terminal, if that user is mapped.
fn give_to_user(plan: &Plan, fd: &OwnedFd) -> std::io::Result<()> {
    let (linux, user) = (&plan.config.linux, &plan.config.process.user);
    let uid = host_id(&linux.uid_mappings, user.uid).map(rustix::process::Uid::from_raw);
    let gid = host_id(&linux.gid_mappings, user.gid).map(rustix::process::Gid::from_raw);
    Ok(rustix::fs::fchown(fd, uid, gid)?)
}

/// Receives the master of the terminal. libcontainer connects before it sets up init, and init sends the master.
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
