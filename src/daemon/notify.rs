//! Messages to the service manager: `sd_notify(3)`, one datagram per message.
//!
//! ```text
//! STATUS + EXTEND_TIMEOUT_USEC ... READY ── WATCHDOG, WATCHDOG ... ── STOPPING
//!                                    └── RELOADING ── READY
//! ```
//!
//! Without `NOTIFY_SOCKET` nothing is sent. A manager that does not listen never stops the daemon: errors are only
//! logged. Implemented here and not with the crate `sd-notify`, which reads the environment for every message, blocks
//! if the manager is slow, and does not support abstract sockets.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdSocket};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio_util::sync::CancellationToken;

/// Time limit of one stage of the start; each stage extends the manager's timeout by it.
const STAGE_LIMIT: Duration = Duration::from_secs(120);
/// How long a message may wait for a manager that does not read.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// Environment variables of a service manager. All unset without one.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `NOTIFY_SOCKET`: a path, or a name in the abstract namespace after `@`.
    pub notify_socket: Option<OsString>,
    /// `WATCHDOG_USEC`: maximum interval between watchdog pings.
    pub watchdog_usec: Option<String>,
    /// `WATCHDOG_PID`: the process that must send the pings.
    pub watchdog_pid: Option<String>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        Self {
            notify_socket: std::env::var_os("NOTIFY_SOCKET"),
            watchdog_usec: std::env::var("WATCHDOG_USEC").ok(),
            watchdog_pid: std::env::var("WATCHDOG_PID").ok(),
        }
    }

    fn watchdog(&self) -> Option<Duration> {
        let other = |pid: &String| pid.parse() != Ok(std::process::id());
        if self.watchdog_pid.as_ref().is_some_and(other) {
            return None;
        }
        let microseconds = self.watchdog_usec.as_ref()?.parse().ok().filter(|n| *n > 0)?;
        Some(Duration::from_micros(microseconds))
    }
}

/// The service manager of this process, if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Connects to the manager. Must be called within a tokio runtime.
    pub fn connect(environment: &Environment) -> Self {
        let socket = environment.notify_socket.as_ref().and_then(|address| {
            connect(address.as_bytes())
                .inspect_err(|error| tracing::warn!(%error, ?address, "cannot connect to the service manager"))
                .ok()
        });
        Self {
            watchdog: environment.watchdog().filter(|_| socket.is_some()),
            socket,
        }
    }

    /// Reports the beginning of a stage of the start.
    pub async fn starting(&self, stage: &str) {
        let limit = STAGE_LIMIT.as_micros();
        self.send(&format!("STATUS={stage}\nEXTEND_TIMEOUT_USEC={limit}\n"))
            .await;
    }

    /// Reports that the API is served, after a start or a reload.
    pub async fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}\n")).await;
    }

    /// Reports the beginning of a reload; [`ServiceManager::ready`] ends it. Without the timestamp that
    /// `Type=notify-reload` requires: the unit uses `Type=notify`, which older managers support too.
    pub async fn reloading(&self) {
        self.send("RELOADING=1\nSTATUS=reloading\n").await;
    }

    /// Reports the beginning of the shutdown.
    pub async fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}\n")).await;
    }

    /// Sends watchdog pings for as long as `alive` returns `Ok` in time; returns at once if the manager expects none.
    ///
    /// Checks three times per watchdog interval, so that one failed check is not fatal.
    pub async fn watch<F: Future<Output = Result<(), String>>>(&self, alive: impl Fn() -> F, stop: CancellationToken) {
        let Some(patience) = self.watchdog else { return };
        let mut looks = tokio::time::interval(patience / 3);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {}
            }
            match tokio::time::timeout(patience / 3, alive()).await {
                Ok(Ok(())) => self.send("WATCHDOG=1\n").await,
                Ok(Err(error)) => tracing::error!(error, "watchdog ping skipped: the store check failed"),
                Err(_) => tracing::error!("watchdog ping skipped: the store check timed out"),
            }
        }
    }

    async fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        let sent = tokio::time::timeout(SEND_LIMIT, socket.send(message.as_bytes())).await;
        match sent {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, message, "cannot notify the service manager"),
            Err(_) => tracing::warn!(message, "timed out notifying the service manager"),
        }
    }
}

fn connect(address: &[u8]) -> io::Result<UnixDatagram> {
    let address = match address {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = StdSocket::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    UnixDatagram::from_std(socket)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn environment(socket: &str, watchdog_usec: Option<&str>) -> Environment {
        Environment {
            notify_socket: Some(socket.into()),
            watchdog_usec: watchdog_usec.map(str::to_owned),
            watchdog_pid: None,
        }
    }

    fn next(socket: &StdSocket) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn listener(dir: &tempfile::TempDir) -> (StdSocket, String) {
        let path = dir.path().join("notify");
        let socket = StdSocket::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (socket, path.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn messages_are_those_of_the_protocol() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, path) = listener(&dir);
        let manager = ServiceManager::connect(&environment(&path, None));
        manager.starting("recovering 3 containers").await;
        assert_eq!(
            next(&socket),
            "STATUS=recovering 3 containers\nEXTEND_TIMEOUT_USEC=120000000\n"
        );
        manager.ready("serving").await;
        assert_eq!(next(&socket), "READY=1\nSTATUS=serving\n");
        manager.reloading().await;
        assert_eq!(next(&socket), "RELOADING=1\nSTATUS=reloading\n");
        manager.stopping("bye").await;
        assert_eq!(next(&socket), "STOPPING=1\nSTATUS=bye\n");
    }

    #[tokio::test]
    async fn abstract_names_are_found() {
        let name = format!("condenser-test-{}", std::process::id());
        let socket = StdSocket::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::connect(&environment(&format!("@{name}"), None))
            .ready("x")
            .await;
        assert_eq!(next(&socket), "READY=1\nSTATUS=x\n");
    }

    #[tokio::test]
    async fn without_a_manager_nothing_happens() {
        for address in ["", "/no/such/socket"] {
            let manager = ServiceManager::connect(&environment(address, Some("1000")));
            manager.ready("x").await;
            manager.watch(|| async { Ok(()) }, CancellationToken::new()).await;
        }
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let own = std::process::id().to_string();
        for (usec, pid, expected) in [
            (Some("2000"), None, Some(Duration::from_millis(2))),
            (Some("2000"), Some(own.as_str()), Some(Duration::from_millis(2))),
            (Some("2000"), Some("1"), None),
            (Some("0"), None, None),
            (Some("many"), None, None),
            (None, None, None),
        ] {
            let environment = Environment {
                watchdog_usec: usec.map(str::to_owned),
                watchdog_pid: pid.map(str::to_owned),
                ..Environment::default()
            };
            assert_eq!(environment.watchdog(), expected, "{usec:?} {pid:?}");
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_or_fails_gives_no_sign_of_life() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, path) = listener(&dir);
        let manager = ServiceManager::connect(&environment(&path, Some("30000")));
        let (looks, stop) = (AtomicU32::new(0), CancellationToken::new());
        let alive = || async {
            match looks.fetch_add(1, Ordering::Relaxed) {
                0 => std::future::pending().await,
                1 => Err("the store does not answer".to_owned()),
                2 => Ok(()),
                _ => {
                    stop.cancel();
                    Err("the test is over".to_owned())
                }
            }
        };
        manager.watch(alive, stop.clone()).await;
        assert_eq!(next(&socket), "WATCHDOG=1\n");
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 8]).is_err(), "one sign for one good look");
    }
}
