//! Images from a build file: what a user gets, what is refused, and that nothing stays of what failed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::crash::{interrupted, moments};
use crate::support::{Call, Lab, SOON, delete, get, send, wait_for, when};
use crate::until_term;

/// The archive of a build context.
#[derive(Default, Clone)]
pub struct Context(Vec<u8>);

impl Context {
    /// With this build file.
    pub fn new(dripfile: &str) -> Self {
        Self::default().file("Dripfile", dripfile)
    }

    /// From nothing but busybox, which `/bin/sh` and all its other commands are links to.
    pub fn demo(rest: &str) -> Self {
        let steps =
            "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
        Self::with_busybox(&format!("{steps}{rest}"))
    }

    /// With this build file and busybox.
    pub fn with_busybox(dripfile: &str) -> Self {
        let busybox = std::fs::read("/bin/busybox").unwrap();
        Self::new(dripfile).entry(EntryType::Regular, "busybox", "", 0o755, &busybox)
    }

    /// With that program of this machine's /bin.
    pub fn program(self, name: &str) -> Self {
        let program = std::fs::read(format!("/bin/{name}")).unwrap();
        self.entry(EntryType::Regular, name, "", 0o755, &program)
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", 0o644, content.as_bytes())
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    /// The name is written as it is, also one that no good archive has.
    pub fn entry(mut self, kind: EntryType, name: &str, target: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        let block = header.as_mut_bytes();
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn post(self, query: &str) -> Call {
        let mut archive = self.0;
        archive.resize(archive.len() + 1024, 0);
        send("POST", &format!("/v1/images/build{query}"), archive).header("Content-Type", "application/x-tar")
    }
}

/// A lab whose daemon keeps nothing of a build, so that what a build leaves behind shows.
fn uncached() -> Lab {
    let lab = Lab::start();
    lab.daemon()
        .set("CONDENSER_BUILD_CACHE_BYTES", "0")
        .set("CONDENSER_BUILD_CACHE_MOUNT_BYTES", "0");
    lab.daemon().start();
    lab
}

fn uncached_with_busybox() -> (Lab, String) {
    let lab = uncached();
    let image = lab.pull(&crate::support::ImageSpec::busybox(), "library/busybox:1");
    (lab, image)
}

/// What a container of that image prints when it runs what the image says.
pub fn output(lab: &Lab, image: &str, command: &[&str]) -> String {
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": command }));
    let ended = api.wait_state(&id, "stopped");
    let said = api.log(&id);
    api.delete(&id);
    assert_eq!(ended["exitCode"], 0, "{said}");
    said
}

pub fn remove(lab: &Lab, image: &str) {
    lab.api().ok(delete("/v1/images").json(&json!({ "image": image })));
}

pub fn status(lab: &Lab, image: &str) -> Value {
    lab.api().ok(get(&format!("/v1/images/status?image={image}")))
}

#[test]
fn an_image_from_scratch_runs() {
    let lab = uncached();
    let before = lab.inventory();
    let context = Context::demo(
        "WORKDIR /www\nENV GREETING=\"hello there\"\nRUN echo \"$GREETING from $(pwd)\" > index.html && chmod 600 index.html\n\
         COPY page.html ./second.html\nRUN rm /bin/vi && cat second.html index.html > both && mkdir /drop && chmod 1777 /drop\n\
         COPY page.html /drop/\nCMD cat both; ls -l /drop index.html; ls /bin/vi || true; stat -c %a /drop; id -u\n",
    )
    .file("page.html", "a page\n");
    let built = lab.api().ok(context.clone().post("?tag=demo:latest"));
    assert_eq!(built, json!({ "image": "library/demo:latest" }));
    let said = output(&lab, "demo", &[]);
    assert!(said.starts_with("a page\nhello there from /www\n"), "{said}");
    assert!(
        said.contains("-rw-r--r--    1 0        0                7 Nov 14  2023 page.html"),
        "{said}"
    );
    assert!(said.contains("-rw-------    1 0        0 "), "{said}");
    assert!(said.contains("ls: /bin/vi: No such file or directory"), "{said}");
    assert!(said.ends_with("1777\n0\n"), "{said}");

    let image = status(&lab, "demo");
    assert_eq!(image["repoTags"], json!(["library/demo:latest"]));
    let digest = image["repoDigests"][0].as_str().unwrap();
    assert!(digest.starts_with("library/demo@sha256:"), "{digest}");
    let blob = |digest: &str| {
        let text = lab.machine().read(&format!(
            "/etc/raind/image/blobs/sha256/{}",
            &digest[digest.len() - 64..]
        ));
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let (manifest, config) = (blob(digest), blob(image["id"].as_str().unwrap()));
    assert_eq!(manifest["config"]["digest"], image["id"]);
    // busybox; its links; the working directory; index.html; the page; what the last RUN did; the last copy.
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), config["rootfs"]["diff_ids"].as_array().unwrap().len());
    assert_eq!(config["config"]["WorkingDir"], "/www");
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(config["config"]["Env"], json!([path, "GREETING=hello there"]));
    let sizes: u64 = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    assert_eq!(
        image["sizeBytes"].as_u64().unwrap(),
        sizes + manifest["config"]["size"].as_u64().unwrap()
    );
    lab.api().ok(get("/v1/images/fs?image=demo"));

    // Another image of that name takes its place, and its layers with it.
    let second = Context::demo("CMD [\"/bin/echo\", \"second\"]\n");
    lab.api().ok(second.post("?tag=demo:latest"));
    assert_eq!(output(&lab, "demo", &[]), "second\n");
    remove(&lab, "demo");
    lab.assert_unchanged(&before);
}

#[test]
fn what_a_command_finds_and_leaves_in_tmp_and_run_is_the_images() {
    let (lab, image) = uncached_with_busybox();
    let dripfile = format!(
        "FROM {image}\nCOPY page /tmp/page\nRUN cat /tmp/page > /run/copied && mkdir -m 1777 /run/sock\n\
         RUN cat /run/copied >> /tmp/page\nCMD cat /tmp/page; stat -c %a /run/sock /tmp\n"
    );
    lab.api()
        .ok(Context::new(&dripfile).file("page", "a page\n").post("?tag=places:1"));
    assert_eq!(output(&lab, "places:1", &[]), "a page\na page\n1777\n1777\n");
}

#[test]
fn a_base_image_is_inherited() {
    let (lab, image) = uncached_with_busybox();
    let base = crate::support::ImageSpec::busybox()
        .user("1000")
        .env("A=base")
        .entrypoint(&["/bin/sh", "-c"])
        .set("Labels", json!({ "kept": "1" }))
        .layer(
            crate::support::Layer::new()
                .dir("drop", 0o1777)
                .symlink("app", "srv")
                .dir("srv", 0o755),
        );
    let base = lab.pull(&base, "lab/base:1");
    let before = lab.inventory();
    let dripfile = format!(
        "FROM {base}\nENV A=own B two\nCOPY . /app/\nRUN touch /drop/x\nCMD [\"id -u; echo $A; cat /srv/f; stat -c %a /drop\"]\n"
    );
    let dripfile = dripfile.replace(" B two", "");
    let context = Context::default().file("build/Other", &dripfile).file("f", "1\n");
    lab.api().ok(context.post("?tag=a/app:1&dockerfile=build/Other"));
    assert_eq!(output(&lab, "a/app:1", &[]), "1000\nown\n1\n1777\n");
    let found = status(&lab, "a/app:1");
    assert_eq!(found["user"], "1000");

    // Names that end alike are different images, and the base outlives its removal as long as they need it.
    lab.api()
        .ok(Context::new(&format!("FROM {image}\nCMD echo other\n")).post("?tag=b/app:1"));
    assert_eq!(output(&lab, "b/app:1", &[]), "other\n");
    assert_eq!(output(&lab, "a/app:1", &[]), "1000\nown\n1\n1777\n");
    remove(&lab, "b/app:1");
    remove(&lab, "a/app:1");
    lab.assert_unchanged(&before);
}

#[test]
fn a_command_that_fails_fails_the_build() {
    let (lab, image) = uncached_with_busybox();
    let before = lab.inventory();
    let fails = |line: &str| {
        let context = Context::new(&format!("FROM {image}\nRUN touch /made\nRUN {line}\n"));
        lab.api()
            .call(context.post("?tag=x:y"))
            .refused(400, "build failed: RUN command failed: exit_code=")
    };
    let said = fails("echo to stdout; echo to stderr >&2; exit 7");
    assert!(
        said.starts_with("build failed: RUN command failed: exit_code=7, reason="),
        "{said}"
    );
    let (_, tail) = said.split_once("\n--- build log tail ---\n").unwrap();
    let mut lines: Vec<_> = tail.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["to stderr", "to stdout"]);
    let said = fails("seq 100000; false");
    let (_, tail) = said.split_once("--- build log tail ---\n").unwrap();
    assert!(tail.len() == 4096 && tail.ends_with("99999\n100000\n"), "{tail}");
    assert!(fails("[\"/no/such/program\"]").contains("exit_code=127"));
    assert!(fails("sh -c 'kill -9 $$'; exit $?").contains("exit_code=137"));
    lab.assert_unchanged(&before);
}

#[test]
fn what_is_refused_leaves_nothing() {
    let (lab, image) = uncached_with_busybox();
    let before = lab.inventory();
    let refused = |context: Context, query: &str, status: u16, message: &str| {
        lab.api().call(context.post(query)).refused(status, message);
    };
    let from = |rest: &str| Context::new(&format!("FROM {image}\n{rest}\n"));
    refused(from(""), "", 400, "missing tag query");
    // The answer is seen although much is still to be sent.
    refused(Context::demo(""), "", 400, "missing tag query");
    let unknown = "build failed: Dripfile line 4: unsupported instruction: EXPSE; did you mean EXPOSE?";
    refused(Context::demo("EXPSE 1"), "?tag=x:y", 400, unknown);
    refused(from(""), "?tag=../../x", 400, "build failed: invalid image reference");
    let digest = format!("?tag=x@sha256:{}", "0".repeat(64));
    refused(from(""), &digest, 400, "build failed: invalid image reference");
    refused(
        from(""),
        "?tag=x:y&dripfile=../../etc/passwd",
        400,
        "invalid dripfile path",
    );
    refused(from(""), "?tag=x:y&dripfile=/etc/passwd", 400, "invalid dripfile path");
    refused(
        from(""),
        "?tag=x:y&network=nope",
        404,
        "build failed: target bridge not configured: nope",
    );
    refused(
        Context::default(),
        "?tag=x:y",
        400,
        "build failed: Dripfile: no such build file",
    );
    refused(Context::new("ENV A=1"), "?tag=x:y", 400, "build failed: Dripfile");
    refused(
        Context::new("FROM"),
        "?tag=x:y",
        400,
        "build failed: Dripfile line 1 (FROM): FROM requires",
    );
    refused(
        Context::new("FROM scratch\nRUN true"),
        "?tag=x:y",
        400,
        "build failed: Dripfile line 2 (RUN): RUN requires files",
    );
    let unknown = Context::new("FROM 192.0.2.1:5000/no/such:1");
    let not_found = "build failed: Dripfile line 1 (FROM): manifest fetch failed: 404: ";
    refused(unknown, "?tag=x:y", 404, not_found);
    refused(
        from("COPY nofile /x"),
        "?tag=x:y",
        400,
        "build failed: Dripfile line 2 (COPY): nofile: no such file or directory in the build context; the path is \
         relative to its root",
    );
    refused(
        from("COPY ../../etc/passwd /p"),
        "?tag=x:y",
        400,
        "build failed: Dripfile line 2 (COPY): invalid path: ../../etc/passwd",
    );
    refused(
        from("COPY out /p").link("out", "/etc/passwd"),
        "?tag=x:y",
        400,
        "build failed: Dripfile line 2 (COPY): out: no such file",
    );
    refused(
        from("").file("../evil", "x"),
        "?tag=x:y",
        400,
        "invalid build context: invalid path: ../evil",
    );
    refused(
        from("").file("/evil", "x"),
        "?tag=x:y",
        400,
        "invalid build context: invalid path: /evil",
    );
    let not_a_tar = send("POST", "/v1/images/build?tag=x:y", "this is not a tar");
    lab.api().call(not_a_tar).refused(400, "invalid build context: ");
    lab.assert_unchanged(&before);
}

#[test]
fn a_link_in_the_context_does_not_lead_to_the_host() {
    let (lab, image) = uncached_with_busybox();
    let before = lab.inventory();
    let context = Context::new(&format!("FROM {image}\nCOPY a /data\nCMD cat /data/x\n"))
        .link("a", "/etc")
        .file("a/x", "within\n");
    lab.api().ok(context.post("?tag=x:y"));
    assert_eq!(output(&lab, "x:y", &[]), "within\n");
    assert_eq!(lab.machine().read("/etc/x"), "");
    remove(&lab, "x:y");
    lab.assert_unchanged(&before);
}

#[test]
fn a_context_over_the_limits_is_refused() {
    let lab = Lab::start();
    lab.daemon()
        .set("CONDENSER_MAX_CONTEXT_BYTES", "8192")
        .set("CONDENSER_MAX_CONTEXT_ENTRIES", "3");
    lab.daemon().start();
    let before = lab.inventory();
    let big = Context::new("FROM scratch").file("big", &"x".repeat(1 << 20));
    lab.api()
        .call(big.post("?tag=x:y"))
        .refused(413, "invalid build context: it is larger than 8192 bytes");
    let many = (0..4).fold(Context::new("FROM scratch"), |context, n| {
        context.file(&n.to_string(), "")
    });
    lab.api()
        .call(many.post("?tag=x:y"))
        .refused(413, "invalid build context: it has more than 3 entries");
    lab.assert_unchanged(&before);
}

/// Waits until a build's command has said `started`.
fn wait_for_command(lab: &Lab) -> Value {
    wait_for("a build command at work", Duration::from_secs(20), || {
        let containers = lab.api().ok(get("/v1/containers"));
        let found = containers
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["imageRepository"] == "raind/build")
            .cloned();
        let found = found.ok_or_else(|| containers.to_string())?;
        // The step before it may be gone meanwhile.
        let path = format!("/v1/containers/{}/log", found["containerId"].as_str().unwrap());
        let log = lab.api().call(get(&path)).text();
        if log.starts_with("started") {
            Ok(found)
        } else {
            Err(format!("{found}: {log}"))
        }
    })
}

/// A build whose command runs until it is ended.
fn endless(image: &str) -> Call {
    let command = until_term(3);
    Context::new(&format!("FROM {image}\nRUN touch /x\nRUN {command}\n")).post("?tag=x:y")
}

#[test]
fn a_command_runs_in_a_container_like_others() {
    let (lab, image) = uncached_with_busybox();
    let before = lab.inventory();
    let other = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let api = lab.api();
    std::thread::scope(|scope| {
        let build = scope.spawn(|| api.call(endless(&image)));
        let container = wait_for_command(&lab);
        let id = container["containerId"].as_str().unwrap().to_owned();
        assert_eq!((id.len(), &id[..6]), (18, "build-"));
        lab.api().wait_state(&id, "running");
        let veth = format!("rd_{}", &id[6..]);
        let links = lab.machine().run(&["ip", "-o", "link"]);
        assert!(links.contains(&veth), "{veth} is not among {links}");
        assert_eq!(lab.api().container(&other)["state"], "running");
        // Its image is in use, it can be stopped like any other, and the build tells of it.
        lab.api().stop(&id);
        let reply = build.join().unwrap();
        reply.refused(400, "build failed: RUN command failed: exit_code=3");
    });
    lab.api().stop(&other);
    lab.api().delete(&other);
    lab.assert_unchanged(&before);
}

#[test]
fn a_build_ends_with_its_client() {
    let (lab, image) = uncached_with_busybox();
    let before = lab.inventory();
    let api = lab.api();
    api.hang_up_after(endless(&image), || drop(wait_for_command(&lab)));
    lab.assert_unchanged(&before);
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    let lab = Lab::start();
    lab.daemon()
        .set("CONDENSER_BUILD_STEP_SECONDS", "1")
        .set("CONDENSER_BUILD_CACHE_BYTES", "0");
    lab.daemon().start();
    let image = lab.pull(&crate::support::ImageSpec::busybox(), "library/busybox:1");
    let before = lab.inventory();
    let context = Context::new(&format!("FROM {image}\nRUN trap '' TERM; while :; do sleep 1; done\n"));
    let said = lab.api().call(context.post("?tag=x:y"));
    said.refused(400, "build failed: RUN command failed: it took longer than 1 s");
    lab.assert_unchanged(&before);
}

#[test]
fn a_crash_during_a_command_leaves_nothing() {
    let (lab, image) = uncached_with_busybox();
    let before = lab.inventory();
    let api = lab.api();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(api.try_call(endless(&image))));
        wait_for_command(&lab);
        lab.daemon().kill9();
    });
    lab.daemon().start();
    lab.assert_unchanged(&before);
}

#[test]
fn a_crash_at_any_moment_leaves_all_or_nothing() {
    let lab = uncached();
    let before = lab.inventory();
    let context = Context::demo("WORKDIR /w\nRUN echo whole > x\nCMD cat x\n");
    let begun = Instant::now();
    lab.api().ok(context.clone().post("?tag=x:y"));
    let whole = begun.elapsed();
    remove(&lab, "x:y");
    for moment in moments(whole) {
        let api = lab.api();
        let build = || drop(api.try_call(context.clone().post("?tag=x:y")));
        interrupted(&lab, moment, build, || {
            // Clients are served while what was interrupted is taken apart.
            wait_for("the container of the build to be removed", SOON, || {
                when(lab.api().ok(get("/v1/containers")), |left| *left == json!([]))
            });
            if lab.api().ok(get("/v1/images")) != json!([]) {
                assert_eq!(output(&lab, "x:y", &[]), "whole\n");
                remove(&lab, "x:y");
            }
            lab.assert_unchanged(&before);
        });
    }
}

#[test]
fn an_orderly_stop_ends_a_build() {
    let (lab, image) = uncached_with_busybox();
    let before = lab.inventory();
    let api = lab.api();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(api.try_call(endless(&image))));
        wait_for_command(&lab);
        lab.daemon().restart();
    });
    lab.assert_unchanged(&before);
}
