//! Bind mounts of the user (`docs/spec/runtime.md` 5.4, 16.5).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::sandbox::{Sandbox, sandbox, shell};

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    let kind = if source.is_dir() { "" } else { "bind" };
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn output_with(s: &Sandbox, mounts: Value, script: &str) -> String {
    let id = s.id.as_str();
    let mut config = s.config(id, script);
    config["mounts"] = mounts;
    s.write(id, &config);
    s.up();
    s.ended(id);
    let log = s.log("init.log");
    s.ok(&["delete", id]);
    s.gone(id);
    log
}

#[test]
fn directories_and_files_are_bound_with_restrictions() {
    sandbox(|s| {
        let (dir, file) = (s.path("dir"), s.path("file"));
        fs::create_dir(&dir).unwrap();
        fs::write(&file, "old\n").unwrap();
        let mounts = json!([
            bind(&dir, "/data", &["bind"]),
            bind(&dir, "/ro/deep", &["bind", "ro"]),
            bind(&file, "/etc/app.conf", &["rbind", "rprivate"]),
            bind(&file, "/etc/ro.conf", &["rbind", "rprivate", "ro"]),
            bind(&dir, "/fixed", &["bind", "noexec"]),
        ]);
        let log = output_with(
            s,
            mounts,
            "cat /etc/app.conf; echo new > /etc/app.conf; touch /data/made; cp /bin/busybox /data/busybox
             touch /ro/deep/x || echo dir read-only; echo x > /etc/ro.conf || echo file read-only
             /data/busybox echo runs; /fixed/busybox true || echo not executable
             grep -E ' /(data|ro/deep|etc/app.conf|etc/ro.conf|fixed) ' /proc/self/mountinfo",
        );
        for text in ["old\n", "dir read-only", "file read-only", "runs", "not executable"] {
            assert!(log.contains(text), "{text} in {log}");
        }
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(" / ") || line.contains(" - "))
            .collect();
        assert_eq!(lines.len(), 5, "{log}");
        for line in lines {
            for option in ["nosuid", "nodev"] {
                assert!(line.contains(option), "{option} in {line}");
            }
            assert_eq!(line.contains("noexec"), line.contains(" /fixed "), "{line}");
            assert!(
                !line.contains("master:") && !line.contains("shared:"),
                "not private: {line}"
            );
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "new\n");
        assert!(dir.join("made").exists());
    });
}

#[test]
fn mounts_below_a_source_come_along_restricted() {
    sandbox(|s| {
        let dir = s.path("dir");
        fs::create_dir_all(dir.join("sub")).unwrap();
        shell(&format!("mount -t tmpfs -o noexec tmpfs {}", dir.join("sub").display()));
        fs::write(dir.join("sub/inside"), "here\n").unwrap();
        let script = "cat /data/sub/inside; touch /data/sub/x || echo read-only; grep /data/sub /proc/self/mounts";
        let log = output_with(s, json!([bind(&dir, "/data", &["bind", "ro"])]), script);
        assert!(log.starts_with("here\n") && log.contains("read-only"), "{log}");
        let line = log.lines().last().unwrap();
        assert!(line.contains("ro,nosuid,nodev,noexec"), "{line}");
    });
}

#[test]
fn a_read_only_source_stays_so() {
    sandbox(|s| {
        let dir = s.path("dir");
        fs::create_dir(&dir).unwrap();
        shell(&format!("mount -t tmpfs -o ro,noatime,noexec tmpfs {}", dir.display()));
        let log = output_with(
            s,
            json!([bind(&dir, "/data", &["bind"])]),
            "touch /data/x || echo read-only",
        );
        assert!(log.contains("read-only"), "{log}");
    });
}

#[test]
fn refused_mounts_fail_create_before_any_hook() {
    sandbox(|s| {
        let id = s.id.as_str();
        let dir = s.path("dir");
        fs::create_dir(&dir).unwrap();
        symlink(&dir, s.path("link")).unwrap();
        symlink("/proc", s.path("way")).unwrap();
        symlink("/proc", s.image().join("trap")).unwrap();
        let shown = |path: &str| s.path(path).display().to_string();
        let cases = [
            (
                bind(Path::new("/proc/1"), "/d", &["bind"]),
                "invalid mount source: /proc/1".to_owned(),
            ),
            (
                bind(Path::new("/etc/raind/x"), "/d", &["bind"]),
                "invalid mount source: /etc/raind/x".to_owned(),
            ),
            (
                bind(Path::new("rel"), "/d", &["bind"]),
                "invalid mount source: rel: it is not an absolute path".to_owned(),
            ),
            (
                bind(&dir, "/sys/x", &["bind"]),
                "invalid mount destination: /sys/x".to_owned(),
            ),
            (
                bind(&dir, "/a/..", &["bind"]),
                "invalid mount destination: /a/..".to_owned(),
            ),
            (
                bind(&dir, "/d", &["suid"]),
                "invalid mount type and options: suid".to_owned(),
            ),
            (
                bind(&s.path("link"), "/d", &["bind"]),
                format!("source:{} is symlink", shown("link")),
            ),
            (
                bind(&s.path("way/sys"), "/d", &["bind"]),
                format!("invalid mount source: {}", shown("way/sys")),
            ),
            (
                bind(&s.path("none"), "/d", &["rbind"]),
                format!("stat {}: no such file or directory", shown("none")),
            ),
        ];
        for (mount, expected) in cases {
            let mut config = s.config(id, "true");
            config["mounts"] = json!([mount]);
            config["hooks"] = json!({ "createRuntime": [s.hook("early", "true")] });
            s.write(id, &config);
            let said = s.fails(&["create", id]);
            assert!(said.starts_with(&expected), "{said}");
            s.gone(id);
        }
        assert_eq!(s.payloads().len(), 0);
        // Only the image knows that this leads to a denied place.
        let mut config = s.config(id, "true");
        config["mounts"] = json!([bind(&dir, "/trap/x", &["bind"])]);
        s.write(id, &config);
        assert_eq!(s.fails(&["create", id]), "invalid mount destination: /trap/x");
        s.gone(id);
    });
}
