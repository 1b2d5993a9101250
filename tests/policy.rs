//! Policies on a real kernel with real packets, for what needs no running containers: pods and replica sets as rows,
//! commits that the packet filter refuses, random policies against explanations.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use condenser::model::*;
use condenser::net::firewall::{FirewallSettings, Variant};
use condenser::net::policy::{NewPolicy, PolicyError, PolicyService, Question};
use condenser::store::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::net::*;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn east_west(source: &str, destination: &str) -> NewPolicy {
    NewPolicy {
        chain: "RAIND-EW".into(),
        source: source.into(),
        destination: destination.into(),
        ..NewPolicy::default()
    }
}

fn put<R: Record>(lab: &Lab, record: R) {
    lab.block_on(lab.store.transact(move |t| {
        t.put(record).unwrap();
        Ok::<_, StoreError>(())
    }))
    .unwrap();
}

fn template(id: &str) -> PodTemplate {
    PodTemplate {
        id: id.into(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        annotations: Default::default(),
        spec: PodSpec::default(),
    }
}

/// A pod with its infra container and one member.
fn pod(lab: &Lab, n: u8, owner: Option<&str>) -> Guest {
    let id = format!("01pod{n}");
    put(
        lab,
        Pod {
            id: id.clone(),
            name: format!("pod-{n}"),
            namespace: "default".into(),
            uid: id.clone(),
            owner: owner.map(str::to_owned),
            template: template(&format!("01template{n}")),
            goal: PodGoal::Running,
            created_at: jiff::Timestamp::now(),
            started_at: None,
            stopped_at: None,
            problem: None,
            successor: None,
        },
    );
    let row = format!("infra000000{n}");
    let guest = lab.container(&row, "raind0", &[]);
    let infra = Container::clone(lab.store.snapshot().containers().get(&row).unwrap());
    let mut member = Container {
        id: format!("member00000{n}"),
        name: format!("member-{n}"),
        role: Role::Member { pod: id.clone() },
        ..infra.clone()
    };
    member.status.attachment = None;
    put(
        lab,
        Container {
            name: format!("condenser-pod-infra-{id}"),
            role: Role::Infra { pod: id },
            ..infra
        },
    );
    put(lab, member);
    guest
}

fn replica_set(lab: &Lab, id: &str, name: &str) {
    put(
        lab,
        ReplicaSet {
            id: id.into(),
            name: name.into(),
            manifest_name: name.into(),
            namespace: "default".into(),
            replicas: 2,
            selector: [("app".to_owned(), "web".to_owned())].into(),
            template: template("01template"),
            update: UpdateStrategy::Replace,
            rollout: Rollout::default(),
            removing: false,
            created_at: jiff::Timestamp::now(),
        },
    );
}

#[test]
fn pods_and_replica_sets_are_covered_as_they_come_and_go() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let policies = PolicyService::new(lab.store.clone(), firewall.clone());
        let db = pod(lab, 1, None);
        serve(&db.place, SocketAddrV4::new(ANY, 80), "db");
        replica_set(lab, "01set", "web");
        let first = pod(lab, 2, Some("01set"));
        let to = (db.address, 80);
        // The database by a member of its pod, the clients by their replica set.
        lab.block_on(policies.add(east_west("web", "member-1"))).unwrap();
        lab.block_on(firewall.apply()).unwrap();
        assert_blocked(&first.place, to);
        lab.block_on(policies.commit()).unwrap();
        assert_reaches(&first.place, to, "db");
        // One that comes later, and one that is no member of the set.
        let second = pod(lab, 3, Some("01set"));
        let stranger = pod(lab, 4, None);
        lab.block_on(firewall.apply()).unwrap();
        assert_reaches(&second.place, to, "db");
        assert_blocked(&stranger.place, to);
        // One that is given away.
        lab.block_on(lab.store.transact(|t| {
            t.update::<Pod>("01pod3", |p| p.owner = None).unwrap();
            Ok::<_, StoreError>(())
        }))
        .unwrap();
        lab.block_on(firewall.apply()).unwrap();
        assert_blocked(&second.place, to);
        assert_reaches(&first.place, to, "db");
        // From pod to pod by their names.
        lab.block_on(policies.add(east_west("pod-4", "pod-1"))).unwrap();
        lab.block_on(policies.commit()).unwrap();
        assert_reaches(&stranger.place, to, "db");
        assert_blocked(&second.place, to);
    });
}

#[test]
fn a_bottle_brings_its_policies_and_takes_them_along() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let policies = PolicyService::new(lab.store.clone(), firewall);
        let [web, db, user] =
            ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"].map(|id| lab.container(id, "raind0", &[]));
        serve(&db.place, SocketAddrV4::new(ANY, 80), "db");
        let to = (db.address, 80);
        let of = |source: &str| east_west(source, "bbbbbbbbbbbb");
        lab.block_on(policies.add(of("cccccccccccc"))).unwrap();
        let two = vec![of("aaaaaaaaaaaa"), east_west("aaaaaaaaaaaa", "later")];
        let committed = lab.block_on(policies.add_and_commit(two, "bottle")).unwrap();
        assert!(
            committed
                .iter()
                .all(|p| p.stage == PolicyStage::Committed && p.owner.as_deref() == Some("bottle"))
        );
        assert_reaches(&web.place, to, "db");
        assert_blocked(&user.place, to);
        // One that cannot be meant: none of them.
        let bad = vec![of("cccccccccccc"), east_west("cccccccccccc", "10.0.0.1")];
        let refused = lab.block_on(policies.add_and_commit(bad, "other"));
        assert!(matches!(refused, Err(PolicyError::Invalid(_))));
        assert_eq!(lab.store.snapshot().policies().len(), 3);
        for _ in 0..2 {
            lab.block_on(policies.remove_of("bottle")).unwrap();
            assert_blocked(&web.place, to);
            assert_blocked(&user.place, to);
        }
        let left: Vec<_> = lab.store.snapshot().policies().iter().map(|p| p.stage).collect();
        assert_eq!(left, [PolicyStage::Added], "what a user staged is as it was");
    });
}

#[test]
fn a_commit_that_the_kernel_refuses_changes_nothing() {
    let picky = r#"INPUT=$(cat); case "$INPUT" in *"--dport 6666"*) echo "iptables-restore: line 2 failed: no room." >&2; exit 4;; esac
printf '%s\n' "$INPUT" | $REAL "$@""#;
    isolated_with(&[("iptables-restore", picky)], |lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let policies = PolicyService::new(lab.store.clone(), firewall.clone());
        let [web, db] = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"].map(|id| lab.container(id, "raind0", &[]));
        // The rules of the containers are there before they are compared.
        lab.block_on(firewall.apply()).unwrap();
        serve(&db.place, SocketAddrV4::new(ANY, 80), "db");
        let on_port = |dport| NewPolicy {
            protocol: "tcp".into(),
            dport,
            ..east_west("aaaaaaaaaaaa", "bbbbbbbbbbbb")
        };
        lab.block_on(policies.add(on_port(80))).unwrap();
        let bad = lab.block_on(policies.add(on_port(6666))).unwrap();
        lab.block_on(policies.set_mode("enforce")).unwrap();
        let before = rules();
        let error = lab.block_on(policies.commit()).unwrap_err();
        assert!(matches!(error, PolicyError::Firewall(_)));
        assert!(error.to_string().contains("no room"), "{error}");
        assert_eq!(rules(), before);
        let stages: Vec<_> = lab.store.snapshot().policies().iter().map(|p| p.stage).collect();
        assert_eq!(stages, [PolicyStage::Added, PolicyStage::Added]);
        assert_eq!(policies.list(PolicyChain::RaindNsEnf).0, "enforce_next_commit");
        let refused = lab.block_on(policies.add_and_commit(vec![on_port(6666)], "bottle"));
        assert!(matches!(refused, Err(PolicyError::Firewall(_))));
        assert_eq!(lab.store.snapshot().policies().len(), 2);
        // Without the bad one all of it holds.
        lab.block_on(policies.remove(&bad.id)).unwrap();
        lab.block_on(policies.commit()).unwrap();
        assert_answers(&web.place, Protocol::Tcp, (db.address, 80), "db");
        assert!(rules().contains("-A RAIND-ROOT -j RAIND-NS-ENF"));
    });
}

#[test]
fn a_commit_goes_on_without_its_caller() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let policies = PolicyService::new(lab.store.clone(), firewall);
        lab.block_on(policies.set_mode("enforce")).unwrap();
        lab.block_on(async {
            let mut commits = lab.store.subscribe();
            // Asked for, and given up in the next moment.
            let given_up = tokio::time::timeout(Duration::ZERO, policies.commit()).await;
            assert!(given_up.is_err());
            let committed = tokio::time::timeout(Duration::from_secs(10), commits.recv()).await;
            committed.expect("the commit goes on").unwrap();
        });
        assert_eq!(policies.list(PolicyChain::RaindNsEnf).0, "enforce");
    });
}

#[test]
fn a_container_cannot_send_under_the_address_of_another() {
    isolated(|lab| {
        let network = lab.network();
        let [web, db] = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"].map(|id| lab.container(id, "raind0", &[]));
        let server = inside(&outside(), || UdpSocket::bind((INTERNET, 80)).unwrap());
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // A second address of its own stands for a forged one: what the kernel sees is the same.
        let Place::In(name) = &db.place else { unreachable!() };
        let forged = Ipv4Addr::new(10, 166, 0, 77);
        run(&format!("ip -n {name} addr add {forged}/24 dev eth0"));
        let arrives = |address: Ipv4Addr| {
            let client = inside(&db.place, || UdpSocket::bind((address, 0)).unwrap());
            client.send_to(b"!", (INTERNET, 80)).unwrap();
            server.recv(&mut [0; 8]).is_ok()
        };
        lab.firewall(&network, FirewallSettings::default());
        wait_for("the true address", SOON, || when(arrives(db.address), |came| *came));
        assert!(![arrives(forged), arrives(forged)].contains(&true));
        assert!(arrives(db.address));
        drop(web);
    });
}

/// Whether the first packet of a connection arrives, by its answer.
fn probe(place: &Place, to: SocketAddr, protocol: &str) -> bool {
    const PATIENCE: Duration = Duration::from_millis(250);
    inside(place, || match protocol {
        "tcp" => TcpStream::connect_timeout(&to, PATIENCE).is_ok(),
        "udp" => {
            let socket = UdpSocket::bind((ANY, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(b"?", to).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        }
        other => panic!("{other} is not probed"),
    })
}

#[test]
fn explanations_agree_with_packets() {
    isolated(|lab| {
        let network = lab.network();
        lab.block_on(network.create("other")).unwrap();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let policies = PolicyService::new(lab.store.clone(), firewall.clone());
        let guests: Vec<_> = ["raind0", "raind0", "raind0", "other", "other"]
            .iter()
            .enumerate()
            .map(|(n, bridge)| (format!("{n}aaaaaaaaaaa"), *bridge))
            .map(|(id, bridge)| (lab.container(&id, bridge, &[]), id))
            .collect();
        let ports = [80, 81];
        for port in ports {
            for (guest, _) in &guests {
                serve(&guest.place, SocketAddrV4::new(ANY, port), "guest");
            }
            for address in [INTERNET, OUTSIDE] {
                serve(&outside(), SocketAddrV4::new(address, port), "outside");
            }
        }
        let mut dice = StdRng::seed_from_u64(7);
        let mut opened = 0;
        for round in 0..10 {
            for _ in 0..6 {
                let mut pick = |n: usize| dice.random_range(0..n);
                let chain = ["RAIND-EW", "RAIND-EW", "RAIND-NS-OBS", "RAIND-NS-ENF"][pick(4)];
                let outside = ["198.51.100.1", "198.51.100.0/24", "192.0.2.1", "0.0.0.0/0"][pick(4)];
                let (source, guest) = (guests[pick(5)].1.clone(), guests[pick(5)].1.clone());
                let protocol = ["", "tcp", "tcp", "udp"][pick(4)];
                let wish = NewPolicy {
                    chain: chain.into(),
                    source,
                    destination: if chain == "RAIND-EW" { guest } else { outside.into() },
                    protocol: protocol.into(),
                    dport: if protocol.is_empty() { 0 } else { [0, 80, 81][pick(3)] },
                    comment: String::new(),
                };
                match lab.block_on(policies.add(wish)) {
                    Ok(_) | Err(PolicyError::Duplicate(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            let mode = ["observe", "enforce"][round % 2];
            if round > 0 {
                lab.block_on(policies.set_mode(mode)).unwrap();
            }
            lab.block_on(policies.commit()).unwrap();
            let repaired = lab.block_on(firewall.verify_and_repair()).unwrap();
            assert!(!repaired, "what the tool prints is what we wrote: {}", rules());
            for _ in 0..20 {
                let mut pick = |n: usize| dice.random_range(0..n);
                let (from, source) = &guests[pick(5)];
                let to = [guests[pick(5)].0.address, guests[pick(5)].0.address, INTERNET, OUTSIDE][pick(4)];
                let (protocol, port) = (["tcp", "udp"][pick(2)], ports[pick(2)]);
                let question = Question {
                    source: source.clone(),
                    destination: to.to_string(),
                    protocol: protocol.into(),
                    port: port.into(),
                };
                let verdict = policies.explain(&question).unwrap().verdict;
                let passes = probe(&from.place, (to, port).into(), protocol);
                assert_eq!(verdict.allowed, passes, "{question:?}: {verdict:?}\n{}", rules());
                opened += usize::from(passes);
            }
        }
        assert!((40..160).contains(&opened), "{opened} of 200 passed");
    });
}

#[test]
fn rules_of_policies_are_as_written_with_legacy() {
    isolated(|lab| {
        let network = lab.network();
        let settings = FirewallSettings {
            variant: Variant::Legacy,
            ..FirewallSettings::default()
        };
        let firewall = lab.firewall(&network, settings);
        let policies = PolicyService::new(lab.store.clone(), firewall.clone());
        for id in ["aaaaaaaaaaaa", "bbbbbbbbbbbb"] {
            lab.container(id, "raind0", &[]);
        }
        let outside = ["198.51.100.0/24", "192.0.2.1", "0.0.0.0/0"];
        for (chain, destination) in [("RAIND-EW", "bbbbbbbbbbbb")].into_iter().chain(
            ["RAIND-NS-OBS", "RAIND-NS-ENF"]
                .iter()
                .flat_map(|chain| outside.map(|block| (*chain, block))),
        ) {
            for (protocol, dport) in [("", 0), ("tcp", 0), ("tcp", 80), ("udp", 53), ("icmp", 0)] {
                let wish = NewPolicy {
                    chain: chain.into(),
                    source: "aaaaaaaaaaaa".into(),
                    destination: destination.into(),
                    protocol: protocol.into(),
                    dport,
                    comment: "with \"quotes\" and -j RAIND-EW".into(),
                };
                lab.block_on(policies.add(wish)).unwrap();
            }
        }
        for mode in ["observe", "enforce"] {
            // The first is that of a new installation.
            if mode != "observe" {
                lab.block_on(policies.set_mode(mode)).unwrap();
            }
            lab.block_on(policies.commit()).unwrap();
            assert!(run("iptables-legacy-save").contains("198.51.100.0/24"));
            assert!(!lab.block_on(firewall.verify_and_repair()).unwrap(), "{mode}");
        }
    });
}
