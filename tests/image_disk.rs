//! Blobs in several ranges, layers in the formats of lazy pullers, and a store that is cleaned up while it is used.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use condenser::image::{ImageError, ImagePrune, ImageRef, Platform, still_present};
use condenser::model::{Container, Image};
use condenser::ops::prune::{LabelRule, PruneFilter};
use condenser::store::StoreError;
use rand::RngExt;
use serde_json::json;
use support::images::content::{Layer, TestImage, archive, gzip, zstd};
use support::images::peer::Peer;
use support::images::{Place, container};

/// Large enough for ranges; does not shrink.
fn large_layer() -> Layer {
    let mut state = 1_u64;
    let number = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes().map(|b| char::from(b' ' + b % 64))
    };
    let text: String = std::iter::repeat_with(number).take(3 << 20).flatten().collect();
    Layer::plain(archive(&[("large", &text)]))
}

/// A slow registry with a large layer; what is pulled from it must be right. Returns how many requests for the blob named a
/// range with an end, and how many there were.
async fn pulled_slowly(change: impl FnOnce(&mut support::images::peer::Behaviour)) -> (usize, usize) {
    let peer = Peer::start().await;
    let layer = large_layer();
    let reference = peer.offer("1", &TestImage::of(std::slice::from_ref(&layer)));
    peer.with(|b| {
        b.rate = Some(8 << 20);
        change(b);
    });
    let place = Place::new(&[&peer.address.to_string()]).await;
    let image = place.pull(&reference).await.unwrap();
    let found = std::fs::read(place.lower_dirs(&image)[0].join("large")).unwrap();
    assert!(
        layer.archive[512..].starts_with(&found),
        "another content of {} bytes",
        found.len()
    );
    assert_eq!(place.layers(), 1);
    let path = format!("/blobs/{}", layer.digest());
    let requests = peer.with(|b| b.requests.clone());
    let of_blob: Vec<_> = requests.iter().filter(|request| request.starts_with(&path)).collect();
    let is_range = |request: &&&String| {
        let range = request.split(' ').nth(1).unwrap_or_default();
        range.starts_with("bytes=") && !range.ends_with('-')
    };
    (of_blob.iter().filter(is_range).count(), of_blob.len())
}

#[tokio::test]
async fn a_slow_registry_is_asked_for_several_ranges() {
    let (ranges, all) = pulled_slowly(|_| {}).await;
    assert!(ranges >= 4 && all == ranges + 1, "{ranges} ranges in {all} requests");
}

#[tokio::test]
async fn a_registry_without_ranges_sends_one_stream() {
    assert_eq!(pulled_slowly(|b| b.no_ranges = true).await, (0, 1));
}

#[tokio::test]
async fn a_registry_that_sends_another_range_is_asked_for_the_rest() {
    let (ranges, all) = pulled_slowly(|b| b.shifted_ranges = Some(1)).await;
    // The one that is looked at first, and those that were under way.
    assert!(
        (1..=3).contains(&ranges) && all == ranges + 2,
        "{ranges} ranges in {all} requests"
    );
}

#[tokio::test]
async fn a_range_that_breaks_off_is_followed_by_one_stream() {
    let (ranges, all) = pulled_slowly(|b| b.cut_ranges = Some(1000)).await;
    assert!(
        (1..=3).contains(&ranges) && all == ranges + 2,
        "{ranges} ranges in {all} requests"
    );
}

#[tokio::test]
async fn a_blob_that_came_wrong_in_ranges_comes_again_in_one() {
    let (ranges, all) = pulled_slowly(|b| b.spoilt_ranges = true).await;
    assert!(ranges >= 4 && all == ranges + 2, "{ranges} ranges in {all} requests");
}

/// A skippable frame of zstd.
fn skippable(content: &[u8]) -> Vec<u8> {
    [
        &0x184D_2A50_u32.to_le_bytes()[..],
        &(content.len() as u32).to_le_bytes(),
        content,
    ]
    .concat()
}

/// An empty gzip member with an extra field, as eStargz ends with.
fn footer() -> Vec<u8> {
    let mut encoder = flate2::GzBuilder::new()
        .extra(*b"SG\x16\x00000000000000000cSTARGZ")
        .write(Vec::new(), flate2::Compression::none());
    encoder.flush().unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn layers_for_lazy_pullers_are_pulled_whole() {
    let plain = archive(&[("a", "first"), ("b", &"second".repeat(10_000)), ("c", "third")]);
    // Each file is a chunk of its own; the parts of the archive are 512-byte blocks.
    let (one, two) = (1024, 1024 + 512 + 60_000_usize.next_multiple_of(512));
    let chunks = [&plain[..one], &plain[one..two], &plain[two..]];
    let toc = br#"{"version":1,"entries":[]}"#;
    let chunked = [
        chunks.iter().flat_map(|chunk| zstd(chunk)).collect::<Vec<u8>>(),
        skippable(&zstd(toc)),
        skippable(&[7; 64]),
    ];
    let with_toc = archive(&[
        ("a", "first"),
        ("b", &"second".repeat(10_000)),
        ("c", "third"),
        ("stargz.index.json", "{}"),
    ]);
    let members = [
        [&with_toc[..one], &with_toc[one..two], &with_toc[two..]]
            .iter()
            .flat_map(|chunk| gzip(chunk))
            .collect::<Vec<u8>>(),
        footer(),
    ];
    let layers = [
        Layer {
            archive: plain,
            blob: chunked.concat(),
        },
        Layer {
            archive: with_toc,
            blob: members.concat(),
        },
    ];
    for layer in layers {
        let peer = Peer::start().await;
        let reference = peer.offer("1", &TestImage::of(std::slice::from_ref(&layer)));
        let place = Place::new(&[&peer.address.to_string()]).await;
        let image = place.pull(&reference).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(place.lower_dirs(&image)[0].join(name)).unwrap();
        assert_eq!((read("a"), read("c")), ("first".into(), "third".into()));
        assert_eq!(read("b"), "second".repeat(10_000));
    }
}

/// Inserts a container as a create does: only if the image is still the one that was pulled.
async fn create(place: &Place, image: Arc<Image>, id: &str) -> bool {
    let row = container(&image, id);
    let created = place.store.transact(move |t| {
        let is_there = still_present(t, &image);
        if is_there {
            t.put(row).unwrap();
        }
        Ok::<_, StoreError>(is_there)
    });
    created.await.unwrap()
}

async fn delete(place: &Place, id: &str) {
    let id = id.to_owned();
    let deleted = place.store.transact(move |t| {
        t.remove::<Container>(&id);
        Ok::<_, StoreError>(())
    });
    deleted.await.unwrap();
    place.images.sweep().await.unwrap();
}

fn everything() -> ImagePrune {
    ImagePrune {
        tagged: true,
        ..ImagePrune::default()
    }
}

#[tokio::test]
async fn a_prune_removes_what_nothing_uses() {
    let peer = Peer::start().await;
    let shared = Layer::file("shared", &"s".repeat(100_000));
    let offer = |tag: &str, label: &str| {
        let layers = [shared.clone(), Layer::file(tag, &tag.repeat(50_000))];
        let mut config = TestImage::of(&layers).config;
        config["config"]["Labels"] = json!({ "kind": label });
        peer.offer(tag, &TestImage::with_config(&layers, config))
    };
    let (used, old, keep) = (offer("used", "x"), offer("old", "x"), offer("keep", "y"));
    let place = Place::new(&[&peer.address.to_string()]).await;
    let image = place.pull(&used).await.unwrap();
    assert!(create(&place, image, "c1").await);
    place.pull(&old).await.unwrap();
    place.pull(&keep).await.unwrap();
    let space = place.images.space().await.unwrap();
    assert_eq!(space.images.len(), 3);
    let one = |name: &str| space.images.iter().find(|s| s.image.reference == name).unwrap();
    assert_eq!(
        (one("used").containers, one("used").is_used, one("old").is_used),
        (1, true, false)
    );
    assert!(one("old").shared_bytes >= 100_000 && one("old").bytes - one("old").shared_bytes >= 150_000);
    assert!(
        space.reclaimable_bytes >= 350_000 && space.bytes > space.reclaimable_bytes + 250_000,
        "{space:?}"
    );

    // Neither is without a tag.
    let pruned = place.images.prune(ImagePrune::default(), false).await.unwrap();
    assert_eq!((pruned.removed.len(), pruned.bytes_freed), (0, 0));
    let of_kind = ImagePrune {
        filter: PruneFilter {
            labels: vec![LabelRule::parse("kind=x").unwrap()],
            ..PruneFilter::default()
        },
        tagged: true,
    };
    let would = place.images.prune(of_kind.clone(), true).await.unwrap();
    assert_eq!(place.images.list().len(), 3, "a dry run removes nothing");
    let held = place.images.hold(&ImageRef::parse(&old).unwrap());
    assert_eq!(place.images.prune(of_kind.clone(), false).await.unwrap().removed, []);
    drop(held);
    let did = place.images.prune(of_kind, false).await.unwrap();
    assert_eq!(would, did);
    let names: Vec<_> = did.removed.iter().map(|object| &*object.name).collect();
    assert_eq!(names, [old.as_str()]);
    assert!((150_000..400_000).contains(&did.bytes_freed), "{did:?}");
    let did = place.images.prune(everything(), false).await.unwrap();
    assert_eq!(did.removed[0].name, keep);
    assert_eq!(
        (place.images.list().len(), place.layers()),
        (1, 2),
        "the used one and its layers stay"
    );
}

/// Pulls, creates, removals and prunes of images that share layers, all at once: no row ever lacks a layer, and nothing is
/// left that no row needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_is_cleaned_up_while_it_is_used_stays_whole() {
    const IMAGES: usize = 4;
    let peer = Peer::start().await;
    let shared: Vec<Layer> = (0..3)
        .map(|n| Layer::file(&format!("s{n}"), &format!("{n}").repeat(20_000)))
        .collect();
    let references: Vec<String> = (0..IMAGES)
        .map(|n| {
            let own = Layer::file(&format!("own{n}"), &format!("{n}").repeat(10_000));
            let layers = [shared[n % 3].clone(), shared[(n + 1) % 3].clone(), own];
            peer.offer(&format!("t{n}"), &TestImage::of(&layers))
        })
        .collect();
    let place = Arc::new(Place::new(&[&peer.address.to_string()]).await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for worker in 0..4 {
        let (place, references, stop) = (place.clone(), references.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let (mut created, mut rounds) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                let reference = ImageRef::parse(&references[rand::rng().random_range(0..IMAGES)]).unwrap();
                let image = place.images.ensure(&reference, &Platform::host()).await.unwrap();
                let id = format!("c{worker}");
                if create(&place, image.clone(), &id).await {
                    created += 1;
                    // The row protects the layers, whatever happens to the image.
                    let diff_ids: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
                    place.images.check_layers(&diff_ids).await.unwrap();
                    tokio::task::yield_now().await;
                    place.images.check_layers(&diff_ids).await.unwrap();
                    for directory in place.images.lower_dirs(&diff_ids) {
                        assert!(
                            directory.read_dir().unwrap().next().is_some(),
                            "{}",
                            directory.display()
                        );
                    }
                    delete(&place, &id).await;
                }
            }
            (created, rounds)
        }));
    }
    for worker in 0..2 {
        let (place, references, stop) = (place.clone(), references.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut removed = 0;
            while !stop.load(Ordering::Relaxed) {
                if worker == 0 {
                    removed += place.images.prune(everything(), false).await.unwrap().removed.len();
                    place.images.space().await.unwrap();
                } else {
                    let reference = &references[rand::rng().random_range(0..IMAGES)];
                    match place.images.remove(&ImageRef::parse(reference).unwrap()).await {
                        Ok(()) => removed += 1,
                        Err(ImageError::NotFound(_) | ImageError::InUse { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                tokio::task::yield_now().await;
            }
            (removed, removed)
        }));
    }
    // Long enough for some hundred rounds; what is awaited is that many creates and removals.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        let (done, rounds) = task.await.unwrap();
        assert!(done > 0, "nothing happened in {rounds} rounds");
    }
    for image in place.images.list() {
        let diff_ids: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        place.images.check_layers(&diff_ids).await.unwrap();
    }
    place.images.prune(everything(), false).await.unwrap();
    assert_eq!(place.inventory(), [""; 0]);
}
