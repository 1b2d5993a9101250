//! Pull of an image of 8 layers (58 MB compressed, 179 MB and 14,600 entries unpacked) from a docker-registry on
//! loopback, against `skopeo copy` and `umoci unpack` in the same run. Each round gets a new loop file system: ext4 is
//! several times slower for minutes after mass deletions.
//!
//! `cargo bench --bench pull [rounds]`, as root. The target is 2/3 of a second and less than the two programs take
//! (the original took 2.06 s, three times the target).

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a bench that cannot run panics"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use condenser::image::{ImageRef, Platform};
use condenser::store::Store;
use support::Registry;
use support::images::content::{Layer, TestImage};

const LAYERS: usize = 8;
const ENTRIES: usize = 14_600;
const BYTES: usize = 179 << 20;
const TARGET: Duration = Duration::from_millis(687);

fn main() {
    // Mounts are for this program alone and go with it.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace; run as root");
    let none = None::<&str>;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, private, none).expect("private mounts");
    let rounds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(5);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(rounds));
}

async fn run(rounds: usize) {
    let registry = Registry::on_loopback();
    let layers: Vec<Layer> = (0..LAYERS).map(layer).collect();
    let compressed: usize = layers.iter().map(|l| l.blob.len()).sum();
    let unpacked: usize = layers.iter().map(|l| l.archive.len()).sum();
    println!(
        "{LAYERS} layers, {ENTRIES} entries, {} MB compressed, {} MB unpacked",
        compressed >> 20,
        unpacked >> 20
    );
    let mut config = TestImage::of(&layers).config;
    config["config"] = serde_json::json!({});
    let image = TestImage::with_config(&layers, config);
    let reference = registry.push_image("bench:1", &image);
    drop((layers, image));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let disk = Disk::new();
        ours.push(condenser(&disk, &registry, &reference).await);
        drop(disk);
        let disk = Disk::new();
        theirs.push(skopeo_and_umoci(&disk.0.path().join("mnt"), &reference));
        println!("round {round}: {:?}, skopeo and umoci {:?}", ours[round], theirs[round]);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("pull: median {ours:?} (target {TARGET:?}); skopeo copy and umoci unpack {theirs:?}");
    assert!(ours < theirs, "slower than skopeo and umoci");
}

async fn condenser(disk: &Disk, registry: &Registry, reference: &str) -> Duration {
    let root = disk.0.path().join("mnt");
    let store = Store::open(&root.join("store.db")).expect("a store");
    let images = support::images::service(&root.join("image"), &store, &[&registry.address]);
    images.recover().await.expect("a clean start");
    let reference = ImageRef::parse(reference).expect("a reference");
    let start = Instant::now();
    images.pull(&reference, &Platform::host()).await.expect("a pull");
    start.elapsed()
}

fn skopeo_and_umoci(root: &Path, reference: &str) -> Duration {
    let layout = root.join("layout").display().to_string();
    let bundle = root.join("bundle").display().to_string();
    let start = Instant::now();
    let source = format!("docker://{reference}");
    command(
        "skopeo",
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            &source,
            &format!("oci:{layout}:1"),
        ],
    );
    command("umoci", &["unpack", "--image", &format!("{layout}:1"), &bundle]);
    start.elapsed()
}

/// A new ext4 file system, mounted at `mnt` in a scratch directory.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().expect("a scratch directory"));
        let (file, at) = (disk.path("file"), disk.path("mnt"));
        std::fs::create_dir(&at).expect("a mount point");
        let image = std::fs::File::create(&file).expect("a disk");
        image.set_len(2 << 30).expect("a disk");
        command(
            "mkfs.ext4",
            &[
                "-q",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                &file.display().to_string(),
            ],
        );
        command(
            "mount",
            &["-o", "loop", &file.display().to_string(), &at.display().to_string()],
        );
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        command("umount", &["-l", &self.path("mnt").display().to_string()]);
    }
}

fn command(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect(program);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A layer like those of real images: many small files, a few large ones, a third of the size when compressed.
fn layer(number: usize) -> Layer {
    let (files, bytes) = (ENTRIES / LAYERS - 25, BYTES / LAYERS);
    let mut builder = tar::Builder::new(Vec::new());
    let mut random = number as u64 + 1;
    let mut add = |kind, mode, path: String, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data).expect("an entry");
    };
    for directory in 0..25 {
        add(
            tar::EntryType::Directory,
            0o755,
            format!("l{number}/d{directory}/"),
            &[],
        );
    }
    for file in 0..files {
        // One file in a hundred has half of the bytes.
        let size = if file % 100 == 0 {
            bytes / 2 / (files / 100 + 1)
        } else {
            bytes / 2 / files
        };
        let path = format!("l{number}/d{}/file-{file}.bin", file * 25 / files);
        add(tar::EntryType::Regular, 0o644, path, &content(size, &mut random));
    }
    Layer::gzip(builder.into_inner().expect("an archive"))
}

fn content(size: usize, random: &mut u64) -> Vec<u8> {
    let mut data = Vec::with_capacity(size + 64);
    while data.len() < size {
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&random.to_le_bytes());
        data.extend_from_slice(b" what is repeated in files");
    }
    data.truncate(size);
    data
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
