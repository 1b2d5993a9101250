//! Pulls of images of three shapes from a docker-registry on loopback, against podman, against `skopeo copy` and
//! `umoci unpack`, and against what a machine can do at most: `sha256sum`, `gunzip` and `tar -x` over the same layers,
//! two at a time, without a registry and without waiting for the disk. Each pull gets a new loop file system: ext4 is
//! several times slower for minutes after mass deletions.
//!
//! `cargo bench --bench pull [rounds] [shape]`, as root; `scripts/bench-pull.sh` installs what it needs. Compare within a
//! run only. The target is less than the others take everywhere, and 1.3 times the bound.

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

use condenser::image::{
    ImageRef, ImageService, ImageSettings, Platform, Registries, RegistryEntries, RegistrySettings,
};
use condenser::observe::metrics::Activity;
use condenser::store::Store;
use serde_json::{Value, json};
use support::Registry;
use support::images::content::{Layer, MANIFEST, digest};

/// An image: how much of what.
struct Shape {
    name: &'static str,
    layers: usize,
    entries: usize,
    /// Unpacked, in MB; compressed it is a third.
    megabytes: usize,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "8-layers-58-mb",
        layers: 8,
        entries: 14_600,
        megabytes: 179,
    },
    Shape {
        name: "1-layer-300-mb",
        layers: 1,
        entries: 25_000,
        megabytes: 925,
    },
    Shape {
        name: "20-layers-1200-mb",
        layers: 20,
        entries: 60_000,
        megabytes: 3_700,
    },
];

/// What is measured.
const CONTENDERS: [&str; 4] = ["condenser", "podman", "skopeo and umoci", "bound"];

fn main() {
    // Mounts are for this program alone and go with it.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace; run as root");
    let none = None::<&str>;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, private, none).expect("private mounts");
    let rounds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(5);
    let wanted = std::env::args()
        .skip(1)
        .find(|a| SHAPES.iter().any(|s| s.name.contains(a) && a.len() > 3));
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    if std::env::var_os("BENCH_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter("condenser=debug").init();
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut is_slow = false;
    for shape in &SHAPES {
        if wanted.as_ref().is_none_or(|wanted| shape.name.contains(wanted)) {
            is_slow |= !runtime.block_on(measure(shape, rounds, &only));
        }
    }
    assert!(!is_slow, "slower than podman or skopeo and umoci");
}

/// Whether ours was the fastest.
async fn measure(shape: &Shape, rounds: usize, only: &str) -> bool {
    let registry = Registry::on_loopback();
    let image = Pushed::new(shape, &registry);
    println!(
        "{}: {} entries, {} MB compressed, {} MB unpacked",
        shape.name,
        shape.entries,
        image.compressed >> 20,
        shape.megabytes
    );
    let mut first = vec![Vec::new(); CONTENDERS.len()];
    let mut repeated = vec![Vec::new(); 2];
    for round in 0..rounds {
        // Nobody always comes first.
        for n in (0..CONTENDERS.len()).map(|n| (n + round) % CONTENDERS.len()) {
            if !CONTENDERS[n].contains(only) {
                continue;
            }
            let disk = Disk::new(shape.megabytes);
            let root = disk.0.path().join("mnt");
            let (took, again) = match n {
                0 => condenser(&root, &registry, &image.reference).await,
                1 => podman(&root, &image.reference),
                2 => (skopeo_and_umoci(&root, &image.reference), None),
                _ => (bound(&root, &registry, &image.layers), None),
            };
            first[n].push(took);
            if let Some(again) = again {
                repeated[n].push(again);
            }
            println!("  round {round}: {}: {took:?}, again {again:?}", CONTENDERS[n]);
        }
    }
    let ours = median(&first[0]);
    for (name, times) in CONTENDERS.iter().zip(&first) {
        let median = median(times);
        let ratio = ours.as_secs_f64() / median.as_secs_f64();
        println!(
            "{}: {name}: p50 {median:?}; condenser takes {ratio:.2} of it",
            shape.name
        );
    }
    let (again, podman) = (median(&repeated[0]), median(&repeated[1]));
    println!("{}: again: condenser p50 {again:?}, podman {podman:?}", shape.name);
    // Alone there is nothing to compare with.
    !only.is_empty() || ours < median(&first[1]) && ours < median(&first[2])
}

/// An image in the registry.
struct Pushed {
    reference: String,
    /// Digests of the layers.
    layers: Vec<String>,
    compressed: usize,
}

impl Pushed {
    /// One layer after the other, so that no more than one is in memory.
    fn new(shape: &Shape, registry: &Registry) -> Self {
        let (mut layers, mut diff_ids, mut compressed) = (Vec::<Value>::new(), Vec::new(), 0);
        for number in 0..shape.layers {
            let layer = layer(shape, number);
            registry.blob("bench", &layer.blob);
            compressed += layer.blob.len();
            diff_ids.push(layer.diff_id());
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest(), "size": layer.blob.len(),
            }));
        }
        let config = json!({
            "os": "linux", "architecture": Platform::host().architecture, "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        registry.blob("bench", &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len()},
        });
        registry.push_manifest("bench", "1", &manifest);
        Self {
            reference: registry.name("bench:1"),
            layers: layers
                .iter()
                .map(|l| l["digest"].as_str().expect("a digest").to_owned())
                .collect(),
            compressed,
        }
    }
}

/// A first pull, and one of an image that is there.
async fn condenser(root: &Path, registry: &Registry, reference: &str) -> (Duration, Option<Duration>) {
    let store = Store::open(&root.join("store.db")).expect("a store");
    let settings = ImageSettings {
        root: root.join("image"),
        registry: RegistrySettings {
            registries: Registries::new(RegistryEntries::default(), std::slice::from_ref(&registry.address))
                .expect("a registry"),
            ..RegistrySettings::default()
        },
        max_layer_bytes: 64 << 30,
        max_layer_entries: 2_000_000,
        max_layer_ratio: 200,
        layer_ratio_from: 4 << 30,
    };
    let images = ImageService::new(settings, store, Activity::default()).expect("a service");
    images.recover().await.expect("a clean start");
    let reference = ImageRef::parse(reference).expect("a reference");
    let mut took = Vec::new();
    for _ in 0..2 {
        let start = Instant::now();
        images.pull(&reference, &Platform::host()).await.expect("a pull");
        took.push(start.elapsed());
    }
    (took[0], Some(took[1]))
}

fn podman(root: &Path, reference: &str) -> (Duration, Option<Duration>) {
    let (storage, run) = (root.join("podman"), root.join("run"));
    let (storage, run) = (storage.display().to_string(), run.display().to_string());
    let arguments = [
        "--root",
        &storage,
        "--runroot",
        &run,
        "--storage-driver",
        "overlay",
        "pull",
        "-q",
        "--tls-verify=false",
        reference,
    ];
    let pull = || {
        let start = Instant::now();
        command("podman", &arguments);
        start.elapsed()
    };
    (pull(), Some(pull()))
}

fn skopeo_and_umoci(root: &Path, reference: &str) -> Duration {
    let layout = root.join("layout").display().to_string();
    let bundle = root.join("bundle").display().to_string();
    let (source, target) = (format!("docker://{reference}"), format!("{layout}:1"));
    let start = Instant::now();
    command(
        "skopeo",
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            &source,
            &format!("oci:{target}"),
        ],
    );
    command("umoci", &["unpack", "--image", &target, &bundle]);
    start.elapsed()
}

fn bound(root: &Path, registry: &Registry, layers: &[String]) -> Duration {
    let script = r#"mkdir "$2" && tee >(sha256sum > "$2.sum") < "$1" | gunzip | tar -x -C "$2""#;
    let mut arguments = vec![
        "-P".to_owned(),
        "2".into(),
        "-n".into(),
        "2".into(),
        "bash".into(),
        "-c".into(),
    ];
    arguments.extend([script.to_owned(), "bash".into()]);
    let pairs = layers.iter().enumerate().map(|(n, layer)| {
        let directory = root.join(n.to_string());
        format!("{}\n{}\n", registry.blob_file(layer).display(), directory.display())
    });
    let list = root.join("list");
    std::fs::write(&list, pairs.collect::<String>()).expect("a list");
    arguments.splice(0..0, ["-a".to_owned(), list.display().to_string()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let start = Instant::now();
    command("xargs", &arguments);
    start.elapsed()
}

/// A new ext4 file system, mounted at `mnt` in a scratch directory.
struct Disk(tempfile::TempDir);

impl Disk {
    /// With room for an image of that size, compressed and unpacked.
    fn new(megabytes: usize) -> Self {
        let disk = Self(tempfile::tempdir().expect("a scratch directory"));
        let (file, at) = (disk.path("file"), disk.path("mnt"));
        std::fs::create_dir(&at).expect("a mount point");
        let image = std::fs::File::create(&file).expect("a disk");
        image.set_len((2 << 30) + 2 * (megabytes << 20) as u64).expect("a disk");
        let file = file.display().to_string();
        command(
            "mkfs.ext4",
            &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &file],
        );
        command("mount", &["-o", "loop", &file, &at.display().to_string()]);
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Disk {
    /// Waits until everything is written, so that it does not disturb the next one.
    fn drop(&mut self) {
        for _ in 0..50 {
            let umount = Command::new("umount").arg(self.path("mnt")).output().expect("umount");
            if umount.status.success() {
                return;
            }
            // Podman leaves its overlay mounted, and the service may still record layers.
            let _ = Command::new("umount").arg(self.path("mnt/podman/overlay")).output();
            std::thread::sleep(Duration::from_millis(100));
        }
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
fn layer(shape: &Shape, number: usize) -> Layer {
    let (files, bytes) = (
        shape.entries / shape.layers - 25,
        (shape.megabytes << 20) / shape.layers,
    );
    let mut builder = tar::Builder::new(Vec::with_capacity(bytes + (bytes >> 3)));
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

/// Zero without any.
fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
