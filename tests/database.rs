//! Databases of earlier versions (`tests/fixtures/databases`), opened by this one: every row is there and says the same.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

use std::path::{Path, PathBuf};

use condenser::model::*;
use condenser::store::{SCHEMA_VERSION, Store};

/// Containers that the program of version 5 was killed at the making of; the recorded ones are at rest.
const INTERRUPTED: &str = r#"
INSERT INTO containers SELECT 'build-01m85fwpkzkj', 'build-01m85fwpkzkj', namespace, json_set(json_remove(document,
    '$.options', '$.retries', '$.starting', '$.restarts', '$.health', '$.joined', '$.stopped_by_user'),
    '$.id', 'build-01m85fwpkzkj', '$.name', 'build-01m85fwpkzkj', '$.state', 'creating', '$.operation', 'create',
    '$.certificate_due', json('true'), '$.attachment', null, '$.forwards', json('[]')) FROM containers WHERE name = 'runs';
"#;

/// A database as an earlier program left it.
struct Earlier {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Earlier {
    fn new(version: u32, changes: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("condenser.db");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/databases");
        let dump = std::fs::read_to_string(fixtures.join(format!("v{version}.sql"))).unwrap();
        let database = rusqlite::Connection::open(&path).unwrap();
        database.execute_batch(&(dump + changes)).unwrap();
        Self {
            _directory: directory,
            path,
        }
    }

    fn open(&self) -> std::sync::Arc<Snapshot> {
        Store::open(&self.path).unwrap().snapshot()
    }
}

fn named<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Container {
    let named = snapshot.containers().iter().find(|c| c.name == name);
    named.unwrap_or_else(|| panic!("no container {name}"))
}

fn at(text: &str) -> Option<jiff::Timestamp> {
    Some(text.parse().unwrap())
}

#[test]
fn all_rows_of_version_5_are_there() {
    let earlier = Earlier::new(5, "");
    let snapshot = earlier.open();
    let counts = [
        snapshot.containers().len(),
        snapshot.pods().len(),
        snapshot.replicasets().len(),
        snapshot.services().len(),
        snapshot.policies().len(),
        snapshot.bottles().len(),
        snapshot.images().len(),
        snapshot.networks().len(),
    ];
    assert_eq!(counts, [13, 3, 1, 1, 2, 1, 1, 2]);
    let backup = rusqlite::Connection::open(earlier.path.with_extension("db.v5")).unwrap();
    let version: i64 = backup.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 5);
}

#[test]
fn containers_of_version_5_are_what_they_were() {
    let snapshot = Earlier::new(5, "").open();
    let runs = named(&snapshot, "runs");
    let (spec, status) = (&runs.spec, &runs.status);
    assert_eq!((&*runs.id, &runs.role), ("01m85fwpkzkj", &Role::Alone));
    assert_eq!(
        (&*spec.image.repository, &*spec.image.reference, spec.image.layers.len()),
        ("192.0.2.1:5000/library/busybox", "1", 1)
    );
    assert_eq!((&*spec.process.args[0], &*spec.process.env[1]), ("/bin/sh", "A=1"));
    assert_eq!((&*spec.mounts[0], spec.forwards[0].host_port), ("/mnt:/data:ro", 8080));
    let options = &spec.options;
    assert_eq!(
        (options.memory_bytes, options.restart, &*options.labels["team"]),
        (Some(64 << 20), RestartPolicy::Always, "red")
    );
    assert_eq!(options.health_check.as_ref().unwrap().interval, 1);
    assert_eq!(
        (status.state, status.health),
        (ContainerState::Running, Some(Health::Healthy))
    );
    assert_eq!(status.process.as_ref().unwrap().pid, 79);
    assert_eq!(status.attachment.as_ref().unwrap().address.to_string(), "10.166.0.1");
    assert_eq!(
        status.spiffe_id.as_deref(),
        Some("spiffe://raind/container/01m85fwpkzkj")
    );
    assert_eq!(status.creating_at, at("2026-12-01T10:25:06.920535876Z"));
    assert_eq!(status.created_at, at("2026-12-01T10:25:06.971903136Z"));
    assert_eq!(status.started_at, at("2026-12-01T10:25:07.006466704Z"));
    assert_eq!(runs.journal, Journal::default());

    let failed = named(&snapshot, "failed");
    assert_eq!(failed.status.state, ContainerState::Stopped);
    assert_eq!(failed.status.exit.as_ref().unwrap().code, 3);
    assert!(failed.status.stopped_at.is_some() && !failed.journal.stopped_by_user);
    let waits = named(&snapshot, "waits");
    assert_eq!((waits.status.state, waits.spec.tty), (ContainerState::Created, true));
    assert!(named(&snapshot, "ended").journal.stopped_by_user);
}

#[test]
fn members_of_version_5_are_in_their_pods_and_bottles() {
    let snapshot = Earlier::new(5, "").open();
    for (pod, status) in pod_statuses(&snapshot) {
        let infra = status.infra.unwrap();
        let role = Role::Infra { pod: pod.id.clone() };
        assert_eq!((&infra.role, status.state), (&role, PodState::Running));
        assert_eq!(status.members.len(), pod.template.spec.containers.len());
        for member in &status.members {
            assert_eq!(member.role, Role::Member { pod: pod.id.clone() });
            assert_eq!(member.journal.joined, infra.status.process);
        }
    }
    let bottle = snapshot.bottles().iter().next().unwrap();
    let services = snapshot.containers().iter().filter(|c| c.role.bottle().is_some());
    let services: Vec<_> = services.map(|c| (c.role.bottle().unwrap(), &*c.name)).collect();
    assert_eq!(services.len(), 2);
    assert!(
        services
            .iter()
            .all(|(id, name)| *id == bottle.id && name.starts_with("till-"))
    );
}

#[test]
fn what_version_5_asked_containers_to_be_is_asked_still() {
    let snapshot = Earlier::new(5, "").open();
    let image = "192.0.2.1:5000/library/busybox:1";
    let shop = snapshot.pods().iter().find(|pod| pod.name == "shop").unwrap();
    let [web, side] = &shop.template.spec.containers[..] else {
        panic!("{shop:?}")
    };
    assert_eq!((&*web.name, &*side.name), ("web", "side"));
    let request = ContainerRequest {
        image: image.to_owned(),
        command: web.request.command.clone(),
        env: vec!["B=2".to_owned()],
        ports: vec!["8081:80".to_owned()],
        ..ContainerRequest::default()
    };
    assert_eq!(web.request, request);
    assert_eq!((&*request.command[0], request.command.len()), ("/bin/sh", 3));

    let blog = snapshot.replicasets().iter().next().unwrap();
    let [app] = &blog.template.spec.containers[..] else {
        panic!("{blog:?}")
    };
    assert_eq!((&*app.name, &*app.request.image), ("app", image));
    assert_eq!(
        (&*app.volume_mounts[0].volume, &*app.volume_mounts[0].path),
        ("own", "/own")
    );
    let ready = app.readiness().unwrap();
    assert_eq!(
        (&ready.probe, ready.retries),
        (&Probe::Exec(vec!["true".to_owned()]), 3)
    );
    let own = |pod: &&std::sync::Arc<Pod>| pod.owner.as_ref() == Some(&blog.id);
    let pods: Vec<_> = snapshot.pods().iter().filter(own).collect();
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|pod| pod.template == blog.template));

    let till = snapshot.bottles().iter().next().unwrap();
    let (app, db) = (&till.services["app"], &till.services["db"]);
    let request = ContainerRequest {
        image: image.to_owned(),
        command: request.command,
        env: vec!["C=3".to_owned()],
        mounts: vec!["data:/data".to_owned()],
        ..ContainerRequest::default()
    };
    assert_eq!(db.request, request);
    assert_eq!((&*app.request.image, &*app.depends_on[0].service), (image, "db"));
}

#[test]
fn what_version_5_was_in_the_middle_of_is_known() {
    let snapshot = Earlier::new(5, INTERRUPTED).open();
    let build = snapshot.containers().get("build-01m85fwpkzkj").unwrap();
    assert!(build.is_build());
    assert_eq!(
        (build.status.state, &build.status.health),
        (ContainerState::Creating, &None)
    );
    assert_eq!(build.spec.options, ContainerOptions::default());
    assert_eq!(
        build.journal,
        Journal {
            operation: Some(Operation::Create),
            certificate_due: true,
            ..Journal::default()
        }
    );
}

#[test]
fn a_database_is_migrated_once() {
    let earlier = Earlier::new(5, "");
    let first = earlier.open();
    let version = || {
        let database = rusqlite::Connection::open(&earlier.path).unwrap();
        // The thread that writes lets go of it shortly after the store is gone.
        database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        database
            .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(version(), SCHEMA_VERSION);
    let again = earlier.open();
    let rows = |snapshot: &Snapshot| snapshot.containers().iter().cloned().collect::<Vec<_>>();
    assert_eq!(rows(&first), rows(&again));
}
