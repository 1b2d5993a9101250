//! `scripts/install.sh` into a directory, and the files that it installs. What it does to a machine that runs is in
//! `tests/e2e/install.rs`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::Args;
use condenser::daemon::config::{Config, Settings};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install.sh");
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/condenser.toml");

/// A package that is being made.
struct Package {
    root: tempfile::TempDir,
    programs: tempfile::TempDir,
}

impl Package {
    fn new() -> Self {
        let package = Self {
            root: tempfile::tempdir().unwrap(),
            programs: tempfile::tempdir().unwrap(),
        };
        for name in ["condenser", "droplet", "condenser-hook-agent"] {
            package.program(name, "1");
        }
        package
    }

    /// A program that says its version.
    fn program(&self, name: &str, version: &str) {
        let path = self.programs.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho {name} {version}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(SCRIPT);
        command.arg("--destdir").arg(self.root.path()).args(arguments);
        command.output().unwrap()
    }

    fn install(&self) -> String {
        done(self.run(&["--from", self.programs.path().to_str().unwrap()]))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Every path below the root with its mode.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.root.path().to_owned()];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                let name = path
                    .strip_prefix(self.root.path())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.insert(name, format!("{:o}", metadata.permissions().mode()));
                if metadata.is_dir() {
                    waiting.push(path);
                }
            }
        }
        found
    }
}

fn done(output: Output) -> String {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    said
}

fn refused(output: Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(reason), "{said}");
}

#[test]
fn files_and_modes_are_those_of_the_contract() {
    let package = Package::new();
    package.install();
    let expected = [
        ("etc", "40755"),
        ("etc/raind", "40700"),
        ("etc/raind/cert", "40700"),
        ("etc/raind/condenser.toml", "100644"),
        ("etc/raind/container", "40700"),
        ("etc/raind/image", "40700"),
        ("etc/raind/log", "40700"),
        ("etc/raind/pod", "40700"),
        ("etc/raind/store", "40700"),
        ("etc/raind/volumes", "40700"),
        ("etc/systemd", "40755"),
        ("etc/systemd/system", "40755"),
        ("etc/systemd/system/condenser.service", "100644"),
        ("usr", "40755"),
        ("usr/local", "40755"),
        ("usr/local/bin", "40755"),
        ("usr/local/bin/condenser", "100755"),
        ("usr/local/bin/condenser-hook-agent", "100755"),
        ("usr/local/bin/droplet", "100755"),
        ("usr/local/share", "40755"),
        ("usr/local/share/condenser", "40755"),
        ("usr/local/share/condenser/condenser.toml", "100644"),
        ("var", "40755"),
        ("var/log", "40755"),
        ("var/log/raind", "40750"),
    ];
    assert_eq!(
        package.tree(),
        expected.map(|(path, mode)| (path.to_owned(), mode.to_owned())).into()
    );
    let unit = package.read("etc/systemd/system/condenser.service");
    assert!(
        unit.contains("\nExecStart=/usr/local/bin/condenser\n") && !unit.contains("@bindir@"),
        "{unit}"
    );
}

#[test]
fn a_second_time_changes_nothing() {
    let package = Package::new();
    package.install();
    let inodes = || {
        let paths = package.tree().into_keys();
        let inode = |path: &String| package.path(path).symlink_metadata().unwrap().ino();
        paths.map(|path| (inode(&path), path)).collect::<Vec<_>>()
    };
    let before = inodes();
    package.install();
    assert_eq!(inodes(), before);
}

#[test]
fn an_upgrade_replaces_what_nobody_changed() {
    let package = Package::new();
    package.install();
    let running = std::fs::File::open(package.path("usr/local/bin/droplet")).unwrap();
    for name in ["condenser", "droplet", "condenser-hook-agent"] {
        package.program(name, "2");
    }
    // As an earlier version left them.
    for path in ["etc/raind/condenser.toml", "usr/local/share/condenser/condenser.toml"] {
        std::fs::write(package.path(path), "#earlier = 1\n").unwrap();
    }
    package.install();
    assert!(package.read("usr/local/bin/droplet").contains("droplet 2"));
    assert_eq!(
        running.metadata().unwrap().nlink(),
        0,
        "the old one is untouched and only has lost its name"
    );
    let shipped = std::fs::read_to_string(CONFIG).unwrap();
    assert_eq!(package.read("etc/raind/condenser.toml"), shipped);

    std::fs::write(package.path("etc/raind/condenser.toml"), "log_format = \"json\"\n").unwrap();
    let said = package.install();
    assert_eq!(package.read("etc/raind/condenser.toml"), "log_format = \"json\"\n");
    assert!(
        said.contains("/etc/raind/condenser.toml was changed and stays"),
        "{said}"
    );
    assert_eq!(package.read("usr/local/share/condenser/condenser.toml"), shipped);
}

#[test]
fn an_uninstall_keeps_data_and_a_purge_leaves_nothing() {
    let package = Package::new();
    std::fs::create_dir_all(package.path("usr/local/bin")).unwrap();
    std::fs::write(package.path("usr/local/bin/other"), "").unwrap();
    package.install();
    std::fs::write(package.path("etc/raind/store/condenser.db"), "data").unwrap();
    done(package.run(&["--uninstall"]));
    let left = package.tree();
    let files: Vec<_> = left
        .iter()
        .filter(|(_, mode)| mode.starts_with("100"))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(files, ["etc/raind/store/condenser.db", "usr/local/bin/other"]);

    package.install();
    std::fs::write(package.path("etc/raind/condenser.toml"), "log_format = \"json\"\n").unwrap();
    done(package.run(&["--uninstall"]));
    assert!(package.path("etc/raind/condenser.toml").exists());
    refused(package.run(&["--uninstall", "--purge"]), "say --yes");
    assert!(package.path("etc/raind/store/condenser.db").exists());
    done(package.run(&["--uninstall", "--purge", "--yes"]));
    let left: Vec<_> = package.tree().into_keys().collect();
    assert!(left.iter().all(|path| !path.contains("raind")), "{left:?}");
    // Twice is fine.
    done(package.run(&["--uninstall", "--purge", "--yes"]));
    assert!(package.path("usr/local/bin/other").exists());
}

#[test]
fn a_purge_takes_only_what_is_ours_from_shared_directories() {
    let package = Package::new();
    package.install();
    let config = "root_dir = \"/srv\"\nlog_dir = \"/var/log\"\nrun_dir = \"/run\"\n";
    std::fs::write(package.path("etc/raind/condenser.toml"), config).unwrap();
    let ours = [
        "srv/store/condenser.db",
        "var/log/raind_audit.jsonl",
        "var/log/raind_metrics.jsonl.1",
    ];
    let others = ["srv/www/index.html", "var/log/syslog", "run/dbus/pid"];
    for path in ours.iter().chain(&others) {
        let path = package.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    done(package.run(&["--uninstall", "--purge", "--yes"]));
    let left = package.tree();
    assert!(others.iter().all(|path| left.contains_key(*path)), "{left:?}");
    assert!(
        left.keys().all(|path| !path.contains("raind") && path != "srv/store"),
        "{left:?}"
    );
}

/// What a killed run left half-written is replaced by the next and removed with the rest.
#[test]
fn what_a_killed_run_left_goes() {
    let package = Package::new();
    let half = package.path("usr/local/bin/.droplet.new");
    std::fs::create_dir_all(half.parent().unwrap()).unwrap();
    std::fs::write(&half, "half").unwrap();
    package.install();
    assert!(!half.exists());
    std::fs::write(&half, "half").unwrap();
    done(package.run(&["--uninstall"]));
    assert!(!half.exists());
}

#[test]
fn what_cannot_be_installed_touches_nothing() {
    let package = Package::new();
    let from = package.programs.path().to_str().unwrap().to_owned();
    refused(
        package.run(&["--from", "/no/such"]),
        "/no/such/condenser-hook-agent: no such program",
    );
    refused(package.run(&["--from", &from, "--prefix", "/a b"]), "--prefix /a b");
    refused(package.run(&["--from"]), "--from needs a directory");
    refused(package.run(&["--purge", "--yes"]), "--purge goes with --uninstall");
    refused(package.run(&["--nonsense"]), "");
    std::fs::write(package.programs.path().join("condenser"), "#!/bin/sh\nexit 1\n").unwrap();
    refused(package.run(&["--from", &from]), "does not run on this machine");
    assert!(package.tree().is_empty(), "{:?}", package.tree());
}

/// The commented values of the shipped file are all settings there are, and the defaults.
#[test]
fn the_configuration_names_every_setting_with_its_default() {
    let shipped = std::fs::read_to_string(CONFIG).unwrap();
    let is_value = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.contains(" = ");
    let values: Vec<_> = shipped.lines().filter(is_value).map(|line| &line[1..]).collect();
    let names: std::collections::BTreeSet<_> = values.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let command = Settings::augment_args(clap::Command::new("condenser"));
    let settings: std::collections::BTreeSet<_> = command.get_arguments().map(|a| a.get_id().as_str()).collect();
    assert_eq!(names, settings);

    // These have no value that could be written down.
    let depends = [
        "hook_addresses",
        "droplet",
        "hook_agent",
        "infra_image",
        "registry_credentials",
    ];
    let fixed = values
        .iter()
        .filter(|line| !depends.contains(&line.split(' ').next().unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("condenser.toml");
    std::fs::write(&file, fixed.copied().collect::<Vec<_>>().join("\n")).unwrap();
    let written = Config::from_settings(Settings::from_file(&file).unwrap()).unwrap();
    let default = Config::from_settings(Settings::default()).unwrap();
    assert_eq!(format!("{written:#?}"), format!("{default:#?}"));
    std::fs::write(&file, values.join("\n")).unwrap();
    Config::from_settings(Settings::from_file(&file).unwrap()).unwrap();
}

/// As far as a machine without systemd can tell.
#[test]
fn the_unit_is_one_that_systemd_understands() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("not checked: systemd-analyze is not installed (Debian: apt install systemd)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("condenser.service");
    let text = std::fs::read_to_string(
        Path::new(SCRIPT)
            .parent()
            .unwrap()
            .join("../assets/systemd/condenser.service"),
    );
    std::fs::write(
        &unit,
        text.unwrap()
            .replace("@bindir@", "/usr/bin")
            .replace("/usr/bin/condenser", "/bin/true"),
    )
    .unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let about_it: Vec<_> = said.lines().filter(|line| line.contains("condenser.service")).collect();
    assert!(output.status.success() && about_it.is_empty(), "{said}");
}
