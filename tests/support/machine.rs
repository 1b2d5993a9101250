//! The namespaces of a lab, seen from the test process: how to start a command, open a file or a socket in them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::wait_for;

/// Which network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The one of the daemon.
    Host,
    /// The one behind the uplink.
    Outside,
    /// The one of a process, by its pid in the lab: of a container.
    Process(i64),
}

const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lab.sh");
/// Set in the environment of a test that runs within a lab.
const WITHIN: &str = "CONDENSER_TEST_WITHIN";

/// Runs `test` within a lab, as a process of it: the test function that calls this is started again there. `environment`
/// is what that process gets besides.
pub fn within(environment: &[(&str, &OsStr)], test: impl FnOnce()) {
    if std::env::var_os(WITHIN).is_some() {
        // The end of the outer process, however it comes, ends the lab.
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(99);
        });
        return test();
    }
    let thread = std::thread::current();
    let name = thread.name().expect("the harness names its threads");
    let mut lab = Command::new(LAB)
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .envs(environment.iter().copied())
        .env(WITHIN, "1")
        .stdin(Stdio::piped())
        // The inner harness counts its one test, too.
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .expect(LAB);
    // Not wait: that would close the lab's standard input first.
    let stdin = lab.stdin.take();
    let status = lab.wait().unwrap();
    drop(stdin);
    assert!(status.success(), "{name} failed in its lab, see above");
}

/// A running `scripts/lab.sh`. Its end, and the end of the test process however it comes, ends all that runs in it.
pub struct Machine {
    script: Child,
    /// Held open: its end is what ends the lab.
    stdin: Option<ChildStdin>,
    /// First process of the lab, as a pid of the machine.
    pid: i32,
    /// `cgroup.procs` of every cgroup of the lab.
    groups: Arc<Vec<File>>,
}

impl Machine {
    /// Makes the namespaces.
    pub fn start() -> Self {
        let mut script = Command::new(LAB)
            // The program that stays prints it: when the line comes, no other is about to be executed.
            .args([
                "sh",
                "-c",
                "exec cat /proc/self/fd/3 - 3<<LINE\n$LAB_PID $LAB_CGROUPS\nLINE\n",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // In a process group of its own it outlives a killed test for as long as it needs to clean up.
            .process_group(0)
            .spawn()
            .expect("scripts/lab.sh");
        let mut line = String::new();
        let stdout = script.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let mut words = line.split_ascii_whitespace();
        let pid = words
            .next()
            .expect("scripts/lab.sh could not make a lab; it needs root and says why on standard error")
            .parse()
            .unwrap();
        let groups = words.map(|group| procs_of(Path::new(group))).collect();
        Self {
            stdin: script.stdin.take(),
            script,
            pid,
            groups: Arc::new(groups),
        }
    }

    /// A file of the lab as a path of the test process. Absolute symbolic links on the way lead out of the lab.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Content of a text file of the lab; empty when it is not there.
    pub fn read(&self, path: &str) -> String {
        match std::fs::read(self.path(path)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => panic!("{path}: {e}"),
        }
    }

    /// Writes a file of the lab, making its directories.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
    }

    /// A command that is going to run in the lab, in its cgroups.
    pub fn command(&self, place: Place, program: &str) -> Command {
        // By its path: the PATH of the command may be set to anything.
        let mut command = Command::new("/usr/bin/nsenter");
        command
            .arg(format!("--target={}", self.pid))
            .args(["--mount", "--uts", "--ipc", "--pid", "--cgroup"])
            .arg(format!("--net={}", self.namespace(place).display()))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null());
        let groups = self.groups.clone();
        let join = move || {
            for procs in groups.iter() {
                (&mut &*procs).write_all(b"0")?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only calls write(2) on files that are open already.
        unsafe { command.pre_exec(join) };
        command
    }

    fn namespace(&self, place: Place) -> PathBuf {
        match place {
            Place::Host => format!("/proc/{}/ns/net", self.pid).into(),
            Place::Outside => self.path("/run/netns/outside"),
            Place::Process(pid) => self.path(&format!("/proc/{pid}/ns/net")),
        }
    }

    /// Runs a command on the host of the lab for at most 30 seconds.
    pub fn output(&self, argv: &[&str]) -> Output {
        self.output_at(Place::Host, argv)
    }

    /// Runs a command for at most 30 seconds.
    pub fn output_at(&self, place: Place, argv: &[&str]) -> Output {
        let mut command = self.command(place, "timeout");
        command.args(["-k", "1", "30"]).args(argv).output().unwrap()
    }

    /// Standard output of a command that has to succeed.
    pub fn run(&self, argv: &[&str]) -> String {
        let output = self.output(argv);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{argv:?}: {}: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// Runs `work` on a thread of that network namespace. Sockets opened there stay there.
    pub fn at<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.namespace(place)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.stdin.take());
        wait_for("the end of the lab", Duration::from_secs(20), || {
            match self.script.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

/// Members of a version 2 group that hands controllers on are in its subgroup `init`.
fn procs_of(group: &Path) -> File {
    let leaf = group.join("init");
    let group = if leaf.is_dir() { leaf } else { group.to_owned() };
    File::options()
        .write(true)
        .open(group.join("cgroup.procs"))
        .unwrap_or_else(|e| panic!("{}: {e}", group.display()))
}

/// Child of a running `nsenter`, as a pid of the machine.
pub fn child_of(nsenter: &Child) -> i32 {
    let pid = nsenter.id();
    wait_for("the program behind nsenter", Duration::from_secs(5), || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children
            .trim()
            .parse()
            .map_err(|_| format!("children of {pid}: {children:?}"))
    })
}
