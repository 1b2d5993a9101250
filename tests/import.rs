//! The takeover of an installation of the original, as far as it needs no machine: interrupted, repeated, refused.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use condenser::image::{ImageService, ImageSettings, RegistrySettings};
use condenser::model::{Import, Network};
use condenser::observe::metrics::Activity;
use condenser::store::{Store, StoreError};
use condenser::workload::import::{ImportError, Places, take_over};
use sha2::{Digest, Sha256};

const STORES: [&str; 5] = ["csm", "ipam", "ilm", "npm", "bsm"];

/// An installation in a directory: recorded stores, one whole image, no processes.
struct Original(tempfile::TempDir);

impl Original {
    fn recorded() -> Self {
        let original = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(original.path("store")).unwrap();
        for store in STORES {
            let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/original");
            let content = std::fs::read_to_string(format!("{fixtures}/store-bottle-{store}.json")).unwrap();
            let content = content.replace("/etc/raind", original.0.path().to_str().unwrap());
            std::fs::write(original.path(&format!("store/{store}.json")), content).unwrap();
        }
        let bundle = original.path("image/layers/library/busybox/latest");
        std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
        std::fs::write(bundle.join("config.json"), "{}").unwrap();
        original
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn places(&self) -> Places {
        Places {
            stores: self.path("store"),
            containers: self.path("container"),
            cgroups: self.path("cgroup"),
        }
    }

    fn database(&self) -> PathBuf {
        self.path("store/condenser.db")
    }

    /// The daemon's part: a store, its images, the takeover.
    async fn import(&self) -> (Store, Result<(), ImportError>) {
        let store = open(&self.database());
        let images = ImageService::new(
            ImageSettings {
                root: self.path("image"),
                registry: RegistrySettings::default(),
                max_layer_bytes: 1 << 20,
                max_layer_entries: 100,
                max_layer_ratio: 0,
                layer_ratio_from: 0,
            },
            store.clone(),
            Activity::default(),
        )
        .unwrap();
        let outcome = take_over(&self.places(), &store, &images).await;
        images.recover().await.unwrap();
        (store, outcome)
    }

    /// Changes the database behind the back of a store that is closed.
    fn sql(&self, text: &str) {
        let connection = rusqlite::Connection::open(self.database()).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.execute_batch(text).unwrap();
    }

    fn links(&self) -> usize {
        let links = std::fs::read_dir(self.path("image/l")).unwrap();
        links
            .filter(|entry| entry.as_ref().unwrap().path().is_symlink())
            .count()
    }
}

/// A store that was dropped before is closed by its writer, a moment later.
fn open(path: &Path) -> Store {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(path) {
            Ok(store) => return store,
            Err(error) if Instant::now() > end => panic!("{error}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[tokio::test]
async fn what_is_cut_off_at_the_commit_begins_from_the_beginning() {
    let original = Original::recorded();
    drop(open(&original.database()));
    original.sql("CREATE TRIGGER full BEFORE INSERT ON imports BEGIN SELECT RAISE(ABORT, 'the disk is full'); END");
    let (store, outcome) = original.import().await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("the disk is full"), "{error}");
    assert!(store.snapshot().is_blank());
    assert_eq!(original.links(), 0, "what was adopted for it was swept");
    drop(store);
    original.sql("DROP TRIGGER full");

    let (store, outcome) = original.import().await;
    outcome.unwrap();
    let snapshot = store.snapshot();
    assert_eq!((snapshot.containers().len(), snapshot.bottles().len()), (5, 1));
    assert_eq!((snapshot.images().len(), original.links()), (1, 1));
    let record = snapshot.imports().get(Import::ID).unwrap();
    assert_eq!(record.sources.len(), STORES.len());
    for source in &record.sources {
        let content = std::fs::read(original.path("store").join(&source.name)).unwrap();
        assert_eq!(source.sha256, hex::encode(Sha256::digest(content)), "{}", source.name);
    }
    assert_eq!(record.runtime_subnet.unwrap().to_string(), "10.166.0.0/16");
    assert_eq!(record.dns_upstreams.len(), 2);
}

#[tokio::test]
async fn what_was_taken_over_is_never_read_again() {
    let original = Original::recorded();
    let (store, outcome) = original.import().await;
    outcome.unwrap();
    let first = store.snapshot();
    drop(store);
    std::fs::write(original.path("store/csm.json"), "broken").unwrap();
    let (store, outcome) = original.import().await;
    outcome.unwrap();
    let second = store.snapshot();
    assert_eq!(first.imports().get(Import::ID), second.imports().get(Import::ID));
    assert_eq!(second.containers().len(), 5);
}

#[tokio::test]
async fn a_database_of_ours_is_not_mixed_with_an_installation_that_comes_later() {
    let original = Original::recorded();
    let stores = original.path("store");
    let aside = original.path("aside");
    std::fs::rename(&stores, &aside).unwrap();
    let (store, outcome) = original.import().await;
    outcome.unwrap();
    assert!(store.snapshot().is_blank(), "there was nothing to take over");
    for store in STORES {
        std::fs::copy(
            aside.join(format!("{store}.json")),
            stores.join(format!("{store}.json")),
        )
        .unwrap();
    }
    let network = Network {
        name: "raind0".into(),
        subnet: "10.166.0.0/24".parse().unwrap(),
        gateway: [10, 166, 0, 254].into(),
        created_at: jiff::Timestamp::now(),
    };
    let put = store.transact(move |t| t.put(network).map_err(|e| StoreError::Commit(e.into())));
    put.await.unwrap();
    drop(store);
    let (store, outcome) = original.import().await;
    outcome.unwrap();
    assert!(
        store.snapshot().containers().is_empty(),
        "this daemon has served before"
    );
}

#[tokio::test]
async fn a_broken_file_leaves_no_obstacle() {
    let original = Original::recorded();
    let npm = original.path("store/npm.json");
    let whole = std::fs::read(&npm).unwrap();
    std::fs::write(&npm, &whole[..whole.len() / 2]).unwrap();
    let (store, outcome) = original.import().await;
    let error = outcome.unwrap_err().to_string();
    assert!(
        error.contains("npm.json: EOF while parsing") && error.contains(" at line "),
        "{error}"
    );
    assert!(store.snapshot().is_blank());
    drop(store);
    std::fs::write(&npm, &whole).unwrap();
    let (store, outcome) = original.import().await;
    outcome.unwrap();
    assert_eq!(store.snapshot().policies().len(), 5);
}
