//! What of the host containers may have mounted, and with which options: one rule for requests, manifests and bottles.

use serde_json::json;

use crate::lab_with_busybox;
use crate::support::{Lab, get, post, send, wait_for};

const REFUSED: &str = "allowed_mount_prefixes";

fn refused(lab: &Lab, image: &str, mount: &str) -> String {
    let request = json!({ "image": image, "mount": [mount] });
    lab.api()
        .call(post("/v1/containers", request))
        .refused(400, "service failed: create spec failed: invalid mount source: ")
}

fn bottle(image: &str, name: &str, mount: &str) -> crate::support::Call {
    let text = format!(
        "bottle: {{name: {name}}}\nservices: {{one: {{image: '{image}', command: [sleep, '1000'], mount: ['{mount}']}}}}"
    );
    send("POST", "/v1/bottle", text)
}

fn manifest(image: &str, name: &str, path: &str) -> crate::support::Call {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{volumes: [{{name: v, hostPath: {{path: {path}}}}}], \
         containers: [{{name: c, image: '{image}', command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]}}"
    );
    send("POST", "/v1/resource/apply", text)
}

/// Directories of the lab alone where the machine has its own.
fn home_and_var(lab: &Lab) {
    let script = "mount -t tmpfs tmpfs /home; mount -t tmpfs tmpfs /var/lib; mkdir -p /home/me /var/lib/app";
    lab.machine().run(&["sh", "-ec", script]);
}

#[test]
fn directories_of_the_system_are_refused_to_everybody() {
    let (lab, image) = lab_with_busybox();
    lab.machine().write("/mnt/app/data/file", "x");
    for (link, target) in [("etc", "/etc"), ("up", "/"), ("ours", "/etc/raind")] {
        lab.machine().run(&["ln", "-s", target, &format!("/mnt/{link}")]);
    }
    home_and_var(&lab);
    let socket = lab.machine().path("/mnt/app/docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    let before = lab.inventory();
    for source in [
        "/etc",
        "/etc/passwd",
        "/var",
        "/var/lib/app",
        "/home",
        "/home/me",
        "/root",
        "/run",
        "/dev",
        "/dev/null",
        "/sys",
        "/boot",
        "/proc",
        "/usr",
        "/usr/bin",
        "/lib",
        "/mnt/../etc",
        "/mnt/etc/ssl",
        "/mnt/up/etc",
    ] {
        for options in ["", ":ro"] {
            let said = refused(&lab, &image, &format!("{source}:/h{options}"));
            assert!(said.contains(REFUSED), "{said}");
        }
        lab.api()
            .call(bottle(&image, "shelf", &format!("{source}:/h")))
            .refused(
                400,
                "create containers failed: create spec failed: invalid mount source: ",
            );
        let said = lab.api().call(manifest(&image, "seed", source)).refused(400, "");
        assert!(said.contains("invalid mount source"), "{said}");
    }
    for source in [
        "/",
        "/etc/raind",
        "/etc/raind/volumes",
        "/run/raind",
        "/var/log/raind",
        "/mnt/ours/cert",
        "/mnt/up/etc/raind",
    ] {
        refused(&lab, &image, &format!("{source}:/h"));
    }
    assert!(refused(&lab, &image, "/mnt/app/docker.sock:/s").contains("a socket of root"));
    lab.assert_unchanged(&before);
}

#[test]
fn the_configuration_allows_what_it_names_and_never_what_is_ours() {
    let lab = Lab::start();
    lab.daemon()
        .set("CONDENSER_ALLOWED_MOUNT_PREFIXES", "/home/me,/var/lib/app/,/etc")
        .start();
    let image = lab.pull(&crate::support::ImageSpec::busybox(), "library/busybox:1");
    home_and_var(&lab);
    lab.machine().write("/home/me/src/file", "mine\n");
    lab.machine().write("/var/lib/app/file", "app's\n");
    let script = "cat /src/file /app/file; ls /host/hostname";
    let id = lab.api().run(json!({
        "image": image, "command": ["/bin/sh", "-c", script],
        "mount": ["/home/me/src:/src", "/var/lib/app:/app:ro", "/etc:/host:ro"],
    }));
    lab.api().wait_state(&id, "stopped");
    assert_eq!(lab.api().log(&id), "mine\napp's\n/host/hostname\n");
    for source in ["/home", "/home/melanie", "/var/lib", "/etc/raind", "/etc/raind/cert"] {
        refused(&lab, &image, &format!("{source}:/h"));
    }
    assert_eq!(lab.api().call(manifest(&image, "seed", "/home/me/src")).status, 201);
    wait_for("the pod", std::time::Duration::from_secs(20), || {
        let pods = lab.api().ok(get("/v1/pods"));
        if pods.to_string().contains("running") {
            Ok(())
        } else {
            Err(pods)
        }
    });
    // What was accepted goes on when the configuration becomes narrower, but where it leads to is judged again.
    lab.daemon().stop();
    lab.daemon()
        .set("CONDENSER_ALLOWED_MOUNT_PREFIXES", "/home/you")
        .start();
    refused(&lab, &image, "/home/me/src:/src");
    lab.api().start(&id);
    lab.api().wait_state(&id, "stopped");
    lab.machine().run(&[
        "sh",
        "-c",
        "mv /home/me /home/old; ln -s /home/other /home/me; mkdir -p /home/other/src",
    ]);
    let path = format!("/v1/containers/{id}/actions/start");
    let said = lab.api().call(post(&path, json!({}))).refused(400, "");
    assert!(said.contains("it leads to /home/other/src"), "{said}");
}

#[test]
fn programs_in_a_mount_run_unless_it_is_noexec() {
    let (lab, image) = lab_with_busybox();
    lab.machine().run(&[
        "sh",
        "-c",
        "mkdir -p /mnt/tools && cp /bin/busybox /mnt/tools/id && chmod 4755 /mnt/tools/id && mknod /mnt/tools/zero c 1 5 && \
         chmod 666 /mnt/tools/zero && chmod 777 /mnt/tools",
    ]);
    let script = "for d in plain fixed; do /$d/id -u; head -c 1 /$d/zero | wc -c; touch /$d/x && echo wrote; done 2>&1
                  grep -E ' /(plain|fixed) ' /proc/mounts; echo end; sleep 1000";
    let id = lab.api().run(json!({
        "image": image, "command": ["/bin/sh", "-c", script], "user": "1000",
        "mount": ["/mnt/tools:/plain:rw,nosuid,nodev", "/mnt/tools:/fixed:ro,noexec"],
    }));
    let said = wait_for("the end of the script", std::time::Duration::from_secs(10), || {
        let log = lab.api().log(&id);
        if log.contains("end\n") { Ok(log) } else { Err(log) }
    });
    let (first, second) = said.split_once("wrote\n").unwrap_or_else(|| panic!("{said}"));
    // The user stays the user, and the device opens nothing.
    assert!(
        first.starts_with("1000\n") && first.contains("zero: Permission denied"),
        "{said}"
    );
    assert!(
        second.contains("/fixed/id: Permission denied") && second.contains("Read-only file system"),
        "{said}"
    );
    for line in said
        .lines()
        .filter(|line| line.contains(" /plain ") || line.contains(" /fixed "))
    {
        assert!(line.contains("nosuid,nodev"), "{line}");
    }
    lab.api()
        .call(post(
            "/v1/containers",
            json!({ "image": image, "mount": ["/mnt/tools:/t:suid"] }),
        ))
        .refused(
            400,
            "service failed: create spec failed: invalid mount type and options: suid",
        );
}
