//! `/run`, `/tmp` and what else an image has at places where other runtimes, or earlier versions, mount something.

use serde_json::{Value, json};
use tar::EntryType;

use crate::support::{ImageSpec, Lab, Layer, delete, post};
use crate::{lab_with_busybox, until_term};

/// As images of databases are: a directory for the socket that anybody may write to, and what `/tmp` shall begin with.
fn database() -> ImageSpec {
    let layer = Layer::new()
        .dir("run/mysqld", 0o1777)
        .symlink("var/run", "/run")
        .dir("tmp", 0o1777)
        .owned("tmp/seed.sql", 0o640, (1000, 2000), "insert")
        .hardlink("tmp/second", "tmp/seed.sql")
        .script("tmp/tool", "echo tool ran");
    ImageSpec::busybox().layer(layer)
}

fn lab_with_database() -> (Lab, String) {
    let lab = Lab::running();
    let image = lab.pull(&database(), "lab/database:1");
    (lab, image)
}

fn running(lab: &Lab, image: &str, options: Value) -> String {
    let mut request = json!({ "image": image, "command": until_term(0) });
    request
        .as_object_mut()
        .unwrap()
        .extend(options.as_object().unwrap().clone());
    lab.api().run(request)
}

/// Mode, owner and group of files.
const LOOK: &str = "stat -c '%n %a %u %g' /run /run/mysqld /tmp /tmp/seed.sql";

#[test]
fn run_and_tmp_are_the_images() {
    let (lab, image) = lab_with_database();
    let api = lab.api();
    let id = running(&lab, &image, json!({ "user": "1000" }));
    let look = "/run 755 0 0\n/run/mysqld 1777 0 0\n/tmp 1777 0 0\n/tmp/seed.sql 640 1000 2000\n";
    assert_eq!(api.exec(&id, LOOK), look);
    let wrote = api.exec(
        &id,
        "/tmp/tool; echo > /var/run/mysqld/sock && ls /run/mysqld; cat /tmp/seed.sql",
    );
    assert_eq!(wrote, "tool ran\nsock\ninsert");
    let large = "head -c 100000000 /dev/zero > /tmp/large && wc -c < /tmp/large; rm /tmp/large";
    assert_eq!(api.exec(&id, large), "100000000\n");
    api.exec(&id, "touch /tmp/kept");
    api.stop(&id);
    api.start(&id);
    assert_eq!(
        api.exec(&id, "ls /tmp"),
        "kept\nsecond\nseed.sql\ntool\n",
        "as after a restart elsewhere"
    );
}

/// Bazel's layers name `tmp/seed` without an entry for `tmp`.
#[test]
fn directories_that_a_layer_only_names_are_those_of_the_layers_below() {
    let lab = Lab::running();
    let before = lab.inventory();
    let base = Layer::new()
        .dir("tmp", 0o1777)
        .entry(EntryType::Directory, "srv/web", "", 0o2750, (33, 44), b"")
        .dir("usr/lib/tools", 0o711)
        .symlink("tools", "/usr/lib/tools");
    let top = Layer::new()
        .file("tmp/seed", 0o644, "")
        .file("srv/web/index.html", 0o644, "")
        .script("tools/hello", "echo hello");
    let base = ImageSpec::busybox().layer(base);
    let image = lab.pull(&base.clone().layer(top.clone()), "lab/named:1");
    // The same layer on others is theirs.
    let other = lab.pull(
        &ImageSpec::busybox()
            .layer(Layer::new().dir("srv/web", 0o700))
            .layer(top),
        "lab/named:2",
    );
    let api = lab.api();
    let script =
        "stat -c '%n %a %u:%g' /tmp /srv /srv/web /usr/lib/tools; readlink /tools; /tools/hello; ls /usr/lib/tools";
    let said = |image: &str| {
        let id = running(&lab, image, json!({}));
        let said = api.exec(&id, script);
        api.stop(&id);
        api.delete(&id);
        said
    };
    let expected =
        "/tmp 1777 0:0\n/srv 755 0:0\n/srv/web 2750 33:44\n/usr/lib/tools 711 0:0\n/usr/lib/tools\nhello\nhello\n";
    assert_eq!(said(&image), expected);
    assert!(said(&other).contains("/srv/web 700 0:0\n"));
    for image in [image, other] {
        api.ok(delete("/v1/images").json(&json!({ "image": image })));
    }
    lab.assert_unchanged(&before);
}

#[test]
fn an_image_without_them_gets_directories() {
    let (lab, _) = lab_with_busybox();
    let layer = Layer::new().file(".wh.tmp", 0o644, "").file(".wh.run", 0o644, "");
    let image = lab.pull(&ImageSpec::busybox().layer(layer), "lab/bare:1");
    let id = running(&lab, &image, json!({}));
    assert_eq!(
        lab.api().exec(&id, "stat -c '%n %a' /run /tmp"),
        "/run 755\n/tmp 1777\n"
    );
}

#[test]
fn a_read_only_root_has_them_in_memory_with_what_the_image_has() {
    let (lab, image) = lab_with_database();
    let api = lab.api();
    let id = running(&lab, &image, json!({ "readOnly": true }));
    let look = "/run 755 0 0\n/run/mysqld 1777 0 0\n/tmp 1777 0 0\n/tmp/seed.sql 640 1000 2000\n";
    assert_eq!(api.exec(&id, LOOK), look);
    assert_eq!(
        api.exec(
            &id,
            "/tmp/tool; stat -c %h /tmp/second; for d in /run /tmp /var/tmp /etc; do touch $d/x; done"
        ),
        "tool ran\n2\ntouch: /etc/x: Read-only file system\n"
    );
    let closed = running(&lab, &image, json!({ "readOnly": true, "readOnlyTmpfs": false }));
    let said = api.exec(&closed, "touch /run/x; touch /tmp/x");
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
}

#[test]
fn a_file_system_in_memory_is_as_it_was_asked_for() {
    let (lab, image) = lab_with_database();
    let api = lab.api();
    let before = lab.inventory();
    let asked = json!([
        "/run:size=1m,mode=700,exec",
        "/cache/deep:uid=1000,gid=2000,noexec",
        "/tmp:notmpcopyup"
    ]);
    let id = running(&lab, &image, json!({ "tmpfs": asked }));
    let mounts = api.exec(&id, "grep tmpfs /proc/mounts");
    let options = |place: &str| {
        let line = mounts.lines().find(|line| line.contains(&format!(" {place} ")));
        line.unwrap_or_else(|| panic!("{place} in {mounts}")).to_owned()
    };
    assert!(
        options("/run").contains("size=1024k") && !options("/run").contains("noexec"),
        "{mounts}"
    );
    assert!(options("/cache/deep").contains("nosuid,nodev,noexec"), "{mounts}");
    assert_eq!(
        api.exec(&id, "stat -c '%a %u %g' /run /cache/deep; ls /tmp; ls /run"),
        "700 0 0\n1777 1000 2000\nmysqld\n"
    );
    let wrote = api.exec(
        &id,
        "head -c 2000000 /dev/zero > /run/x 2>/dev/null || wc -c < /run/x; rm /run/x",
    );
    let wrote: u64 = wrote.trim().parse().unwrap_or_else(|_| panic!("{wrote}"));
    assert!(wrote <= 1 << 20, "{wrote} bytes in a file system of a mebibyte");
    // As Docker's API has it; and a directory in one.
    lab.machine().run(&["mkdir", "-p", "/mnt/share/doc"]);
    let id = running(
        &lab,
        &image,
        json!({ "tmpfs": { "/run": "exec" }, "mount": ["/mnt/share:/run/share:ro"] }),
    );
    assert_eq!(
        api.exec(&id, "ls -d /run/mysqld /run/share/doc"),
        "/run/mysqld\n/run/share/doc\n"
    );
    for container in api.ok(crate::support::get("/v1/containers")).as_array().unwrap() {
        let id = container["containerId"].as_str().unwrap();
        api.stop(id);
        api.delete(id);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn what_cannot_be_in_memory_is_refused() {
    let (lab, image) = lab_with_busybox();
    let refused = |tmpfs: Value, message: &str| {
        let body = json!({ "image": image, "tmpfs": tmpfs });
        let said = lab.api().call(post("/v1/containers", body)).refused(400, "");
        assert!(said.contains(message), "{said}");
    };
    refused(
        json!(["/proc"]),
        "invalid tmpfs \"/proc\": nothing may be mounted there",
    );
    refused(json!(["/run:suid"]), "it is always nosuid");
    refused(json!({ "/run": "size=much" }), "\"size=much\" is not understood");
    refused(json!(["/run", "/run"]), "that another one has");
    refused(json!("/run"), "a list as [\"/run:size=64m\"]");
}
