//! The takeover of an installation of the original: its recorded stores, an image as it unpacks them, and containers
//! that run as its runtime leaves them, without a monitor.

use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{HOST, Lab, Place, delete, get, post, wait_for};

/// The containers of the recording that get a process here.
const WEB: &str = "01m85d6ag2dj";
const DB: &str = "01m85d7qahjs";
const APP: &str = "01m85d7qtdrt";
const ROOTFS: &str = "/etc/raind/image/layers/library/busybox/latest/rootfs";

const SERVE: &str = "trap 'exit 0' TERM; echo started; httpd -p 80 -h /; while :; do sleep 1000 & wait; done";
const WAIT: &str = "trap 'exit 0' TERM; echo started; while :; do sleep 1000 & wait; done";

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/original/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// An installation of the original in a lab. Its processes end with the lab.
struct Original {
    lab: Lab,
    processes: Vec<Child>,
}

impl Original {
    /// The recorded stores of a bottle, two policies and five containers; one image that is there as a whole.
    fn recorded() -> Self {
        let lab = Lab::start();
        for store in ["csm", "ipam", "ilm", "npm", "bsm"] {
            let content = fixture(&format!("store-bottle-{store}.json"));
            lab.machine().write(&format!("/etc/raind/store/{store}.json"), content);
        }
        for name in ["csm.json.lock", "npm.json.lock", "csm.json.tmp"] {
            lab.machine().write(&format!("/etc/raind/store/{name}"), "{");
        }
        let script = format!(
            "mkdir -p {ROOTFS} && cd {ROOTFS} && mkdir bin dev etc old proc sys tmp && cp /bin/busybox bin && \
             chroot . /bin/busybox --install -s /bin && touch dev/null && echo hello > hello && \
             mkdir -p /mnt/data"
        );
        lab.machine().run(&["sh", "-c", &script]);
        let config = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"]}}"#;
        lab.machine().write(&format!("{ROOTFS}/../config.json"), config);
        Self {
            lab,
            processes: Vec::new(),
        }
    }

    fn store(&self, name: &str) -> String {
        self.lab.machine().read(&format!("/etc/raind/store/{name}"))
    }

    fn change(&self, store: &str, from: &str, to: &str) {
        let content = self.store(store);
        assert!(content.contains(from), "{store}: {from}");
        let path = format!("/etc/raind/store/{store}");
        self.lab.machine().write(&path, content.replacen(from, to, 1));
    }

    /// The directory of a container as the original leaves it.
    fn directory(&self, id: &str, status: &str, pid: i32) -> String {
        let directory = format!("/etc/raind/container/{id}");
        for name in ["diff", "work", "merged", "etc", "logs", "cert"] {
            self.lab.machine().run(&["mkdir", "-p", &format!("{directory}/{name}")]);
        }
        let config = fixture("config.json")
            .replace(WEB, id)
            .replace("/srv/data", "/mnt/data");
        self.lab.machine().write(&format!("{directory}/config.json"), config);
        let state = fixture("container-state-running.json").replace(WEB, id);
        let mut state: Value = serde_json::from_str(&state).unwrap();
        (state["status"], state["pid"]) = (json!(status), json!(pid));
        self.lab
            .machine()
            .write(&format!("{directory}/state.json"), state.to_string());
        directory
    }

    /// A process in namespaces and a root of its own, as the original's runtime makes it; its pid in the lab.
    fn process(&mut self, id: &str, status: &str, recorded: i32, script: &str) -> i32 {
        let directory = self.directory(id, status, 0);
        let inside = format!("umount -l /old; exec /bin/sh -c \"$1\" sh \"$2\" >> /proc/self/fd/1 2>&1");
        let outside = format!(
            "mount -t overlay overlay -o lowerdir={ROOTFS},upperdir={directory}/diff,workdir={directory}/work,userxattr \
             {directory}/merged && mount -t proc proc {directory}/merged/proc && \
             mount --bind /dev/null {directory}/merged/dev/null && exec >> {directory}/logs/init.log 2>&1 \
             && cd {directory}/merged && pivot_root . old && exec /bin/chroot . /bin/sh -c \"$1\" sh \"$2\""
        );
        let wait = match status {
            "created" => {
                self.lab
                    .machine()
                    .run(&["mkfifo", "-m", "600", &format!("{directory}/exec.fifo")]);
                format!("head -c 1 {directory}/exec.fifo > /dev/null && ")
            }
            _ => String::new(),
        };
        let user = self.user_namespace().to_string();
        let mut command = self.lab.machine().command(Place::Host, "nsenter");
        command.args(["--user", "--setuid=0", "--setgid=0", "--target", &user, "unshare"]);
        command.args([
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "--fork",
            "--kill-child",
        ]);
        command.args(["sh", "-c", &format!("{wait}{outside}"), "sh", &inside, script]);
        let nsenter = command.spawn().unwrap();
        let pid = wait_for("the process of the original", Duration::from_secs(10), || {
            pid_of_init(&nsenter)
        });
        self.processes.push(nsenter);
        if status == "running" {
            wait_for("its first word", Duration::from_secs(10), || {
                let log = self.lab.machine().read(&format!("{directory}/logs/init.log"));
                if log.contains("started") { Ok(()) } else { Err(log) }
            });
        }
        self.directory(id, status, pid);
        self.change(
            "csm.json",
            &format!("\"pid\": {recorded},"),
            &format!("\"pid\": {pid},"),
        );
        pid
    }

    /// A user namespace with the identity mapping of the original, held by a process of that pid in the lab.
    fn user_namespace(&mut self) -> i32 {
        let mut command = self.lab.machine().command(Place::Host, "unshare");
        let nsenter = command.args(["--user", "sleep", "1000"]).spawn().unwrap();
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        let (pid, pids) = wait_for("a user namespace", Duration::from_secs(10), || {
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

    /// Its place in the network.
    fn attach(&self, id: &str, pid: i32, address: &str) {
        let (link, pid) = (format!("rd_{id}"), pid.to_string());
        let run = |words: &str| drop(self.lab.machine().run(&words.split(' ').collect::<Vec<_>>()));
        run("ip link add raind0 type bridge");
        run("ip address add 10.166.0.254/24 dev raind0");
        run("ip link set raind0 up");
        run(&format!("ip link add {link} type veth peer name eth0 netns {pid}"));
        run(&format!("ip link set {link} master raind0 up"));
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

fn state(lab: &Lab, id: &str) -> String {
    lab.api().container(id)["state"].as_str().unwrap().to_owned()
}

#[test]
fn an_installation_is_taken_over_and_its_containers_live_on() {
    let mut original = Original::recorded();
    let pid = original.process(WEB, "running", 635, SERVE);
    original.attach(WEB, pid, "10.166.0.2");
    let waiting = original.process(DB, "created", 2979, WAIT);
    // One whose pid was given to somebody else, and one of which only the directory is there.
    original.directory("01m85d67tym3", "running", 536);
    original.directory(APP, "running", 3089);
    let lab = &original.lab;
    lab.machine().write("/run/rules", fixture("iptables-bottle.txt"));
    lab.machine().run(&["iptables-restore", "/run/rules"]);
    lab.machine()
        .run(&["iptables", "-A", "FORWARD", "-s", "198.51.100.1", "-j", "ACCEPT"]);
    let before = ["csm.json", "ipam.json", "ilm.json", "npm.json", "bsm.json"].map(|name| original.store(name));

    lab.daemon().start();
    let all = lab.api().ok(get("/v1/containers"));
    assert_eq!(all.as_array().unwrap().len(), 5, "{all}");
    let states = [WEB, DB, "01m85d67tym3", "01m85d7ac6qa", APP].map(|id| state(lab, id));
    assert_eq!(states, ["running", "created", "stopped", "stopped", "stopped"]);
    let web = lab.api().container("web");
    assert_eq!(
        (web["pid"].as_i64(), &web["address"]),
        (Some(pid.into()), &json!("10.166.0.2")),
        "{web}"
    );
    assert!(lab.api().log("web").contains("started"));
    assert_eq!(lab.api().exec(WEB, "cat /hello; echo $FOO").trim(), "hello\nbar");
    let reply = lab.outside_get(&format!("{HOST}:8080"), "/hello").unwrap();
    assert_eq!(reply.text(), "hello\n");
    // Rules: ours in place of the original's, others as they were.
    let rules = lab.machine().run(&["iptables-save"]);
    assert!(
        !rules.contains("-A FORWARD -d 10.166.0.2/32 -i eth0 -o raind0"),
        "{rules}"
    );
    assert_eq!(
        rules.matches("-A FORWARD -s 198.51.100.1/32 -j ACCEPT").count(),
        1,
        "{rules}"
    );
    let policies = lab.api().ok(get("/v1/policies/RAIND-EW"));
    assert_eq!(policies["policies"][0]["comment"], "web to api", "{policies}");
    let networks = lab.api().ok(get("/v1/networks"));
    assert_eq!(networks.as_array().unwrap().len(), 2, "{networks}");
    assert_eq!(lab.api().ok(get("/v1/images"))[0]["repository"], "library/busybox");

    // Once, whatever the files say later; what runs is not touched by a restart.
    lab.daemon().kill9();
    original.change("csm.json", "\"name\": \"web\"", "\"name\": \"renamed\"");
    lab.daemon().start();
    assert_eq!(lab.api().container("web")["pid"].as_i64(), Some(pid.into()));
    original.change("csm.json", "\"name\": \"renamed\"", "\"name\": \"web\"");
    let after = ["csm.json", "ipam.json", "ilm.json", "npm.json", "bsm.json"].map(|name| original.store(name));
    assert_eq!(before, after);

    // A waiting process of the original is released, those that died are made again from the adopted image.
    lab.api().ok(post("/v1/bottle/shop/actions/start", json!({})));
    assert_eq!([DB, APP].map(|id| state(lab, id)), ["running", "running"]);
    assert_eq!(lab.api().container(DB)["pid"].as_i64(), Some(waiting.into()));
    lab.api().ok(post("/v1/bottle/shop/actions/stop", json!({})));
    lab.api().ok(post("/v1/bottle/shop/actions/delete", json!({})));

    lab.api().stop(WEB);
    let web = lab.api().container(WEB);
    assert_eq!(
        (&web["state"], &web["exitCode"]),
        (&json!("stopped"), &json!(-1)),
        "{web}"
    );
    lab.api().start(WEB);
    lab.api().stop(WEB);
    assert_eq!(
        lab.api().container(WEB)["exitCode"],
        0,
        "with a monitor of ours it is known"
    );
    for id in [WEB, "01m85d67tym3", "01m85d7ac6qa"] {
        lab.api().delete(id);
    }
    lab.api()
        .ok(delete("/v1/images").json(&json!({ "image": "busybox:latest" })));
    let kept = lab.machine().path(&format!("{ROOTFS}/hello"));
    assert!(kept.exists(), "the original's files stay, so that there is a way back");
}

#[test]
fn an_end_that_nobody_saw_is_recorded() {
    let mut original = Original::recorded();
    let pid = original.process(WEB, "running", 635, WAIT);
    let lab = &original.lab;
    lab.daemon().start();
    assert_eq!(state(lab, WEB), "running");
    lab.machine().run(&["kill", "-9", &pid.to_string()]);
    let web = lab.api().wait_state(WEB, "stopped");
    assert_eq!(
        (&web["exitCode"], &web["message"]),
        (&json!(-1), &json!("process down detected.")),
        "{web}"
    );
}

/// The daemon has to end with code 1 and one line with these words, and nothing may have become of the stores.
fn refuses(lab: &Lab, words: &[&str]) {
    let output = lab.daemon().run(&[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("condenser: ")).collect();
    assert_eq!((output.status.code(), errors.len()), (Some(1), 1), "{said}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {said}");
    }
}

#[test]
fn what_cannot_be_taken_over_is_refused_and_nothing_is_changed() {
    let original = Original::recorded();
    let lab = &original.lab;
    let before = lab.inventory();
    original.change("npm.json", "\"policies\": {", "\"policies\": [");
    refuses(
        lab,
        &["/etc/raind/store/npm.json", "line 14 column 15", "nothing was changed"],
    );
    original.change("npm.json", "\"policies\": [", "\"policies\": {");
    original.change("bsm.json", "\"version\": \"0.1.0\"", "\"version\": \"7\"");
    refuses(lab, &["/etc/raind/store/bsm.json", "\"7\" is not known", "line 2"]);
    original.change("bsm.json", "\"version\": \"7\"", "\"version\": \"0.1.0\", \"later\": 1");
    let lock = std::fs::File::open(lab.machine().path("/etc/raind/store/csm.json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refuses(lab, &["csm.json.lock", "original daemon", "stop it"]);
    drop(lock);
    let taken = lab
        .machine()
        .at(Place::Host, || std::net::TcpListener::bind("127.0.0.1:7755").unwrap());
    refuses(lab, &["7755"]);
    drop(taken);
    // No link, no rule, no address.
    let left = before.same_as(&lab.inventory()).err().unwrap_or_default();
    for kind in ["iptables: +", "links: +", "addresses: +"] {
        assert!(!left.contains(kind), "{left}");
    }
    lab.daemon().start();
    assert_eq!(lab.api().ok(get("/v1/containers")).as_array().unwrap().len(), 5);
    assert!(lab.daemon().log().contains("bsm.json: ignored unknown members later"));
}
