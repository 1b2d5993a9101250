//! `scripts/install.sh` on a machine: with a service manager, under running containers, and away again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{ImageSpec, Lab, post};
use crate::until_term;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install.sh");
const PROGRAMS: [&str; 3] = ["condenser", "droplet", "condenser-hook-agent"];
/// On a file system that goes with the lab.
const PREFIX: &str = "/run/opt";

fn install(lab: &Lab, arguments: &[&str]) -> String {
    lab.machine().run(&[&[SCRIPT, "--prefix", PREFIX], arguments].concat())
}

/// The programs under test, below /run of the lab; another version of them has a byte more.
fn programs(lab: &Lab, version: &str) -> String {
    let directory = format!("/run/{version}");
    std::fs::create_dir(lab.machine().path(&directory)).unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_condenser")).parent().unwrap();
    for name in PROGRAMS {
        let mut program = std::fs::read(built.join(name)).unwrap();
        program.extend_from_slice(version.as_bytes());
        let path = lab.machine().path(&format!("{directory}/{name}"));
        std::fs::write(&path, program).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    directory
}

/// A lab with version 1 installed and running.
fn installed() -> Lab {
    let lab = Lab::start();
    let said = install(&lab, &["--from", &programs(&lab, "one")]);
    assert!(
        said.contains("start the daemon as root with: /run/opt/bin/condenser"),
        "{said}"
    );
    lab.daemon().set_program("/run/opt/bin/condenser");
    lab.daemon().start();
    lab
}

/// What each process of the lab runs.
fn executables(lab: &Lab) -> String {
    lab.machine()
        .run(&["sh", "-c", "ls -l /proc/[0-9]*/exe 2> /dev/null || true"])
}

fn pid(container: &Value) -> i64 {
    container["pid"].as_i64().unwrap()
}

#[test]
fn an_upgrade_does_not_disturb_running_containers() {
    let lab = installed();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let id = lab
        .api()
        .run(json!({ "image": image, "name": "web", "command": until_term(7) }));
    let before = pid(&lab.api().container(&id));

    let said = install(&lab, &["--from", &programs(&lab, "two")]);
    assert!(said.contains("the daemon runs: restart it"), "{said}");
    let running = executables(&lab);
    assert!(
        running.contains(&format!("{PREFIX}/bin/condenser (deleted)")),
        "{running}"
    );
    let said = install(&lab, &["--from", "/run/two"]);
    assert!(said.contains("the daemon runs: restart it"), "{said}");
    // The old daemon and the old monitor with the new runtime.
    assert_eq!(lab.api().exec(&id, "echo still here").trim(), "still here");
    lab.daemon().restart();
    assert!(!executables(&lab).contains(&format!("{PREFIX}/bin/condenser (deleted)")));
    // Everything new, but the monitor.
    let found = lab.api().container(&id);
    assert_eq!((pid(&found), found["state"].as_str()), (before, Some("running")));
    assert_eq!(lab.api().exec(&id, "echo and here").trim(), "and here");
    lab.api().stop(&id);
    assert_eq!(lab.api().wait_state(&id, "stopped")["exitCode"], 7);
    lab.api().start(&id);
    lab.api().wait_state(&id, "running");
    // The same again is nothing to be done.
    let said = install(&lab, &["--from", "/run/two"]);
    assert!(!said.contains("restart it"), "{said}");
}

#[test]
fn an_uninstall_leaves_containers_alone_and_a_purge_leaves_nothing() {
    let lab = Lab::start();
    let image = ImageSpec::busybox();
    lab.push(&image, "library/busybox:1");
    let machine = lab.machine();
    machine.run(&[
        "iptables",
        "-A",
        "INPUT",
        "-s",
        "198.51.100.7",
        "-m",
        "comment",
        "--comment",
        "not -j RAIND-X",
        "-j",
        "DROP",
    ]);
    let before = lab.inventory();
    install(&lab, &["--from", &programs(&lab, "one")]);
    lab.daemon().set_program("/run/opt/bin/condenser");
    lab.daemon().start();
    let image = lab.pull(&image, "library/busybox:1");
    lab.api().ok(post("/v1/networks", json!({ "bridge": "shop" })));
    for (name, network) in [("one", "raind0"), ("two", "shop")] {
        let request = json!({ "image": image, "name": name, "network": network, "port": [], "command": until_term(0) });
        lab.api().run(request);
    }
    let refused = machine.output(&[SCRIPT, "--prefix", PREFIX, "--uninstall"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("the daemon runs, as process"),
        "{said}"
    );
    lab.daemon().stop();

    let said = install(&lab, &["--uninstall"]);
    assert!(said.contains("containers go on running"), "{said}");
    assert!(!machine.path("/run/opt/bin/droplet").exists());
    assert!(!machine.path("/etc/systemd/system/condenser.service").exists());
    assert!(!machine.path("/etc/raind/condenser.toml").exists(), "nobody changed it");
    assert_eq!(executables(&lab).matches("-> /droplet\n").count(), 2);

    // It comes back and takes over what is there.
    install(&lab, &["--from", "/run/one"]);
    lab.daemon().start();
    lab.api().wait_state("two", "running");
    assert_eq!(lab.api().exec("two", "echo found").trim(), "found");
    lab.daemon().stop();

    install(&lab, &["--uninstall", "--purge", "--yes"]);
    lab.assert_purged(&before);
}

/// There is no systemd in a lab: what would be asked of it is written down.
#[test]
fn systemd_is_asked_for_what_the_service_needs() {
    let lab = Lab::start();
    let machine = lab.machine();
    std::fs::create_dir_all(machine.path("/run/systemd/system")).unwrap();
    for (path, text) in [
        ("/run/tools/systemctl", "#!/bin/sh\necho \"$*\" >> /run/asked\n"),
        ("/run/one/condenser", "#!/bin/sh\n"),
        ("/run/one/droplet", "#!/bin/sh\n"),
        ("/run/one/condenser-hook-agent", "#!/bin/sh\n"),
    ] {
        machine.write(path, text);
        std::fs::set_permissions(machine.path(path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let asked = |arguments: &[&str]| {
        let path = "PATH=/run/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let _ = std::fs::remove_file(machine.path("/run/asked"));
        machine.run(&[&["env", path, SCRIPT, "--prefix", PREFIX], arguments].concat());
        machine
            .read("/run/asked")
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let from = ["--from", "/run/one"];
    assert_eq!(
        asked(&from),
        ["daemon-reload", "enable --quiet --now condenser.service"]
    );
    assert_eq!(asked(&from), ["daemon-reload"], "nothing has changed");
    // As if the first run had been killed before its end.
    std::fs::remove_file(machine.path("/run/opt/share/condenser/condenser.toml")).unwrap();
    assert_eq!(
        asked(&from),
        ["daemon-reload", "enable --quiet --now condenser.service"]
    );
    machine.write("/run/one/droplet", "#!/bin/sh\n# new\n");
    assert_eq!(asked(&[&from[..], &["--no-start"]].concat()), ["daemon-reload"]);
    machine.write("/run/one/droplet", "#!/bin/sh\n# newer\n");
    assert_eq!(asked(&from), ["daemon-reload", "try-restart condenser.service"]);
    assert_eq!(
        asked(&["--uninstall"]),
        ["disable --quiet --now condenser.service", "daemon-reload"]
    );
    assert_eq!(asked(&["--uninstall"]), ["daemon-reload"]);
}

/// What the unit takes from the daemon must not be what containers need.
#[test]
fn containers_run_under_the_hardening_of_the_unit() {
    let lab = Lab::start();
    let unit = include_str!("../../assets/systemd/condenser.service");
    assert!(unit.contains("\nNoNewPrivileges=yes\n") && unit.contains("\nUMask=0022\n"));
    let program = env!("CARGO_BIN_EXE_condenser");
    let script = format!("#!/bin/sh\numask 0022\nulimit -n 1048576\nexec setpriv --no-new-privs {program} \"$@\"\n");
    lab.machine().write("/run/hardened", script);
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(lab.machine().path("/run/hardened"), permissions).unwrap();
    lab.daemon().set_program("/run/hardened");
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let request = json!({ "image": image, "port": ["8080:80"], "user": "1000:1000", "command": until_term(3) });
    let id = lab.api().run(request);
    assert_eq!(lab.api().exec(&id, "id -u").trim(), "1000");
    lab.api().stop(&id);
    assert_eq!(lab.api().wait_state(&id, "stopped")["exitCode"], 3);
    lab.api().delete(&id);
}
