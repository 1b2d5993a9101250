//! The packet filter on a real kernel with real packets, each test in namespaces of its own (`support::net`).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use condenser::model::Protocol::{Tcp, Udp};
use condenser::net::dns::Forwarder;
use condenser::net::enforcement::Firewall;
use condenser::net::firewall::remove_all;
use condenser::net::firewall::{FirewallError, FirewallSettings, Variant};
use support::net::*;
use tokio_util::sync::CancellationToken;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn both(host_port: u16, container_port: u16) -> [condenser::model::Forward; 2] {
    [
        forward(host_port, container_port, Tcp),
        forward(host_port, container_port, Udp),
    ]
}

fn with(variant: Variant) -> FirewallSettings {
    FirewallSettings {
        variant,
        ..FirewallSettings::default()
    }
}

fn serve_at(place: &Place, address: (Ipv4Addr, u16), word: &str) {
    serve(place, SocketAddrV4::new(address.0, address.1), word);
}

/// Every way to a published port, and what has to stay closed, with a FORWARD policy of DROP as on hardened hosts.
fn traffic(variant: Variant, iptables: &str) {
    isolated(|lab| {
        let network = lab.network();
        lab.block_on(network.create("other")).unwrap();
        let web = lab.container("aaaaaaaaaaaa", "raind0", &both(8080, 80));
        let client = lab.container("bbbbbbbbbbbb", "raind0", &[]);
        let far = lab.container("cccccccccccc", "other", &[]);
        for guest in [&web, &client, &far] {
            lab.block_on(network.container_attached(&guest.veth)).unwrap();
            serve_at(&guest.place, (ANY, 80), "guest");
        }
        serve_at(&outside(), (INTERNET, 80), "outside");
        assert_reaches(&client.place, (web.address, 80), "guest");
        assert_reaches(&far.place, (web.address, 80), "guest");

        let firewall = lab.firewall(&network, with(variant));
        run(&format!("{iptables} -P FORWARD DROP"));
        assert_blocked(&client.place, (web.address, 80));
        assert_blocked(&far.place, (web.address, 80));
        assert_blocked(&web.place, (far.address, 80));
        // Out of the host, and seen there as the host.
        for guest in [&web, &far] {
            assert_eq!(
                assert_reaches(&guest.place, (INTERNET, 80), "outside"),
                HOST.to_string()
            );
        }
        // The published port.
        assert_eq!(
            assert_reaches(&outside(), (HOST, 8080), "guest"),
            OUTSIDE.to_string(),
            "the client is not hidden"
        );
        for address in [HOST, LOOPBACK, web.gateway] {
            assert_reaches(&Place::Host, (address, 8080), "guest");
        }
        assert_eq!(
            assert_reaches(&client.place, (HOST, 8080), "guest"),
            client.address.to_string()
        );
        assert_reaches(&client.place, (web.gateway, 8080), "guest");
        assert_reaches(&web.place, (HOST, 8080), "guest");
        assert_blocked(&far.place, (HOST, 8080));
        assert_blocked(&outside(), (HOST, 80));
        // Its end.
        lab.remove("aaaaaaaaaaaa");
        lab.block_on(firewall.apply()).unwrap();
        assert!(!rules_of(&format!("{iptables}-save")).contains("8080"));
        assert_blocked(&outside(), (HOST, 8080));
    });
}

#[test]
fn published_ports_and_default_deny_with_nft() {
    traffic(Variant::Nft, "iptables-nft");
}

#[test]
fn published_ports_and_default_deny_with_legacy() {
    traffic(Variant::Legacy, "iptables-legacy");
}

#[test]
fn published_ports_are_open_to_other_uplinks_but_not_to_transit() {
    isolated(|lab| {
        // A second way out that the default route does not use (N-28).
        run("ip netns add second");
        run("ip link add eth1 type veth peer name eth0 netns second");
        run("ip addr add 203.0.113.2/24 dev eth1");
        run("ip link set eth1 up");
        run("ip -n second addr add 203.0.113.1/24 dev eth0");
        run("ip -n second link set eth0 up");
        run("ip -n second route add default via 203.0.113.2");
        run("ip -n outside route add 203.0.113.0/24 via 192.0.2.2");
        let second = Place::In("second".into());
        let network = lab.network();
        let web = lab.container("aaaaaaaaaaaa", "raind0", &both(8080, 80));
        serve_at(&web.place, (ANY, 80), "guest");
        serve_at(&outside(), (INTERNET, 8080), "outside");
        serve_at(&second, (ANY, 80), "second");
        lab.firewall(&network, FirewallSettings::default());
        assert_reaches(&second, (Ipv4Addr::new(203, 0, 113, 2), 8080), "guest");
        let seen = assert_reaches(&web.place, (Ipv4Addr::new(203, 0, 113, 1), 80), "second");
        assert_eq!(seen, "203.0.113.2", "masqueraded there too");
        // The host as a router: packets for others are not ours.
        assert_eq!(assert_reaches(&second, (INTERNET, 8080), "outside"), "203.0.113.1");
        // Containers talk to the outside on the same port.
        assert_reaches(&web.place, (INTERNET, 8080), "outside");
    });
}

#[test]
fn containers_do_not_reach_each_other_over_ipv6() {
    isolated(|lab| {
        let network = lab.network();
        let guests = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"].map(|id| lab.container(id, "raind0", &[]));
        for (n, guest) in guests.iter().enumerate() {
            let Place::In(name) = &guest.place else { unreachable!() };
            run(&format!("ip -n {name} addr add fd00::{}/64 dev eth0 nodad", n + 1));
        }
        let server = inside(&guests[1].place, || UdpSocket::bind("[fd00::2]:80").unwrap());
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let client = inside(&guests[0].place, || UdpSocket::bind("[fd00::1]:0").unwrap());
        let arrives = || {
            client.send_to(b"?", "[fd00::2]:80").unwrap();
            server.recv(&mut [0; 8]).is_ok()
        };
        wait_for("IPv6 before there are rules", SOON, || when(arrives(), |came| *came));
        let firewall = lab.firewall(&network, FirewallSettings::default());
        while server.recv(&mut [0; 8]).is_ok() {}
        assert!(![arrives(), arrives(), arrives()].contains(&true));
        let counters = run("ip6tables -vxnL RAIND-ISOLATE");
        let drops = counters.lines().find(|l| l.contains("DROP")).unwrap();
        assert!(!drops.trim_start().starts_with("0 "), "{counters}");
        drop(firewall);
    });
}

#[test]
fn dns_goes_to_the_forwarder_whatever_server_is_asked() {
    isolated(|lab| {
        let network = lab.network();
        lab.block_on(network.create("mynet")).unwrap();
        let guests = [
            lab.container("aaaaaaaaaaaa", "raind0", &[]),
            lab.container("bbbbbbbbbbbb", "mynet", &[]),
        ];
        let neighbour = lab.container("cccccccccccc", "raind0", &[]);
        lab.firewall(&network, FirewallSettings::default());
        // A host that lets nothing in by itself.
        run("iptables -P INPUT DROP");
        run("iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT");
        let upstream = inside(&outside(), || UdpSocket::bind((INTERNET, 53)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            loop {
                let (length, client) = upstream.recv_from(&mut buffer).unwrap();
                buffer[2] |= 0x80;
                upstream.send_to(&buffer[..length], client).unwrap();
            }
        });
        let forwarder = lab.block_on(Forwarder::bind(
            "10.166.254.254:1053".parse().unwrap(),
            vec![(INTERNET, 53).into()],
            "10.166.0.0/16".parse().unwrap(),
        ));
        lab.spawn(forwarder.unwrap().run(CancellationToken::new()));
        // "a. A IN", with an id that comes back.
        let query = *b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
        for guest in &guests {
            for server in [guest.gateway, Ipv4Addr::new(9, 9, 9, 9), neighbour.address] {
                let answer = inside(&guest.place, || {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.set_read_timeout(Some(SOON)).unwrap();
                    socket.send_to(&query, (server, 53)).unwrap();
                    let mut buffer = [0; 512];
                    let (length, from) = socket.recv_from(&mut buffer).unwrap();
                    assert_eq!(from, (server, 53).into(), "answered in the name of whoever was asked");
                    buffer[..length].to_vec()
                });
                assert_eq!(
                    (&answer[..2], answer[2] & 0x80, answer[3] & 0x80),
                    (&query[..2], 0x80, 0x80)
                );
                let by_tcp = inside(&guest.place, || {
                    std::net::TcpStream::connect_timeout(&(server, 53).into(), SOON)
                });
                by_tcp.unwrap();
            }
        }
        let direct = inside(&outside(), || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            run("ip -n outside route add 10.166.254.254 via 192.0.2.2");
            ask_from(
                &socket,
                SocketAddrV4::new(Ipv4Addr::new(10, 166, 254, 254), 1053),
                Duration::from_millis(300),
            )
        });
        assert!(direct.is_err(), "{direct:?}");
    });
}

#[test]
fn control_ports_and_loopback_are_protected() {
    isolated(|lab| {
        let network = lab.network();
        let guest = lab.container("aaaaaaaaaaaa", "raind0", &[]);
        for port in [7755, 7756, 7757] {
            serve_at(&Place::Host, (ANY, port), "host");
        }
        for address in [HOST, guest.gateway] {
            serve_at(&Place::Host, (address, 9000), "host");
        }
        serve_at(&Place::Host, (LOOPBACK, 9001), "loopback");
        // The container tries to reach the host's loopback through the bridge.
        let Place::In(name) = &guest.place else { unreachable!() };
        inside(&guest.place, || {
            run("ip addr flush dev lo");
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        });
        run(&format!(
            "ip -n {name} route add 127.0.0.0/8 via {} src {}",
            guest.gateway, guest.address
        ));
        assert_reaches(&guest.place, (LOOPBACK, 9001), "loopback");

        lab.firewall(&network, FirewallSettings::default());
        assert_blocked(&guest.place, (LOOPBACK, 9001));
        for address in [HOST, guest.gateway] {
            assert_answers(&guest.place, Tcp, (address, 7756), "host");
            assert_reaches(&guest.place, (address, 9000), "host");
            for port in [7755, 7757] {
                assert_silent(&guest.place, Tcp, (address, port));
            }
        }
        assert_silent(&outside(), Tcp, (HOST, 7756));
        assert_reaches(&outside(), (HOST, 9000), "host");
        for port in [7755, 7756, 7757] {
            for address in [HOST, LOOPBACK, guest.gateway] {
                assert_answers(&Place::Host, Tcp, (address, port), "host");
            }
        }
    });
}

/// What an operator and other programs have.
const FOREIGN: &str = "*filter\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n\
    -A FORWARD -j DOCKER-USER\n-A FORWARD -i docker0 -o docker0 -j ACCEPT\n\
    -A DOCKER-USER -m comment --comment \"like -j RAIND-ROOT\" -j RETURN\nCOMMIT\n\
    *nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n\
    *mangle\n-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\nCOMMIT\n";

fn nothing_is_lost_or_doubled(variant: Variant, iptables: &str) {
    isolated(|lab| {
        let save = format!("{iptables}-save");
        feed(&format!("{iptables}-restore --noflush"), FOREIGN);
        let before = rules_of(&save);
        let network = lab.network();
        let firewall = lab.firewall(&network, with(variant));
        let fresh = rules_of(&save);
        let foreign = |rules: &str| {
            rules
                .lines()
                .filter(|l| !l.contains("RAIND-") || l.contains("comment"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(foreign(&fresh), foreign(&before));
        let forward = run(&format!("{iptables} -S FORWARD"));
        let forward: Vec<_> = forward.lines().filter(|l| l.starts_with("-A")).take(4).collect();
        assert_eq!(
            forward,
            [
                "-A FORWARD -j RAIND-HAIRPIN",
                "-A FORWARD -j RAIND-ROOT",
                "-A FORWARD -j RAIND-FWD",
                "-A FORWARD -j DOCKER-USER",
            ]
        );
        for n in 0..10 {
            lab.reserve(&format!("a{n}"), "raind0", &both(9000 + n, 80));
            lab.block_on(firewall.apply()).unwrap();
        }
        let full = rules_of(&save);
        let mut own: Vec<_> = full
            .lines()
            .filter(|l| l.starts_with("-A") && l.contains("RAIND-"))
            .collect();
        own.sort();
        let count = own.len();
        own.dedup_by(|a, b| a == b && !a.contains("RAIND-ISOLATE"));
        assert_eq!(own.len(), count, "no rule is there twice");
        // A new daemon over what the old one left, killed or not.
        drop(firewall);
        let firewall = lab.firewall(&network, with(variant));
        assert_eq!(rules_of(&save), full);
        assert!(
            !lab.block_on(firewall.verify_and_repair()).unwrap(),
            "what the tool prints is what we wrote"
        );
        for n in 0..10 {
            let id = format!("a{n}");
            lab.forget(&id);
        }
        lab.block_on(firewall.apply()).unwrap();
        assert_eq!(rules_of(&save), fresh);
        drop(firewall);
        lab.block_on(remove_all(variant)).unwrap();
        lab.block_on(remove_all(variant)).unwrap();
        assert_eq!(rules_of(&save), before);
        let v6 = rules_of(&format!("ip6{}-save", &iptables[2..]));
        assert!(!v6.contains("RAIND-"), "{v6}");
    });
}

#[test]
fn nothing_is_lost_or_doubled_with_nft() {
    nothing_is_lost_or_doubled(Variant::Nft, "iptables-nft");
}

#[test]
fn nothing_is_lost_or_doubled_with_legacy() {
    nothing_is_lost_or_doubled(Variant::Legacy, "iptables-legacy");
}

#[test]
fn what_the_original_daemon_left_is_replaced() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let fresh = rules();
        drop(firewall);
        for recording in [
            include_str!("fixtures/iptables-port-forward.txt"),
            include_str!("fixtures/iptables-second-network.txt"),
            include_str!("fixtures/iptables-enforce.txt"),
        ] {
            feed("iptables-restore", recording);
            // A service of it, on top of the recording.
            run("iptables -t nat -N RAIND-SVC-01m8bbbb-11240");
            run("iptables -t nat -A PREROUTING -p tcp --dport 11240 -j RAIND-SVC-01m8bbbb-11240");
            run(
                "iptables -t nat -A OUTPUT -m addrtype --dst-type LOCAL -p tcp --dport 11240 -j RAIND-SVC-01m8bbbb-11240",
            );
            lab.firewall(&network, FirewallSettings::default());
            assert_eq!(rules(), fresh);
        }
    });
}

#[test]
fn drift_is_noticed_and_repaired() {
    isolated(|lab| {
        let network = lab.network();
        lab.reserve("aaaaaaaaaaaa", "raind0", &both(8080, 80));
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let whole = rules();
        let whole6 = rules_of("ip6tables-save");
        for damage in [
            "iptables -F FORWARD",
            "iptables -D INPUT -j RAIND-INPUT",
            "iptables -F RAIND-EW",
            "iptables -D RAIND-EW -i raind0 -o raind0 -j DROP",
            "iptables -I RAIND-EW -j ACCEPT",
            "iptables -A FORWARD -j RAIND-ROOT",
            "iptables -t nat -F",
            "iptables -t nat -F PREROUTING",
            "ip6tables -F",
            "nft flush ruleset",
        ] {
            run(damage);
            assert!(lab.block_on(firewall.verify_and_repair()).unwrap(), "{damage}");
            assert_eq!(
                (rules(), rules_of("ip6tables-save")),
                (whole.clone(), whole6.clone()),
                "{damage}"
            );
            assert!(!lab.block_on(firewall.verify_and_repair()).unwrap(), "{damage}");
        }
        // A change that is refused because of drift finds its way all the same.
        for line in [
            "iptables -F FORWARD",
            "iptables -F RAIND-HAIRPIN",
            "iptables -X RAIND-HAIRPIN",
        ] {
            run(line);
        }
        lab.reserve("bbbbbbbbbbbb", "raind0", &both(8081, 80));
        lab.block_on(firewall.apply()).unwrap();
        assert!(rules().contains("8081"));
        lab.block_on(firewall.verify_and_repair()).unwrap();
    });
}

#[test]
fn what_others_put_above_ours_is_below_again() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let whole = rules();
        let verify = || lab.block_on(firewall.verify_and_repair()).unwrap();
        for damage in [
            // One of ours below a rule of others, and a rule of others above all of ours.
            "iptables -A FORWARD -s 198.51.100.7/32 -j ACCEPT; iptables -D FORWARD -j RAIND-ROOT; iptables -A FORWARD -j RAIND-ROOT",
            "iptables -I FORWARD -s 198.51.100.7/32 -j ACCEPT",
            "iptables -I INPUT -s 198.51.100.7/32 -j ACCEPT",
        ] {
            damage.split("; ").for_each(|line| drop(run(line)));
            assert!(verify(), "{damage}");
            let chain = if damage.contains("INPUT") { "INPUT" } else { "FORWARD" };
            let foreign = format!("-A {chain} -s 198.51.100.7/32 -j ACCEPT");
            assert_eq!(rules().matches(&foreign).count(), 1, "rules of others stay");
            run(&format!("iptables -D {chain} -s 198.51.100.7/32 -j ACCEPT"));
            assert_eq!(rules(), whole, "{damage}");
            assert!(!verify(), "{damage}");
        }
        // A program that puts it back each time has its way.
        run("iptables -I FORWARD -s 198.51.100.7/32 -j ACCEPT");
        assert!(verify());
        run("iptables -D FORWARD -s 198.51.100.7/32 -j ACCEPT");
        run("iptables -I FORWARD -s 198.51.100.7/32 -j ACCEPT");
        assert!(!verify() && !verify());
        assert!(rules().contains("-A FORWARD -s 198.51.100.7/32 -j ACCEPT\n-A FORWARD -j RAIND-HAIRPIN\n"));
    });
}

#[test]
fn drift_is_repaired_without_being_asked() {
    isolated(|lab| {
        let network = lab.network();
        let settings = FirewallSettings {
            verify_every: Duration::from_millis(200),
            ..FirewallSettings::default()
        };
        let _firewall = lab.firewall(&network, settings);
        let whole = rules();
        run("iptables -F FORWARD");
        wait_for("the repair", SOON, || when(rules(), |rules| *rules == whole));
    });
}

#[test]
fn rules_follow_the_uplink() {
    isolated(|lab| {
        run("ip route del default");
        let network = lab.network();
        let guest = lab.container("aaaaaaaaaaaa", "raind0", &both(8080, 80));
        serve_at(&guest.place, (ANY, 80), "guest");
        let _firewall = lab.firewall(&network, FirewallSettings::default());
        assert!(!rules().contains("eth0"));
        assert_reaches(&Place::Host, (LOOPBACK, 8080), "guest");
        run("ip route add default via 192.0.2.1");
        wait_for("rules of the uplink", SOON, || {
            let masquerade = "-A RAIND-POSTROUTING -s 10.166.0.0/16 -o eth0 -j MASQUERADE";
            when(rules(), |rules| rules.contains(masquerade))
        });
        assert_reaches(&outside(), (HOST, 8080), "guest");
        run("ip link set eth0 down");
        run("ip link set eth0 name eth9");
        run("ip link set eth9 up");
        run("ip route add default via 192.0.2.1");
        wait_for("rules of the new uplink", SOON, || {
            when(rules(), |rules| rules.contains("-o eth9") && !rules.contains("eth0"))
        });
        assert_reaches(&outside(), (HOST, 8080), "guest");
    });
}

#[test]
fn a_udp_client_that_never_pauses_reaches_who_publishes_now() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let socket = inside(&outside(), || UdpSocket::bind((OUTSIDE, 4000)).unwrap());
        let server = SocketAddrV4::new(HOST, 5000);
        let ask = || {
            ask_from(&socket, server, SOON)
                .unwrap()
                .split_once(' ')
                .unwrap()
                .0
                .to_owned()
        };
        // A flow that began before anybody published the port.
        let unanswered = ask_from(&socket, server, Duration::from_millis(150));
        assert!(unanswered.is_err());
        for id in ["aaaaaaaaaaaa", "bbbbbbbbbbbb"] {
            // The first of them stays, so that the second has another address.
            let guest = lab.container(id, "raind0", &[forward(5000, 53, Udp)]);
            serve_at(&guest.place, (ANY, 53), id);
            lab.block_on(firewall.apply()).unwrap();
            assert_eq!(ask(), id);
            lab.unpublish(id);
            lab.block_on(firewall.apply()).unwrap();
            let gone = ask_from(&socket, server, Duration::from_millis(150));
            assert!(gone.is_err(), "{gone:?}");
        }
    });
}

/// A stranger fills the table of flows: the one that matters is found all the same.
#[test]
fn a_stale_flow_is_found_among_those_of_a_scan() {
    isolated(|lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let socket = inside(&outside(), || UdpSocket::bind((OUTSIDE, 4000)).unwrap());
        for port in 1..=u16::MAX {
            let _ = socket.send_to(b"?", SocketAddrV4::new(HOST, port));
        }
        let guest = lab.container("aaaaaaaaaaaa", "raind0", &[forward(5000, 53, Udp)]);
        serve_at(&guest.place, (ANY, 53), "guest");
        lab.block_on(firewall.apply()).unwrap();
        let answer = ask_from(&socket, SocketAddrV4::new(HOST, 5000), SOON).unwrap();
        assert!(answer.starts_with("guest"), "{answer}");
    });
}

/// Notes each run, then does it.
const COUNTED: &str = "echo \"$0 $*\" | sed 's|.*/||' >> $LOG\nexec $REAL \"$@\"";

#[test]
fn one_run_per_change_and_none_without() {
    let programs = [
        "iptables-restore",
        "iptables-save",
        "ip6tables-restore",
        "ip6tables-save",
    ]
    .map(|p| (p, COUNTED));
    isolated_with(&programs, |lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let begun = lab.runs().len();
        let since = |n: usize| lab.runs().split_off(n);
        assert_eq!(
            begun,
            5,
            "save, restore, save to verify; save and restore for IPv6: {:?}",
            lab.runs()
        );
        for _ in 0..5 {
            lab.block_on(firewall.apply()).unwrap();
        }
        assert_eq!(since(begun), Vec::<String>::new(), "nothing changed");
        lab.reserve("aaaaaaaaaaaa", "raind0", &both(8080, 80));
        lab.block_on(firewall.apply()).unwrap();
        let one = since(begun);
        assert!(
            one.len() == 1 && one[0].starts_with("iptables-restore --noflush --wait"),
            "{one:?}"
        );
        // Many at once: the first may run alone, the others share.
        for n in 0..20 {
            lab.reserve(&format!("b{n}"), "raind0", &both(9000 + n, 80));
        }
        let all = (0..20).map(|_| firewall.apply());
        let results = lab.block_on(futures_util::future::join_all(all));
        assert!(results.iter().all(Result::is_ok));
        assert!(since(begun + 1).len() <= 2, "{:?}", since(begun + 1));
        assert!(rules().contains("9019"));
        // A bridge more concerns both families.
        let before = lab.runs().len();
        lab.block_on(network.create("mynet")).unwrap();
        lab.block_on(firewall.apply()).unwrap();
        let runs = since(before);
        assert!(runs.len() == 2 && runs[1].starts_with("ip6tables-restore"), "{runs:?}");
    });
}

#[test]
fn a_refusal_carries_the_tools_words_and_changes_nothing() {
    // Refuses what has the marker in it, as a kernel would that lacks a match.
    let picky = "if [ \"$1\" = --noflush ]; then cat > $LOG.in; grep -q 6666 $LOG.in && \
                 { echo 'iptables: No chain/target/match by that name. line: 2' >&2; exit 1; }; exec $REAL \"$@\" < $LOG.in; fi\n\
                 exec $REAL \"$@\"";
    isolated_with(&[("iptables-restore", picky)], |lab| {
        let network = lab.network();
        let firewall = lab.firewall(&network, FirewallSettings::default());
        let before = rules();
        lab.reserve("aaaaaaaaaaaa", "raind0", &both(6666, 80));
        let error = lab.block_on(firewall.apply()).unwrap_err();
        assert!(matches!(error, FirewallError::Refused { .. }));
        assert!(
            error.to_string().contains("No chain/target/match by that name"),
            "{error}"
        );
        assert_eq!(rules(), before);
        lab.forget("aaaaaaaaaaaa");
        lab.block_on(firewall.apply()).unwrap();
        lab.reserve("bbbbbbbbbbbb", "raind0", &both(7777, 80));
        lab.block_on(firewall.apply()).unwrap();
        assert!(rules().contains("7777"));
    });
}

#[test]
fn without_iptables_the_start_says_what_to_install() {
    isolated(|lab| {
        let network = lab.network();
        run("mount -t tmpfs tmpfs /usr/sbin");
        let start = Firewall::start(lab.store.clone(), network.uplink(), FirewallSettings::default());
        let error = lab.block_on(start).err().unwrap().to_string();
        assert!(
            error.contains("iptables-save") && error.contains("install the package iptables"),
            "{error}"
        );
    });
}

#[test]
fn without_ip6tables_the_rest_works() {
    isolated(|lab| {
        let network = lab.network();
        // The same tools at the same place, but for those of IPv6.
        run("mkdir -p /run/sbin");
        run("cp -a /usr/sbin/. /run/sbin/");
        for tool in ["ip6tables-save", "ip6tables-restore"] {
            run(&format!("rm /run/sbin/{tool}"));
        }
        run("mount --bind /run/sbin /usr/sbin");
        let firewall = lab.firewall(&network, FirewallSettings::default());
        lab.reserve("aaaaaaaaaaaa", "raind0", &both(8080, 80));
        lab.block_on(firewall.apply()).unwrap();
        lab.block_on(firewall.verify_and_repair()).unwrap();
        assert!(rules().contains("8080"));
        // They are used as soon as they are there.
        run("umount /usr/sbin");
        assert!(!rules_of("ip6tables-save").contains("RAIND-"));
        lab.block_on(firewall.verify_and_repair()).unwrap();
        assert!(rules_of("ip6tables-save").contains("-A FORWARD -j RAIND-ROOT"));
    });
}
