//! What others see of the host: all its TCP ports and the UDP ones that matter, before and after something is published.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{HOST, ImageSpec, Lab, Place, wait_for};

/// How long a port may take to answer; twice, before it counts as one that drops what comes.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who asks at the same time.
const THREADS: usize = 16;
/// Ports of well-known services over UDP, what overlay networks and discovery use, our own, and some that nobody uses.
const UDP: [u16; 30] = [
    7, 53, 67, 68, 69, 80, 111, 123, 137, 138, 161, 443, 500, 514, 631, 1194, 1812, 1900, 2049, 4500, 4789, 5060, 5353,
    5354, 7755, 7756, 7757, 8472, 51_820, 60_000,
];

/// A port that does not simply refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    Open(&'static str, u16),
    /// No answer at all.
    Silent(&'static str, u16),
}

/// What one scan has found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scan(BTreeSet<Port>);

impl Display for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Scan {
    fn of(lab: &Lab, place: Place, address: &str) -> Self {
        let ports: Vec<u16> = (1..=u16::MAX).collect();
        let found = lab.machine().at(place, || {
            thread::scope(|scope| {
                let tasks = ports.chunks(ports.len().div_ceil(THREADS)).map(|chunk| {
                    scope.spawn(move || chunk.iter().filter_map(|port| tcp(address, *port)).collect::<Vec<_>>())
                });
                let tasks: Vec<_> = tasks.collect();
                let tcp = tasks.into_iter().flat_map(|task| task.join().unwrap());
                let found: BTreeSet<_> = tcp.chain(UDP.iter().filter_map(|port| udp(address, *port))).collect();
                found
            })
        });
        Self(found)
    }

    fn with(&self, ports: &[Port]) -> Self {
        Self(self.0.iter().chain(ports).copied().collect())
    }
}

fn tcp(address: &str, port: u16) -> Option<Port> {
    let target: SocketAddr = format!("{address}:{port}").parse().unwrap();
    for again in [false, true] {
        match TcpStream::connect_timeout(&target, PATIENCE) {
            // A port of the client's own choice may be the very one that it asks: then it has found itself.
            Ok(stream) if stream.local_addr().unwrap() == target => return None,
            Ok(_) if again => return Some(Port::Open("tcp", port)),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::TimedOut => {}
            Err(_) => return None,
        }
    }
    Some(Port::Silent("tcp", port))
}

fn udp(address: &str, port: u16) -> Option<Port> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE / 4)).unwrap();
    socket.connect((address, port)).unwrap();
    // What is on its way to nobody may be lost on a busy machine.
    for _ in 0..4 {
        if socket.send(b"ping").is_err() {
            return None;
        }
        match socket.recv(&mut [0; 16]) {
            Ok(_) => return Some(Port::Open("udp", port)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return None,
        }
    }
    Some(Port::Silent("udp", port))
}

/// From the outside by the host's address, and on the host by 127.0.0.1.
fn scans(lab: &Lab) -> [Scan; 2] {
    [
        Scan::of(lab, Place::Outside, HOST),
        Scan::of(lab, Place::Host, "127.0.0.1"),
    ]
}

#[test]
fn a_scan_of_the_host_sees_what_was_published_and_nothing_else() {
    let lab = Lab::start();
    // Otherwise the kernel tells only once in a second that nobody listens.
    let unlimited = "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit";
    lab.machine().run(&["sh", "-c", unlimited]);
    let without = Scan::of(&lab, Place::Outside, HOST);
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let api = lab.api();
    let before = scans(&lab);
    // Hooks come in from containers only: the outside gets no answer there, refused or not.
    let hooks = [Port::Silent("tcp", 7756)];
    assert_eq!(
        before[0].with(&hooks),
        without.with(&hooks),
        "the daemon itself is seen from the outside"
    );

    let inside = api.create(json!({ "image": image, "command": ["httpd", "-f", "-p", "9999", "-h", "/www"] }));
    let web = ["httpd", "-f", "-p", "8080", "-h", "/www"];
    let web = api.create(json!({ "image": image, "command": web, "port": ["80:8080", "60000:1053:udp"] }));
    api.start(&inside);
    api.start(&web);
    let server = lab
        .machine()
        .at(lab.network_of(&web), || UdpSocket::bind("0.0.0.0:1053").unwrap());
    let echo = thread::spawn(move || {
        let mut word = [0; 16];
        while let Ok((length, peer)) = server.recv_from(&mut word) {
            if &word[..length] == b"end" {
                break;
            }
            server.send_to(&word[..length], peer).unwrap();
        }
    });
    wait_for("an answer", Duration::from_secs(20), || {
        lab.outside_get("192.0.2.2:80", "/")
    });
    let asked = [Port::Open("tcp", 80), Port::Open("udp", 60_000)];
    let during = scans(&lab);
    for (during, before) in during.iter().zip(&before) {
        assert_eq!(*during, before.with(&asked));
    }

    let socket = lab
        .machine()
        .at(Place::Outside, || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.send_to(b"end", (HOST, 60_000)).unwrap();
    echo.join().unwrap();
    api.stop(&web);
    for (after, before) in scans(&lab).iter().zip(&before) {
        assert_eq!(after, before, "stopped");
    }
    api.stop(&inside);
    for id in [&web, &inside] {
        api.delete(id);
    }
    for (after, before) in scans(&lab).iter().zip(&before) {
        assert_eq!(after, before, "deleted");
    }
}
