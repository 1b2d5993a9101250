//! Pulling from a real docker-registry: what arrives, what is shared, what a failure leaves behind (nothing).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::path::Path;
use std::process::Command;

use condenser::image::{ImageError, ImageRef, Platform};
use condenser::model::{Container, Image, ImageRunConfig};
use condenser::store::StoreError;
use serde_json::json;
use support::images::content::{Layer, TestImage, archive, digest, index, raw_archive};
use support::images::{Place, container, service};
use support::{Registry, SOON, wait_for_async, when};

async fn lab() -> (Registry, Place) {
    let registry = Registry::on_loopback();
    let place = Place::new(&[&registry.address]).await;
    (registry, place)
}

fn read(directory: &Path, path: &str) -> String {
    std::fs::read_to_string(directory.join(path)).unwrap()
}

async fn put(place: &Place, row: Container) {
    let put = place.store.transact(move |t| {
        t.put(row).unwrap();
        Ok::<_, StoreError>(())
    });
    put.await.unwrap();
}

#[tokio::test]
async fn gzip_zstd_and_plain_layers_arrive() {
    let (registry, place) = lab().await;
    let layers = [
        Layer::plain(archive(&[("a", "plain"), ("etc/passwd", "web:x:33:34::/:\n")])),
        Layer::gzip(archive(&[("a", "gzip"), ("etc/group", "logs:x:4:web\n")])),
        Layer::zstd(archive(&[("a", "zstd")])),
    ];
    let image = TestImage::of(&layers);
    let reference = registry.push_image("team/app:1.0", &image);
    let row = place.pull(&reference).await.unwrap();

    assert_eq!(row.id, reference);
    assert_eq!(
        (&*row.repository, &*row.reference),
        (&*registry.name("team/app"), "1.0")
    );
    assert_eq!(row.manifest_digest, image.manifest_digest());
    assert_eq!(row.config_digest, digest(image.config.to_string().as_bytes()));
    assert_eq!(
        row.size_bytes,
        image.blobs().iter().map(|b| b.len() as u64).sum::<u64>()
    );
    assert_eq!((&*row.os, &row.architecture), ("linux", &Platform::host().architecture));
    assert_eq!(
        (&row.config.env[..], &row.config.cmd[..]),
        (&["A=b".to_owned()][..], &["sh".to_owned()][..])
    );
    let lower_dirs = place.lower_dirs(&row);
    let seen: Vec<String> = lower_dirs.iter().map(|dir| read(dir, "a")).collect();
    assert_eq!(seen, ["zstd", "gzip", "plain"], "topmost first");

    let parsed = ImageRef::parse(&reference).unwrap();
    assert_eq!(place.images.get(&parsed).unwrap(), row);
    assert_eq!(place.images.list(), std::slice::from_ref(&row));
    assert!(place.images.disk_usage(&parsed).await.unwrap() >= 5 * 4096);
    let diff_ids: Vec<String> = row.layers.iter().map(|l| l.diff_id.clone()).collect();
    let user = place.images.resolve_user(&diff_ids, &row.config.user).await.unwrap();
    assert_eq!((user.uid, user.gid, user.additional_gids), (33, 34, vec![4]));
    let error = place.images.resolve_user(&diff_ids, "nobody").await.unwrap_err();
    assert!(error.to_string().contains("no user \"nobody\""), "{error}");
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn images_of_umoci_and_skopeo_arrive() {
    let (registry, place) = lab().await;
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout").display().to_string();
    let image = format!("{layout}:latest");
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--image", &image, "/bin/busybox", "/bin/busybox"]);
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.cmd",
            "/bin/busybox",
            "--config.user",
            "7:8",
        ],
    );
    for (tag, format) in [("gzip", "gzip"), ("zstd", "zstd")] {
        let target = format!("docker://{}", registry.name(&format!("busybox:{tag}")));
        let source = format!("oci:{image}");
        run(
            "skopeo",
            &[
                "copy",
                "--dest-tls-verify=false",
                "--dest-compress-format",
                format,
                &source,
                &target,
            ],
        );
        let row = place.pull(&registry.name(&format!("busybox:{tag}"))).await.unwrap();
        assert_eq!(row.config.cmd, ["/bin/busybox"]);
        assert_eq!(row.config.user, "7:8");
        let unpacked = std::fs::read(place.lower_dirs(&row)[0].join("bin/busybox")).unwrap();
        assert_eq!(unpacked, std::fs::read("/bin/busybox").unwrap());
    }
    assert_eq!(place.layers(), 1, "two compressions of one layer");
}

#[tokio::test]
async fn an_index_is_searched_for_the_platform() {
    let (registry, place) = lab().await;
    let host = Platform::host().architecture;
    let ours = TestImage::of(&[Layer::file("a", "ours")]);
    let other = TestImage::new("s390x", &[Layer::file("a", "other")]);
    registry.push_image("multi:ours", &ours);
    registry.push_image("multi:other", &other);
    let platform = format!("linux/{host}");
    let both = index(&[("linux/s390x", &other), (&platform, &ours)]);
    registry.push_manifest("multi", "latest", &both);
    let reference = registry.name("multi");
    let row = place.pull(&reference).await.unwrap();
    assert_eq!(row.manifest_digest, ours.manifest_digest());
    assert_eq!(read(&place.lower_dirs(&row)[0], "a"), "ours");

    let before = place.inventory();
    let parsed = ImageRef::parse(&reference).unwrap();
    let error = place
        .images
        .pull(&parsed, &Platform::parse("linux", "mips"))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no manifest for platform linux/mips; {parsed} is for {platform}, linux/s390x")
    );
    assert_eq!(place.images.get(&parsed).unwrap(), row, "a failed pull changes nothing");
    assert_eq!(place.inventory(), before);

    // A single manifest says in its configuration what it is for.
    let error = place.pull(&registry.name("multi:other")).await.unwrap_err();
    assert!(matches!(error, ImageError::NoPlatform { .. }), "{error}");
    assert_eq!(place.inventory(), before);

    let row = place
        .images
        .pull(&parsed, &Platform::parse("linux", "s390x"))
        .await
        .unwrap();
    assert_eq!(row.architecture, "s390x");
    assert_eq!(read(&place.lower_dirs(&row)[0], "a"), "other");
    assert_eq!(place.layers(), 1, "the layer of the replaced row is gone");
}

#[tokio::test]
async fn a_digest_names_one_image_for_ever() {
    let (registry, place) = lab().await;
    let first = TestImage::of(&[Layer::file("a", "first")]);
    registry.push_image("app:latest", &first);
    registry.push_image("app:latest", &TestImage::of(&[Layer::file("a", "second")]));
    let digest = first.manifest_digest();
    for name in ["app", "app:latest"] {
        let row = place.pull(&registry.name(&format!("{name}@{digest}"))).await.unwrap();
        assert_eq!(row.reference, digest);
        assert_eq!(row.id, format!("{}:{digest}", registry.name("app")));
        assert_eq!(read(&place.lower_dirs(&row)[0], "a"), "first");
    }
    assert_eq!(place.images.list().len(), 1);
}

#[tokio::test]
async fn shared_layers_are_stored_once_and_stay_while_needed() {
    let (registry, place) = lab().await;
    let base = Layer::file("base", "base");
    let one = registry.push_image("one:1", &TestImage::of(&[base.clone(), Layer::file("a", "one")]));
    let two = registry.push_image("two:1", &TestImage::of(&[base.clone(), Layer::file("a", "two")]));
    let (one, two) = (place.pull(&one).await.unwrap(), place.pull(&two).await.unwrap());
    assert_eq!(place.layers(), 3);
    assert_eq!(
        registry.requests(&format!("/v2/two/blobs/{}", base.digest())),
        0,
        "it was there already"
    );

    let reference = |row: &Image| ImageRef::parse(&row.id).unwrap();
    place.images.remove(&reference(&one)).await.unwrap();
    assert_eq!(place.layers(), 2);
    assert_eq!(read(&place.lower_dirs(&two)[1], "base"), "base");
    let error = place.images.remove(&reference(&one)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{} not found", one.id));

    put(&place, container(&two, "c1")).await;
    let error = place.images.remove(&reference(&two)).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::InUse { container, .. } if container == "name-of-c1"),
        "{error}"
    );
    assert_eq!(place.layers(), 2);

    // The image is replaced under the container: its layers stay until it goes.
    registry.push_image("two:1", &TestImage::of(&[Layer::file("a", "new")]));
    place.pull(&two.id).await.unwrap();
    assert_eq!(place.layers(), 3);
    place
        .store
        .transact(|t| Ok::<_, StoreError>(t.remove::<Container>("c1").map(drop)))
        .await
        .unwrap();
    place.images.sweep().await.unwrap();
    assert_eq!(place.layers(), 1);
    place.images.remove(&reference(&two)).await.unwrap();
    assert!(place.inventory().is_empty());
}

#[tokio::test]
async fn a_removed_or_replaced_image_is_noticed_in_the_transaction() {
    let (registry, place) = lab().await;
    let reference = registry.push_image("app:1", &TestImage::of(&[Layer::file("a", "1")]));
    let row = place.pull(&reference).await.unwrap();
    let present = |row: std::sync::Arc<Image>| async {
        let check = place
            .store
            .transact(move |t| Ok::<_, StoreError>(condenser::image::still_present(t, &row)));
        check.await.unwrap()
    };
    assert!(present(row.clone()).await);
    registry.push_image("app:1", &TestImage::of(&[Layer::file("a", "2")]));
    let newer = place.pull(&reference).await.unwrap();
    assert!(!present(row).await && present(newer.clone()).await);
    place
        .images
        .remove(&ImageRef::parse(&reference).unwrap())
        .await
        .unwrap();
    assert!(!present(newer).await);
}

/// Pushes an image with two good layers around `bad`, and checks that its pull fails with the reason and leaves nothing.
async fn refused(bad: Layer, bend: impl FnOnce(&Registry, &mut TestImage), reason: &str) {
    let (registry, place) = lab().await;
    let good = registry.push_image("good:1", &TestImage::of(&[Layer::file("good", "good")]));
    place.pull(&good).await.unwrap();
    let before = place.inventory();
    let layers = [Layer::file("first", "1"), bad, Layer::file("last", "2")];
    let mut image = TestImage::of(&layers);
    for blob in image.blobs() {
        registry.blob("bad", &blob);
    }
    bend(&registry, &mut image);
    registry.push_image(
        "bad:1",
        &TestImage {
            layers: vec![],
            ..image
        },
    );
    let error = place.pull(&registry.name("bad:1")).await.unwrap_err();
    assert!(matches!(error, ImageError::BadLayer { .. }), "{error}");
    assert!(error.to_string().contains(reason), "{error}");
    assert_eq!(place.inventory(), before, "something was left of the failed pull");
    assert_eq!(place.images.list().len(), 1);
}

fn corrupt(registry: &Registry, layer: &Layer) {
    let file = registry.blob_file(&layer.digest());
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_blob_that_is_not_its_digest_is_refused() {
    let layer = Layer::plain(archive(&[("a", &"x".repeat(4096))]));
    refused(
        layer.clone(),
        |registry, _| corrupt(registry, &layer),
        "digest mismatch",
    )
    .await;
}

#[tokio::test]
async fn a_corrupt_gzip_blob_is_refused() {
    let layer = Layer::gzip(archive(&[("a", &"x".repeat(40_960))]));
    refused(layer.clone(), |registry, _| corrupt(registry, &layer), "").await;
}

#[tokio::test]
async fn a_layer_that_is_not_its_diff_id_is_refused() {
    let mut layer = Layer::file("a", "x");
    layer.archive = archive(&[("a", "y")]);
    refused(layer, |_, _| {}, "diff id mismatch").await;
}

#[tokio::test]
async fn a_blob_longer_than_its_descriptor_is_refused() {
    refused(
        Layer::file("a", "x"),
        |_, image| image.manifest["layers"][1]["size"] = json!(10),
        "more than the 10",
    )
    .await;
}

#[tokio::test]
async fn a_blob_shorter_than_its_descriptor_is_refused() {
    refused(
        Layer::file("a", "x"),
        |_, image| image.manifest["layers"][1]["size"] = json!(9999),
        "no more than",
    )
    .await;
}

#[tokio::test]
async fn special_files_are_not_a_reason_to_refuse() {
    let (registry, place) = lab().await;
    let layer = Layer::gzip(raw_archive("var/fifo", tar::EntryType::Fifo));
    let row = place
        .pull(&registry.push_image("fifo:1", &TestImage::of(&[layer])))
        .await
        .unwrap();
    let fifo = std::fs::symlink_metadata(place.lower_dirs(&row)[0].join("var/fifo")).unwrap();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fifo.file_type()));
}

#[tokio::test]
async fn images_without_layers_and_with_repeated_ones() {
    let (registry, place) = lab().await;
    let empty = place
        .pull(&registry.push_image("empty:1", &TestImage::of(&[])))
        .await
        .unwrap();
    assert!(empty.layers.is_empty());
    let (a, b) = (Layer::file("a", "a"), Layer::file("b", "b"));
    let image = TestImage::of(&[a.clone(), b.clone(), a.clone()]);
    let row = place.pull(&registry.push_image("repeated:1", &image)).await.unwrap();
    assert_eq!(row.layers.len(), 3);
    assert_eq!(registry.requests(&format!("/v2/repeated/blobs/{}", a.digest())), 1);
    let dirs = place.lower_dirs(&row);
    assert_eq!(dirs.len(), 2, "overlayfs takes no directory twice");
    assert_eq!((read(&dirs[0], "a"), read(&dirs[1], "b")), ("a".into(), "b".into()));
}

#[tokio::test]
async fn what_an_opaque_root_hides_is_not_stacked() {
    let (registry, place) = lab().await;
    let layers = [
        Layer::file("old", ""),
        Layer::gzip(archive(&[(".wh..wh..opq", ""), ("new", "")])),
        Layer::file("top", ""),
    ];
    let row = place
        .pull(&registry.push_image("opaque:1", &TestImage::of(&layers)))
        .await
        .unwrap();
    let diff_ids: Vec<&String> = row.layers.iter().map(|l| &l.diff_id).collect();
    assert_eq!(diff_ids, [&layers[1].diff_id(), &layers[2].diff_id()]);
    assert_eq!(place.layers(), 2, "the hidden layer is not kept");
}

#[tokio::test]
async fn whoever_asks_at_once_shares_one_download() {
    let (registry, place) = lab().await;
    let base = Layer::file("base", &"x".repeat(100_000));
    let images: Vec<String> = [
        registry.push_image("app:1", &TestImage::of(&[base.clone(), Layer::file("a", "1")])),
        registry.push_image("app:2", &TestImage::of(&[base.clone(), Layer::file("a", "2")])),
    ]
    .into();
    let pulls = (0..20).map(|n| place.pull(&images[n % 2]));
    for result in futures_util::future::join_all(pulls).await {
        result.unwrap();
    }
    // The log may be written after the answer.
    wait_for_async("the access log", SOON, || {
        when(registry.requests("/v2/app/manifests/2"), |n| *n > 0)
    })
    .await;
    assert_eq!(registry.requests("/v2/app/manifests/1"), 1);
    assert_eq!(registry.requests("/v2/app/manifests/2"), 1);
    assert_eq!(
        registry.requests(&format!("/v2/app/blobs/{}", base.digest())),
        1,
        "two images share the layer"
    );
    assert_eq!(place.layers(), 3);

    // A pull asks the registry again, but nothing that is here is downloaded; `ensure` does not even ask.
    place.pull(&images[0]).await.unwrap();
    wait_for_async("the second pull", SOON, || {
        when(registry.requests("/v2/app/manifests/1"), |n| *n == 2)
    })
    .await;
    assert_eq!(registry.requests(&format!("/v2/app/blobs/{}", base.digest())), 1);
    let reference = ImageRef::parse(&images[0]).unwrap();
    place.images.ensure(&reference, &Platform::host()).await.unwrap();
    drop(registry);
    place.images.ensure(&reference, &Platform::host()).await.unwrap();
}

#[tokio::test]
async fn a_registry_without_the_image_or_without_life() {
    let (registry, place) = lab().await;
    let error = place.pull(&registry.name("nosuch:latest")).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::ManifestNotFound(_)), "{text}");
    assert!(
        text.starts_with("manifest fetch failed: 404: {\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\""),
        "{text}"
    );
    let reference = registry.push_image("app:1", &TestImage::of(&[Layer::file("a", "1")]));
    let row = place.pull(&reference).await.unwrap();
    drop(registry);
    let error = place.pull(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert_eq!(place.images.list(), [row], "what was there stays");
}

#[tokio::test]
async fn a_start_clears_what_an_end_left() {
    let (registry, place) = lab().await;
    let reference = registry.push_image("app:1", &TestImage::of(&[Layer::file("a", "1")]));
    let row = place.pull(&reference).await.unwrap();
    put(&place, container(&row, "c1")).await;
    let good = place.inventory();
    let root = place.root();
    std::fs::create_dir_all(root.join("staging/01half/dir")).unwrap();
    std::fs::write(root.join("staging/01half/dir/file"), "x").unwrap();
    std::fs::create_dir_all(root.join("l/00000000000/etc")).unwrap();
    std::fs::write(root.join(format!("blobs/sha256/{}", "0".repeat(64))), "x").unwrap();
    std::fs::create_dir_all(root.join("layers/library/old/rootfs")).unwrap();
    let again = service(&root, &place.store, &[]);
    again.recover().await.unwrap();
    assert_eq!(place.inventory(), good);
    assert!(
        root.join("layers/library/old/rootfs").exists(),
        "an earlier installation's bundles are not ours"
    );
}

/// A row as an earlier version wrote it gets what that version did not read from the configuration, once.
#[tokio::test]
async fn rows_of_earlier_versions_are_completed_once() {
    let (registry, place) = lab().await;
    let layers = [Layer::file("a", "1")];
    let mut config = TestImage::of(&layers).config;
    config["config"] = json!({
        "Cmd": ["sh"], "StopSignal": "SIGQUIT", "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}},
        "Labels": {"tier": "front"}, "Healthcheck": {"Test": ["CMD", "true"]},
    });
    let image = TestImage::with_config(&layers, config);
    registry.push_image("app:1", &image);
    let row = place.pull(&registry.name("app:1")).await.unwrap();
    assert!(
        row.config.volumes.contains("/data") && row.config.exposed_ports.contains("80/tcp"),
        "{row:?}"
    );
    assert_eq!(row.config.revision, ImageRunConfig::REVISION);
    let write = async |config: ImageRunConfig| {
        let row = Image {
            config,
            ..Image::clone(&row)
        };
        place
            .store
            .transact(move |t| {
                t.put(row).unwrap();
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        place.images.recover().await.unwrap();
        place.images.list().remove(0).config.clone()
    };
    let mut old = serde_json::to_value(&row.config).unwrap();
    for field in [
        "revision",
        "stop_signal",
        "health_check",
        "volumes",
        "exposed_ports",
        "labels",
    ] {
        old.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(write(serde_json::from_value(old.clone()).unwrap()).await, row.config);
    // A row of this version is not looked at again.
    let mut empty: ImageRunConfig = serde_json::from_value(old.clone()).unwrap();
    empty.revision = ImageRunConfig::REVISION;
    assert_eq!(write(empty.clone()).await, empty);
    // Without its document a row stays as it is, and counts as read.
    let blob = row.config_digest.strip_prefix("sha256:").unwrap();
    std::fs::remove_file(place.root().join("blobs/sha256").join(blob)).unwrap();
    assert_eq!(write(serde_json::from_value(old).unwrap()).await, empty);
}
