//! Services on a real kernel with real packets, each test in namespaces of its own (`support::net`). Pods are rows of the
//! store and network namespaces here; whole pods are in `tests/e2e/services.rs`.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use condenser::model::Protocol::{Tcp, Udp};
use condenser::model::{Protocol, ServicePort};
use condenser::net::enforcement::Firewall;
use condenser::net::firewall::{FirewallSettings, Variant};
use condenser::net::ports::HostPorts;
use condenser::workload::balancer::{NewService, ServiceRegistry};
use support::net::*;
use tokio_util::sync::CancellationToken;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn shop(ports: &[(u16, u16, Protocol)]) -> NewService {
    let port = |&(port, target_port, protocol): &(u16, u16, Protocol)| ServicePort {
        port,
        target_port,
        protocol,
        written_protocol: protocol.to_string(),
    };
    NewService {
        name: "shop".into(),
        namespace: "default".into(),
        selector: [("app".to_owned(), "shop".to_owned())].into(),
        ports: ports.iter().map(port).collect(),
        affinity_seconds: None,
    }
}

fn registry(lab: &Lab) -> ServiceRegistry {
    let ports = HostPorts::new(lab.store.clone(), ANY);
    ServiceRegistry::new(lab.store.clone(), ports, [7755])
}

/// A pod of the shop that answers on port 80 with its id.
fn pod(lab: &Lab, id: &str) -> Guest {
    let guest = lab.pod(id, "shop");
    let network = lab.network();
    lab.block_on(network.container_attached(&guest.veth)).unwrap();
    serve(&guest.place, SocketAddrV4::new(ANY, 80), id);
    guest
}

fn follow(lab: &Lab, firewall: &Firewall) {
    lab.spawn(firewall.clone().follow(lab.store.clone(), CancellationToken::new()));
}

/// Whether there is any rule of services.
fn has_rules(iptables: &str) -> bool {
    rules_of(&format!("{iptables}-save")).contains("RAIND-SVC-")
}

/// How long a refusal takes.
fn refused_within(place: &Place, address: Ipv4Addr, port: u16) -> Duration {
    let begun = Instant::now();
    let error = inside(place, || {
        TcpStream::connect_timeout(&SocketAddrV4::new(address, port).into(), SOON)
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{place:?} {address}:{port}");
    begun.elapsed()
}

/// Every way to a service, with a FORWARD policy of DROP as on hardened hosts.
fn traffic(variant: Variant, iptables: &str) {
    isolated(|lab| {
        let network = lab.network();
        lab.block_on(network.create("other")).unwrap();
        let web = pod(lab, "aaaaaaaaaaaa");
        let client = lab.container("bbbbbbbbbbbb", "raind0", &[]);
        let far = lab.container("cccccccccccc", "other", &[]);
        serve(&outside(), SocketAddrV4::new(INTERNET, 11240), "outside");
        let settings = FirewallSettings {
            variant,
            ..FirewallSettings::default()
        };
        let firewall = lab.firewall(&network, settings);
        let save = format!("{iptables}-save");
        let before = rules_of(&save);
        run(&format!("{iptables} -P FORWARD DROP"));
        let service = registry(lab);
        let ports = [(11240, 80, Tcp), (11240, 80, Udp), (11241, 80, Tcp)];
        let id = lab.block_on(service.create(shop(&ports))).unwrap().id.clone();
        lab.block_on(firewall.apply()).unwrap();
        assert!(
            !lab.block_on(firewall.verify_and_repair()).unwrap(),
            "what the tool prints is what we wrote"
        );

        assert_eq!(
            assert_reaches(&outside(), (HOST, 11240), "aaaaaaaaaaaa"),
            OUTSIDE.to_string(),
            "the client is not hidden"
        );
        for address in [HOST, LOOPBACK, web.gateway] {
            assert_reaches(&Place::Host, (address, 11240), "aaaaaaaaaaaa");
        }
        for address in [HOST, web.gateway] {
            assert_eq!(
                assert_reaches(&client.place, (address, 11240), "aaaaaaaaaaaa"),
                client.address.to_string()
            );
        }
        assert_reaches(&web.place, (HOST, 11240), "aaaaaaaaaaaa");
        assert_answers(&outside(), Tcp, (HOST, 11241), "aaaaaaaaaaaa");
        assert_silent(&outside(), Udp, (HOST, 11241));
        // Containers of other networks do not reach it, and hear so at once.
        assert!(refused_within(&far.place, HOST, 11240) < Duration::from_secs(1));
        // Only the host's own port is the service (N-23).
        assert_reaches(&client.place, (INTERNET, 11240), "outside");
        assert_blocked(&outside(), (HOST, 80));
        assert_blocked(&client.place, (web.address, 80));

        // One set of accepts for the destination, however many ports lead there (N-25).
        let accepts = |chain: &str, protocol: &str| {
            let rules = rules_of(&save);
            let to_pod = format!("-A {chain} -d {}/32", web.address);
            let is_accept = |l: &&str| l.starts_with(&to_pod) && l.contains(protocol) && l.ends_with("-j ACCEPT");
            rules.lines().filter(is_accept).count()
        };
        assert_eq!(
            (accepts("RAIND-HAIRPIN", "-p tcp"), accepts("RAIND-HAIRPIN", "-p udp")),
            (1, 1)
        );

        // No pod: the host refuses; a service without pods does not hang.
        lab.set_ready("aaaaaaaaaaaa", false);
        lab.block_on(firewall.apply()).unwrap();
        for place in [outside(), Place::Host, client.place.clone()] {
            assert!(refused_within(&place, HOST, 11240) < Duration::from_secs(1));
        }
        assert_eq!(accepts("RAIND-HAIRPIN", ""), 0);

        lab.block_on(service.remove(&id)).unwrap();
        lab.block_on(firewall.apply()).unwrap();
        run(&format!("{iptables} -P FORWARD ACCEPT"));
        assert_eq!(rules_of(&save), before);
    });
}

#[test]
fn a_service_is_reached_from_everywhere_with_nft() {
    traffic(Variant::Nft, "iptables-nft");
}

#[test]
fn a_service_is_reached_from_everywhere_with_legacy() {
    traffic(Variant::Legacy, "iptables-legacy");
}

/// Who answers that many connections of one client, and how often.
fn answers(place: &Place, address: (Ipv4Addr, u16), count: usize) -> BTreeMap<String, usize> {
    let server = SocketAddrV4::new(address.0, address.1);
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        *seen.entry(answer(place, server)).or_default() += 1;
    }
    seen
}

fn answer(place: &Place, server: SocketAddrV4) -> String {
    use std::io::Read;
    let said = inside(place, || {
        let mut stream = TcpStream::connect_timeout(&server.into(), SOON)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    said.unwrap().split_once(' ').unwrap().0.to_owned()
}

#[test]
fn connections_are_spread_over_ready_pods_and_follow_them_at_once() {
    isolated(|lab| {
        let network = lab.network();
        let pods = ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc", "dddddddddddd"];
        let _guests = pods.map(|id| pod(lab, id));
        let firewall = lab.firewall(&network, FirewallSettings::default());
        follow(lab, &firewall);
        lab.block_on(registry(lab).create(shop(&[(11240, 80, Tcp)]))).unwrap();
        wait_for("the rules", SOON, || when(rules(), |_| has_rules("iptables")));
        // 400 draws of 1 in 4: fewer than 60 for one of them is less likely than one in a million.
        let seen = answers(&outside(), (HOST, 11240), 400);
        assert!(seen.len() == 4 && seen.values().all(|n| *n >= 60), "{seen:?}");

        for gone in pods {
            lab.set_ready(gone, false);
            let row = lab.store.snapshot().containers().get(gone).unwrap().clone();
            let address = row.status.attachment.as_ref().unwrap().address;
            wait_for("the end of an endpoint", SOON, || {
                when(rules(), |rules| {
                    !rules.contains(&format!("{address}:80")) && !rules.contains(&format!("-d {address}/32"))
                })
            });
            if gone == pods[3] {
                break;
            }
            let seen = answers(&outside(), (HOST, 11240), 40);
            assert!(!seen.contains_key(gone), "{gone}: {seen:?}");
        }
        lab.set_ready(pods[1], true);
        wait_for("a pod that is back", SOON, || {
            when(rules(), |rules| rules.contains("RAIND-SVC") && rules.contains(":80"))
        });
        assert_eq!(answer(&outside(), SocketAddrV4::new(HOST, 11240)), pods[1]);
    });
}

fn affinity(variant: Variant) {
    isolated(|lab| {
        let network = lab.network();
        let guests = ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"].map(|id| pod(lab, id));
        let settings = FirewallSettings {
            variant,
            ..FirewallSettings::default()
        };
        let firewall = lab.firewall(&network, settings);
        let sticky = |seconds| NewService {
            affinity_seconds: Some(seconds),
            ..shop(&[(11240, 80, Tcp), (11241, 80, Tcp)])
        };
        let registry = registry(lab);
        let id = lab.block_on(registry.create(sticky(600))).unwrap().id.clone();
        lab.block_on(firewall.apply()).unwrap();
        assert!(!lab.block_on(firewall.verify_and_repair()).unwrap());
        let seen = answers(&outside(), (HOST, 11240), 30);
        assert_eq!(seen.len(), 1, "{seen:?}");
        let here = seen.keys().next().unwrap().clone();
        let other_port = answers(&outside(), (HOST, 11241), 30);
        assert_eq!(
            other_port.keys().collect::<Vec<_>>(),
            [&here],
            "on all ports of the service"
        );
        // A change of the others does not move it.
        let other = guests.iter().map(|g| &g.place).find(|p| **p != Place::In(here.clone()));
        let Some(Place::In(other)) = other else { unreachable!() };
        lab.set_ready(other, false);
        lab.block_on(firewall.apply()).unwrap();
        assert_eq!(
            answers(&outside(), (HOST, 11240), 30).keys().collect::<Vec<_>>(),
            [&here]
        );
        // The end of its own does.
        lab.set_ready(&here, false);
        lab.block_on(firewall.apply()).unwrap();
        let moved = answers(&outside(), (HOST, 11240), 30);
        assert!(moved.len() == 1 && !moved.contains_key(&here), "{moved:?}");
        for id in [&here, other] {
            lab.set_ready(id, true);
        }
        lab.block_on(firewall.apply()).unwrap();
        assert_eq!(answers(&outside(), (HOST, 11240), 30), moved);
        // Clients that come less often are spread again.
        lab.block_on(registry.replace(&id, sticky(1))).unwrap();
        lab.block_on(firewall.apply()).unwrap();
        let first = moved.keys().next().unwrap();
        let moves = (0..20).any(|_| {
            // The time itself is what is tested; each try has two chances in three.
            std::thread::sleep(Duration::from_millis(1200));
            answer(&outside(), SocketAddrV4::new(HOST, 11240)) != *first
        });
        assert!(moves, "{first} after a second");
    });
}

#[test]
fn a_client_stays_with_its_pod_with_nft() {
    affinity(Variant::Nft);
}

#[test]
fn a_client_stays_with_its_pod_with_legacy() {
    affinity(Variant::Legacy);
}

#[test]
fn a_udp_client_that_never_pauses_leaves_a_pod_that_is_gone() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        follow(lab, &firewall);
        lab.block_on(registry(lab).create(shop(&[(5000, 80, Udp)]))).unwrap();
        wait_for("the rules", SOON, || when(rules(), |_| has_rules("iptables")));
        let socket = inside(&outside(), || UdpSocket::bind((OUTSIDE, 4000)).unwrap());
        let server = SocketAddrV4::new(HOST, 5000);
        let ask = |limit| ask_from(&socket, server, limit).map(|said| said.split_once(' ').unwrap().0.to_owned());
        // A flow that began before there was any pod.
        assert!(ask(Duration::from_millis(150)).is_err());
        let pods = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"];
        for id in pods {
            let _guest = pod(lab, id);
            if id != pods[0] {
                lab.set_ready(pods[0], false);
            }
            wait_for("an answer of the pod that is there now", SOON, || {
                let said = ask(Duration::from_millis(200)).map_err(|e| e.to_string())?;
                when(said, |who| who == id)
            });
        }
        lab.set_ready(pods[1], false);
        wait_for("silence", SOON, || match ask(Duration::from_millis(150)) {
            Ok(who) => Err(who),
            Err(_) => Ok(()),
        });
    });
}

/// Notes each run, then does it.
const COUNTED: &str = "echo \"$0 $*\" | sed 's|.*/||' >> $LOG\nexec $REAL \"$@\"";

#[test]
fn a_hundred_services_are_one_run() {
    let programs = ["iptables-restore", "ip6tables-restore"].map(|p| (p, COUNTED));
    isolated_with(&programs, |lab| {
        let network = lab.network();
        for n in 0..4 {
            lab.pod(&format!("pod{n}"), "shop");
        }
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let registry = registry(lab);
        let begun = lab.runs().len();
        let all = (0..100).map(|n| {
            registry.create(NewService {
                name: format!("shop{n}"),
                ..shop(&[(20_000 + n, 80, Tcp)])
            })
        });
        let made = lab.block_on(futures_util::future::join_all(all));
        let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
        lab.block_on(firewall.apply()).unwrap();
        let runs = lab.runs().split_off(begun);
        assert_eq!(runs.len(), 1, "{runs:?}");
        assert_eq!(rules().matches("\n:RAIND-SVC-").count(), 100, "a chain for each");
        let before = lab.runs().len();
        follow(lab, &firewall);
        let removals = made.iter().map(|service| registry.remove(&service.id));
        lab.block_on(futures_util::future::join_all(removals));
        wait_for("the end of all chains", SOON, || {
            when(rules(), |rules| !rules.contains("RAIND-SVC-"))
        });
        let runs = lab.runs().split_off(before);
        assert!(runs.len() <= 10, "a burst is few runs: {}", runs.len());
    });
}
