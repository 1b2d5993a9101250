//! Hostile layers, one by one through a real pull into a real layer store: each is refused with a reason, or what it
//! holds ends up in its own directory. The host around is compared before and after, and a refusal leaves nothing.
//!
//! `WRITE_SEEDS=fuzz/corpus cargo nextest run --test image_attacks` also writes the archives as seeds for the fuzzer.
//! With `--no-capture` it prints what becomes of each.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod compression;
mod format;
mod links;
mod objects;

#[path = "../support/mod.rs"]
mod support;

#[path = "../../src/image/testing/builder.rs"]
mod builder;

#[path = "../../src/image/testing/names.rs"]
mod names;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use builder::Tar;
use condenser::image::{ImageError, ImageRef};
use names::names;
use support::images::Place;
use support::images::content::{Layer, TestImage, digest};
use support::images::peer::Peer;

/// One attack.
struct Case {
    name: &'static str,
    /// Bottom first; the last one is the attack.
    layers: Vec<Layer>,
    expected: Expected,
}

enum Expected {
    /// The pull fails with a message that has this in it.
    Refused(&'static str),
    /// The pull succeeds, and this is the whole content of the last layer: directories end in a slash.
    Contained(Vec<String>),
    /// The pull succeeds, and this holds for the directory of the last layer.
    Checked(fn(&Path)),
}

impl Case {
    fn refused(name: &'static str, layer: impl Into<Layer>, reason: &'static str) -> Self {
        Self::new(name, vec![layer.into()], Expected::Refused(reason))
    }

    fn contained(name: &'static str, layer: impl Into<Layer>, content: &[&str]) -> Self {
        let content = content.iter().map(|path| (*path).to_owned()).collect();
        Self::new(name, vec![layer.into()], Expected::Contained(content))
    }

    fn checked(name: &'static str, layer: impl Into<Layer>, check: fn(&Path)) -> Self {
        Self::new(name, vec![layer.into()], Expected::Checked(check))
    }

    fn new(name: &'static str, layers: Vec<Layer>, expected: Expected) -> Self {
        Self { name, layers, expected }
    }

    /// With another layer beneath.
    fn over(mut self, lower: Tar) -> Self {
        self.layers.insert(0, lower.into());
        self
    }
}

impl From<Tar> for Layer {
    fn from(tar: Tar) -> Self {
        Self::gzip(tar.build())
    }
}

/// All attacks; `host` is the directory that some of them aim at.
fn cases(host: &str) -> Vec<Case> {
    let mut cases = links::cases(host);
    cases.extend(objects::cases());
    cases.extend(format::cases());
    cases.extend(compression::cases());
    cases
}

/// What is around the store: sentinels, the parent of the store, and the places that a careless unpacker would hit.
struct Host {
    scratch: std::path::PathBuf,
    before: Vec<String>,
}

impl Host {
    fn new(place: &Place) -> Self {
        let scratch = place.scratch.path().to_owned();
        let host = scratch.join("host");
        std::fs::create_dir_all(host.join("dir/sub")).unwrap();
        std::fs::write(host.join("secret"), "secret").unwrap();
        std::fs::write(host.join("dir/file"), "file").unwrap();
        let mut this = Self {
            scratch,
            before: Vec::new(),
        };
        this.before = this.state();
        this
    }

    fn directory(&self) -> String {
        self.scratch.join("host").display().to_string()
    }

    fn state(&self) -> Vec<String> {
        let mut lines = listing(&self.scratch.join("host"));
        for directory in [&self.scratch, &self.scratch.join("image"), Path::new("/")] {
            let mut names: Vec<_> = std::fs::read_dir(directory)
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            // The database has side files that come and go.
            names.retain(|name| !name.to_string_lossy().starts_with("store.db"));
            names.sort();
            lines.push(format!("{} {names:?}", directory.display()));
        }
        lines.push(digest(&std::fs::read("/etc/passwd").unwrap()));
        lines
    }

    fn assert_unchanged(&self, case: &str) {
        assert_eq!(self.state(), self.before, "{case} touched the host");
    }
}

#[tokio::test]
async fn every_attack_is_contained_or_refused() {
    let peer = Peer::start().await;
    let place = Place::new(&[&peer.address.to_string()]).await;
    let host = Host::new(&place);
    let kept = peer.offer("kept", &TestImage::of(&[Layer::file("kept", "")]));
    place.pull(&kept).await.unwrap();
    let inventory = place.inventory();
    let mut wrong = Vec::new();
    for case in cases(&host.directory()) {
        let reference = peer.offer(case.name, &TestImage::of(&case.layers));
        let pulled = place.pull(&reference).await;
        let outcome = match &pulled {
            Ok(row) => accepted(&case.expected, &place.lower_dirs(row)[0]),
            Err(error) => refused(&case.expected, error),
        };
        if pulled.is_ok() {
            place
                .images
                .remove(&ImageRef::parse(&reference).unwrap())
                .await
                .unwrap();
        }
        host.assert_unchanged(case.name);
        assert_eq!(place.inventory(), inventory, "{} left something", case.name);
        match outcome {
            Ok(outcome) => println!("| {} | {outcome} |", case.name),
            Err(outcome) => wrong.push(format!("{}: {outcome}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn refused(expected: &Expected, error: &ImageError) -> Result<String, String> {
    let message = error.to_string();
    match expected {
        Expected::Refused(reason) if message.contains(reason) => {}
        _ => return Err(message),
    }
    match error {
        ImageError::BadLayer { message, .. } if !message.contains(char::is_control) && message.len() < 1000 => {
            Ok(format!("refused: {message}"))
        }
        _ => Err(format!("not said as it should be: {message:?}")),
    }
}

fn accepted(expected: &Expected, directory: &Path) -> Result<String, String> {
    let parent = std::fs::metadata(directory.parent().unwrap()).unwrap();
    assert_eq!(
        parent.permissions().mode() & 0o777,
        0o700,
        "users of the host get at layers"
    );
    match expected {
        Expected::Refused(reason) => return Err(format!("was not refused: {reason}")),
        Expected::Checked(check) => check(directory),
        Expected::Contained(content) => {
            let found = names(directory);
            if found != *content {
                return Err(format!("has {found:?} instead of {content:?}"));
            }
        }
    }
    Ok("contained".to_owned())
}

#[test]
fn names_are_unique_and_seeds_can_be_written() {
    // Where the fuzzer has its host.
    let cases = cases("/dev/shm/condenser-fuzz/host");
    let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    let Some(corpus) = std::env::var_os("WRITE_SEEDS") else {
        return;
    };
    for case in cases {
        let archive = &case.layers.last().unwrap().archive;
        if archive.len() <= 16 << 10 {
            for target in ["archive", "unpack"] {
                let name = format!("{target}/seed-{}", case.name);
                std::fs::write(Path::new(&corpus).join(name), archive).unwrap();
            }
        }
    }
}

/// All paths beneath `root` with what can be seen of them, except access times.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for name in [String::new()].into_iter().chain(names(root)) {
        let path = root.join(&name);
        let m = std::fs::symlink_metadata(&path).unwrap();
        let content = std::fs::read(&path).map(|content| digest(&content)).unwrap_or_default();
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        let (mode, owner) = (m.mode(), (m.uid(), m.gid()));
        lines.push(format!("{name} {mode:o} {owner:?} {} {times:?} {content}", m.nlink()));
    }
    lines
}
