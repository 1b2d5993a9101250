//! Attaching to terminals (`docs/spec/api.md` 6, `docs/spec/runtime.md` 12): finds the socket and limits its clients.
//!
//! The runtime serves a terminal on a socket in the container's directory: `tty.sock` for the container,
//! `exec_tty.sock` for the latest exec, a link to `exec_tty.<n>.sock`. This module does not interpret the traffic.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::{ContainerError, ContainerService, MAX_CLIENTS, blocking};
use crate::model::ContainerState;

/// The runtime may need a moment after start or exec before it listens.
const DIAL_PAUSE: Duration = Duration::from_millis(50);
const DIAL_LIMIT: Duration = Duration::from_secs(2);

const TTY: &str = "tty.sock";
const EXEC_TTY: &str = "exec_tty.sock";

/// The number of clients of each socket.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<PathBuf, usize>>);

/// Permission for one connection to a terminal. Counts as a client until dropped.
#[derive(Debug)]
pub struct Terminal {
    directory: PathBuf,
    name: &'static str,
    clients: Arc<Clients>,
    /// The key of the client count.
    socket: PathBuf,
}

impl ContainerService {
    /// The terminal of a container that was created with one and has not ended.
    pub async fn terminal(&self, parameter: &str) -> Result<Terminal, ContainerError> {
        let container = self.find(parameter)?;
        if !container.spec.tty {
            return Err(ContainerError::NoTerminal(parameter.to_owned()));
        }
        if !matches!(
            container.status.state,
            ContainerState::Created | ContainerState::Running
        ) {
            return Err(ContainerError::WrongState {
                operation: "attach",
                state: container.status.state,
            });
        }
        self.client_of(&container.id, TTY).await
    }

    /// The terminal of the latest exec that has one.
    pub async fn exec_terminal(&self, parameter: &str) -> Result<Terminal, ContainerError> {
        let container = self.find(parameter)?;
        if container.status.state != ContainerState::Running {
            return Err(ContainerError::NotRunning(container.id.clone()));
        }
        self.client_of(&container.id, EXEC_TTY).await
    }

    async fn client_of(&self, id: &str, name: &'static str) -> Result<Terminal, ContainerError> {
        let directory = self.dir(id).path().to_owned();
        let clients = self.0.clients.clone();
        let terminal = blocking(move || Ok(clients.enter(directory, name))).await?;
        terminal.ok_or_else(|| ContainerError::TooManyClients(id.to_owned()))
    }
}

impl Clients {
    fn enter(self: Arc<Self>, directory: PathBuf, name: &'static str) -> Option<Terminal> {
        let link = directory.join(name);
        // Each exec has a socket of its own behind the link.
        let socket = fs_err::read_link(&link).map_or(link, |target| directory.join(target));
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(socket.clone()).or_default();
        if *count == MAX_CLIENTS {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Terminal {
            directory,
            name,
            clients: self,
            socket,
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.socket) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.socket);
            }
        }
    }
}

impl Terminal {
    /// Connects; waits up to two seconds for a runtime that does not listen yet.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        self.connect_within(DIAL_LIMIT).await
    }

    async fn connect_within(&self, limit: Duration) -> io::Result<UnixStream> {
        let deadline = Instant::now() + limit;
        loop {
            match self.dial().await {
                Err(error) if is_too_early(&error) && Instant::now() < deadline => sleep(DIAL_PAUSE).await,
                result => return result,
            }
        }
    }

    /// Connects through a descriptor of the directory, because a socket address is limited to 107 bytes.
    async fn dial(&self) -> io::Result<UnixStream> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.directory, flags, Mode::empty())?;
        UnixStream::connect(format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), self.name)).await
    }
}

/// The socket does not exist, nobody listens on it, or its backlog is full.
fn is_too_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

#[cfg(test)]
impl Terminal {
    /// The terminal of a container with this directory.
    pub(crate) fn in_directory(directory: &std::path::Path) -> Self {
        let clients = Arc::new(Clients::default());
        #[allow(clippy::expect_used, reason = "nobody else counts")]
        clients.enter(directory.to_owned(), TTY).expect("the first client")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn enter(clients: &Arc<Clients>, directory: &std::path::Path) -> Option<Terminal> {
        clients.clone().enter(directory.to_owned(), EXEC_TTY)
    }

    #[test]
    fn so_many_clients_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        symlink("exec_tty.1.sock", dir.path().join(EXEC_TTY)).unwrap();
        let clients = Arc::new(Clients::default());
        let mut all: Vec<_> = (0..MAX_CLIENTS).map(|_| enter(&clients, dir.path()).unwrap()).collect();
        assert!(enter(&clients, dir.path()).is_none());
        all.pop();
        all.push(enter(&clients, dir.path()).unwrap());
        std::fs::remove_file(dir.path().join(EXEC_TTY)).unwrap();
        symlink("exec_tty.2.sock", dir.path().join(EXEC_TTY)).unwrap();
        all.push(enter(&clients, dir.path()).expect("another exec has clients of its own"));
        drop(all);
        assert!(clients.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_socket_that_comes_a_little_later_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100));
        std::fs::create_dir(&deep).unwrap();
        let terminal = Terminal::in_directory(&deep);
        let connecting = tokio::spawn(async move { terminal.connect().await });
        tokio::task::yield_now().await;
        // The path is too long for an address.
        let directory = std::fs::File::open(&deep).unwrap();
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{TTY}", directory.as_raw_fd())).unwrap();
        connecting.await.unwrap().unwrap();
        listener.accept().unwrap();
    }

    #[tokio::test]
    async fn one_that_never_comes_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let terminal = Terminal::in_directory(dir.path());
        let limit = Duration::from_millis(120);
        let error = terminal.connect_within(limit).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(begun.elapsed() >= limit);
    }
}
