//! The build files of `tests/fixtures/buildfiles`, each built here and by buildah: the same configuration and the same
//! files come out.
//!
//! A directory there is a context. `Dockerfile` is what is built; where buildah does not know its words yet,
//! `Dockerfile.buildah` says the same in older ones. `build.json` ([`Settings`]) has what the request has, and the
//! differences that are meant (`docs/build-files.md`).
//!
//! One file: `CORPUS=copy-from scripts/test.sh -E 'binary(build_corpus)'`.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

#[path = "../support/mod.rs"]
mod support;

mod buildah;
mod context;
mod image;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use tar::EntryType;

use self::buildah::Buildah;
use self::context::Context;
use self::image::Image;
use crate::support::{ImageSpec, Lab, Layer, Place, get, post, send, wait_for};

/// How many builds run at once.
const WORKERS: usize = 2;

/// `build.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// `buildarg`.
    args: BTreeMap<String, String>,
    /// `target`.
    target: String,
    /// `label`.
    labels: BTreeMap<String, String>,
    /// Secrets by their ids.
    secrets: BTreeMap<String, String>,
    /// A shell script that completes the context, in it: what git does not hold.
    setup: String,
    /// What differs, and why: a field (`config.Env`) or a path (`/run`).
    differs: BTreeMap<String, String>,
    /// A remark.
    #[allow(dead_code, reason = "for readers")]
    note: String,
}

struct Fixture {
    name: String,
    path: PathBuf,
    settings: Settings,
}

#[test]
fn every_file_builds_what_buildah_builds() {
    let all = fixtures();
    assert!(all.len() >= 60, "{} build files", all.len());
    let wanted = std::env::var("CORPUS").unwrap_or_default();
    let lab = Lab::running();
    serve_files(&lab);
    let buildah = Buildah::new(lab.machine());
    for (name, image) in bases() {
        let address = lab.push(&image, &format!("library/{name}"));
        lab.hub();
        lab.api().ok(post("/v1/images", json!({ "image": name })));
        buildah.pull(&address, name);
    }
    let queue = Mutex::new(all.iter().filter(|fixture| fixture.name.contains(&wanted)));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(fixture) = next else { break };
                    let found = compare(&lab, &buildah, fixture).unwrap_or_else(|failure| vec![failure]);
                    let mut wrong = wrong.lock().unwrap();
                    wrong.extend(found.into_iter().map(|line| format!("{}: {line}", fixture.name)));
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

fn fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/buildfiles");
    let mut fixtures: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let settings = match std::fs::read(path.join("build.json")) {
                Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{name}/build.json: {e}")),
                Err(_) => Settings::default(),
            };
            Fixture { name, path, settings }
        })
        .collect();
    fixtures.sort_by(|a, b| a.name.cmp(&b.name));
    fixtures
}

/// The images that the files begin with, by their names on Docker Hub.
fn bases() -> [(&'static str, ImageSpec); 3] {
    // Version 2, `cap_net_raw` permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let places = Layer::new()
        .file("etc/hosts", 0o644, "")
        .file("etc/hostname", 0o644, "")
        .file("etc/resolv.conf", 0o644, "")
        .dir("caps", 0o755)
        .entry(
            EntryType::XHeader,
            "pax",
            "",
            0o644,
            (0, 0),
            &attribute("security.capability", &capability),
        )
        .file("caps/ping", 0o755, "not a program\n")
        // Debian's busybox has none.
                .script(
            "bin/addgroup",
            "while [ $# -gt 0 ]; do case $1 in -g) id=$2; shift ;; -*) ;; *) name=$1 ;; esac; shift; done\n\
             echo \"$name:x:$id:\" >> /etc/group",
        )
        .script(
            "bin/adduser",
            "while [ $# -gt 0 ]; do case $1 in -u) id=$2; shift ;; -[Ghsg]) shift ;; -*) ;; *) name=$1 ;; esac; shift; done\n\
             echo \"$name:x:$id:$id::/:/bin/sh\" >> /etc/passwd",
        );
    let base = ImageSpec::busybox().layer(places);
    let rich = base
        .clone()
        .layer(
            Layer::new()
                .dir("rich", 0o750)
                .owned("rich/file", 0o640, (1000, 1000), "rich\n"),
        )
        .env("RICH=base")
        .user("web")
        .workdir("/rich")
        .entrypoint(&["/bin/entry"])
        .cmd(&["of", "base"])
        .set("Labels", json!({ "rich": "base", "kept": "yes" }))
        .set("ExposedPorts", json!({ "80/tcp": {} }))
        .set("Volumes", json!({ "/base-volume": {} }))
        .set("StopSignal", json!("SIGUSR1"))
        .set(
            "Healthcheck",
            json!({ "Test": ["CMD", "true"], "Interval": 5_000_000_000_u64 }),
        );
    let triggers = base.clone().set(
        "OnBuild",
        json!(["COPY . /app", "ENV TRIGGERED=yes", "RUN echo $TRIGGERED > /trigger"]),
    );
    // Docker's format, which has health checks and triggers.
    [
        ("base:1", base.docker()),
        ("rich:1", rich.docker()),
        ("triggers:1", triggers.docker()),
    ]
}

/// A record of an extended header that gives the next entry an attribute.
fn attribute(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = format!(" SCHILY.xattr.{name}=");
    // The record begins with its own length, here of two digits.
    let length = 2 + rest.len() + value.len() + 1;
    [length.to_string().as_bytes(), rest.as_bytes(), value, b"\n"].concat()
}

/// A file for `ADD`, on the outside.
fn serve_files(lab: &Lab) {
    lab.machine().write("/run/www/file.txt", "downloaded\n");
    let mut server = lab.machine().command(Place::Outside, "busybox");
    server.args(["httpd", "-p", "8000", "-h", "/run/www"]);
    assert!(server.status().unwrap().success());
    wait_for("a server of files", std::time::Duration::from_secs(10), || {
        lab.outside_get("192.0.2.1:8000", "/file.txt")
    });
}

/// The differences that are not meant, and those that are meant but not there.
fn compare(lab: &Lab, buildah: &Buildah, fixture: &Fixture) -> Result<Vec<String>, String> {
    let context = Context::new(&fixture.path, &fixture.settings.setup);
    let ours = build(lab, fixture, &context)?;
    let theirs = buildah.build(fixture, context.path())?;
    let found = ours.differences(&theirs);
    let meant = |what: &str| fixture.settings.differs.contains_key(what);
    let mut wrong: Vec<String> = found
        .iter()
        .filter(|(what, _)| !meant(what))
        .map(|(what, how)| format!("{what}: {how}"))
        .collect();
    let same = fixture
        .settings
        .differs
        .keys()
        .filter(|what| !found.contains_key(*what));
    wrong.extend(same.map(|what| format!("{what}: is the same, and build.json says that it differs")));
    Ok(wrong)
}

fn build(lab: &Lab, fixture: &Fixture, context: &Context) -> Result<Image, String> {
    let tag = format!("corpus/{}:1", fixture.name);
    let mut query = format!("?tag={tag}&dripfile=Dockerfile");
    let settings = &fixture.settings;
    for (name, values) in [("buildarg", &settings.args), ("label", &settings.labels)] {
        for (key, value) in values {
            query.push_str(&format!("&{name}={}", escaped(&format!("{key}={value}"))));
        }
    }
    if !settings.target.is_empty() {
        query.push_str(&format!("&target={}", settings.target));
    }
    let mut call = send("POST", &format!("/v1/images/build{query}"), context.archive());
    for (id, value) in &settings.secrets {
        call = call.header("X-Build-Secret", &format!("{id}={}", STANDARD.encode(value)));
    }
    let built = lab.api().call(call);
    if built.status != 200 {
        return Err(format!("not built: {}", built.message()));
    }
    let saved = lab.api().call(get(&format!("/v1/images/save?image={tag}")));
    match saved.status {
        200 => Ok(Image::of_archive(&saved.body)),
        _ => Err(format!("not saved: {}", saved.message())),
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}
