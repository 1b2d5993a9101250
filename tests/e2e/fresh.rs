//! What a new user meets: a machine without Rust, the two commands, an output that is cut off, a second daemon, and the
//! way back, which must not take what others have made.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::json;

use crate::support::{ImageSpec, Lab, Place, get, post, send};
use crate::until_term;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PREFIX: &str = "/run/opt";
const DAEMON: &str = env!("CARGO_BIN_EXE_condenser");

/// Where the programs under test are.
fn programs() -> &'static str {
    DAEMON.strip_suffix("/condenser").unwrap()
}

/// One of the scripts, on the host of the lab, with all that it says.
fn script(lab: &Lab, arguments: &[&str]) -> (bool, String) {
    let mut command = lab.machine().command(Place::Host, "timeout");
    let (name, rest) = arguments.split_first().unwrap();
    // A quickstart on a machine that does other things, too.
    command.args(["200", &format!("{ROOT}/scripts/{name}")]).args(rest);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = [String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)].concat();
    (status.success(), said)
}

#[track_caller]
fn succeeds(lab: &Lab, arguments: &[&str]) -> String {
    let (done, said) = script(lab, arguments);
    assert!(done, "{arguments:?}: {said}");
    said
}

#[track_caller]
fn refuses(lab: &Lab, arguments: &[&str], words: &[&str]) {
    let (done, said) = script(lab, arguments);
    assert!(
        !done && words.iter().all(|word| said.contains(word)),
        "{arguments:?}, {words:?}: {said}"
    );
}

fn quickstart(lab: &Lab) {
    let said = succeeds(lab, &["quickstart.sh", "--from", programs()]);
    assert!(said.contains("It runs. How to go on"), "{said}");
}

/// Pid of the daemon that the quickstart started.
fn demo_daemon(lab: &Lab) -> String {
    lab.machine().read("/run/raind/quickstart/pid").trim().to_owned()
}

fn end_demo_daemon(lab: &Lab) {
    let pid = demo_daemon(lab);
    let wait = format!("kill {pid}; while [ -d /proc/{pid} ]; do sleep 0.05; done");
    lab.machine().run(&["sh", "-c", &wait]);
}

#[test]
fn a_clean_leaves_nothing_of_a_quickstart() {
    let lab = Lab::start();
    let before = lab.inventory();
    quickstart(&lab);
    let said = succeeds(&lab, &["quickstart.sh", "--clean", "--dry-run"]);
    for word in [
        "a container: web-",
        "an image: library/demo:1",
        "an interface: raind0",
        "a directory: /etc/raind",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(
        lab.api().ok(get("/v1/replicasets/shop"))["ready"],
        4,
        "a dry run removes nothing"
    );

    // As after a reset of the machine: no daemon, no volatile files.
    lab.machine().run(&[
        "sh",
        "-c",
        &format!("kill -9 {}; rm -rf /run/raind/quickstart", demo_daemon(&lab)),
    ]);
    succeeds(&lab, &["quickstart.sh", "--from", programs(), "--clean"]);
    lab.assert_purged(&before);
    // There is nothing more to do, and it says so.
    let said = succeeds(&lab, &["quickstart.sh", "--clean"]);
    assert!(said.contains("nothing of a quickstart"), "{said}");
}

#[test]
fn a_clean_does_not_touch_an_installation_that_came_after_the_quickstart() {
    let lab = Lab::start();
    quickstart(&lab);
    let install = ["install.sh", "--prefix", PREFIX, "--from", programs()];
    refuses(&lab, &install, &["another daemon runs", &demo_daemon(&lab)]);
    end_demo_daemon(&lab);
    succeeds(&lab, &install);
    lab.daemon().set_program("/run/opt/bin/condenser");
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let id = lab
        .api()
        .run(json!({ "image": image, "name": "mine", "command": until_term(0) }));

    let refused = "nothing was removed";
    refuses(
        &lab,
        &["quickstart.sh", "--clean"],
        &[refused, "/run/opt/bin/condenser", "condenser.service"],
    );
    refuses(
        &lab,
        &["quickstart.sh", "--from", programs()],
        &["nothing was started", "an installation"],
    );
    assert_eq!(lab.api().container(&id)["state"], "running");
    assert!(lab.machine().path(&format!("/etc/raind/container/{id}/diff")).exists());
    // Nor while its daemon does not run, nor when only its data is left.
    lab.daemon().stop();
    refuses(&lab, &["quickstart.sh", "--clean"], &[refused, "condenser.service"]);
    succeeds(&lab, &["install.sh", "--prefix", PREFIX, "--uninstall"]);
    refuses(&lab, &["quickstart.sh", "--clean"], &[refused, "data: /etc/raind"]);
    assert!(lab.machine().path("/etc/raind/store/condenser.db").exists());
}

#[test]
fn a_clean_refuses_while_others_have_something_in_the_state() {
    let lab = Lab::start();
    quickstart(&lab);
    let request = json!({ "image": "demo:1", "name": "mine", "command": ["sleep", "1000"] });
    lab.api().create(request);
    lab.api().ok(post("/v1/networks", json!({ "bridge": "shopnet" })));
    let found = ["nothing was removed", "a container: mine", "a network: shopnet"];
    refuses(&lab, &["quickstart.sh", "--clean"], &found);
    assert_eq!(lab.api().ok(get("/v1/replicasets/shop"))["ready"], 4);
    // Who cannot be asked may have anything.
    let key = "/etc/raind/cert/raindClient.key";
    lab.machine().run(&["mv", key, "/run/key"]);
    refuses(
        &lab,
        &["quickstart.sh", "--clean"],
        &["does not tell", "nothing was removed"],
    );
    lab.machine().run(&["mv", "/run/key", key]);
    // What install.sh removes is not the quickstart's.
    let purge = ["install.sh", "--prefix", PREFIX, "--uninstall", "--purge", "--yes"];
    refuses(&lab, &purge, &["another daemon runs", "target"]);
    assert_eq!(lab.api().container("mine")["state"], "created");
    lab.api().delete("mine");
    lab.api()
        .ok(send("DELETE", "/v1/networks/shopnet/actions/delete", Vec::new()));
    succeeds(&lab, &["quickstart.sh", "--clean", "--yes"]);
    assert!(!lab.machine().path("/etc/raind/store").exists());
}

#[test]
fn a_purge_after_an_uninstall_finds_the_network_of_a_bottle() {
    let lab = Lab::start();
    let before = lab.inventory();
    succeeds(&lab, &["install.sh", "--prefix", PREFIX, "--from", programs()]);
    lab.daemon().set_program("/run/opt/bin/condenser");
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let bottle =
        format!("bottle: {{ name: blog }}\nservices:\n  web: {{ image: '{image}', command: [sleep, '1000'] }}\n");
    let reply = lab.api().call(send("POST", "/v1/bottle", bottle));
    assert_eq!(reply.status, 201, "{}", reply.text());
    lab.api().ok(send("POST", "/v1/bottle/blog/actions/start", Vec::new()));
    assert_eq!(lab.api().ok(get("/v1/networks")).as_array().unwrap().len(), 2);
    lab.daemon().stop();
    succeeds(&lab, &["install.sh", "--prefix", PREFIX, "--uninstall"]);
    // The data may be somebody else's by now.
    let unit = "/etc/systemd/system/condenser.service";
    lab.machine().write(unit, "[Service]\nExecStart=/usr/bin/condenser\n");
    let purge = ["install.sh", "--prefix", PREFIX, "--uninstall", "--purge", "--yes"];
    refuses(&lab, &purge, &["another installation", unit]);
    std::fs::remove_file(lab.machine().path(unit)).unwrap();
    // The runtime is gone with the programs: there is nobody to wait for before what is left of containers is killed.
    tool(&lab, "sleep", "exec /bin/sleep \"$@\"");
    let mut command = lab.machine().command(Place::Host, "timeout");
    command.args(["200", "env", "PATH=/run/tools:/usr/sbin:/usr/bin:/sbin:/bin"]);
    command.arg(format!("{ROOT}/scripts/{}", purge[0])).args(&purge[1..]);
    let output = command.output().unwrap();
    let waits = lab.machine().read("/run/called").matches("sleep 0.2").count();
    assert!(output.status.success() && waits < 25, "{waits} waits: {output:?}");
    lab.assert_purged(&before);
}

/// A tool of the lab that writes down how it is called.
fn tool(lab: &Lab, name: &str, body: &str) {
    let path = format!("/run/tools/{name}");
    let text = format!("#!/bin/sh\necho \"{name} $*\" >> /run/called\n{body}\n");
    lab.machine().write(&path, text);
    std::fs::set_permissions(lab.machine().path(&path), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a script with the tools first on the PATH, and nobody's Rust in sight.
fn with_tools(lab: &Lab, arguments: &[&str]) -> (bool, String) {
    let mut command = lab.machine().command(Place::Host, "unshare");
    let (name, rest) = arguments.split_first().unwrap();
    let path = "/run/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let hide = "mount -t tmpfs tmpfs /root && exec env PATH=$1 HOME=/root \"${@:2}\"";
    command.args(["--mount", "bash", "-c", hide, "hide", path]);
    command.arg(format!("{ROOT}/scripts/{name}")).args(rest);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = [String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)].concat();
    (status.success(), said)
}

#[rstest]
#[case::none(None, "Rust 1.90 or newer is needed")]
#[case::of_debian_12(Some("rustc 1.63.0"), "/run/tools/cargo: 1.63.0")]
#[case::of_debian_13(
    Some("'rustc 1.85.0 (4d91de4e4 2025-02-17) (built from a source tarball)'"),
    "/run/tools/cargo: 1.85.0"
)]
#[case::rustup_without_a_toolchain(Some("oh; exit 1"), "/run/tools/cargo: does not run: oh")]
fn without_rust_the_first_thing_it_says_is_how_to_get_it(#[case] rustc: Option<&str>, #[case] word: &str) {
    let lab = Lab::start();
    for installer in ["apt-get", "apt-cache", "rustup"] {
        tool(&lab, installer, "exit 1");
    }
    if let Some(version) = rustc {
        tool(&lab, "cargo", "echo cargo 1.65.0");
        tool(&lab, "rustc", &format!("echo {version}"));
    }
    for name in ["quickstart.sh", "test.sh", "install.sh"] {
        let begun = Instant::now();
        let (done, said) = with_tools(&lab, &[name]);
        let how = said.contains("https://sh.rustup.rs") && said.contains("Nothing was installed");
        assert!(!done && said.contains(word) && how, "{name}: {said}");
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{name}: {:?}",
            begun.elapsed()
        );
    }
    let called = lab.machine().read("/run/called");
    let installs = |line: &str| line.starts_with("apt-get ") || line.starts_with("rustup ");
    assert!(!called.lines().any(installs), "{called}");
}

/// A cargo that is new enough, has no nextest, and writes down what is asked of it.
#[rstest]
#[case::a_name(&["ports::"], "--no-fail-fast -- ports::")]
#[case::a_binary(&["--test", "e2e", "ports::"], "--no-fail-fast --test e2e -- ports::")]
#[case::an_expression(&["-E", "binary(e2e) & test(ports::)"], "--no-fail-fast --test e2e -- ports::")]
#[case::an_exact_name(&["-E", "test(=ports::x)"], "--no-fail-fast -- --exact ports::x")]
#[case::the_library(&["-E", "kind(lib) and test(image::)"], "--no-fail-fast --lib -- image::")]
fn the_tests_of_a_filter_come_before_the_lints(#[case] filter: &[&str], #[case] words: &str) {
    let lab = Lab::start();
    tool(&lab, "shellcheck", "");
    tool(&lab, "cargo", "case $1 in nextest | deny) exit 101;; esac");
    tool(&lab, "rustc", "echo rustc 1.99.0");
    let (done, said) = with_tools(&lab, &[&["test.sh"], filter].concat());
    assert!(done, "{said}");
    let called = lab.machine().read("/run/called");
    let at = |what: &str| called.lines().position(|line| line.starts_with(what)).expect(what);
    let tests = called.lines().nth(at("cargo test ")).unwrap();
    assert_eq!(tests, format!("cargo test --locked {words}"));
    assert!(at("cargo test ") < at("cargo clippy --locked"), "{called}");
}

#[test]
fn an_expression_that_needs_nextest_is_refused_at_once() {
    let lab = Lab::start();
    tool(&lab, "cargo", "case $1 in nextest) exit 101;; esac");
    tool(&lab, "rustc", "echo rustc 1.99.0");
    let (done, said) = with_tools(&lab, &["test.sh", "-E", "test(a) | test(b)"]);
    assert!(!done && said.contains("cargo install --locked cargo-nextest"), "{said}");
    let called = lab.machine().read("/run/called");
    assert!(
        !called.contains("cargo test") && !called.contains("clippy --locked"),
        "{called}"
    );
}

/// The part that is for the first process of a lab would take the mounts of whatever machine it runs on.
#[test]
fn the_inner_half_of_the_lab_refuses_to_run_anywhere_else() {
    let lab = Lab::start();
    let mounts = lab.machine().read("/proc/1/mountinfo");
    refuses(&lab, &["lab.sh", "--inside", "true"], &["first process"]);
    assert_eq!(lab.machine().read("/proc/1/mountinfo"), mounts);
}

/// As in `condenser openapi | head -1`.
#[rstest]
#[case::openapi(DAEMON, &["openapi"])]
#[case::help(DAEMON, &["--help"])]
#[case::version(DAEMON, &["--version"])]
#[case::runtime_help(env!("CARGO_BIN_EXE_droplet"), &["help"])]
#[case::runtime_list(env!("CARGO_BIN_EXE_droplet"), &["list"])]
#[case::runtime_list_json(env!("CARGO_BIN_EXE_droplet"), &["list", "--format", "json"])]
fn an_output_that_nobody_reads_to_its_end_is_no_error(#[case] program: &str, #[case] arguments: &[&str]) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdout(writer)
        .stderr(Stdio::piped())
        .env("RAIND_ROOT_DIR", "/nonexistent");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
}

/// As in `condenser 2>&1 | grep -m1 ready`.
#[test]
fn a_daemon_whose_log_nobody_reads_any_more_serves() {
    let lab = Lab::start();
    let text = format!("#!/bin/bash\nexec {DAEMON} \"$@\" 2> >(sed -u '/: ready /q')\n");
    let mut file = std::fs::File::create(lab.machine().path("/run/unread")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(file);
    lab.daemon().set_program("/run/unread");
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let id = lab.api().run(json!({ "image": image, "command": until_term(3) }));
    lab.api().stop(&id);
    assert_eq!(lab.api().wait_state(&id, "stopped")["exitCode"], 3);
    lab.api().delete(&id);
    assert!(lab.daemon().ended().is_none());
}

#[test]
fn a_second_daemon_says_who_holds_the_state() {
    let lab = Lab::running();
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.daemon().pid())).unwrap();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    let pid = numbers.split_whitespace().last().unwrap();
    let output = lab.daemon().run(&[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("condenser.db is in use by process {pid} ({DAEMON})")),
        "{said}"
    );
    lab.api().ok(get("/v1/containers"));
}
