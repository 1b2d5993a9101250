//! Imports the recorded stores of the original (`tests/fixtures/original`).

use std::collections::BTreeMap;
use std::path::Path;

use super::files::Files;
use super::machine::{Bundle, Looks, Seen};
use super::*;
use crate::model::{
    ContainerState, NsMode, PodGoal, PolicyChain, PolicyStage, ProcessId, Protocol, RestartPolicy, Role, Snapshot,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/original");

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(FIXTURES).join(name)).unwrap()
}

/// The recorded stores of a step, with some files replaced.
fn files(step: &str, more: &[(&str, &str)]) -> Files {
    let mut contents = BTreeMap::new();
    for store in ["csm", "psm", "ssm", "bsm", "ilm", "ipam", "npm"] {
        if let Ok(content) = std::fs::read(Path::new(FIXTURES).join(format!("store-{step}-{store}.json"))) {
            contents.insert(format!("{store}.json"), content);
        }
    }
    for (name, content) in more {
        contents.insert((*name).to_owned(), content.as_bytes().to_vec());
    }
    Files {
        directory: "/etc/raind/store".into(),
        contents,
    }
}

fn parse(files: &Files) -> (Old, Vec<String>) {
    let mut warnings = Vec::new();
    let old = Old::parse(files, &mut warnings).unwrap();
    (old, warnings)
}

/// A machine on which all of these run, the pod's in one network namespace.
fn all_live(old: &Old) -> Seen {
    let looks = |(id, pid): (&String, i32)| {
        let process = (pid > 0).then(|| ProcessId {
            pid,
            start_time: 1,
            boot_id: "b".into(),
        });
        let looks = Looks {
            directory: true,
            process,
            network: Some((4, 1)),
            bundle: Some(serde_json::from_slice(&fixture("config.json")).unwrap()),
        };
        (id.clone(), looks)
    };
    old.containers.pids().map(looks).collect()
}

fn image(id: &str) -> Image {
    let (repository, reference) = id.rsplit_once(':').unwrap();
    let documents = serde_json::json!({
        "id": id, "repository": repository, "reference": reference, "manifest_digest": "m", "config_digest": "c",
        "size_bytes": 1, "layers": [{ "diff_id": format!("layer of {id}"), "digest": "d", "size": 1 }],
        "config": { "env": ["I=1"], "entrypoint": ["/e"], "cmd": ["c"], "working_dir": "/w", "user": "" },
        "os": "linux", "architecture": "amd64", "created_at": "2026-01-01T00:00:00Z"
    });
    serde_json::from_value(documents).unwrap()
}

fn images() -> Vec<Image> {
    ["library/busybox:latest", "registry.k8s.io/pause:3.9"]
        .map(image)
        .into()
}

/// The rows after the transaction, and all warnings.
fn stored(old: &Old, seen: &Seen) -> (Snapshot, Vec<String>) {
    let mut warnings = Vec::new();
    let now = Timestamp::now();
    let rows = old.rows(seen, images(), now, &mut warnings);
    let record = Import {
        id: Import::ID.into(),
        at: now,
        sources: Vec::new(),
        warnings,
        runtime_subnet: None,
        dns_upstreams: Vec::new(),
    };
    let (snapshot, record) = Snapshot::default().preview(|t| commit::write(t, rows, record)).unwrap();
    (snapshot, record.warnings)
}

#[test]
fn every_recorded_store_is_understood_whole() {
    let mut steps = 0;
    for entry in std::fs::read_dir(FIXTURES).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(step) = name.strip_prefix("store-").and_then(|n| n.strip_suffix("-csm.json")) else {
            continue;
        };
        steps += 1;
        let (old, warnings) = parse(&files(step, &[]));
        assert_eq!(warnings, [""; 0], "{step}");
        let (snapshot, warnings) = stored(&old, &all_live(&old));
        assert!(!snapshot.is_blank());
        // Some were recorded with policies that the original accepts but for which no rule is possible.
        let told: Vec<_> = warnings
            .iter()
            .filter(|w| !w.contains("no rule can be made of it"))
            .collect();
        assert!(told.is_empty(), "{step}: {told:?}");
    }
    assert!(steps > 10);
}

#[test]
fn containers_with_their_place_ports_environment_and_mounts() {
    let (old, _) = parse(&files("bottle", &[]));
    let (snapshot, _) = stored(&old, &all_live(&old));
    assert_eq!(snapshot.containers().len(), 5);
    let web = snapshot.containers().get("01m85d6ag2dj").unwrap();
    assert_eq!((&*web.name, web.status.state), ("web", ContainerState::Running));
    assert_eq!(web.status.process.as_ref().unwrap().pid, 635);
    assert_eq!(
        web.status.attachment.as_ref().unwrap().address.to_string(),
        "10.166.0.2"
    );
    let forwards: Vec<_> = web
        .spec
        .forwards
        .iter()
        .map(|f| (f.host_port, f.container_port, f.protocol))
        .collect();
    assert_eq!(forwards, [(8080, 80, Protocol::Tcp), (5353, 53, Protocol::Udp)]);
    assert_eq!(web.spec.image.layers, ["layer of library/busybox:latest"]);
    assert_eq!(web.spec.mounts, ["/srv/data:/data"]);
    assert!(
        web.spec.process.env.contains(&"SP=a b".to_owned())
            && web.spec.process.args[0] == "/bin/sh"
            && web.spec.process.cwd == "/"
    );
    assert_eq!(
        web.status.started_at.unwrap().to_string(),
        "2026-11-23T23:53:02.829994567Z"
    );
    assert_eq!((web.status.stopped_at, &web.status.exit), (None, &None));
    assert_eq!(
        web.status.spiffe_id.as_deref(),
        Some("spiffe://raind/container/01m85d6ag2dj")
    );
    let db = snapshot.containers().get("01m85d7qahjs").unwrap();
    assert_eq!(
        (db.status.state, db.role.bottle()),
        (ContainerState::Created, Some("01m85d7q16m2"))
    );
    let bottle = snapshot.bottles().get("01m85d7q16m2").unwrap();
    assert_eq!(bottle.start_order, ["db", "app"]);
    assert_eq!(bottle.services["app"].depends_on[0].service, "db");
    assert_eq!(bottle.network.as_deref(), Some("raind01m85d7q16"));
    let owned: Vec<_> = snapshot
        .policies()
        .iter()
        .filter(|p| p.owner.is_some())
        .map(|p| &*p.destination)
        .collect();
    assert_eq!(owned, ["shop-db", "203.0.113.5"]);
    let networks: Vec<_> = snapshot.networks().iter().map(|n| (n.created_at, &*n.name)).collect();
    assert!(
        networks.iter().min().unwrap().1 == "raind0",
        "in the order of the pools"
    );
}

#[test]
fn what_does_not_live_is_stopped_and_what_is_missing_is_told() {
    let csm = r#"{"version":"0.1.0","containers":{
        "01m85d000001":{"name":"gone","state":"running","pid":9,"imageRepository":"library/busybox","imageReference":"latest"},
        "01m85d000002":{"name":"half","state":"creating","imageRepository":"library/busybox","imageReference":"latest"},
        "01m85d000003":{"name":"done","state":"stopped","exit_code":3,"imageRepository":"library/busybox",
            "imageReference":"latest","stoppedAt":"2026-01-01T00:00:00Z"},
        "01m85d000004":{"name":"lost","state":"stopped","imageRepository":"library/none","imageReference":"1","command":["x"],
            "bottleId":"nowhere"},
        "build-01m85d000005":{"name":"b","state":"running"},
        "../evil":{"name":"e","state":"running"}}}"#;
    let (old, _) = parse(&files("none", &[("csm.json", csm)]));
    let mut seen: Seen = ["01m85d000001", "01m85d000002", "01m85d000003"]
        .map(|id| {
            let looks = Looks {
                directory: true,
                bundle: Some(Bundle::default()),
                ..Looks::default()
            };
            (id.to_owned(), looks)
        })
        .into();
    seen.get_mut("01m85d000001").unwrap().bundle = None;
    let (snapshot, warnings) = stored(&old, &seen);
    assert_eq!(snapshot.containers().len(), 4);
    let row = |n: u8| snapshot.containers().get(&format!("01m85d00000{n}")).unwrap();
    let exit = |n: u8| row(n).status.exit.clone().unwrap();
    for n in 1..=4 {
        assert_eq!(
            (row(n).status.state, &row(n).status.process),
            (ContainerState::Stopped, &None),
            "{n}"
        );
    }
    assert_eq!((exit(1).code, &*exit(1).message), (-1, "process down detected."));
    assert_eq!(
        (&row(1).spec.process.args[..], &*row(1).spec.process.cwd),
        (&["/e".to_owned(), "c".to_owned()][..], "/w")
    );
    assert!(exit(2).message.contains("not finished"));
    assert_eq!((exit(3).code, &*exit(3).reason), (3, "Error"));
    assert_eq!(row(3).status.stopped_at.unwrap().to_string(), "2026-01-01T00:00:00Z");
    assert!(exit(4).message.contains("directory of the container is missing"));
    assert_eq!(
        (
            &row(4).role,
            row(4).spec.image.layers.len(),
            &*row(4).spec.process.args[0]
        ),
        (&Role::Alone, 0, "x")
    );
    for word in [
        "build-01m85d000005",
        "../evil",
        "image library/none:1",
        "bottle nowhere",
        "container gone: was running",
    ] {
        assert!(warnings.iter().any(|w| w.contains(word)), "{word}: {warnings:?}");
    }
}

#[test]
fn pods_keep_running_in_their_namespaces() {
    let (old, _) = parse(&files("replicaset", &[]));
    let mut seen = all_live(&old);
    let (snapshot, _) = stored(&old, &seen);
    assert_eq!((snapshot.pods().len(), snapshot.replicasets().len()), (3, 1));
    let set = snapshot.replicasets().get("01m85d91nqe7mf6jk9g1wsb7v6").unwrap();
    assert_eq!((&*set.name, set.replicas, &*set.selector["app"]), ("rs1", 2, "rs"));
    let replicas: Vec<_> = snapshot
        .pods()
        .iter()
        .filter(|p| p.owner.as_deref() == Some(&set.id))
        .collect();
    assert_eq!(replicas.len(), 2);
    assert!(
        replicas
            .iter()
            .all(|p| p.template == set.template && p.goal == PodGoal::Running)
    );
    let pod = snapshot.pods().get("01m85d8xepmcxra2ag7x24g2s4").unwrap();
    let entry = &pod.template.spec.containers[0];
    assert_eq!(
        (
            &entry.request.ports[0][..],
            &entry.request.mounts[0][..],
            &entry.request.env[0][..]
        ),
        ("8077:80", "/srv/data:/d", "A=1")
    );
    let members = || snapshot.containers().iter().filter(|c| c.is_member());
    assert_eq!(members().count(), 3);
    for member in members() {
        let of_pod = |c: &&std::sync::Arc<Container>| c.is_infra() && c.role.pod() == member.role.pod();
        let infra = snapshot.containers().iter().find(of_pod).unwrap();
        assert_eq!(member.journal.joined, infra.status.process);
        assert_eq!(
            (member.spec.options.restart, infra.spec.options.restart),
            (RestartPolicy::Always, RestartPolicy::No)
        );
        let status = crate::model::pod_status(&snapshot, snapshot.pods().get(member.role.pod().unwrap()).unwrap());
        assert!(status.ready, "{status:?}");
    }
    // A member in another namespace must be created again.
    let stray = members().next().unwrap().id.clone();
    seen.get_mut(&stray).unwrap().network = Some((4, 2));
    assert_eq!(
        stored(&old, &seen).0.containers().get(&stray).unwrap().journal.joined,
        None
    );
}

#[test]
fn what_a_pod_is_meant_to_be() {
    let psm = r#"{"version":"0.2.0","pods":{
        "a":{"name":"a","state":"stopped","templateId":"t","stoppedByUser":true},
        "b":{"name":"b","state":"stopped","templateId":"t"},
        "c":{"name":"c","state":"degraded","templateId":"t"},
        "d":{"name":"d","state":"created","templateId":"t"},
        "e":{"name":"e","state":"running"},
        "f12345678":{"name":"a","state":"running","templateId":"t"}},
        "podTemplates":{"t":{"spec":{"containers":[{"name":"c","image":"i"}]}},"unused":{}},
        "replicaSets":{"r":{"spec":{"name":"r","templateId":"nowhere"}},
            "n":{"spec":{"name":"n","templateId":"t","replicas":-1}}}}"#;
    let (old, _) = parse(&files("none", &[("psm.json", psm)]));
    let (snapshot, warnings) = stored(&old, &Seen::new());
    let goal = |id: &str| snapshot.pods().get(id).unwrap().goal;
    let goals = ["a", "b", "c", "d", "e"].map(goal);
    use PodGoal::{Created, Running, Stopped};
    assert_eq!(goals, [Stopped, Running, Running, Created, Created]);
    assert_eq!(snapshot.pods().get("f12345678").unwrap().name, "a-12345678");
    assert!(snapshot.replicasets().get("r").is_none());
    assert_eq!(snapshot.replicasets().get("n").unwrap().replicas, 0, "D-78");
    for word in [
        "pod e has no template",
        "replica set r",
        "replica set n: -1",
        "it is now called a-12345678",
    ] {
        assert!(warnings.iter().any(|w| w.contains(word)), "{word}: {warnings:?}");
    }
}

#[test]
fn policies_are_staged_as_they_were() {
    let (old, _) = parse(&files("mixed-policies", &[]));
    let (snapshot, _) = stored(&old, &all_live(&old));
    let stages = |chain: PolicyChain| -> Vec<_> {
        snapshot
            .policies()
            .iter()
            .filter(|p| p.chain == chain)
            .map(|p| p.stage)
            .collect()
    };
    use PolicyStage::{Added, Committed, Removed};
    assert_eq!(stages(PolicyChain::RaindEw), [Committed, Committed, Committed]);
    assert_eq!(stages(PolicyChain::RaindNsObs)[0], Committed);
    let npm = |mode: &str, list: &str| {
        format!(
            r#"{{"version":"v1","defaults":{{"east_west":{{"mode":"deny_by_default","logging":false}},"north_south":{{"mode":"{mode}"}}}},"policies":{{"east_west":[{list}]}}}}"#
        )
    };
    let policy = |n: u8, status: &str| {
        format!(
            r#"{{"id":"01m85d7b3jwrme4n5rva5tfya{n}","status":"{status}","source":{{"container_name":"a"}},"destination":{{"container_name":"b"}}}}"#
        )
    };
    let list =
        |entries: &[(u8, &str)]| -> String { entries.iter().map(|(n, s)| policy(*n, s)).collect::<Vec<_>>().join(",") };
    let staged = npm(
        "enforce_next_commit",
        &list(&[
            (1, "applied"),
            (2, "remove_next_commit"),
            (3, "before_commit"),
            (4, "remove_next_commit"),
        ]),
    );
    let running = npm("observe", &list(&[(1, "applied"), (2, "unresolved"), (5, "applied")]));
    let rows = |more: &[(&str, &str)]| {
        let (old, _) = parse(&files("none", more));
        let (snapshot, _) = stored(&old, &Seen::new());
        let stages: Vec<_> = snapshot
            .policies()
            .iter()
            .map(|p| (p.id.as_bytes()[25] - b'0', p.stage))
            .collect();
        (stages, crate::model::policies::settings(&snapshot))
    };
    let (stages, settings) = rows(&[("npm.json", &staged), ("npm.json.running", &running)]);
    assert_eq!(stages, [(1, Committed), (2, Removed), (3, Added), (5, Removed)]);
    assert_eq!(
        (settings.ns_mode, settings.ns_pending),
        (NsMode::Observe, Some(NsMode::Enforce))
    );
    assert!(!settings.ew_logging && settings.ns_logging);
    // Without the committed state; and after an interrupted revert.
    let (stages, settings) = rows(&[("npm.json.org", &staged)]);
    assert_eq!(stages, [(1, Committed), (2, Removed), (3, Added), (4, Removed)]);
    assert_eq!(
        (settings.ns_mode, settings.ns_pending),
        (NsMode::Observe, Some(NsMode::Enforce))
    );
    let (_, settings) = rows(&[("npm.json", &npm("observe_next_commit", ""))]);
    assert_eq!(
        (settings.ns_mode, settings.ns_pending),
        (NsMode::Enforce, Some(NsMode::Observe))
    );
    let (_, settings) = rows(&[("npm.json", &npm("whatever", ""))]);
    assert_eq!(settings.ns_mode, NsMode::Enforce, "what is not understood denies");
}

#[test]
fn a_policy_that_could_not_have_a_rule_is_left_out() {
    let policy = |what: &str| format!(r#"{{"id":"01m85d7b3jwrme4n5rva5tfya1","status":"applied",{what}}}"#);
    for (list, what) in [
        (
            "north_south_observe",
            r#""source":{"container_name":"a"},"destination":{"address":"example.com"}"#,
        ),
        (
            "north_south_enforce",
            r#""source":{"container_name":"a"},"destination":{"address":"::1"}"#,
        ),
        (
            "east_west",
            r#""source":{"container_name":"a"},"destination":{"container_name":"10.0.0.1"}"#,
        ),
        (
            "east_west",
            r#""source":{"container_name":""},"destination":{"container_name":"b"}"#,
        ),
        (
            "east_west",
            r#""source":{"container_name":"a"},"destination":{"container_name":"b"},"protocol":"sctp""#,
        ),
        (
            "east_west",
            r#""source":{"container_name":"a"},"destination":{"container_name":"b"},"dport":80"#,
        ),
        (
            "east_west",
            r#""source":{"container_name":"a"},"destination":{"container_name":"b"},"protocol":"tcp","dport":70000"#,
        ),
    ] {
        let npm = format!(r#"{{"version":"v1","policies":{{"{list}":[{}]}}}}"#, policy(what));
        let (old, _) = parse(&files("none", &[("npm.json", &npm)]));
        let (snapshot, warnings) = stored(&old, &Seen::new());
        assert!(snapshot.policies().is_empty(), "{what}");
        assert!(warnings[0].contains("is left out"), "{warnings:?}");
    }
}

#[test]
fn a_bottle_whose_id_is_the_name_of_another_is_left_out() {
    let bsm = r#"{"version":"0.1.0","bottles":{
        "01m85d7q16m1":{"bottleName":"01m85d7q16m2"},"01m85d7q16m2":{"bottleName":"web"}}}"#;
    let (old, _) = parse(&files("none", &[("bsm.json", bsm)]));
    let (snapshot, warnings) = stored(&old, &Seen::new());
    let names: Vec<_> = snapshot.bottles().iter().map(|b| &*b.name).collect();
    assert_eq!(names, ["01m85d7q16m2"]);
    assert!(
        warnings.iter().any(|w| w.contains("bottle web is left out")),
        "{warnings:?}"
    );
}

#[test]
fn of_two_that_fight_the_first_wins_and_both_stay() {
    let csm = r#"{"version":"0.1.0","containers":{
        "01m85d000001":{"name":"web","state":"stopped"},
        "01m85d000002":{"name":"web","state":"stopped"},
        "01m85d000003":{"name":"01m85d000001","state":"stopped"}}}"#;
    let ipam = r#"{"version":"0.1.0","pools":[
        {"interface":"raind0","subnet":"10.166.0.0/24","address":"10.166.0.254/24","allocations":{
            "10.166.0.1":{"containerId":"01m85d000001","forwards":[{"source":80,"destination":1,"protocol":"TCP"}]},
            "10.166.0.2":{"containerId":"01m85d000002","forwards":[{"source":80,"destination":2,"protocol":"tcp"},
                {"source":81,"destination":2,"protocol":"sctp"},{"source":82,"destination":2,"protocol":""}]},
            "10.166.0.3":{"containerId":"nobody","forwards":null}}},
        {"interface":"wide","subnet":"10.166.0.0/16","address":"10.166.9.254/16"},
        {"interface":"same","subnet":"10.166.0.0/24","address":"10.166.0.253/24"}]}"#;
    let ssm = r#"{"version":"0.1.0","services":{
        "01m85d7wyn06fkqmg2wyvat6vs":{"name":"s","ports":[{"port":80,"targetPort":8,"protocol":"TCP"},{"port":90,"targetPort":9}]},
        "01m85d7wyn06fkqmg2wyvat6vt":{"name":"s","namespace":"default","ports":[{"port":90,"targetPort":9}]}}}"#;
    let bsm = r#"{"version":"0.1.0","bottles":{"01m85d7q16m2":{"bottleName":"web","startOrder":["x"],
        "services":{"":{}, "db":{}},"containers":{"db":"gone"}}}}"#;
    let more = [
        ("csm.json", csm),
        ("ipam.json", ipam),
        ("ssm.json", ssm),
        ("bsm.json", bsm),
    ];
    let (old, _) = parse(&files("none", &more));
    let (snapshot, warnings) = stored(&old, &Seen::new());
    let names: Vec<_> = snapshot.containers().iter().map(|c| &*c.name).collect();
    assert_eq!(names, ["web", "web-01m85d000002", "01m85d000001-01m85d000003"]);
    let ports: Vec<Vec<_>> = snapshot
        .containers()
        .iter()
        .map(|c| c.spec.forwards.iter().map(|f| f.host_port).collect())
        .collect();
    assert_eq!(ports, [vec![80], vec![82], vec![]]);
    let services: Vec<_> = snapshot.services().iter().map(|s| (&*s.name, s.ports.len())).collect();
    assert_eq!(services, [("s", 1), ("s-wyvat6vt", 0)]);
    assert_eq!(
        snapshot.networks().iter().map(|n| &*n.name).collect::<Vec<_>>(),
        ["raind0", "wide"]
    );
    let bottle = snapshot.bottles().get("01m85d7q16m2").unwrap();
    assert_eq!(
        crate::workload::bottle::status(&snapshot, bottle),
        "abnormal",
        "its container is gone"
    );
    assert_eq!(bottle.start_order, ["", "db"]);
    for word in [
        "address 10.166.0.3: its container nobody",
        "networks raind0 and wide overlap",
        "network same is left out",
        "it does not publish port 80/tcp",
        "port 81: unknown protocol",
        "is another container's id",
        "it is left without port 80/tcp",
        "the container of db is gone",
    ] {
        assert!(warnings.iter().any(|w| w.contains(word)), "{word}: {warnings:#?}");
    }
}
