//! Starts that are refused say why in one line; a start without a network waits for it.

use std::time::Duration;

use serde_json::json;

use crate::support::{HOST, Lab, Place, get, wait_for};
use crate::until_term;

/// Runs the daemon with these arguments; it has to end with code 1 and one line that contains `word`.
fn refuses(lab: &Lab, arguments: &[&str], word: &str) {
    let output = lab.daemon().run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("condenser: ")).collect();
    assert_eq!(output.status.code(), Some(1), "with {word:?}: {said}");
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains(word), "{said}");
}

#[test]
fn what_cannot_work_is_refused() {
    let lab = Lab::start();
    let taken = lab
        .machine()
        .at(Place::Host, || std::net::TcpListener::bind("127.0.0.1:7757").unwrap());
    refuses(&lab, &[], "7757");
    drop(taken);
    refuses(&lab, &["--root-dir", "relative"], "relative");
    refuses(&lab, &["--config", "/no/such.toml"], "/no/such.toml");
    lab.machine()
        .write("/etc/raind/condenser.toml", "runtime_subnet = \"10.0.0.0/25\"\n");
    refuses(&lab, &[], "10.0.0.0/25");
    lab.machine().write("/etc/raind/condenser.toml", "no_such_key = 1\n");
    refuses(&lab, &[], "no_such_key");
    std::fs::remove_file(lab.machine().path("/etc/raind/condenser.toml")).unwrap();
    lab.machine().run(&["mount", "-t", "tmpfs", "tmpfs", "/usr/sbin"]);
    refuses(&lab, &[], "iptables");
    lab.machine().run(&["umount", "/usr/sbin"]);
    lab.machine().write(
        "/etc/raind/store/condenser.db",
        "this is no database, and longer than a header of one would be",
    );
    refuses(&lab, &[], "condenser.db");
    std::fs::remove_file(lab.machine().path("/etc/raind/store/condenser.db")).unwrap();
    lab.daemon().start();
    // A second one on the same directories.
    refuses(&lab, &[], "");
    lab.api().ok(get("/v1/containers"));
}

#[test]
fn it_needs_root() {
    let lab = Lab::start();
    let program = env!("CARGO_BIN_EXE_condenser");
    let output = lab
        .machine()
        .output(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("root"), "{said}");
}

#[test]
fn a_missing_default_route_is_waited_for() {
    let lab = Lab::start();
    lab.machine().run(&["ip", "route", "delete", "default"]);
    lab.daemon().start();
    assert_eq!(lab.api().ok(get("/v1/networks"))[0]["Interface"], "raind0");
    let masquerade = || {
        let rules = lab.machine().run(&["iptables-save", "-t", "nat"]);
        if rules.contains("-o eth0 -j MASQUERADE") {
            Ok(())
        } else {
            Err(rules)
        }
    };
    masquerade().unwrap_err();
    lab.machine()
        .run(&["ip", "route", "add", "default", "via", "192.0.2.1"]);
    wait_for("the rules of the host interface", Duration::from_secs(30), masquerade);
}

#[test]
fn settings_from_a_file_hold_and_the_environment_is_above_it() {
    let lab = Lab::start();
    lab.machine().write(
        "/etc/raind/condenser.toml",
        "runtime_subnet = \"10.77.0.0/16\"\nmanagement_address = \"127.0.0.1:7000\"\nlog_format = \"json\"\n",
    );
    lab.daemon().set("CONDENSER_MANAGEMENT_ADDRESS", "127.0.0.1:7755");
    lab.daemon().start();
    assert_eq!(lab.api().ok(get("/v1/networks"))[0]["Address"], "10.77.0.254/24");
    assert!(
        lab.daemon().log().lines().all(|line| line.starts_with('{')),
        "{}",
        lab.daemon().log()
    );
}

#[test]
fn the_host_is_prepared_and_protected_before_the_first_container() {
    let lab = Lab::running();
    let rules = lab.machine().run(&["iptables-save"]);
    for chain in ["RAIND-ROOT", "RAIND-EW", "RAIND-NS-OBS", "RAIND-NS-ENF"] {
        assert!(rules.contains(&format!(":{chain} - ")), "{chain}: {rules}");
    }
    assert!(lab.machine().run(&["ip6tables-save"]).contains("-j DROP"));
    let read = |path: &str| lab.machine().run(&["cat", path]).trim().to_owned();
    assert_eq!(read("/proc/sys/net/ipv4/ip_forward"), "1");
    assert_eq!(read("/proc/sys/net/bridge/bridge-nf-call-iptables"), "1");
    let links = lab.machine().run(&["ip", "-brief", "address"]);
    assert!(
        links.contains("10.166.0.254/24") && links.contains("10.166.254.254"),
        "{links}"
    );
}

#[test]
fn foreign_rules_are_left_alone() {
    let lab = Lab::start();
    let own = [
        ["-t", "filter", "-A", "FORWARD", "-s", "198.51.100.1/32", "-j", "ACCEPT"],
        ["-t", "nat", "-A", "PREROUTING", "-s", "198.51.100.2/32", "-j", "ACCEPT"],
        ["-t", "filter", "-A", "INPUT", "-s", "198.51.100.3/32", "-j", "DROP"],
    ];
    for rule in own {
        lab.machine().run(&[&["iptables"], &rule[..]].concat());
    }
    lab.daemon().start();
    let image = lab.pull(&crate::support::ImageSpec::busybox(), "library/busybox:1");
    lab.api()
        .run(json!({ "image": image, "port": ["8080:80"], "command": until_term(0) }));
    lab.daemon().restart();
    let rules = lab.machine().run(&["iptables-save"]);
    for address in ["198.51.100.1", "198.51.100.2", "198.51.100.3"] {
        assert_eq!(rules.matches(address).count(), 1, "{rules}");
    }
    assert_eq!(rules.matches(&format!("-d {HOST}/32")).count() % 2, 0, "{rules}");
}

#[test]
fn it_ends_in_order_and_at_once() {
    let lab = Lab::running();
    let begun = std::time::Instant::now();
    assert!(lab.daemon().stop().success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
