//! Networks on a real kernel, each test in network and mount namespaces of its own (`support::net`).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

mod support;

use condenser::model::Network;
use condenser::net::bridges::{BridgeFiltering, DNS_LINK, NetworkError, NetworkService, NetworkSettings};
use condenser::store::StoreError;
use support::net::*;

fn parameter(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{name}"))
        .unwrap()
        .trim()
        .to_owned()
}

fn link(name: &str) -> String {
    run(&format!("ip -d link show {name}"))
}

fn addresses(name: &str) -> Vec<String> {
    let text = run(&format!("ip -4 -o addr show dev {name}"));
    text.lines()
        .map(|l| l.split_ascii_whitespace().nth(3).unwrap().to_owned())
        .collect()
}

fn exists(name: &str) -> bool {
    try_run(&format!("ip link show {name}")).is_ok()
}

#[test]
fn a_start_makes_everything_that_containers_need() {
    isolated(|lab| {
        let network = lab.network();
        for name in [
            "ipv4/ip_forward",
            "bridge/bridge-nf-call-iptables",
            "bridge/bridge-nf-call-ip6tables",
            "ipv4/conf/raind0/route_localnet",
            "ipv6/conf/raind0/disable_ipv6",
        ] {
            assert_eq!(parameter(name), "1", "{name}");
        }
        assert_eq!(parameter("ipv4/conf/eth0/route_localnet"), "0");
        assert_eq!(network.filtering(), BridgeFiltering::Enabled);
        let row = lab.store.snapshot().get::<Network>("raind0").unwrap().clone();
        assert_eq!(
            (row.subnet.to_string(), row.gateway.to_string()),
            ("10.166.0.0/24".into(), "10.166.0.254".into())
        );
        assert_eq!(addresses("raind0"), ["10.166.0.254/24"]);
        assert_eq!(addresses(DNS_LINK), ["10.166.254.254/32"]);
        let before = link("raind0");
        assert!(
            before.contains("UP") && before.contains("bridge ") && before.contains("02:52:0a:a6:00:fe"),
            "{before}"
        );
        lab.container("aaaaaaaaaaaa", "raind0", &[]);
        assert!(
            link("raind0").contains("02:52:0a:a6:00:fe"),
            "the address does not follow the ports"
        );
        // Again over what is there.
        drop(network);
        lab.network();
        assert_eq!(addresses("raind0"), ["10.166.0.254/24"]);
        assert_eq!(lab.store.snapshot().networks().len(), 1);
    });
}

#[test]
fn a_foreign_interface_is_refused_and_left_alone() {
    isolated(|lab| {
        run("ip link add raind0 type veth peer name raind0-peer");
        run("ip addr add 203.0.113.1/24 dev raind0");
        let error = lab
            .block_on(NetworkService::start(network_settings(), lab.store.clone()))
            .err()
            .unwrap();
        assert!(
            matches!(&error, NetworkError::Foreign(name) if name == "raind0"),
            "{error}"
        );
        assert_eq!(addresses("raind0"), ["203.0.113.1/24"]);
    });
}

#[test]
fn what_others_break_is_repaired() {
    isolated(|lab| {
        let network = lab.network();
        let guest = lab.container("aaaaaaaaaaaa", "raind0", &[]);
        lab.block_on(network.container_attached(&guest.veth)).unwrap();
        serve(&guest.place, std::net::SocketAddrV4::new(guest.address, 80), "guest");
        let damage = [
            "ip addr flush dev raind0",
            "ip link set raind0 down",
            "ip link del raind0",
            "ip link set rd_aaaaaaaaaaaa nomaster",
            "ip link set rd_aaaaaaaaaaaa type bridge_slave hairpin off",
            "ip link del raindDns",
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.conf.raind0.route_localnet=0",
        ];
        for line in damage {
            run(line);
            lab.block_on(network.repair()).unwrap();
            assert_eq!(addresses("raind0"), ["10.166.0.254/24"], "after {line}");
            assert_eq!(addresses(DNS_LINK), ["10.166.254.254/32"], "after {line}");
            assert!(link("rd_aaaaaaaaaaaa").contains("hairpin on"), "after {line}");
            assert_eq!(parameter("ipv4/ip_forward"), "1", "after {line}");
            assert_eq!(parameter("ipv4/conf/raind0/route_localnet"), "1", "after {line}");
            assert_reaches(&Place::Host, (guest.address, 80), "guest");
        }
    });
}

#[test]
fn the_uplink_is_followed() {
    isolated(|lab| {
        run("ip route del default");
        let network = lab.network();
        assert_eq!(*network.uplink().borrow(), None, "no default route is no failure");
        run("ip route add default via 192.0.2.1");
        lab.wait_for_uplink(&network, Some("eth0"));
        assert_eq!(network.uplink().borrow().as_ref().unwrap().address, HOST);
        run("ip link add eth1 type veth peer name eth1-peer");
        run("ip addr add 203.0.113.2/24 dev eth1");
        run("ip link set eth1-peer up");
        run("ip link set eth1 up");
        run("ip route replace default via 203.0.113.1");
        lab.wait_for_uplink(&network, Some("eth1"));
        // The kernel takes the route away without a word about it.
        run("ip link set eth1 down");
        lab.wait_for_uplink(&network, None);
    });
}

#[test]
fn networks_come_and_go() {
    isolated(|lab| {
        let network = lab.network();
        let made = lab.block_on(network.create("mynet")).unwrap();
        assert_eq!(made.subnet.to_string(), "10.166.1.0/24");
        assert_eq!(addresses("mynet"), ["10.166.1.254/24"]);
        assert_eq!(parameter("ipv4/conf/mynet/route_localnet"), "1");
        let create = |name: &str| lab.block_on(network.create(name)).unwrap_err();
        let delete = |name: &str| lab.block_on(network.delete(name)).unwrap_err();
        for taken in ["mynet", "raind0", DNS_LINK, "eth0", "lo"] {
            assert!(matches!(create(taken), NetworkError::Exists(_)), "{taken}");
        }
        for bad in ["", "-j", "a/b", "sixteen-letters-", "all"] {
            assert!(matches!(create(bad), NetworkError::BadName(_)), "{bad}");
        }
        for unknown in ["eth0", DNS_LINK, "nope"] {
            assert!(matches!(delete(unknown), NetworkError::NotFound(_)), "{unknown}");
        }
        assert!(matches!(delete("raind0"), NetworkError::Default(_)));
        lab.reserve("aaaaaaaaaaaa", "mynet", &[]);
        assert!(matches!(delete("mynet"), NetworkError::InUse(_)));
        assert!(exists("eth0") && exists(DNS_LINK) && exists("raind0") && exists("mynet"));

        let second = lab.block_on(network.create("other")).unwrap();
        assert_eq!(second.subnet.to_string(), "10.166.2.0/24");
        run("ip link del other");
        lab.block_on(network.delete("other")).unwrap();
        assert_eq!(
            lab.block_on(network.create("third")).unwrap().subnet,
            second.subnet,
            "freed blocks are given again"
        );
        lab.block_on(network.delete("third")).unwrap();
        assert!(!exists("third"));
    });
}

#[test]
fn a_bridge_without_a_row_goes_and_bridges_of_others_stay() {
    isolated(|lab| {
        let network = lab.network();
        lab.block_on(network.create("mynet")).unwrap();
        run("ip link add docker0 type bridge");
        // As after a crash between the removal of the row and that of the bridge.
        lab.block_on(
            lab.store
                .transact(|t| Ok::<_, StoreError>(t.remove::<Network>("mynet"))),
        )
        .unwrap();
        drop(network);
        lab.network();
        assert!(!exists("mynet") && exists("docker0") && exists("raind0"));
    });
}

#[test]
fn blocks_that_the_host_routes_are_avoided() {
    isolated(|lab| {
        run("ip route add 10.166.0.128/25 via 192.0.2.1");
        run("ip route add 10.166.2.0/23 via 192.0.2.1");
        run("ip route add 10.0.0.0/8 via 192.0.2.1");
        let network = lab.network();
        assert_eq!(
            addresses("raind0"),
            ["10.166.1.254/24"],
            "the wide route is no obstacle, the narrow one is"
        );
        assert_eq!(
            lab.block_on(network.create("mynet")).unwrap().subnet.to_string(),
            "10.166.4.0/24"
        );
    });
}

#[test]
fn host_ends_of_containers_are_listed_and_removed() {
    isolated(|lab| {
        let network = lab.network();
        let guest = lab.container("aaaaaaaaaaaa", "raind0", &[]);
        run("ip link add rd_left type veth peer name peer");
        let links = || {
            let mut names = lab.block_on(network.links()).unwrap();
            names.sort();
            names
        };
        assert_eq!(links(), ["rd_aaaaaaaaaaaa", "rd_left"]);
        lab.block_on(network.remove_stray_link("rd_left")).unwrap();
        lab.block_on(network.remove_stray_link("rd_left")).unwrap();
        assert_eq!(links(), [&*guest.veth]);
        for other in ["eth0", "raind0"] {
            lab.block_on(network.remove_stray_link(other)).unwrap_err();
            lab.block_on(network.container_attached(other)).unwrap_err();
            assert!(exists(other));
        }
        let error = lab.block_on(network.container_attached("rd_gone")).unwrap_err();
        assert_eq!(error.to_string(), "interface rd_gone does not exist");
    });
}

/// As on a kernel without bridge netfilter: frames are not filtered, and the parameters are not there.
fn without_bridge_netfilter() {
    run("mount -t tmpfs tmpfs /mnt");
    run("mkdir /mnt/net");
    run("mount --bind /proc/sys/net /mnt/net");
    run("mount -t tmpfs tmpfs /proc/sys/net");
    for kept in ["ipv4", "ipv6"] {
        run(&format!("mkdir /proc/sys/net/{kept}"));
        run(&format!("mount --bind /mnt/net/{kept} /proc/sys/net/{kept}"));
    }
}

#[test]
fn ports_are_isolated_where_bridged_traffic_cannot_be_filtered() {
    isolated(|lab| {
        without_bridge_netfilter();
        for (allowed, reachable) in [(false, false), (true, true)] {
            let settings = NetworkSettings {
                allow_unfiltered_bridges: allowed,
                ..network_settings()
            };
            let network = lab
                .block_on(NetworkService::start(settings, lab.store.clone()))
                .unwrap();
            let BridgeFiltering::Unavailable(reason) = network.filtering() else {
                panic!("it is filtered")
            };
            assert!(reason.contains("br_netfilter"), "{reason}");
            let ids = if allowed {
                ["cccccccccccc", "dddddddddddd"]
            } else {
                ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]
            };
            let guests = ids.map(|id| lab.container(id, "raind0", &[]));
            for guest in &guests {
                lab.block_on(network.container_attached(&guest.veth)).unwrap();
            }
            let server = (guests[1].address, 80);
            serve(
                &guests[1].place,
                std::net::SocketAddrV4::new(server.0, server.1),
                "guest",
            );
            assert_reaches(&Place::Host, server, "guest");
            if reachable {
                assert_reaches(&guests[0].place, server, "guest");
            } else {
                assert_blocked(&guests[0].place, server);
            }
        }
    });
}
