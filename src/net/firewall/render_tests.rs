//! Compares the rendered rules with recordings of the original daemon and with snapshots.

use std::collections::BTreeMap;

use super::super::tables::Tables;
use super::super::{Bridge, FirewallSettings, PublishedPort};
use super::*;
use crate::model::{End, NsMode, PolicyProtocol, PolicySettings, Protocol};
use crate::net::bridges::Uplink;
use crate::net::firewall::ResolvedPolicy;

fn state(bridges: &[&str]) -> DesiredRules {
    let bridge = |(n, name): (usize, &&str)| Bridge {
        name: name.to_string(),
        subnet: format!("10.166.{n}.0/24").parse().unwrap(),
        gateway: format!("10.166.{n}.254").parse().unwrap(),
    };
    DesiredRules {
        uplink: Some(Uplink {
            interface: "eth0".into(),
            address: "192.0.2.2".parse().unwrap(),
        }),
        bridges: bridges.iter().enumerate().map(bridge).collect(),
        ..DesiredRules::default()
    }
}

fn port(host_port: u16, container_port: u16, protocol: Protocol) -> PublishedPort {
    PublishedPort {
        bridge: "raind0".into(),
        address: "10.166.0.2".parse().unwrap(),
        host_address: "0.0.0.0".parse().unwrap(),
        host_port,
        container_port,
        protocol,
    }
}

/// The chain of ours that corresponds to the original's rules in a built-in chain.
fn home(table: &str, chain: &str, rule: &str) -> String {
    match (table, chain) {
        ("filter", "FORWARD") if rule.contains("--ctstate DNAT") => "RAIND-HAIRPIN".into(),
        ("filter", "FORWARD") => "RAIND-FWD".into(),
        ("nat", "OUTPUT") => "RAIND-PORTS".into(),
        ("nat", chain) if !chain.starts_with("RAIND-") => format!("RAIND-{chain}"),
        _ => chain.into(),
    }
}

/// The rules that we have beyond the recording, chain by chain. Panics if a rule of the recording is missing or out of
/// order.
fn beyond(recording: &str, state: &DesiredRules) -> BTreeMap<String, Vec<String>> {
    let recorded = Tables::parse(recording);
    let ours = Tables::parse(&render(state).v4);
    let mut beyond = BTreeMap::new();
    for table in ours.names() {
        let mut expected = BTreeMap::<String, Vec<String>>::new();
        for (chain, rules) in recorded.chains(table).filter(|(chain, _)| *chain != "INPUT") {
            for rule in rules.iter().filter(|r| *r != "-j RAIND-ROOT") {
                expected.entry(home(table, chain, rule)).or_default().push(rule.clone());
            }
        }
        for (chain, rules) in ours.chains(table) {
            let mut wanted = expected.remove(chain).unwrap_or_default().into_iter().peekable();
            let extra: Vec<_> = rules
                .iter()
                .filter(|r| wanted.next_if(|w| w == *r).is_none())
                .cloned()
                .collect();
            assert_eq!(
                wanted.next(),
                None,
                "{table}/{chain} lacks it or has it elsewhere: {rules:#?}"
            );
            if !extra.is_empty() {
                beyond.insert(format!("{table}/{chain}"), extra);
            }
        }
        assert!(expected.is_empty(), "no chain for {expected:?}");
    }
    beyond
}

/// The original's rule that published a port of every host behind this one.
fn took_transit(line: &str) -> bool {
    line.starts_with("-A PREROUTING -i eth0 ") && line.contains("-j DNAT")
}

#[test]
fn a_fresh_host_has_the_rules_of_the_original_and_those_its_defects_call_for() {
    let beyond = beyond(
        include_str!("../../../tests/fixtures/iptables-bootstrap.txt"),
        &state(&["raind0"]),
    );
    insta::assert_json_snapshot!(beyond);
}

#[test]
fn published_ports_have_the_rules_of_the_original_with_the_port_of_the_container() {
    // N-13: the original matched the host port where the packet already carries the container port.
    let recording = include_str!("../../../tests/fixtures/iptables-port-forward.txt");
    let corrected: String = recording
        .lines()
        .filter(|line| !took_transit(line))
        .map(|line| match line.strip_prefix("-A FORWARD") {
            Some(_) => line.replace("port 8080", "port 80").replace("port 5353", "port 53") + "\n",
            None => format!("{line}\n"),
        })
        .collect();
    let mut state = state(&["raind0"]);
    state.ports = vec![port(8080, 80, Protocol::Tcp), port(5353, 53, Protocol::Udp)];
    let mut beyond = beyond(&corrected, &state);
    beyond.retain(|chain, _| !["filter/RAIND-EW", "filter/RAIND-ISOLATE", "filter/RAIND-NS-OBS"].contains(&&**chain));
    insta::assert_json_snapshot!(beyond);
}

#[test]
fn a_second_network_has_the_rules_of_the_original() {
    // Recorded with a container that publishes two ports and with a second network, whose containers the original left
    // without DNS (N-19).
    let recording = include_str!("../../../tests/fixtures/iptables-second-network.txt");
    let recording: String = recording
        .lines()
        .filter(|line| !took_transit(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let recording = recording
        .replace("--dport 8080 -j ACCEPT", "--dport 80 -j ACCEPT")
        .replace("--sport 8080 -j ACCEPT", "--sport 80 -j ACCEPT")
        .replace("--dport 5353 -j ACCEPT", "--dport 53 -j ACCEPT")
        .replace("--sport 5353 -j ACCEPT", "--sport 53 -j ACCEPT");
    let mut state = state(&["raind0", "raind1"]);
    state.ports = vec![port(8080, 80, Protocol::Tcp), port(5353, 53, Protocol::Udp)];
    let beyond = beyond(&recording, &state);
    assert!(
        beyond["nat/RAIND-PREROUTING"]
            .iter()
            .any(|r| r.starts_with("-i raind1 -p udp -m udp --dport 53 -j DNAT"))
    );
}

#[test]
fn enforcement_has_the_rules_of_the_original() {
    // The recording also holds policies and published ports; compare only the chains of the mode.
    let recording = include_str!("../../../tests/fixtures/iptables-enforce.txt");
    let of_mode: String = recording
        .lines()
        .filter(|l| {
            ["-A RAIND-NS-ENF -i", "-A RAIND-NS-ENF -j", "-A RAIND-ROOT"]
                .iter()
                .any(|p| l.starts_with(p))
        })
        .map(|l| format!("{l}\n"))
        .collect();
    let mut state = state(&["raind0"]);
    state.policy.ns_mode = NsMode::Enforce;
    let beyond = beyond(&format!("*filter\n{of_mode}"), &state);
    insta::assert_json_snapshot!(beyond["filter/RAIND-NS-ENF"], @r#"
    [
      "-i raind0 -m conntrack --ctstate NEW -j NFLOG --nflog-prefix \"RAIND-NS-DENY,id=predefined\" --nflog-group 12",
      "-i raind0 -j DROP"
    ]
    "#);
    assert!(
        !beyond.contains_key("filter/RAIND-NS-OBS"),
        "the chain of the other mode is empty"
    );
}

#[test]
fn without_an_uplink_no_rule_names_one() {
    let mut state = state(&["raind0"]);
    state.ports = vec![port(8080, 80, Protocol::Tcp)];
    state.uplink = None;
    let v4 = render(&state).v4;
    assert!(!v4.contains("eth0"));
    // The rules still cover leaving and entering the host, for any interface.
    for rule in [
        "-A RAIND-NS-OBS -i raind0 -j ACCEPT",
        "-A RAIND-POSTROUTING -s 10.166.0.0/16 ! -d 10.166.0.0/16 -j MASQUERADE",
        "-A RAIND-PORTS -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 10.166.0.2:80",
    ] {
        assert!(v4.lines().any(|l| l == rule), "{rule}");
    }
}

#[test]
fn a_port_at_an_address_is_published_there_only() {
    let mut state = state(&["raind0"]);
    let at = |address: &str, container_port| PublishedPort {
        host_address: address.parse().unwrap(),
        ..port(8080, container_port, Protocol::Tcp)
    };
    state.ports = vec![at("127.0.0.1", 80), at("192.0.2.2", 81)];
    let v4 = render(&state).v4;
    let with = |part: &str| v4.lines().filter(|l| l.contains(part)).collect::<Vec<_>>();
    insta::assert_debug_snapshot!(with("--dport 8080"), @r#"
    [
        "-A RAIND-PREROUTING -d 192.0.2.2/32 -i raind0 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 10.166.0.2:81",
        "-A RAIND-PORTS -d 127.0.0.1/32 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 10.166.0.2:80",
        "-A RAIND-PORTS -d 192.0.2.2/32 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 10.166.0.2:81",
    ]
    "#);
    assert_eq!(
        with("-A RAIND-FWD -d 10.166.0.2/32 -i eth0"),
        [""; 0],
        "nobody gets in past the address"
    );
    // Services follow the configuration.
    state.settings.publish_address = [127, 0, 0, 1].into();
    state.services = vec![crate::net::firewall::BalancedPort {
        service: "01m8bbbbxxxx".into(),
        host_port: 11240,
        target_port: 80,
        protocol: Protocol::Tcp,
        affinity_seconds: None,
        endpoints: Vec::new(),
    }];
    let v4 = render(&state).v4;
    let jumps: Vec<_> = v4.lines().filter(|l| l.contains("--dport 11240")).collect();
    assert_eq!(
        jumps,
        [
            "-A RAIND-PORTS -d 127.0.0.1/32 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 11240 -j RAIND-SVC-01m8bbbb-11240"
        ]
    );
}

#[test]
fn without_logging_the_actions_stay() {
    let mut state = state(&["raind0", "other"]);
    state.ports = vec![port(8080, 80, Protocol::Tcp)];
    for mode in [NsMode::Observe, NsMode::Enforce] {
        state.policy.ns_mode = mode;
        let logged = render(&state).v4;
        state.policy.ew_logging = false;
        state.policy.ns_logging = false;
        let expected: String = logged
            .lines()
            .filter(|l| !l.contains("NFLOG"))
            .map(|l| format!("{l}\n"))
            .collect();
        assert_eq!(render(&state).v4, expected);
        state.policy = PolicySettings::default();
    }
}

#[test]
fn networks_of_any_name_are_isolated_in_both_families() {
    let rules = render(&state(&["raind0", "other"]));
    insta::assert_snapshot!(rules.v6, @r"
    *filter
    :RAIND-ROOT - [0:0]
    :RAIND-ISOLATE - [0:0]
    -A RAIND-ROOT -i raind0 -j RAIND-ISOLATE
    -A RAIND-ROOT -i other -j RAIND-ISOLATE
    -A RAIND-ISOLATE -o raind0 -j DROP
    -A RAIND-ISOLATE -o other -j DROP
    COMMIT
    ");
    for rule in [
        "-A RAIND-EW -i other -j RAIND-ISOLATE",
        "-A RAIND-ISOLATE -o raind0 -j DROP",
    ] {
        assert!(rules.v4.lines().any(|l| l == rule), "{rule}");
    }
}

#[test]
fn configured_ports_and_subnets_are_used() {
    let mut state = state(&["raind0"]);
    state.settings = FirewallSettings {
        runtime_subnet: "172.20.0.0/16".parse().unwrap(),
        dns: "172.20.1.1:5300".parse().unwrap(),
        hook_port: 1756,
        management_port: 1755,
        ca_port: 1757,
        ..FirewallSettings::default()
    };
    let v4 = render(&state).v4;
    for given in [
        "172.20.0.0/16",
        "172.20.1.1:5300",
        "--dport 5300",
        "--dport 1755",
        "--dport 1756",
        "--dport 1757",
    ] {
        assert!(v4.contains(given), "{given}");
    }
    assert!(!v4.contains("10.166.") && !v4.contains("775"));
}

fn end(id: &str, address: &str) -> End {
    End {
        container: id.into(),
        veth: format!("rd_{id}"),
        bridge: "raind0".into(),
        address: address.parse().unwrap(),
    }
}

fn policy(
    id: &str,
    chain: crate::model::PolicyChain,
    protocol: Option<PolicyProtocol>,
    dport: Option<u16>,
) -> ResolvedPolicy {
    ResolvedPolicy {
        policy: id.into(),
        chain,
        pairs: Vec::new(),
        sources: Vec::new(),
        block: None,
        protocol,
        dport,
    }
}

/// The policies of the recordings that took effect, in order of addition.
fn recorded_policies() -> Vec<ResolvedPolicy> {
    use crate::model::PolicyChain::{RaindEw, RaindNsEnf, RaindNsObs};
    let (web, api) = (end("01m85d6ag2dj", "10.166.0.2"), end("01m85d7ac6qa", "10.166.0.3"));
    let tcp = Some(PolicyProtocol::Tcp);
    vec![
        ResolvedPolicy {
            pairs: vec![(web.clone(), api.clone())],
            ..policy("01m85d7b3jwrme4n5rva5tfyap", RaindEw, tcp, Some(80))
        },
        ResolvedPolicy {
            pairs: vec![(api, web.clone())],
            ..policy("01m85d7bbvashjjt05ekd6pezh", RaindEw, None, None)
        },
        ResolvedPolicy {
            sources: vec![web.clone()],
            block: Some("203.0.113.0/24".parse().unwrap()),
            ..policy("01m85d7bex9g9m7yqc6dtttfcf", RaindNsObs, tcp, Some(443))
        },
        ResolvedPolicy {
            sources: vec![web],
            block: Some("198.51.100.7/32".parse().unwrap()),
            ..policy("01m85d7bfqdm3bc5q5ey0e9eg1", RaindNsEnf, tcp, Some(443))
        },
    ]
}

/// A recording without the parts that are compared elsewhere: the order of built-in chains, N-13.
fn chains_of_policy(recording: &str) -> String {
    let of_policy = recording.lines().filter(|l| l.starts_with("-A RAIND-"));
    of_policy.fold("*filter\n".to_owned(), |all, l| all + l + "\n")
}

#[test]
fn policies_have_the_rules_of_the_original() {
    let mut state = state(&["raind0"]);
    let mut policies = recorded_policies();
    state.policies = policies.clone();
    let mixed = include_str!("../../../tests/fixtures/iptables-mixed-policies.txt");
    let mut beyond = self::beyond(&chains_of_policy(mixed), &state);
    beyond.retain(|chain, _| ["filter/RAIND-EW", "filter/RAIND-NS-OBS", "filter/RAIND-NS-ENF"].contains(&&**chain));
    insta::assert_json_snapshot!(beyond);

    policies.truncate(1);
    state.policies = policies;
    let one = include_str!("../../../tests/fixtures/iptables-ew-policy.txt");
    self::beyond(&chains_of_policy(one), &state);
}

#[test]
fn enforced_policies_have_the_rules_of_the_original() {
    let mut state = state(&["raind0"]);
    state.policy.ns_mode = NsMode::Enforce;
    let mut policies = recorded_policies();
    policies.remove(1);
    state.policies = policies;
    let recording = include_str!("../../../tests/fixtures/iptables-enforce.txt");
    beyond(&chains_of_policy(recording), &state);
}

#[test]
fn policies_between_networks_match_addresses() {
    let mut state = state(&["raind0", "other"]);
    let mut far = end("cccccccccccc", "10.166.1.1");
    far.bridge = "other".into();
    let near = end("aaaaaaaaaaaa", "10.166.0.1");
    state.policies = vec![ResolvedPolicy {
        pairs: vec![(near, far)],
        ..policy(
            "p1",
            crate::model::PolicyChain::RaindEw,
            Some(PolicyProtocol::Udp),
            Some(53),
        )
    }];
    let v4 = render(&state).v4;
    let first = v4.lines().find(|l| l.starts_with("-A RAIND-EW ")).unwrap();
    assert_eq!(
        first,
        "-A RAIND-EW -s 10.166.0.1/32 -d 10.166.1.1/32 -i raind0 -o other -p udp -m conntrack --ctstate NEW \
         -m udp --dport 53 -j NFLOG --nflog-prefix \"RAIND-EW-ALLOW,id=p1\" --nflog-group 10"
    );
}

#[test]
fn a_block_of_all_addresses_is_no_condition() {
    let mut state = state(&["raind0"]);
    state.policies = vec![ResolvedPolicy {
        sources: vec![end("aaaaaaaaaaaa", "10.166.0.1")],
        block: Some("0.0.0.0/0".parse().unwrap()),
        ..policy("p1", crate::model::PolicyChain::RaindNsObs, None, None)
    }];
    let v4 = render(&state).v4;
    assert!(
        v4.lines()
            .any(|l| l == "-A RAIND-NS-OBS -s 10.166.0.1/32 -i raind0 -o eth0 -j DROP")
    );
}

#[test]
fn what_containers_send_has_the_address_that_they_were_given() {
    let mut state = state(&["raind0"]);
    state.interfaces = vec![end("aaaaaaaaaaaa", "10.166.0.1")];
    let rule = "-A RAIND-GUARD ! -s 10.166.0.1/32 -m physdev --physdev-in rd_aaaaaaaaaaaa -j DROP";
    assert!(render(&state).v4.lines().any(|l| l == rule));
}
