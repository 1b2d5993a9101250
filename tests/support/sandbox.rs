//! A place where the real `droplet` can do anything: every test runs within a lab, with a bridge and an image made from
//! busybox.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::machine::within;
use super::{SOON, wait_for, when};

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const DENIED: [&str; 19] = [
    "bpf",
    "perf_event_open",
    "kexec_load",
    "open_by_handle_at",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "userfaultfd",
    "reboot",
    "swapon",
    "swapoff",
    "name_to_handle_at",
    "init_module",
    "finit_module",
    "delete_module",
    "kcmp",
    "mount",
    "unshare",
    "setns",
];

/// Runs a test in a sandbox.
pub fn sandbox(test: impl FnOnce(&Sandbox)) {
    within(&[], || test(&Sandbox::new()));
}

/// The sandbox of one test.
pub struct Sandbox {
    dir: tempfile::TempDir,
    pub id: String,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for command in [
            "ip link add raind0 type bridge",
            "ip addr add 10.166.0.254/24 dev raind0",
            "ip link set raind0 up",
        ] {
            shell(command);
        }
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        let sandbox = Self {
            dir,
            id: format!("t{}", &uuid.replace('-', "")[..11]),
        };
        sandbox.make_image();
        fs::create_dir(sandbox.path("hooks")).unwrap();
        sandbox
    }

    fn make_image(&self) {
        let image = self.image();
        for name in ["bin", "etc", "home"] {
            fs::create_dir_all(image.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
        let applets = "sh ls cat sleep id env mount umount mountpoint ip hostname true tty stat ps head dd tail readlink \
                       mkdir rmdir rm touch grep trap kill printf wc echo tr cut stty yes cp test";
        for applet in applets.split_ascii_whitespace() {
            symlink("busybox", image.join("bin").join(applet)).unwrap();
        }
        fs::write(
            image.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/home/web:/bin/sh\n",
        )
        .unwrap();
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The only layer of the image.
    pub fn image(&self) -> PathBuf {
        self.path("image")
    }

    /// Container directories.
    pub fn root(&self) -> PathBuf {
        self.path("container")
    }

    /// Directory of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.root().join(id)
    }

    /// A config.json as our daemon writes it, of a program run by the image's shell.
    pub fn config(&self, id: &str, script: &str) -> Value {
        let dir = self.bundle(id);
        let net = json!({
            "hostInterface": "ens3", "bridgeInterface": "raind0",
            "interface": { "name": self.veth(id),
                "ipv4": { "address": "10.166.0.7/24", "gateway": "10.166.0.254" }, "dns": { "servers": ["8.8.8.8"] } },
        });
        let image = json!({
            "rootfsType": "overlay", "imageLayer": [self.image()], "upperDir": dir.join("diff"), "workDir": dir.join("work"),
        });
        json!({
            "ociVersion": "1.0.2",
            "root": { "path": dir.join("merged"), "readonly": false },
            "hostname": id,
            "mounts": [],
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "cwd": "/",
                "args": ["sh", "-c", script],
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm-256color"],
                "noNewPrivileges": true,
                "capabilities": { "bounding": CAPABILITIES, "permitted": CAPABILITIES, "effective": CAPABILITIES,
                    "inheritable": [], "ambient": [] },
            },
            "linux": {
                "cgroupsPath": format!("/raind/{id}"),
                "resources": { "memory": { "limit": 67108864 }, "cpu": { "period": 100000, "quota": 80000 },
                    "pids": { "limit": 512 } },
                "namespaces": [{ "type": "mount" }, { "type": "network" }, { "type": "uts" }, { "type": "pid" },
                    { "type": "ipc" }, { "type": "user" }, { "type": "cgroup" }],
                "uidMappings": [{ "containerID": 0, "hostID": 0, "size": 65535 }],
                "gidMappings": [{ "containerID": 0, "hostID": 0, "size": 65535 }],
                "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{ "names": DENIED, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }] },
                "apparmorProfile": "raind-default",
            },
            "hooks": {},
            "annotations": {
                "io.raind.runtime.annotation.version": "0.1.0",
                "io.raind.hooks.args": "argv0",
                "io.raind.net.config": net.to_string(),
                "io.raind.image.config": image.to_string(),
            },
        })
    }

    /// Host end of a container's veth pair.
    pub fn veth(&self, id: &str) -> String {
        let name = format!("rd_{id}");
        name[..name.len().min(15)].to_owned()
    }

    /// Writes the bundle of a container, as the daemon does before it calls `create`.
    pub fn write(&self, id: &str, config: &Value) {
        let dir = self.bundle(id);
        for name in ["diff", "work", "merged", "etc", "logs", "cert"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("etc/hosts"), format!("127.0.0.1 localhost\n10.166.0.7 {id}\n")).unwrap();
        fs::write(dir.join("etc/hostname"), format!("{id}\n")).unwrap();
        fs::write(dir.join("etc/resolv.conf"), "nameserver 10.166.0.254\n").unwrap();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }

    /// The bundle of the sandbox's own container.
    pub fn bundle_with(&self, script: &str) -> Value {
        let config = self.config(&self.id, script);
        self.write(&self.id, &config);
        config
    }

    /// A hook that records its stdin and what `script` prints as `hooks/<n>.<name>`, n counting from 0.
    pub fn hook(&self, name: &str, script: &str) -> Value {
        let hooks = self.path("hooks").display().to_string();
        let script = format!(
            "n=$(ls {hooks} | grep -c json); f={hooks}/$n.{name}; cat > $f.json; {{ {script}; }} > $f.out 2>&1"
        );
        json!({ "path": "/bin/sh", "args": ["/bin/sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] })
    }

    /// What hooks have recorded so far: name and payload, in order.
    pub fn payloads(&self) -> Vec<(String, Value)> {
        let mut names: Vec<String> = fs::read_dir(self.path("hooks"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".json"))
            .collect();
        names.sort();
        let read = |name: &String| {
            let text = fs::read_to_string(self.path("hooks").join(name)).unwrap();
            let phase = name.split('.').nth(1).unwrap().to_owned();
            (phase, serde_json::from_str(&text).unwrap_or(Value::Null))
        };
        names.iter().map(read).collect()
    }

    /// What the script of the hook with this name printed.
    pub fn hook_output(&self, name: &str) -> String {
        let entries = fs::read_dir(self.path("hooks")).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        let path = paths
            .find(|path| path.to_string_lossy().ends_with(&format!("{name}.out")))
            .unwrap();
        fs::read_to_string(path).unwrap()
    }

    /// A `droplet` command that has not been started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_droplet"));
        command
            .args(args)
            .env("RAIND_ROOT_DIR", self.root())
            .env("SECRET_OF_THE_DAEMON", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs `droplet`.
    pub fn droplet(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs `droplet`, which must succeed without a word on stderr; its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.droplet(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && stderr.is_empty(),
            "{args:?}: {}: {stderr}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `droplet`, which must fail with status 1 and one line; that line.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.droplet(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        // Something broke, or what was asked for cannot be.
        let status = output.status.code();
        assert!(matches!(status, Some(1 | 125..=127)), "{args:?}: {status:?} {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr.trim_end().to_owned()
    }

    /// `create` and `start` of the sandbox's own container.
    pub fn up(&self) {
        self.ok(&["create", &self.id]);
        self.ok(&["start", &self.id]);
    }

    /// `droplet state`.
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&["state", id])).unwrap()
    }

    /// Pid of init.
    pub fn pid(&self, id: &str) -> i32 {
        self.state(id)["pid"].as_i64().unwrap() as i32
    }

    /// Waits until state.json has an exit code; the state.
    pub fn ended(&self, id: &str) -> Value {
        let recorded = || fs::read(self.bundle(id).join("state.json")).ok();
        let state = || recorded().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        wait_for("the end to be recorded", SOON, || {
            when(state().unwrap_or_default(), |state| state.get("exit_code").is_some())
        })
    }

    /// Pid of the monitor.
    pub fn monitor(&self, id: &str) -> i32 {
        let text = fs::read(format!("/run/raind/droplet/{id}/run.json")).unwrap();
        let run: Value = serde_json::from_slice(&text).unwrap();
        run["finisher"]["pid"].as_i64().unwrap() as i32
    }

    /// Kills the monitor and waits until it is dead.
    pub fn kill_monitor(&self, id: &str) {
        let monitor = self.monitor(id);
        signal(monitor, libc::SIGKILL);
        wait_for("the monitor's death", SOON, || {
            when(processes(), |all| !all.iter().any(|(pid, _)| *pid == monitor))
        });
    }

    /// A log of a container.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.bundle(&self.id).join("logs").join(name)).unwrap_or_default()
    }

    /// Waits until a log contains a text; the log.
    pub fn log_with(&self, name: &str, text: &str) -> String {
        wait_for(text, SOON, || when(self.log(name), |log| log.contains(text)))
    }

    /// Waits until nothing is left of a container but the directory that the daemon made: no processes, interfaces,
    /// mounts, cgroups, volatile files.
    pub fn gone(&self, id: &str) {
        wait_for("everything to be gone", SOON, || when(self.traces(id), Vec::is_empty));
    }

    /// What is left of a container.
    pub fn traces(&self, id: &str) -> Vec<String> {
        let mut traces: Vec<String> = processes()
            .iter()
            .filter(|(_, args)| args.contains(id))
            .map(|p| format!("{p:?}"))
            .collect();
        let mut exists = |path: PathBuf| traces.extend(path.exists().then(|| path.display().to_string()));
        for name in ["droplet/".to_owned() + id, format!("droplet/{id}.lock")] {
            exists(Path::new("/run/raind").join(name));
        }
        for name in [
            "state.json",
            "exec.fifo",
            "config_hash.json",
            "init.pid",
            "tty.sock",
            "exec_tty.sock",
        ] {
            exists(self.bundle(id).join(name));
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            exists(hierarchy.unwrap().path().join("raind").join(id));
        }
        traces.extend(interface_exists(&self.veth(id)).then(|| self.veth(id)));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        traces.extend(mounts.lines().filter(|line| line.contains(id)).map(str::to_owned));
        traces
    }

    /// Records of the audit log.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("log/droplet_audit.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Whether the sandbox has a network interface of this name.
pub fn interface_exists(name: &str) -> bool {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the argument is a NUL-terminated string.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Pid and command line of what runs here; zombies do not.
pub fn processes() -> Vec<(i32, String)> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    let alive = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    let command = |pid| {
        let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        (pid, String::from_utf8_lossy(&text).replace('\0', " "))
    };
    pids.filter(alive).map(command).collect()
}

/// Sends a signal.
pub fn signal(pid: i32, signal: libc::c_int) {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Runs a command line on the host, which must succeed; its stdout.
pub fn shell(script: &str) -> String {
    let output = Command::new("/bin/sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Permission bits.
pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Owner of a file.
pub fn owner(path: &Path) -> u32 {
    fs::metadata(path).unwrap().uid()
}
