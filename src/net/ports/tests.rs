use std::net::{TcpListener, UdpSocket};

use super::*;
use crate::model::fixtures::{container, network, service};
use crate::model::{ContainerState, Txn};
use crate::store::StoreError;

/// An address that no other test on this machine uses.
fn address() -> Ipv4Addr {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let [.., a, b] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, a, b, NEXT.fetch_add(1, Ordering::Relaxed))
}

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    ports: HostPorts,
    address: Ipv4Addr,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let address = address();
        Self {
            ports: HostPorts::new(store.clone(), address),
            _dir: dir,
            store,
            address,
        }
    }

    async fn change(&self, change: impl FnOnce(&mut Txn) + Send + 'static) {
        let changed = self.store.transact(move |t| {
            change(t);
            Ok::<_, StoreError>(())
        });
        changed.await.unwrap();
        self.ports.keep();
    }

    fn listens(&self, port: u16) -> io::Result<TcpListener> {
        TcpListener::bind((self.address, port))
    }
}

fn forward(port: u16) -> Forward {
    container("x", "x").forward(port).spec.forwards.remove(0)
}

#[tokio::test]
async fn what_the_rows_publish_is_held_and_nothing_else() {
    let bench = Bench::new();
    bench
        .change(|t| {
            t.put(network("raind0", "10.166.0.0/24")).unwrap();
            let running = container("a", "web").in_state(ContainerState::Running);
            t.put(running.forward(8080).address("10.166.0.1")).unwrap();
            t.put(container("b", "idle").forward(8081)).unwrap();
            t.put(service("s", "shop", &[8082])).unwrap();
        })
        .await;
    let is_held = |port| bench.listens(port).is_err();
    assert_eq!([8080, 8081, 8082].map(is_held), [true, false, true]);
    // A container's own ports do not conflict with its next start, whichever check runs first.
    bench.ports.check(&[forward(8080)]).unwrap();
    bench.ports.hold(&[forward(8080), forward(8083)]).unwrap();
    assert!(is_held(8083));
    bench
        .change(|t| {
            t.update::<crate::model::Container>("a", |c| c.status.state = ContainerState::Stopped)
                .unwrap();
            t.remove::<Service>("s").unwrap();
        })
        .await;
    assert_eq!([8080, 8082, 8083].map(is_held), [false; 3]);
}

#[tokio::test]
async fn all_ports_are_got_or_none_and_the_holder_is_named() {
    let bench = Bench::new();
    let holder = bench.listens(8081).unwrap();
    for refused in [
        bench.ports.check(&[forward(8080), forward(8081)]),
        bench.ports.hold(&[forward(8080), forward(8081)]),
    ] {
        let message = refused.unwrap_err().to_string();
        assert_eq!(message, "port 8081/tcp is already used by condenser itself");
    }
    bench.listens(8080).unwrap();
    drop(holder);
    bench.ports.hold(&[forward(8080), forward(8081)]).unwrap();
    bench.listens(8081).unwrap_err();
    let elsewhere = Forward {
        host_address: Some([192, 0, 2, 99].into()),
        ..forward(8080)
    };
    let message = bench.ports.check(&[elsewhere]).unwrap_err().to_string();
    assert_eq!(message, "192.0.2.99 is not an address of this host");
}

#[tokio::test]
async fn one_number_has_two_protocols() {
    let bench = Bench::new();
    let udp = Forward {
        protocol: Protocol::Udp,
        ..forward(8080)
    };
    let holder = UdpSocket::bind((bench.address, 8080)).unwrap();
    bench.ports.hold(&[forward(8080)]).unwrap();
    let message = bench.ports.check(std::slice::from_ref(&udp)).unwrap_err().to_string();
    assert!(message.starts_with("port 8080/udp is already used by "), "{message}");
    drop(holder);
    bench.ports.hold(&[udp]).unwrap();
    UdpSocket::bind((bench.address, 8080)).unwrap_err();
}

#[tokio::test]
async fn what_is_missing_is_held_as_soon_as_it_is_free() {
    let bench = Bench::new();
    let holder = bench.listens(8080).unwrap();
    bench
        .change(|t| {
            drop(
                t.put(container("a", "web").in_state(ContainerState::Running).forward(8080))
                    .unwrap(),
            )
        })
        .await;
    assert_eq!(bench.ports.held().missing.len(), 1);
    drop(holder);
    bench.ports.keep();
    assert!(bench.ports.held().missing.is_empty());
    bench.listens(8080).unwrap_err();
}

#[tokio::test]
async fn a_port_without_a_number_gets_one_and_keeps_it() {
    let bench = Bench::new();
    let wanted = vec![forward(0), forward(0), forward(8080)];
    let mut wanted = wanted;
    wanted.iter_mut().for_each(|f| f.container_port = 80);
    let snapshot = bench.store.snapshot();
    let assigned = bench.ports.assign(&snapshot, wanted.clone(), &[]).unwrap();
    assert!(assigned[0].host_port > 0 && assigned[0].host_port != assigned[1].host_port);
    assert_eq!(assigned[2], wanted[2]);
    let again = bench.ports.assign(&snapshot, wanted, &assigned).unwrap();
    let numbers = |all: &[Forward]| all.iter().map(|f| f.host_port).collect::<BTreeSet<_>>();
    assert_eq!(numbers(&again), numbers(&assigned));
}
