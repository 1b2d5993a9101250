//! Many at once, and what one costs.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::json;

use crate::lab_with_busybox;
use crate::support::{Forks, get};

#[test]
fn twenty_creates_eight_at_a_time_all_succeed() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let waiting = Mutex::new(0..20);
    let ids = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(number) = { waiting.lock().unwrap().next() } {
                    let port = format!("{}:80", 9000 + number);
                    let id = api.create(json!({ "image": image, "name": format!("c{number}"), "port": [port] }));
                    ids.lock().unwrap().insert(id);
                }
            });
        }
    });
    let ids = ids.into_inner().unwrap();
    assert_eq!(ids.len(), 20);
    let rows = api.ok(get("/v1/containers"));
    let addresses: BTreeSet<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["address"].as_str().unwrap())
        .collect();
    assert_eq!(addresses.len(), 20, "{rows}");
    assert!(
        rows.as_array().unwrap().iter().all(|row| row["state"] == "created"),
        "{rows}"
    );
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(|| api.delete(id));
        }
    });
    lab.assert_unchanged(&before);
}

#[test]
fn of_many_who_want_one_name_or_port_one_gets_it() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    for request in [
        json!({ "image": image, "name": "only" }),
        json!({ "image": image, "port": ["8080:80"] }),
    ] {
        let statuses = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let reply = api.call(crate::support::post("/v1/containers", request.clone()));
                    statuses.lock().unwrap().push(reply.status);
                });
            }
        });
        let mut statuses = statuses.into_inner().unwrap();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
        let row = api.ok(get("/v1/containers"))[0]["containerId"]
            .as_str()
            .unwrap()
            .to_owned();
        api.delete(&row);
        lab.assert_unchanged(&before);
    }
}

#[test]
fn a_create_starts_at_most_eight_processes() {
    let (lab, image) = lab_with_busybox();
    // The first one may do more.
    lab.api().create(json!({ "image": image, "port": ["8080:80"] }));
    let Some(forks) = Forks::below(lab.daemon().pid()) else {
        eprintln!("this kernel has no process events (CONFIG_PROC_EVENTS); the bench's number is not checked here");
        return;
    };
    lab.api().create(json!({ "image": image, "port": ["8081:80"] }));
    let commands = forks.end();
    assert!(commands.len() <= 8, "{commands:#?}");
}
