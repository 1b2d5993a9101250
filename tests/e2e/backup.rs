//! A backup is a plain `tar` of the state, and a restore is that archive unpacked on another machine.

use serde_json::{Value, json};
use tar::EntryType;

use crate::support::{ImageSpec, Lab, Layer, REGISTRY, get, post, send, wait_for};
use crate::until_term;

/// CAP_NET_RAW, permitted and effective, as the kernel keeps it (`struct vfs_cap_data` of revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const PATH: &str = "/v1/containers";

/// Busybox, with everything that a plain copy loses: a capability, an opaque directory, owners, and a whiteout.
fn image() -> ImageSpec {
    let mut record = b"58 SCHILY.xattr.security.capability=".to_vec();
    record.extend(CAPABILITY);
    record.push(b'\n');
    let length = record.len();
    let record = [format!("{length}").as_bytes(), &record[2..]].concat();
    let lower = Layer::new()
        .dir("srv", 0o755)
        .dir("srv/kept", 0o755)
        .file("srv/kept/below", 0o644, "hidden")
        .file("srv/gone", 0o644, "hidden");
    let upper = Layer::new()
        .file("srv/kept/.wh..wh..opq", 0o644, "")
        .file("srv/kept/above", 0o644, "seen")
        .file("srv/.wh.gone", 0o644, "")
        .owned("srv/app", 0o4750, (1001, 1002), "of the app")
        .entry(EntryType::XHeader, "pax", "", 0o644, (0, 0), &record)
        .file("srv/raw", 0o755, "raw");
    ImageSpec::busybox().layer(lower).layer(upper)
}

/// What a container of the image sees of all that.
fn seen(lab: &Lab, container: &str) -> String {
    let script =
        "ls /srv /srv/kept; stat -c '%a %u %g' /srv/app; cat /data/note /etc/own; stat -c %u /data/note; ls /www";
    let said = lab.api().exec(container, script);
    let layers = std::fs::read_dir(lab.machine().path("/etc/raind/image/l")).unwrap();
    let capable = layers.filter(|layer| {
        let file = layer.as_ref().unwrap().path().join("srv/raw");
        let mut value = [0; 64];
        rustix::fs::lgetxattr(file, "security.capability", &mut value[..]).is_ok_and(|n| value[..n] == CAPABILITY)
    });
    format!("{said}{} file with a capability\n", capable.count())
}

/// A machine with some of everything, and a backup of it. Returns what a container saw, and the archive.
fn backup() -> (Lab, String, Vec<u8>) {
    let lab = Lab::running();
    let image = lab.pull(&image(), "lab/app:1");
    let bottle = format!(
        "bottle: {{name: shelf}}\nvolumes: {{data: {{}}}}\nservices: {{one: {{image: '{image}', command: [sleep, '1000'], \
         volumes: ['data:/data']}}}}"
    );
    assert_eq!(lab.api().call(send("POST", "/v1/bottle", bottle)).status, 201);
    let start = lab.api().call(send("POST", "/v1/bottle/shelf/actions/start", ""));
    assert_eq!(start.status, 200, "{}", start.text());
    lab.api().exec(
        "shelf-one",
        "echo note > /data/note; chown 1001 /data/note; echo own > /etc/own; rm -r /www; mkdir /www; \
         touch /www/new; mkdir /data/a; echo mine > /data/a/bash; chown 1003 /data/a/bash; chmod 4755 /data/a/bash",
    );
    for (name, runs) in [("runs", true), ("stopped", false)] {
        lab.api()
            .run(json!({ "image": image, "name": name, "command": until_term(0), "env": ["A=1"] }));
        lab.api().exec(name, "echo file > /root/file");
        if !runs {
            lab.api().stop(name);
        }
    }
    let before = seen(&lab, "shelf-one");
    lab.daemon().stop();
    let tar = "cd /etc && tar -czf /run/backup.tgz raind; test $? -le 1";
    lab.machine().run(&["sh", "-c", tar]);
    let archive = std::fs::read(lab.machine().path("/run/backup.tgz")).unwrap();
    (lab, before, archive)
}

/// Another machine with that backup, and no daemon yet.
fn restored(archive: &[u8]) -> Lab {
    let lab = Lab::start();
    lab.machine().write("/run/backup.tgz", archive);
    lab.machine().run(&["hostname", "elsewhere"]);
    lab.machine().run(&["tar", "-xzf", "/run/backup.tgz", "-C", "/etc"]);
    lab
}

fn state(lab: &Lab, name: &str) -> Value {
    lab.api().container(name)["state"].clone()
}

#[test]
fn a_plain_tar_of_the_state_starts_on_another_machine() {
    let (_old, before, archive) = backup();
    assert!(before.contains("above\n") && !before.contains("below"), "{before}");
    let lab = restored(&archive);
    // As on a machine where the owner's name has another number.
    let other = "find /etc/raind -uid 1001 -exec chown 77 {} +; find /etc/raind -uid 77 | grep -c .";
    assert_eq!(lab.machine().run(&["sh", "-c", other]), "2\n");
    lab.daemon().start();
    assert!(
        lab.daemon()
            .log()
            .contains("the layers were restored from their records"),
        "{}",
        lab.daemon().log()
    );
    for name in ["runs", "stopped", "shelf-one"] {
        assert_eq!(state(&lab, name), "stopped", "{name}");
    }
    for name in ["runs", "stopped"] {
        lab.api().start(name);
        assert_eq!(lab.api().exec(name, "cat /root/file; echo $A"), "file\n1\n");
    }
    let start = lab.api().call(send("POST", "/v1/bottle/shelf/actions/start", ""));
    assert_eq!(start.status, 200, "{}", start.text());
    assert_eq!(seen(&lab, "shelf-one"), before);
    // Everything else goes on as well.
    lab.api()
        .run(json!({ "image": format!("{REGISTRY}/lab/app:1"), "command": until_term(0) }));
    lab.daemon().restart();
    assert_eq!(state(&lab, "runs"), "running");
}

#[test]
fn a_link_that_a_container_left_in_a_backup_leads_to_nothing_of_the_host() {
    let (_old, _, archive) = backup();
    let lab = restored(&archive);
    // As if the container had done it between the end of the daemon and the archive.
    let exchange = "mkdir /run/victim && echo host > /run/victim/bash && chmod 755 /run/victim/bash && \
                    cd $(dirname $(find /etc/raind/volumes -name bash))/.. && mv a b && ln -s /run/victim a && pwd";
    let volume = lab.machine().run(&["sh", "-c", exchange]);
    // As on a machine where the owner's name has another number.
    let note = format!("{}/note", volume.trim());
    lab.machine().run(&["chown", "77", &note]);
    lab.daemon().start();
    let look = ["stat", "-c", "%a %u", "/run/victim/bash"];
    assert_eq!(lab.machine().run(&look), "755 0\n");
    assert_eq!(
        lab.machine().run(&["stat", "-c", "%u", &note]),
        "1001\n",
        "the others get theirs"
    );
}

#[test]
fn a_copy_that_cannot_be_made_whole_names_the_remedy() {
    let (_old, before, archive) = backup();
    let lab = restored(&archive);
    // As an earlier version left it; and a file that is another one.
    lab.machine().run(&["sh", "-c", "rm -r /etc/raind/image/records"]);
    lab.daemon().start();
    let path = format!("{PATH}/stopped/actions/start");
    let said = lab.api().call(post(&path, json!({}))).refused(409, "service failed: ");
    assert!(said.contains("pull or build the image again"), "{said}");
    assert_eq!(state(&lab, "stopped"), "stopped");
    // The remedy.
    let image = lab.pull(&image(), "lab/app:1");
    lab.api().start("stopped");
    let start = lab.api().call(send("POST", "/v1/bottle/shelf/actions/start", ""));
    assert_eq!(start.status, 200, "{}", start.text());
    assert_eq!(seen(&lab, "shelf-one"), before);
    // A create does that by itself.
    lab.daemon().stop();
    lab.machine().run(&["sh", "-c", "rm -r /etc/raind/image/records; cd /etc/raind/image && cp -r --preserve=mode,ownership l m && rm -r l && mv m l"]);
    lab.daemon().start();
    let id = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    wait_for("a running container", std::time::Duration::from_secs(5), || {
        let found = lab.api().ok(get(&format!("{PATH}/{id}")));
        if found["state"] == "running" {
            Ok(())
        } else {
            Err(found)
        }
    });
}
