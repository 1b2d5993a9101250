//! A network laboratory for tests of `network` and `firewall`: real packets, nothing of the machine touched.
//!
//! ```text
//!   outside (192.0.2.1, 198.51.100.1) ---- eth0 192.0.2.2 | host: the test itself | raind0 ---- containers
//! ```
//!
//! The host is the test's own process: [`isolated`] runs the test function again within a lab (`scripts/lab.sh`). Containers
//! are network namespaces inside it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use condenser::model::*;
use condenser::net::bridges::{NetworkService, NetworkSettings, Uplink, ipam};
use condenser::net::enforcement::Firewall;
use condenser::net::firewall::FirewallSettings;
use condenser::store::*;

use super::machine::within;
pub use super::{SOON, wait_for, when};

/// Set to the directory of the test's own programs.
const PROGRAMS: &str = "CONDENSER_TEST_PROGRAMS";
/// How long is waited for something that should not happen.
const NEVER: Duration = Duration::from_millis(400);

pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// A place with a network stack of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Host,
    In(String),
}

pub fn outside() -> Place {
    Place::In("outside".into())
}

/// Runs `test` as the host of a laboratory.
pub fn isolated(test: impl FnOnce(&Lab)) {
    isolated_with(&[], test);
}

/// The same with `programs` before all others on the PATH: name and shell script, in which `$REAL` is the real program.
pub fn isolated_with(programs: &[(&str, &str)], test: impl FnOnce(&Lab)) {
    if std::env::var_os(PROGRAMS).is_some() {
        return within(&[], || test(&Lab::new()));
    }
    let dir = tempfile::tempdir().unwrap();
    for (program, script) in programs {
        let path = dir.path().join(program);
        let text = format!(
            "#!/bin/sh\nREAL=/usr/sbin/{program}\nLOG={}/log\n{script}\n",
            dir.path().display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let others = std::env::var("PATH").unwrap();
    let path = format!("{}:{others}:/usr/sbin:/sbin", dir.path().display());
    let environment = [("PATH", path.as_ref()), (PROGRAMS, dir.path().as_os_str())];
    within(&environment, || test(&Lab::new()));
}

pub struct Lab {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    pub store: Store,
}

impl Lab {
    fn new() -> Self {
        run("ip -n outside addr add 198.51.100.1/32 dev lo");
        for name in [
            "ipv4/ip_forward",
            "bridge/bridge-nf-call-iptables",
            "bridge/bridge-nf-call-ip6tables",
        ] {
            std::fs::write(format!("/proc/sys/net/{name}"), "0").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("condenser.db")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { dir, runtime, store }
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    pub fn network(&self) -> NetworkService {
        self.block_on(NetworkService::start(network_settings(), self.store.clone()))
            .unwrap()
    }

    pub fn firewall(&self, network: &NetworkService, settings: FirewallSettings) -> Firewall {
        self.block_on(Firewall::start(self.store.clone(), network.uplink(), settings))
            .unwrap()
    }

    /// Stores a container and gives it a network namespace attached as the low-level runtime does it.
    pub fn container(&self, id: &str, network: &str, forwards: &[Forward]) -> Guest {
        let address = self.reserve(id, network, forwards);
        let network = self.store.snapshot().get::<Network>(network).unwrap().clone();
        let (veth, gateway, bridge) = (format!("rd_{id}"), network.gateway, &network.name);
        run(&format!("ip netns add {id}"));
        run(&format!("ip link add {veth} type veth peer name eth0 netns {id}"));
        run(&format!("ip link set {veth} master {bridge} up"));
        run(&format!("ip -n {id} link set lo up"));
        run(&format!("ip -n {id} addr add {address}/24 dev eth0"));
        run(&format!("ip -n {id} link set eth0 up"));
        run(&format!("ip -n {id} route add default via {gateway}"));
        Guest {
            place: Place::In(id.into()),
            address,
            veth,
            gateway,
        }
    }

    /// Only the row of a container.
    pub fn reserve(&self, id: &str, network: &str, forwards: &[Forward]) -> Ipv4Addr {
        let (id, network, forwards) = (id.to_owned(), network.to_owned(), forwards.to_vec());
        self.block_on(self.store.transact(move |t| {
            let network = t.get::<Network>(&network).unwrap();
            let address = ipam::lowest_free(t.snapshot(), &network).unwrap();
            let mut row = bare_container(&id);
            row.status.attachment = Some(Attachment {
                network: network.name.clone(),
                address,
            });
            row.spec.forwards = forwards;
            t.put(row).unwrap();
            Ok::<_, StoreError>(address)
        }))
        .unwrap()
    }

    /// Stores a pod that is ready, with the label `app: <app>`, whose infra container has a network namespace.
    pub fn pod(&self, id: &str, app: &str) -> Guest {
        let guest = self.container(id, "raind0", &[]);
        let (id, app) = (id.to_owned(), app.to_owned());
        self.change(move |t| {
            t.update::<Container>(&id, |infra| {
                infra.name = format!("condenser-pod-infra-{id}");
                infra.role = Role::Infra { pod: id.clone() };
            })
            .unwrap();
            let member = Container {
                role: Role::Member { pod: id.clone() },
                ..bare_container(&format!("{id}-member"))
            };
            t.put(member).unwrap();
            t.put(bare_pod(&id, &app)).unwrap();
        });
        guest
    }

    /// Makes the only member of a pod run or not, and with it the pod ready or not.
    pub fn set_ready(&self, pod: &str, ready: bool) {
        let member = format!("{pod}-member");
        self.change(move |t| {
            let state = if ready {
                ContainerState::Running
            } else {
                ContainerState::Stopped
            };
            t.update::<Container>(&member, |c| c.status.state = state)
                .unwrap()
                .unwrap();
        });
    }

    /// Changes the store.
    pub fn change(&self, change: impl FnOnce(&mut Txn) + Send + 'static) {
        self.block_on(self.store.transact(move |t| {
            change(t);
            Ok::<_, StoreError>(())
        }))
        .unwrap();
    }

    /// Removes the row and the namespace of a container.
    pub fn remove(&self, id: &str) {
        self.forget(id);
        run(&format!("ip netns del {id}"));
    }

    /// Removes only the row of a container.
    pub fn forget(&self, id: &str) {
        let row = id.to_owned();
        self.block_on(
            self.store
                .transact(move |t| Ok::<_, StoreError>(t.remove::<Container>(&row))),
        )
        .unwrap();
    }

    /// Takes a container its published ports.
    pub fn unpublish(&self, id: &str) {
        let row = id.to_owned();
        self.block_on(self.store.transact(move |t| {
            t.update::<Container>(&row, |c| c.spec.forwards.clear()).unwrap();
            Ok::<_, StoreError>(())
        }))
        .unwrap();
    }

    /// What the programs given to [`isolated_with`] wrote to `$LOG`, one line per run.
    pub fn runs(&self) -> Vec<String> {
        let log = PathBuf::from(std::env::var_os(PROGRAMS).unwrap()).join("log");
        std::fs::read_to_string(log)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    pub fn wait_for_uplink(&self, network: &NetworkService, wanted: Option<&str>) {
        let mut uplink = network.uplink();
        let is_wanted = |u: &Option<Uplink>| u.as_ref().map(|u| &*u.interface) == wanted;
        let found = self.block_on(async {
            tokio::time::timeout(SOON, uplink.wait_for(is_wanted))
                .await
                .map(|r| r.is_ok())
        });
        assert_eq!(found, Ok(true), "the uplink never became {wanted:?}");
    }
}

/// A container of the laboratory.
pub struct Guest {
    pub place: Place,
    pub address: Ipv4Addr,
    pub veth: String,
    pub gateway: Ipv4Addr,
}

pub fn network_settings() -> NetworkSettings {
    NetworkSettings {
        runtime_subnet: "10.166.0.0/16".parse().unwrap(),
        allow_unfiltered_bridges: false,
    }
}

pub fn forward(host_port: u16, container_port: u16, protocol: Protocol) -> Forward {
    Forward {
        host_address: None,
        host_port,
        container_port,
        protocol,
    }
}

fn bare_container(id: &str) -> Container {
    let spec = ContainerSpec {
        image: ContainerImage {
            repository: "library/none".into(),
            reference: "latest".into(),
            layers: Vec::new(),
        },
        process: ProcessSpec::default(),
        tty: false,
        options: ContainerOptions::default(),
        mounts: Vec::new(),
        forwards: Vec::new(),
        inherited: Default::default(),
    };
    let mut row = Container::new(id.into(), format!("name-{id}"), Role::Alone, spec);
    row.status.state = ContainerState::Running;
    row
}

fn bare_pod(id: &str, app: &str) -> Pod {
    Pod {
        id: id.into(),
        name: format!("name-{id}"),
        namespace: "default".into(),
        uid: id.into(),
        owner: None,
        template: PodTemplate {
            id: format!("{id}-template"),
            labels: [("app".to_owned(), app.to_owned())].into(),
            annotations: Default::default(),
            spec: PodSpec::default(),
        },
        goal: PodGoal::Running,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        started_at: None,
        stopped_at: None,
        problem: None,
        successor: None,
    }
}

/// Runs a command line, words separated by blanks, and returns what it printed.
#[track_caller]
pub fn run(line: &str) -> String {
    let output = try_run(line);
    output.unwrap_or_else(|message| panic!("{line}: {message}"))
}

pub fn try_run(line: &str) -> Result<String, String> {
    let mut words = line.split_ascii_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Feeds `input` to a program.
#[track_caller]
pub fn feed(line: &str, input: &str) {
    let mut words = line.split_ascii_whitespace();
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{line}");
}

/// Runs `work` in a thread that is in `place`: a socket belongs to the network of the thread that opened it.
pub fn inside<T: Send>(place: &Place, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Place::In(name) = place {
                let namespace = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            }
            work()
        });
        thread.join().unwrap()
    })
}

/// A server in `place` that answers each client with `<word> <address of the client>`, TCP and UDP.
pub fn serve(place: &Place, address: impl Into<SocketAddrV4>, word: &str) {
    let address = address.into();
    let (tcp, udp) = inside(place, || {
        (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
    });
    let words = word.to_owned();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let client = stream.peer_addr().unwrap().ip();
            let _ = write!(stream, "{words} {client}");
        }
    });
    let words = word.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            let (_, client) = udp.recv_from(&mut buffer).unwrap();
            let _ = udp.send_to(format!("{words} {}", client.ip()).as_bytes(), client);
        }
    });
}

/// What a server answers to a client in `place`, asked again until `limit`.
fn ask(place: &Place, protocol: Protocol, server: SocketAddrV4, limit: Duration) -> io::Result<String> {
    inside(place, || match protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&server.into(), limit)?;
            stream.set_read_timeout(Some(limit))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            ask_from(&socket, server, limit)
        }
    })
}

/// The same by UDP from an existing socket.
pub fn ask_from(socket: &UdpSocket, server: SocketAddrV4, limit: Duration) -> io::Result<String> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let begun = Instant::now();
    let mut buffer = [0; 64];
    loop {
        socket.send_to(b"?", server)?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == SocketAddr::V4(server) => {
                return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            Ok((_, from)) => return Err(io::Error::other(format!("answered by {from}"))),
            Err(e) if begun.elapsed() > limit => return Err(e),
            Err(_) => {}
        }
    }
}

/// Asserts that clients in `place` get `word` from `server`, by both protocols; returns the client's address as seen.
#[track_caller]
pub fn assert_reaches(place: &Place, server: (Ipv4Addr, u16), word: &str) -> String {
    assert_answers(place, Protocol::Udp, server, word);
    assert_answers(place, Protocol::Tcp, server, word)
}

/// Asserts that clients in `place` get no answer from `server`, by either protocol.
#[track_caller]
pub fn assert_blocked(place: &Place, server: (Ipv4Addr, u16)) {
    assert_silent(place, Protocol::Udp, server);
    assert_silent(place, Protocol::Tcp, server);
}

/// Asserts that a client in `place` gets `word` from `server`; returns the client's address as seen.
#[track_caller]
pub fn assert_answers(place: &Place, protocol: Protocol, server: (Ipv4Addr, u16), word: &str) -> String {
    let server = SocketAddrV4::new(server.0, server.1);
    let answer = ask(place, protocol, server, SOON);
    let answer = answer.unwrap_or_else(|e| panic!("{place:?} cannot reach {server}/{protocol}: {e}\n{}", rules()));
    let (said, from) = answer.split_once(' ').unwrap();
    assert_eq!(said, word, "{place:?} asked {server}/{protocol}");
    from.to_owned()
}

/// Asserts that a client in `place` gets no answer from `server`.
#[track_caller]
pub fn assert_silent(place: &Place, protocol: Protocol, server: (Ipv4Addr, u16)) {
    let server = SocketAddrV4::new(server.0, server.1);
    let answer = ask(place, protocol, server, NEVER);
    assert!(answer.is_err(), "{place:?} reaches {server}/{protocol}: {answer:?}");
}

/// All IPv4 rules of the host, without comments and counters.
pub fn rules() -> String {
    rules_of("iptables-save")
}

pub fn rules_of(save: &str) -> String {
    let text = run(save);
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|l| l.split(" [").next().unwrap().to_owned() + "\n").collect()
}
