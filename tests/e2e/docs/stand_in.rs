//! Images that stand in for those of Docker Hub that the pages use: the same users, directories and entry points as far
//! as an example could notice, made of busybox.

use std::fs::File;
use std::process::Child;
use std::time::Duration;

use serde_json::json;

use super::LOCAL;
use crate::support::{ImageSpec, Lab, Layer, Place, wait_for};

const BUSYBOX: &str = "/bin/busybox";

/// Uploads them, and starts what Docker Hub is in a lab.
pub fn push_images(lab: &Lab) {
    lab.registry().push(&busybox(), "library/busybox:1");
    lab.registry().push(&nginx(), "library/nginx:alpine");
    lab.hub();
}

/// As busybox:1: no /www, no /run, no user but the system's.
fn busybox() -> ImageSpec {
    ImageSpec::scratch().layer(base()).set("Cmd", json!(["sh"]))
}

/// As nginx:alpine: an entry point in a script, QUIT as its stop signal, pages in /usr/share/nginx/html.
fn nginx() -> ImageSpec {
    let nginx = "case \"$1\" in -v) echo 'nginx version: nginx/1.29.3' >&2; exit;; esac
exec httpd -f -p 80 -h /usr/share/nginx/html";
    let layer = Layer::new()
        .dir("usr/share", 0o755)
        .dir("usr/share/nginx", 0o755)
        .dir("usr/share/nginx/html", 0o755)
        .file("usr/share/nginx/html/index.html", 0o644, "Welcome to nginx!\n")
        .script("docker-entrypoint.sh", "exec \"$@\"")
        .dir("usr/sbin", 0o755)
        .script("usr/sbin/nginx", nginx);
    ImageSpec::scratch()
        .layer(base())
        .layer(layer)
        .set(
            "Env",
            json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]),
        )
        .entrypoint(&["/docker-entrypoint.sh"])
        .cmd(&["nginx", "-g", "daemon off;"])
        .set("StopSignal", json!("SIGQUIT"))
}

fn base() -> Layer {
    let program = std::fs::read(BUSYBOX).unwrap_or_else(|e| panic!("{BUSYBOX}: {e}; install busybox-static"));
    let list = std::process::Command::new(BUSYBOX).arg("--list").output().unwrap();
    let mut layer = Layer::new().dir("tmp", 0o1777).dir("root", 0o700);
    for path in ["bin", "dev", "etc", "home", "usr", "usr/bin", "var"] {
        layer = layer.dir(path, 0o755);
    }
    layer = layer
        .file("bin/busybox", 0o755, program)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
             www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
        )
        .file(
            "etc/group",
            0o644,
            "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnobody:x:65534:\n",
        )
        // Without it the static libc looks for modules that are not there, and crashes.
        .file(
            "etc/nsswitch.conf",
            0o644,
            "passwd: files\ngroup: files\nhosts: files dns\n",
        );
    let commands = String::from_utf8(list.stdout).unwrap();
    for command in commands.lines().filter(|command| *command != "busybox") {
        layer = layer.symlink(&format!("bin/{command}"), "busybox");
    }
    layer
}

/// A registry on the host's own port 5000; its content goes with the lab.
pub fn local_registry(lab: &Lab) -> Child {
    let config = json!({
        "version": "0.1",
        "log": { "level": "warn", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": "/run/docs/registry" } },
        "http": { "addr": LOCAL },
    });
    let machine = lab.machine();
    machine.write("/run/docs/registry.yml", config.to_string());
    let log = File::create(machine.path("/run/docs/registry.log")).unwrap();
    let mut command = machine.command(Place::Host, "docker-registry");
    command
        .args(["serve", "/run/docs/registry.yml"])
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let process = command.spawn().unwrap();
    wait_for("the registry on the host", Duration::from_secs(20), || {
        machine.at(Place::Host, || std::net::TcpStream::connect(LOCAL))
    });
    process
}
