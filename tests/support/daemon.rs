//! The daemon's process: start, stop, kill, restart, each waiting until it is so.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine::{Machine, Place, child_of};
use super::{OUTSIDE, REGISTRY, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_condenser");
/// Where the daemon's own log is in the lab.
const LOG: &str = "/run/condenser.log";
/// Longer than any start and any orderly end takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// The one daemon of a lab, running or not.
pub struct Daemon {
    machine: Arc<Machine>,
    process: Mutex<Option<Process>>,
    settings: Mutex<Vec<(String, String)>>,
    program: Mutex<String>,
}

struct Process {
    /// The one that waits for it outside of the lab.
    nsenter: Child,
    pid: Pid,
    /// Where its lines in the log begin, in bytes.
    log_from: usize,
}

impl Daemon {
    pub(super) fn new(machine: Arc<Machine>) -> Self {
        let settings = [
            ("CONDENSER_DNS_UPSTREAMS", OUTSIDE),
            ("CONDENSER_INSECURE_REGISTRIES", REGISTRY),
            ("CONDENSER_LOG_LEVEL", "info,condenser=debug"),
        ];
        Self {
            machine,
            process: Mutex::new(None),
            program: Mutex::new(PROGRAM.into()),
            settings: Mutex::new(settings.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec()),
        }
    }

    /// Environment variable of every later start; a later value replaces an earlier one.
    pub fn set(&self, name: &str, value: &str) -> &Self {
        self.settings.lock().unwrap().push((name.into(), value.into()));
        self
    }

    /// Another program of the lab for every later start.
    pub fn set_program(&self, path: &str) {
        *self.program.lock().unwrap() = path.into();
    }

    /// Starts it and waits until it says that it is ready, all three listeners answer, and the client's certificate is there.
    pub fn start(&self) {
        self.launch();
        wait_for("a daemon that serves", LIMIT, || {
            if let Some(status) = self.ended() {
                panic!("the daemon ended while starting, {status}:\n{}", self.log());
            }
            self.serves()
        });
    }

    /// Starts it without waiting.
    pub fn launch(&self) {
        let mut process = self.process();
        assert!(process.is_none(), "the daemon already runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.machine.path(LOG))
            .unwrap();
        let log_from = self.log().len();
        let nsenter = self
            .command()
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child_of(&nsenter));
        *process = Some(Process { nsenter, pid, log_from });
    }

    /// Runs it with further arguments to its end, for starts that are refused. After 20 seconds it is ended, with
    /// code 124.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.machine.command(Place::Host, "/usr/bin/timeout");
        command.args(["20", PROGRAM]).args(arguments);
        command.envs(self.environment()).output().unwrap()
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn stop(&self) -> ExitStatus {
        self.end(Signal::SIGTERM)
    }

    /// Takes it away in the middle of whatever it does.
    pub fn kill9(&self) {
        self.end(Signal::SIGKILL);
    }

    /// [`Daemon::stop`] and [`Daemon::start`].
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// Lets it be started again after it ended by itself.
    pub fn forget(&self) {
        let mut process = self.process().take().expect("the daemon was not started");
        assert!(process.nsenter.try_wait().unwrap().is_some(), "the daemon runs");
    }

    /// Pid outside of the lab.
    pub fn pid(&self) -> Pid {
        self.process().as_ref().expect("the daemon does not run").pid
    }

    /// Pid in the lab, while it runs.
    pub(super) fn pid_inside(&self) -> Option<i32> {
        let pid = self.process().as_ref()?.pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        pids.split_ascii_whitespace().last()?.parse().ok()
    }

    /// All that it and its earlier runs said.
    pub fn log(&self) -> String {
        self.machine.read(LOG)
    }

    /// How it ended, if it did by itself.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process().as_mut()?.nsenter.try_wait().unwrap()
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap()
    }

    fn command(&self) -> Command {
        // The environment is the daemon's alone; what starts it is not to be changed by it.
        let mut command = self.machine.command(Place::Host, "/usr/bin/env");
        let variables = self.environment().into_iter();
        command
            .args(variables.map(|(name, value)| format!("{name}={value}")))
            .arg(&*self.program.lock().unwrap());
        command
    }

    fn environment(&self) -> Vec<(String, String)> {
        self.settings.lock().unwrap().clone()
    }

    fn end(&self, signal: Signal) -> ExitStatus {
        let mut process = self.process().take().expect("the daemon does not run");
        kill(process.pid, signal).unwrap();
        wait_for("the end of the daemon", LIMIT, || match process.nsenter.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
    }

    fn serves(&self) -> Result<(), String> {
        // That its ports answer is not enough: a child that a killed daemon had just forked holds the old sockets until
        // its exec.
        let log_from = self.process().as_ref().map_or(0, |process| process.log_from);
        let log = self.log();
        // As text, and as JSON.
        if ![": ready ", "\"ready\""]
            .iter()
            .any(|word| log[log_from..].contains(word))
        {
            return Err("it has not said that it is ready".into());
        }
        let certificate = self.machine.path("/etc/raind/cert/raindClient.crt");
        certificate
            .metadata()
            .map_err(|e| format!("{}: {e}", certificate.display()))?;
        self.machine.at(Place::Host, || {
            for port in [7755, 7756, 7757] {
                TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))
                    .map_err(|e| format!("port {port}: {e}"))?;
            }
            Ok(())
        })
    }
}
