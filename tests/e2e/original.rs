//! An installation of the original in a lab: its recorded stores, an image as it unpacks them, its certificates, and
//! processes as its runtime leaves them, in namespaces and a root of their own and without a monitor.

use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Lab, Place, wait_for};

/// Where the image is unpacked.
pub const ROOTFS: &str = "/etc/raind/image/layers/library/busybox/latest/rootfs";
/// The recorded config.json of containers, and of parts of a pod.
const CONFIGS: [(&str, &str); 3] = [
    ("01m85d84g0qe", "config-pod-infra.json"),
    ("01m85d85374q", "config-pod-member.json"),
    ("01m85d6ag2dj", "config.json"),
];
const LIMIT: Duration = Duration::from_secs(10);

/// What the original makes, as far as the port has to live with it: RSA, PKCS#1.
const CERTIFICATES: &str = r#"
    set -e
    mkdir -p /etc/raind/cert
    cd /etc/raind/cert
    openssl genrsa -traditional -out raind.key 2048
    openssl req -x509 -key raind.key -subj /CN=raind -out raind.crt -days 1825 \
        -addext basicConstraints=critical,CA:TRUE -addext extendedKeyUsage=serverAuth \
        -addext keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1,IP:192.0.2.2
    openssl genrsa -traditional -out raindClientCA.key 2048
    openssl req -x509 -key raindClientCA.key -subj '/CN=raind client issuer' -out raindClientCA.crt -days 1825 \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
    for pair in raindClient:cli/admin raindHookClient:droplet/container; do
        name=${pair%%:*}
        printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n' > e.cnf
        printf 'extendedKeyUsage=clientAuth\nsubjectAltName=URI:spiffe://raind/%s\n' "${pair#*:}" >> e.cnf
        openssl genrsa -traditional -out "$name.key" 2048
        openssl req -new -key "$name.key" -subj "/CN=$name" |
            openssl x509 -req -CA raindClientCA.crt -CAkey raindClientCA.key -days 365 -extfile e.cnf -out "$name.crt"
    done
    rm -f ./*.cnf ./*.srl
"#;

/// The installation. Its processes end with the lab.
pub struct Original {
    pub lab: Lab,
    processes: Vec<Child>,
}

pub fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/original/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

impl Original {
    /// The stores of a recorded step, with the one image that all of its containers but infra have.
    pub fn recorded(step: &str) -> Self {
        let lab = Lab::start();
        for store in ["csm", "ipam", "ilm", "npm", "bsm", "psm", "ssm"] {
            let path = format!(
                "{}/tests/fixtures/original/store-{step}-{store}.json",
                env!("CARGO_MANIFEST_DIR")
            );
            if let Ok(content) = std::fs::read(path) {
                lab.machine().write(&format!("/etc/raind/store/{store}.json"), content);
            }
        }
        for name in ["csm.json.lock", "npm.json.lock", "csm.json.tmp"] {
            lab.machine().write(&format!("/etc/raind/store/{name}"), "{");
        }
        let script = format!(
            "mkdir -p {ROOTFS} && cd {ROOTFS} && mkdir bin dev etc old proc sys tmp && cp /bin/busybox bin && \
             chroot . /bin/busybox --install -s /bin && touch dev/null && echo hello > hello && mkdir -p /mnt/data"
        );
        lab.machine().run(&["sh", "-c", &script]);
        let config = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"]}}"#;
        lab.machine().write(&format!("{ROOTFS}/../config.json"), config);
        Self {
            lab,
            processes: Vec::new(),
        }
    }

    /// With certificates.
    pub fn certified(self) -> Self {
        self.lab.machine().run(&["sh", "-c", CERTIFICATES]);
        self
    }

    /// Text of a store.
    pub fn store(&self, name: &str) -> String {
        self.lab.machine().read(&format!("/etc/raind/store/{name}"))
    }

    /// Changes the first such text of a store.
    pub fn change(&self, store: &str, from: &str, to: &str) {
        let content = self.store(store);
        assert!(content.contains(from), "{store}: {from}");
        let path = format!("/etc/raind/store/{store}");
        self.lab.machine().write(&path, content.replacen(from, to, 1));
    }

    /// The directory of a container, with a state file that names this process.
    pub fn directory(&self, id: &str, status: &str, pid: i32) -> String {
        let directory = format!("/etc/raind/container/{id}");
        for name in ["diff", "work", "merged", "etc", "logs", "cert"] {
            self.lab.machine().run(&["mkdir", "-p", &format!("{directory}/{name}")]);
        }
        let (of, config) = CONFIGS.into_iter().find(|(of, _)| *of == id).unwrap_or(CONFIGS[2]);
        let config = fixture(config).replace(of, id).replace("/srv/data", "/mnt/data");
        self.lab.machine().write(&format!("{directory}/config.json"), config);
        let state = fixture("container-state-running.json").replace(CONFIGS[2].0, id);
        let mut state: Value = serde_json::from_str(&state).unwrap();
        (state["status"], state["pid"]) = (json!(status), json!(pid));
        let path = format!("{directory}/state.json");
        self.lab.machine().write(&path, state.to_string());
        directory
    }

    /// A container that runs `script`, which has to say `started`; its pid in the lab. As a member of a pod it joins the
    /// namespaces of the infra process.
    pub fn running(&mut self, id: &str, infra: Option<i32>, script: &str) -> i32 {
        let pid = self.process(id, "running", infra, script);
        wait_for("its first word", LIMIT, || {
            let log = self
                .lab
                .machine()
                .read(&format!("/etc/raind/container/{id}/logs/init.log"));
            if log.contains("started") { Ok(()) } else { Err(log) }
        });
        // As its runtime does it: after the start.
        self.directory(id, "running", pid);
        pid
    }

    /// A container whose first process waits for the start signal.
    pub fn created(&mut self, id: &str, script: &str) -> i32 {
        let fifo = format!("/etc/raind/container/{id}/exec.fifo");
        self.directory(id, "created", 0);
        self.lab.machine().run(&["mkfifo", "-m", "600", &fifo]);
        self.process(id, "created", None, script)
    }

    fn process(&mut self, id: &str, status: &str, infra: Option<i32>, script: &str) -> i32 {
        let directory = self.directory(id, status, 0);
        let signal = format!("test ! -p {directory}/exec.fifo || head -c 1 {directory}/exec.fifo > /dev/null");
        let root = format!(
            "mount -t overlay overlay -o lowerdir={ROOTFS},upperdir={directory}/diff,workdir={directory}/work,userxattr \
             {directory}/merged && mount -t proc proc {directory}/merged/proc && \
             mount --bind /dev/null {directory}/merged/dev/null && cd {directory}/merged"
        );
        let outside = format!(
            "{signal}; {root} && exec >> {directory}/logs/init.log 2>&1 && pivot_root . old && \
             exec /bin/chroot . /bin/sh -c 'umount -l /old; exec /bin/sh -c \"$1\"' sh \"$1\""
        );
        let (enter, make): (&[&str], &[&str]) = match infra {
            Some(_) => (&["--net", "--ipc", "--uts"], &[]),
            None => (&[], &["--net", "--ipc", "--uts"]),
        };
        let target = infra.unwrap_or_else(|| self.user_namespace()).to_string();
        let mut command = self.lab.machine().command(Place::Host, "nsenter");
        command.args(["--user", "--setuid=0", "--setgid=0", "--target", &target]);
        command.args(enter).arg("unshare").args(make);
        command.args(["--mount", "--pid", "--cgroup", "--fork", "--kill-child"]);
        command.args(["sh", "-c", &outside, "sh", script]);
        let nsenter = command.spawn().unwrap();
        let pid = wait_for("the process of the original", LIMIT, || pid_of_init(&nsenter));
        self.processes.push(nsenter);
        self.directory(id, status, pid);
        let mut stored: Value = serde_json::from_str(&self.store("csm.json")).unwrap();
        stored["containers"][id]["pid"] = json!(pid);
        let text = format!("{stored:#}\n");
        self.lab.machine().write("/etc/raind/store/csm.json", text);
        pid
    }

    /// A user namespace with the identity mapping of the original, held by a process of that pid in the lab.
    fn user_namespace(&mut self) -> i32 {
        let mut command = self.lab.machine().command(Place::Host, "unshare");
        let nsenter = command.args(["--user", "sleep", "1000"]).spawn().unwrap();
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        let (pid, pids) = wait_for("a user namespace", LIMIT, || {
            let pid = child(&nsenter.id().to_string())?;
            match std::fs::read_link(format!("/proc/{pid}/ns/user")) {
                Ok(namespace) if namespace != own => Ok((pid.clone(), pids_of(&pid)?)),
                other => Err(format!("{other:?}")),
            }
        });
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{pid}/{map}"), "0 0 65535").unwrap();
        }
        self.processes.push(nsenter);
        *pids.last().unwrap()
    }

    /// The place of a process in the default network.
    pub fn attach(&self, id: &str, pid: i32, address: &str) {
        let run = |words: &str| drop(self.lab.machine().run(&words.split(' ').collect::<Vec<_>>()));
        run("ip link add raind0 type bridge");
        run("ip address add 10.166.0.254/24 dev raind0");
        run("ip link set raind0 up");
        run(&format!("ip link add rd_{id} type veth peer name eth0 netns {pid}"));
        run(&format!("ip link set rd_{id} master raind0 up"));
        for words in [
            &format!("ip address add {address}/24 dev eth0")[..],
            "ip link set eth0 up",
            "ip route add default via 10.166.0.254",
        ] {
            run(&format!("nsenter -t {pid} -n {words}"));
        }
    }
}

fn child(pid: &str) -> Result<String, String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let first = children.split_whitespace().next().map(str::to_owned);
    first.ok_or_else(|| format!("{pid} has no child"))
}

/// What the pid means in each of the namespaces of its process, the innermost last.
fn pids_of(pid: &str) -> Result<Vec<i32>, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
    let pids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .ok_or("no NSpid")?;
    Ok(pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect())
}

/// Pid in the lab of the first process of a PID namespace that the program behind a `nsenter` made.
fn pid_of_init(nsenter: &Child) -> Result<i32, String> {
    let init = child(&child(&nsenter.id().to_string())?)?;
    match pids_of(&init)?[..] {
        [.., in_lab, 1] => Ok(in_lab),
        ref pids => Err(format!("{pids:?}")),
    }
}
